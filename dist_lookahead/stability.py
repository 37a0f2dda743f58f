"""A warning before a known instability: slow momentum over a fast momentum that is kept through short rounds.

On a quadratic of curvature a, the mean of SGD with momentum m and learning rate gamma under a level (tau, alpha,
beta) with kept buffers is a linear recursion from sync to sync in (z, v, fast momentum). Its largest eigenvalue
depends on gamma a only, and passes 1 long before that of plain SGD does where tau is short against the horizon
1 / (1 - m) of the fast momentum. A reset of the fast momentum at the sync removes the coupling.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from dist_lookahead.level import Every, Level

ALARMING = 0.1  # gamma a; plain SGD with momentum 0.9 stands 3.8, or 1.36 with Nesterov's
GRID = torch.logspace(-4, 0.6, 300, dtype=torch.float64)  # gamma a from 1e-4 to 4
LONGEST = 100  # horizons of the fast momentum: longer rounds are no remedy to offer


def instabilities(levels: Sequence[Level], inner: Optimizer) -> Iterator[str]:
    """Yield a sentence for each level that is unstable on quadratics at small learning rates already."""
    momentum, nesterov = max(
        ((float(group.get("momentum") or 0.0), bool(group.get("nesterov"))) for group in inner.param_groups),
        default=(0.0, False),
    )
    for index, level in enumerate(levels):
        if not momentum or not level.move.keeps_momentum or level.fast_buffers == "reset":
            continue
        limit = stability_limit(level, momentum, nesterov=nesterov)
        if limit < ALARMING:
            tau, (_, beta) = level.when.after(0), level.move.coefficients(0)
            longer = _least_tau(level, momentum, nesterov=nesterov)
            yield (
                f"levels[{index}]: slow momentum {beta} over fast momentum {momentum} that is kept through rounds of "
                f"tau={tau} is unstable on quadratics from learning rate x curvature = {limit:.2g} on. Use "
                f"fast_buffers='reset'{'' if longer is None else f', tau >= {longer}'}, or less slow momentum"
            )


def stability_limit(level: Level, momentum: float, *, nesterov: bool = False) -> float:
    """Return the least learning rate x curvature at which the mean recursion grows, infinity if none below 4.

    Args:
        level: with slow momentum, its values taken at the first round.
        momentum: of the fast optimizer, kept at syncs.
        nesterov: whether the fast optimizer's momentum is Nesterov's, else heavy ball.

    Example:
        >>> from dist_lookahead import slowmo
        >>> round(stability_limit(slowmo(tau=6, beta=0.8)[0], momentum=0.9), 3)
        0.004
    """
    recursion = _recursion(level, _fast_step(momentum, nesterov=nesterov))
    radius = torch.full_like(GRID, float("inf"))
    finite = recursion.isfinite().all(dim=-1).all(dim=-1)  # long rounds of unstable fast steps overflow
    radius[finite] = torch.linalg.eigvals(recursion[finite]).abs().amax(dim=-1)
    grows = (radius > 1 + 1e-9).nonzero()
    return float(GRID[grows[0, 0]]) if len(grows) else float("inf")


def _fast_step(m: float, *, nesterov: bool) -> Tensor:
    """The map of (x, fast momentum in units of a) in one step, (G, 2, 2) for the G values of gamma a.

    u <- m u + x, and then x <- x - gamma a u, or x <- x - gamma a (x + m u) with Nesterov's momentum.
    """
    one = torch.ones_like(GRID)
    from_x, from_u = (1 + m, m * m) if nesterov else (1.0, m)
    return torch.stack((1 - GRID * from_x, -GRID * from_u, one, m * one), dim=-1).view(-1, 2, 2)


def _recursion(level: Level, fast_step: Tensor) -> Tensor:
    """The map of (z, v, fast momentum) from sync to sync, (G, 3, 3)."""
    fast = torch.linalg.matrix_power(fast_step, level.when.after(0))  # from x = z
    alpha, beta = level.move.coefficients(0)
    zero = torch.zeros_like(GRID)
    z, v = torch.eye(3, dtype=GRID.dtype).expand(len(GRID), 3, 3)[:, :2].unbind(dim=1)
    delta = torch.stack((fast[:, 0, 0] - 1, zero, fast[:, 0, 1]), dim=-1)
    kept = torch.stack((fast[:, 1, 0], zero, fast[:, 1, 1]), dim=-1)
    v = beta * v + delta
    direction = delta + beta * v if getattr(level.move, "nesterov", False) else v
    return torch.stack((z + alpha * direction, v, kept), dim=1)


def _least_tau(level: Level, momentum: float, *, nesterov: bool) -> int | None:
    """About the shortest round that is not alarming; None if only very long ones are not."""
    tau = level.when.after(0)
    while stability_limit(replace(level, when=Every(tau)), momentum, nesterov=nesterov) < ALARMING:
        tau += 1 + tau // 10
        if tau > LONGEST / (1 - momentum):
            return None
    return tau
