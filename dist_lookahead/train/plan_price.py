"""The theory's price of rarer syncs, of a plan's candidates: what longer rounds cost on quadratics, and in the bound.

It is the price of the levels alone, with SGD: of tau, alpha and beta on smooth losses. It knows nothing of codes, of
averages that land later, of Adam, of data that differ between agents, or of the loss that is trained.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dist_lookahead import theory
from dist_lookahead.averaging.gossip import OnGraph
from dist_lookahead.level import Level
from dist_lookahead.mesh import WORLD, Mesh
from dist_lookahead.theory.first_round import frozen
from dist_lookahead.train.config_inner import Inner

RATE = 0.01  # learning rate x curvature at which the half-life is told


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What theory says of a stack.

    Attributes:
        half_life: fast steps in which the error halves on a quadratic with learning rate x curvature = 0.01.
        limit: learning rate x curvature from which on it grows.
        drift: coefficient of gamma^2 L^2 sigma^2 in the convergence bound, by which agents move apart in a round; None
            where there is no bound.
    """

    half_life: float
    limit: float
    drift: float | None


def price_of(levels: Sequence[Level], agents: int, inner: Inner) -> Price | None:
    """Return the price of a stack; None where agents gossip or levels act on parameters by name.

    Args:
        levels: innermost first.
        agents: n.
        inner: the fast optimizer, of which SGD's momentum counts.
    """
    if any(isinstance(level.mix, OnGraph) for level in levels):
        return None
    at_once = [replace(level, when=replace(level.when, delay=0), local_share=0.0) for level in levels]
    try:
        stack = frozen(theory.cell_stacks(at_once)[0])
    except ValueError:  # levels over names
        return None
    is_sgd = inner.name == "SGD"
    momentum = inner.options.get("momentum", 0.0) if is_sgd else 0.0
    nesterov = bool(is_sgd and inner.options.get("nesterov", False))
    few = _few(stack)
    settled = theory.stationary(
        stack, curvature=RATE, noise=0.0, lr=1.0, agents=few, momentum=momentum, nesterov=nesterov
    )
    steps = len(settled.round.slow.mean) - 1
    return Price(
        half_life=_half_life(settled.contraction.item(), steps),
        limit=theory.verdict(stack, agents=few, momentum=momentum, nesterov=nesterov).limit,
        drift=_drift(stack, agents),
    )


def _half_life(contraction: float, steps: int) -> float:
    """Of a factor that is left after so many fast steps."""
    if contraction >= 1:
        return math.inf
    return steps * math.log(0.5) / math.log(contraction) if contraction > 0 else float(steps)


def _drift(levels: Sequence[Level], agents: int) -> float | None:
    try:
        return theory.bound(levels, agents=agents, lr=1.0, smoothness=1.0, noise=1.0, gap=1.0, steps=1).drift
    except ValueError:  # no bound is known of these levels
        return None


def _few(levels: Sequence[Level]) -> Mesh:
    """Two agents along each axis stand for many that are alike."""
    axes = sorted({axis for level in levels if (axis := getattr(level.mix, "axis", WORLD)) != WORLD})
    return Mesh((2,) * len(axes), tuple(axes)) if axes else Mesh((2,))
