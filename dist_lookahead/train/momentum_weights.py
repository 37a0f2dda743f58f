"""How much of each level's slow momentum is in y = X a."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh
from dist_lookahead.move import Pull
from dist_lookahead.theory.growth import smallest_mesh
from dist_lookahead.theory.layout import layout_of
from dist_lookahead.theory.mixing import fixed_vector


def momentum_weights(bounds: Sequence[BoundLevel]) -> list[float] | None:
    """Return a_l of each level's v in y, with the coefficients of its last sync.

    Returns:
        - None where there is no y (a level resets slow momentum below it), and where an agent does not know it: agents
        with slow momenta of their own, or in groups along an axis, or with parts of them only.
    """
    outer, keeping = bounds[-1], [bound for bound in bounds if bound.level.move.keeps_momentum]
    if not keeping:
        return [0.0] * len(bounds)
    if any(bound.mixer.shards not in (1, outer.mixer.shards) for bound in keeping):
        return None
    try:
        levels = tuple(_as_fired(bound) for bound in bounds)
        return _weights(levels, smallest_mesh(levels, outer.mixer.group.size if outer.mixer.group else 1))
    except ValueError:
        return None


def _as_fired(bound: BoundLevel) -> Level:
    """Return the level with the numbers of its last sync in the place of schedules."""
    level, (alpha, beta) = bound.level, bound.coefficients
    if not isinstance(level.move, Pull):
        return level
    options = {"nesterov": level.move.nesterov} if beta else {}
    return replace(level, move=Pull(alpha, beta, **options))


@lru_cache(maxsize=64)
def _weights(levels: tuple[Level, ...], agents: Mesh) -> list[float] | None:
    layout, a = layout_of(levels, agents), fixed_vector(levels, agents)
    columns = [a[place.momentum] for place in layout.places]
    if any(len(column) > 1 and column.abs().sum() for column in columns):
        return None
    return [float(column.sum()) for column in columns]
