"""Fragments: over which parameters a level acts.

Levels over parts of the parameters fire at different steps, so that what must be sent at once is a part of the model.
Where two levels share no parameter, neither knows of the other: a stack is one stack of levels for each set of
parameters that the same levels act on, a cell.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Whole:
    """All parameters.

    Example:
        >>> Whole()
        Whole()
    """

    def select(self, names: Sequence[str], sizes: Sequence[int]) -> tuple[bool, ...]:
        """Return which of the parameters are meant: each of them."""
        return (True,) * len(names)


@dataclass(frozen=True)
class Part:
    """One of several parts of the parameters, as equal in bytes as whole parameters allow.

    In the order of the optimizer's parameters: the heaviest part is as light as it can be. A parameter is never cut, so
    that no part is lighter than the largest parameter in it.

    Args:
        index: which part, 0 <= index < of.
        of: number of parts, >= 2.
        strided: every `of`-th parameter in place of neighbours, so that each part has layers of all depths.

    Raises:
        ValueError: for an index that is out of range.

    Example:
        >>> Part(1, of=2).select(["a", "b", "c"], [4, 1, 3])
        (False, True, True)

    Reference: arXiv 2501.18512, section 2.2 (sequential and strided fragments).
    """

    index: int
    of: int
    strided: bool = False

    def __post_init__(self) -> None:
        if self.of < 2:
            raise ValueError(f"Part.of={self.of} must be at least 2 parts; leave params out for all parameters")
        if not 0 <= self.index < self.of:
            raise ValueError(f"Part.index={self.index} must be that of one of {self.of} parts: 0 to {self.of - 1}")

    def select(self, names: Sequence[str], sizes: Sequence[int]) -> tuple[bool, ...]:
        """Return which of the parameters are in the part.

        Args:
            names: of the parameters.
            sizes: bytes of each; of fewer parameters than parts each is a part of its own.
        """
        if self.strided or self.of >= len(names):
            return tuple(place % self.of == self.index for place in range(len(names)))
        starts = [*balanced_starts(sizes, self.of), len(names)]
        return tuple(starts[self.index] <= place < starts[self.index + 1] for place in range(len(names)))


@dataclass(frozen=True)
class Named:
    """The parameters whose names match one of some patterns.

    Args:
        patterns: as in a shell: `*` for anything, `?` for one character, `[ab]` for one of several.

    Raises:
        ValueError: without patterns.

    Example:
        >>> Named(("blocks.0.*", "*.bias")).select(["blocks.0.weight", "head.weight", "head.bias"], [4, 4, 4])
        (True, False, True)
    """

    patterns: tuple[str, ...]

    def __post_init__(self) -> None:
        given = (self.patterns,) if isinstance(self.patterns, str) else tuple(self.patterns)
        object.__setattr__(self, "patterns", given)
        if not given:
            raise ValueError("Named.patterns=() must have at least one pattern, such as 'blocks.0.*'")

    def select(self, names: Sequence[str], sizes: Sequence[int]) -> tuple[bool, ...]:
        """Return which of the parameters match."""
        return tuple(any(fnmatchcase(name, pattern) for pattern in self.patterns) for name in names)


Params = Whole | Part | Named
WHOLE = Whole()


def covering(params: Sequence[Params], names: Sequence[str], sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return for each parameter which levels act on it.

    Args:
        params: of each level.
        names: of the parameters.
        sizes: bytes of each.

    Raises:
        ValueError: for a parameter on which no level acts.

    Example:
        >>> covering([Part(0, of=2), Part(1, of=2), Whole()], ["a", "b"], [4, 4])
        [(0, 2), (1, 2)]
    """
    chosen = [own.select(names, sizes) for own in params]
    covers = [tuple(index for index, own in enumerate(chosen) if own[place]) for place in range(len(names))]
    if () in covers:
        raise ValueError(
            f"parameter {names[covers.index(())]!r} is in no level's params, and would drift apart: "
            "add a pattern for it, or a level over all parameters"
        )
    return covers


def require_parameters(params: Sequence[Params], names: Sequence[str]) -> None:
    """Refuse levels that would act on nothing.

    Raises:
        ValueError: for a pattern without a parameter, and for more parts than parameters.
    """
    listed = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
    for index, own in enumerate(params):
        if isinstance(own, Part) and own.of > len(names):
            raise ValueError(
                f"levels[{index}].params: {own.of} parts need as many parameters, and there are {len(names)}, "
                f"{listed}: use fewer parts"
            )
        for pattern in own.patterns if isinstance(own, Named) else ():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"levels[{index}].params: {pattern!r} matches none of the {len(names)} parameters, {listed}: "
                    "use their names, with * for any part of them"
                )


def possible_cells(params: Sequence[Params]) -> list[tuple[int, ...]]:
    """Return the levels of each cell that there can be in some model, from descriptions alone.

    Parts of one kind exclude each other; a pattern may or may not match what another level acts on.

    Args:
        params: of each level.

    Example:
        >>> possible_cells([Part(0, of=2), Part(1, of=2), Whole()])
        [(0, 2), (1, 2)]
    """
    kinds = dict.fromkeys(
        own if isinstance(own, Named) else (own.of, own.strided) for own in params if not isinstance(own, Whole)
    )
    choices = [(True, False) if isinstance(kind, Named) else range(kind[0]) for kind in kinds]
    cells = []
    for chosen in itertools.product(*choices):
        matches = dict(zip(kinds, chosen, strict=True))
        cells.append(tuple(index for index, own in enumerate(params) if _is_chosen(own, matches)))
    return [cell for cell in dict.fromkeys(cells) if cell]


def _is_chosen(own: Params, chosen: Mapping[Any, int]) -> bool:
    if isinstance(own, Part):
        return chosen[own.of, own.strided] == own.index
    return not isinstance(own, Named) or bool(chosen[own])


def surely_share(one: Params, other: Params) -> bool:
    """Return whether two levels act on a common parameter in any model.

    Example:
        >>> surely_share(Whole(), Part(0, of=2)), surely_share(Part(0, of=2), Part(1, of=2))
        (True, False)
    """
    return isinstance(one, Whole) or isinstance(other, Whole) or one == other


def balanced_starts(sizes: Sequence[int], parts: int) -> list[int]:
    """Cut a sequence into so many stretches that the heaviest is as light as possible, and return their beginnings.

    Args:
        sizes: of the elements, at least as many as parts.
        parts: number of stretches, none of them empty.

    Example:
        >>> balanced_starts([3, 3, 1, 1, 4], parts=3)
        [0, 1, 4]
    """
    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_fill(sizes, middle, parts)) <= parts else (middle + 1, high)
    return _fill(sizes, low, parts)


def _fill(sizes: Sequence[int], limit: int, parts: int) -> list[int]:
    """Begin a stretch where the limit would be passed, or where only as many elements are left as stretches."""
    starts, load = [0], 0
    for place, size in enumerate(sizes):
        left = len(sizes) - place == parts - len(starts)
        if place and (load + size > limit or left):
            starts.append(place)
            load = 0
        load += size
    return starts
