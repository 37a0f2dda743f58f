"""The error for a name that is not among the allowed ones."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_name(what: str, given: str, allowed: Iterable[str], *, listed: str | None = None) -> ValueError:
    """Return (not raise) an error that names the allowed names and the nearest one.

    Args:
        what: what is being chosen, such as "data".
        given: the name that is not allowed.
        allowed: the names that are.
        listed: how to write the allowed names, where they are too many to list one by one.

    Example:
        >>> print(unknown_name("data", "cifar", ["cifar10", "mnist"]))
        data='cifar' is unknown; did you mean 'cifar10'? Allowed: cifar10, mnist
    """
    names = list(allowed)
    near = get_close_matches(given, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ValueError(f"{what}={given!r} is unknown{hint} Allowed: {listed or ', '.join(names)}")
