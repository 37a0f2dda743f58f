"""At which learning rate x curvature mean or deviations of a stack grow.

The maps are those of `linear_recursion` over one round of the outermost level. Few agents have all their modes, and
long rounds are powers of short ones, so that a constructor can afford to look.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.mixer import Alone
from dist_lookahead.level import Every, Level
from dist_lookahead.mesh import Mesh, as_mesh
from dist_lookahead.theory.calendar import cycle
from dist_lookahead.theory.constants import require_constants
from dist_lookahead.theory.linear_recursion import Quadratics, round_map, spectral_radius
from dist_lookahead.theory.modelled import modelled

GRID = torch.logspace(-4, 0.6, 300, dtype=torch.float64)  # learning rate x curvature from 1e-4 to 4
GROWS = 1 + 1e-9
REFINEMENTS = 3  # of the grid: each narrows the interval 300 times


def stability_limit(
    levels: Sequence[Level], *, agents: int | Mesh = 1, momentum: float = 0.0, nesterov: bool = False
) -> float:
    """Return the least learning rate x curvature at which mean or deviations grow, infinity if none below 4.

    It is searched on a grid, and then refined to nine digits: an unstable interval that is narrower than a step of the
    grid, 3.6 %, can be missed before it.

    Args:
        levels: innermost first, without schedules.
        agents: n, or a mesh; with more than one the disagreement of the agents must not grow either.
        momentum: of SGD, 0 <= momentum < 1.
        nesterov: whether SGD's momentum is Nesterov's.

    Raises:
        ValueError: for schedules, for momentum out of range, and for Nesterov's without momentum.

    Example:
        >>> from dist_lookahead import lookahead
        >>> round(stability_limit(lookahead(tau=5, alpha=0.5)), 4)
        2.2457
    """
    require_constants(modelled(levels), ("tau", "alpha", "beta"), "no round repeats itself")
    mesh = smallest_mesh(levels, agents)
    return first_growth(partial(grows, levels, mesh=mesh, momentum=momentum, nesterov=nesterov))


def grows(levels: Sequence[Level], rates: Tensor, *, mesh: Mesh, momentum: float, nesterov: bool) -> Tensor:
    """Return whether mean or deviations grow, (d,) bool.

    Args:
        levels: innermost first, without schedules.
        rates: learning rate x curvature, (d,).
        mesh: of the agents.
        momentum: of SGD.
        nesterov: whether SGD's momentum is Nesterov's.
    """
    zero = torch.zeros(mesh.size, len(rates), dtype=torch.float64)
    quadratics = Quadratics(
        curvature=rates.expand_as(zero), noise=zero, offsets=zero, mesh=mesh, momentum=momentum, nesterov=nesterov
    )
    return ~(spectral_radius(_cycle(levels, quadratics)) <= GROWS)


def first_growth(grows_at: Callable[[Tensor], Tensor]) -> float:
    """Return the least learning rate x curvature at which something grows, infinity if none below 4.

    Args:
        grows_at: `grows` of a stack, by its rates.
    """
    rates, limit = GRID, math.inf
    for _ in range(1 + REFINEMENTS):
        growing = grows_at(rates).nonzero()
        if not len(growing):
            break
        first = int(growing[0, 0])
        below, limit = float(rates[first - 1]) if first else 0.0, float(rates[first])
        rates = torch.linspace(below, limit, len(GRID), dtype=torch.float64)
    return limit


def smallest_mesh(levels: Sequence[Level], agents: int | Mesh) -> Mesh:
    """Return as few agents as have all modes of many that are alike: two along each axis, where averages are exact.

    Example:
        >>> from dist_lookahead import slowmo
        >>> smallest_mesh(slowmo(), agents=64)
        Mesh(shape=(2,), names=('world',))
    """
    mesh = as_mesh(agents)
    if any(not isinstance(level.mix, Alone | Exact) for level in levels):
        return mesh
    return Mesh(tuple(min(size, 2) for size in mesh.shape), mesh.names)


def _cycle(levels: Sequence[Level], quadratics: Quadratics) -> Tensor:
    """The map of a round of the outermost level, or of all turns of averages that change from sync to sync."""
    if all(level.mix.period(quadratics.mesh) == 1 for level in levels):
        return _round(levels, quadratics, len(levels) - 1)
    return round_map(levels, quadratics, 1.0, cycle(levels, quadratics.mesh))


def _round(levels: Sequence[Level], quadratics: Quadratics, top: int) -> Tensor:
    """The map of a round of level `top`: its pulls of the level below are alike, but for the last, where more fire."""
    length = levels[top].when.after(0)
    if top == 0:
        return round_map(levels, quadratics, 1.0, length)
    pull = levels[top - 1].when.after(0)
    sooner = [replace(level, when=Every(pull)) if level.when.after(0) == length else level for level in levels]
    last, others = _round(sooner, quadratics, top - 1), length // pull - 1
    return last @ torch.linalg.matrix_power(_round(levels, quadratics, top - 1), others) if others else last
