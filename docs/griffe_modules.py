"""A Griffe extension: fields of an `equinox.Module` as parameters of its constructor, and w* with its star in texts."""

import re

import griffe

_STAR = re.compile(r"(`[^`]*`|\$[^$]*\$)|(?<=\bw)\*(?!\*)")  # code and formulas stay; the other stars would be emphasis
_OTHERS = ("NamedTuple", "Exception", "ValueError", "Protocol")


class ModuleFields(griffe.Extension):
    """Gives `eqx.Module` classes without `__init__` the one that equinox makes."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Escapes the star of w*, of which two in one paragraph would set what is between them in italics."""
        if obj.docstring is not None:
            obj.docstring.value = _STAR.sub(lambda found: found[1] or r"\*", obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: object) -> None:
        """Adds `__init__` to a class that has fields, as soon as its members are known."""
        named = {str(base).rpartition(".")[2] for base in cls.bases}
        if not named or named & set(_OTHERS) or cls.decorators or "__init__" in cls.members:
            return
        fields = [
            griffe.Parameter(
                name,
                annotation=member.annotation,
                default=member.value,
                kind=griffe.ParameterKind.positional_or_keyword,
            )
            for name, member in cls.members.items()
            if isinstance(member, griffe.Attribute) and _is_field(member)
        ]
        own = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
        cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(own, *fields), parent=cls))


def _is_field(member: griffe.Attribute) -> bool:
    """Whether an annotated name of a class body is a field: no class variable, no abstract one."""
    annotation = str(member.annotation)
    return member.annotation is not None and not any(word in annotation for word in ("ClassVar", "AbstractVar"))
