"""Whether a stack of levels is stable on quadratics, said in a sentence, and what to change where it is not.

On a quadratic of curvature a the mean of SGD under any stack, and the disagreement of the agents, follow a linear
recursion (`linear_recursion`) that depends on gamma a only. It grows from some gamma a on, for SGD itself from 2. Some
stacks grow far earlier: with slow momentum over a fast momentum that is kept through rounds that are short against its
horizon 1 / (1 - m), or with slow steps of alpha > 2 after long rounds. Then a run diverges, or needs a learning rate
many times smaller than its fast optimizer alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from dist_lookahead.adaptive import Adaptive
from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh
from dist_lookahead.schedule import Schedule
from dist_lookahead.theory.first_round import ends, frozen
from dist_lookahead.theory.growth import GRID, first_growth, grows, smallest_mesh
from dist_lookahead.theory.stability_remedies import cause, culprits, remedies

ALARMING = 0.1  # learning rate x curvature; plain SGD stands 2, with momentum 0.9 3.8, or 1.36 with Nesterov's
EARLY = GRID[: int(torch.searchsorted(GRID, ALARMING)) + 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How stable a stack is on quadratics.

    Attributes:
        limit: least learning rate x curvature at which mean or deviations grow, infinity if none below 4.
        plain: the same of the fast optimizer alone.
        sentence: both in words; where the limit is alarming, its cause, and changes that help.
    """

    limit: float
    plain: float
    sentence: str

    @property
    def alarming(self) -> bool:
        """Whether the limit is below `ALARMING`."""
        return self.limit < ALARMING


def verdict(
    levels: Sequence[Level], *, agents: int | Mesh = 1, momentum: float = 0.0, nesterov: bool = False
) -> Verdict:
    """Return how stable a stack is on quadratics, with its schedules at the first round.

    The fast optimizer alone grows from 2 on, with heavy-ball momentum m from 2 (1 + m), with Nesterov's from
    2 (1 + m) / (1 + 2 m).

    Args:
        levels: innermost first.
        agents: n, or a mesh of agents.
        momentum: of SGD, 0 <= momentum < 1.
        nesterov: whether SGD's momentum is Nesterov's.

    Raises:
        ValueError: for momentum out of range, and for Nesterov's without momentum.

    Example:
        >>> from dist_lookahead import slowmo
        >>> print(verdict(slowmo(tau=6, beta=0.8), momentum=0.9).sentence.split(". ")[1])
        Use fast_buffers='reset', tau >= 17, beta <= 0.4, or alpha <= 0.3
    """
    mesh = smallest_mesh(levels, agents)
    growing = partial(grows, mesh=mesh, momentum=momentum, nesterov=nesterov)
    limit, worst = min(
        ((first_growth(partial(growing, stack)), stack) for stack in _stacks(levels)), key=lambda pair: pair[0]
    )
    plain = 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)
    if limit >= ALARMING:
        return Verdict(limit=limit, plain=plain, sentence=_praise(levels, limit, plain))
    calm = partial(is_calm, agents=mesh, momentum=momentum, nesterov=nesterov)
    blamed = culprits(worst, calm)
    since = f"is unstable on quadratics from learning rate x curvature = {limit:.2g} on"
    sentence = f"{cause(worst, blamed, momentum)} {since}{_taken(levels)}. {remedies(worst, blamed, calm, momentum)}"
    return Verdict(limit=limit, plain=plain, sentence=sentence)


def is_calm(levels: Sequence[Level], *, agents: int | Mesh = 1, momentum: float = 0.0, nesterov: bool = False) -> bool:
    """Return whether neither mean nor deviations grow below `ALARMING`: the part of `verdict` that takes no time.

    Without momentum, fast or slow, and with alpha <= 1 there is nothing to compute: below learning rate x curvature = 1
    a fast step multiplies by r in [0, 1], a pull by 1 - alpha (1 - R) in [0, 1], and averages do not grow.

    Args:
        levels: innermost first; schedules are taken at the first round.
        agents: n, or a mesh of agents.
        momentum: of SGD.
        nesterov: whether SGD's momentum is Nesterov's.

    Example:
        >>> from dist_lookahead import slowmo
        >>> is_calm(slowmo(tau=6, beta=0.8), momentum=0.9), is_calm(slowmo(tau=24, beta=0.8), momentum=0.9)
        (False, True)
    """
    growing = partial(grows, mesh=smallest_mesh(levels, agents), momentum=momentum, nesterov=nesterov)
    return not any(
        bool(growing(stack, EARLY).any())
        for stack in _stacks(levels)
        if momentum or not all(_only_shrinks(level) for level in stack)
    )


def _stacks(levels: Sequence[Level]) -> list[list[Level]]:
    return [frozen(levels, end=end) for end in ends(levels)]


def _only_shrinks(level: Level) -> bool:
    alpha, beta = level.move.coefficients(0)
    return alpha <= 1 and beta == 0


def _taken(levels: Sequence[Level]) -> str:
    """Say where numbers were taken for what is none."""
    values = [value for level in levels for value in (level.when.tau, *vars(level.move).values())]
    changes = any(isinstance(value, Schedule | Adaptive) for value in values)
    first = ", with schedules as in the first round" if changes else ""
    worse = ", at the worse end of a measured alpha" if any(level.move.searches for level in levels) else ""
    return first + worse


def _praise(levels: Sequence[Level], limit: float, plain: float) -> str:
    reach = f"up to learning rate x curvature = {limit:.3g}" if limit < math.inf else "at all rates tried, up to 4"
    return f"The levels are stable on quadratics {reach}{_taken(levels)}; the fast optimizer alone up to {plain:.3g}"
