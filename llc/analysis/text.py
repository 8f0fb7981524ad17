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


def one_line(text: str) -> str:
    r"""The text as `printable` makes it, with line breaks and tabs as escapes too: a name, in a message.

    Example:
        >>> one_line("a\nb")
        'a\\nb'
    """
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _acts(char: str) -> bool:
    """Whether it is a control (Cc), a formatting character (Cf), half of a surrogate pair, or a break of lines."""
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
