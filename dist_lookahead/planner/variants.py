"""Variants: the stacks that a given one could become to communicate less, or while the agents train.

What is changed is always at the levels with the longest tau, which are those that cross the slowest links.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dist_lookahead.averaging.codec import Cast, Codec, Quantised
from dist_lookahead.averaging.exact import Exact
from dist_lookahead.fragments import WHOLE, Part
from dist_lookahead.level import Every, Level
from dist_lookahead.mesh import WORLD, Mesh
from dist_lookahead.move import Copy

PARTS = 4
CODECS: tuple[tuple[str, Codec], ...] = (("bf16", Cast("bf16")), ("8 bits", Quantised(bits=8)))
AS_WRITTEN = "as written"


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A stack, and how it differs from the one that was given, tau aside.

    Attributes:
        changes: in words.
        levels: innermost first.
    """

    changes: tuple[str, ...]
    levels: tuple[Level, ...]

    @property
    def name(self) -> str:
        """The changes as one text."""
        return ", ".join(self.changes) or AS_WRITTEN


def shapes(levels: Sequence[Level], mesh: Mesh) -> Iterator[Variant]:
    """Yield the stack itself, in codes, in parts, with averages inside nodes more often, and these together.

    Args:
        levels: innermost first, with a constant tau each.
        mesh: of the agents.

    Example:
        >>> from dist_lookahead import slowmo
        >>> [variant.name for variant in shapes(slowmo(tau=12), Mesh((2,)))]
        ['as written', 'bf16', '8 bits', '4 parts', '4 parts, 8 bits']
    """
    written = Variant(changes=(), levels=tuple(levels))
    yield written
    bases = [written]
    for change in (in_parts, near_first):
        if (changed := change(levels, mesh)) is not None:
            bases.append(changed)
    for base in bases:
        if base.changes:
            yield base
        for words, codec in CODECS[1 if base.changes else 0 :]:
            coded = _changed(base.levels, lambda level, codec=codec: _in_code(level, codec))
            if coded != base.levels:
                yield Variant(changes=(*base.changes, words), levels=coded)


def longest(levels: Sequence[Level]) -> int:
    """Return the longest tau.

    Example:
        >>> from dist_lookahead import hierarchical_local_sgd
        >>> longest(hierarchical_local_sgd((4, 32)))
        32
    """
    return max(_tau(level) for level in levels)


def with_longest(levels: Sequence[Level], tau: int) -> tuple[Level, ...]:
    """Return the stack with another longest tau; phases keep their share of it.

    Args:
        levels: innermost first.
        tau: fast steps, a multiple of the tau below.

    Raises:
        ValueError: for a tau that is not longer than the delay of a level.

    Example:
        >>> from dist_lookahead import streaming_diloco
        >>> [level.when for level in with_longest(streaming_diloco(tau=8, parts=2), tau=16)]
        [Every(tau=16, phase=8), Every(tau=16)]
    """
    before = longest(levels)

    def stretched(level: Level) -> Level:
        return replace(level, when=replace(level.when, tau=tau, phase=level.when.phase * tau // before))

    return _changed(levels, stretched)


def overlapped(levels: Sequence[Level], delay: int) -> tuple[Level, ...]:
    """Return the stack with averages that land later.

    Args:
        levels: innermost first.
        delay: fast steps, below the longest tau.

    Raises:
        ValueError: for a delay that does not fit the levels.
    """
    return _changed(levels, lambda level: replace(level, when=replace(level.when, delay=delay)))


def in_parts(levels: Sequence[Level], mesh: Mesh) -> Variant | None:
    """Return a single level as several, each over a part of the parameters and at another time; None for others."""
    (level, *others) = levels
    tau = _tau(level)
    if others or level.params != WHOLE or tau < PARTS or not level.mix.communicates:
        return None
    parts = [
        replace(level, when=Every(tau, level.when.delay, (part + 1) * tau // PARTS % tau), params=Part(part, PARTS))
        for part in range(PARTS)
    ]
    return Variant(changes=(f"{PARTS} parts",), levels=tuple(parts))


def near_first(levels: Sequence[Level], mesh: Mesh) -> Variant | None:
    """Return an average over all agents as one inside nodes, at the same tau, under one across; None for others."""
    (level, *others) = levels
    plain = isinstance(level.mix, Exact) and level.mix.axis == WORLD and not (level.mix.weighted or level.local_share)
    if others or not plain or len(mesh.shape) != 2 or min(mesh.shape) == 1 or level.params != WHOLE:
        return None
    far, near = mesh.names
    assert isinstance(level.mix, Exact)
    above = replace(level, mix=replace(level.mix, axis=far), when=Every(2 * _tau(level), level.when.delay))
    below = Level(Every(_tau(level)), Exact(near), Copy())
    return Variant(changes=(f"{near} averages below",), levels=(below, above))


def _in_code(level: Level, codec: Codec) -> Level:
    mix = level.mix
    if not isinstance(mix, Exact) or mix.shard or mix.weighted or mix.codec:
        return level
    return replace(level, mix=replace(mix, codec=codec))


def _changed(levels: Sequence[Level], change: Callable[[Level], Level]) -> tuple[Level, ...]:
    """Change the levels with the longest tau."""
    most = longest(levels)
    return tuple(change(level) if _tau(level) == most else level for level in levels)


def _tau(level: Level) -> int:
    assert level.when.constant is not None  # a rehearsal refuses others
    return level.when.constant
