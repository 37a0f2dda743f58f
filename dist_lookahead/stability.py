"""A warning before a known instability: slow momentum over a fast momentum that is kept through short rounds.

On a quadratic of curvature a, the mean of SGD with momentum m and learning rate gamma under a level (tau, alpha,
beta) with kept buffers is a linear recursion from sync to sync in (z, v, fast momentum). Its largest eigenvalue
depends on gamma a only, and passes 1 long before plain SGD's limit gamma a = 2 (1 + m) where tau is short against the
horizon 1 / (1 - m) of the fast momentum. A reset of the fast momentum at the sync removes the coupling.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from dist_lookahead.level import Every, Level

ALARMING = 0.1  # gamma a; plain SGD stands at least 20 times more
GRID = torch.logspace(-4, 0.6, 300, dtype=torch.float64)  # gamma a from 1e-4 to 4


def instabilities(levels: Sequence[Level], inner: Optimizer) -> Iterator[str]:
    """Yield a sentence for each level that is unstable on quadratics at small learning rates already."""
    momentum = max((float(group.get("momentum") or 0.0) for group in inner.param_groups), default=0.0)
    for index, level in enumerate(levels):
        if not momentum or not level.move.keeps_momentum or level.fast_buffers == "reset":
            continue
        limit = stability_limit(level, momentum)
        if limit < ALARMING:
            tau, (_, beta) = level.when.after(0), level.move.coefficients(0)
            yield (
                f"levels[{index}]: slow momentum {beta} over fast momentum {momentum} that is kept through rounds of "
                f"tau={tau} is unstable on quadratics from learning rate x curvature = {limit:.2g} on (without the "
                f"level: {2 * (1 + momentum):.2g}). Use fast_buffers='reset', tau >= {_least_tau(level, momentum)}, "
                "or less slow momentum"
            )


def stability_limit(level: Level, momentum: float) -> float:
    """Return the least learning rate x curvature at which the mean recursion grows, infinity if none below 4.

    Args:
        level: with slow momentum, its values taken at the first round.
        momentum: heavy-ball momentum of the fast optimizer, kept at syncs.

    Example:
        >>> from dist_lookahead import slowmo
        >>> round(stability_limit(slowmo(tau=6, beta=0.8)[0], momentum=0.9), 3)
        0.004
    """
    radius = torch.linalg.eigvals(_recursion(level, momentum, GRID)).abs().amax(dim=-1)
    grows = (radius > 1 + 1e-9).nonzero()
    return float(GRID[grows[0, 0]]) if len(grows) else float("inf")


def _recursion(level: Level, momentum: float, rates: Tensor) -> Tensor:
    """The map of (z, v, fast momentum) from sync to sync, (G, 3, 3) for G values of gamma a."""
    one = torch.ones_like(rates)
    # A fast step: m <- momentum m + a x, x <- x - gamma m, with m measured in units of a.
    step = torch.stack((1 - rates, -momentum * rates, one, momentum * one), dim=-1).view(-1, 2, 2)
    # A round starts at x = z.
    round_ = torch.linalg.matrix_power(step, level.when.after(0))
    alpha, beta = level.move.coefficients(0)
    unit = torch.eye(3, dtype=rates.dtype).expand(len(rates), 3, 3)
    z, v = unit[:, 0], unit[:, 1]
    delta = torch.stack((round_[:, 0, 0] - 1, 0 * one, round_[:, 0, 1]), dim=-1)
    kept = torch.stack((round_[:, 1, 0], 0 * one, round_[:, 1, 1]), dim=-1)
    v = beta * v + delta
    direction = delta + beta * v if getattr(level.move, "nesterov", False) else v
    return torch.stack((z + alpha * direction, v, kept), dim=1)


def _least_tau(level: Level, momentum: float) -> int:
    """The shortest round that is not alarming; the horizons of both momenta bound the search."""
    tau = level.when.after(0)
    while stability_limit(replace(level, when=Every(tau)), momentum) < ALARMING:
        tau += 1 + tau // 10
    return tau
