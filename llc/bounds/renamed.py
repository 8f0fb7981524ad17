"""Names of fields and methods that have changed, which still answer for one release."""

import warnings
from typing import Any


def renamed(old: str, new: str) -> property:
    """A property that warns of its old name and returns what the new one has."""

    def get(self: Any) -> Any:
        owner = type(self).__name__
        warnings.warn(f"{owner}.{old} is now {owner}.{new}.", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    get.__doc__ = f"The old name of `{new}`."
    return property(get)
