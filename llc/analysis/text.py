"""Text from files of others, made harmless before it reaches a terminal, a page or a figure."""

import json
import unicodedata

_KEPT = "\n\t"


def printable(text: str) -> str:
    r"""The text with control and formatting characters as JSON's escapes: no terminal acts on them.

    Example:
        >>> print(printable("a\x1b[2Jb"))
        a\u001b[2Jb
    """
    if text.isprintable():
        return text
    return "".join(char if char in _KEPT or not _acts(char) else json.dumps(char)[1:-1] for char in text)


def _acts(char: str) -> bool:
    """Whether it is a control (Cc), a formatting character (Cf), half of a surrogate pair, or a break of lines."""
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
