"""Mean, variance and loss of the weights that matter, read out of the state of the linear recursion."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh
from dist_lookahead.theory.layout import layout_of
from dist_lookahead.theory.linear_recursion import Moments, Quadratics, unroll


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Moments of some weights before the first fast step and after each, syncs included: T points in time.

    Attributes:
        mean: (T, d), or (T, n, d) for each agent's weights.
        variance: likewise, over the noise.
        loss: (T,) or (T, n), the expected loss at these weights, mean over the agents' losses, sum over coordinates:
            E f = 1/n sum_i sum_j a/2 [(mean - mu)^2 + variance + sigma^2]. The last term is there at the minimum too.
    """

    mean: Tensor
    variance: Tensor
    loss: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """What happens on a noisy quadratic.

    Attributes:
        slow: the outermost level's slow weights, (T, d); agent 0's where agents never average. A level that keeps
            none (`Copy`) has the agents' mean here, which is what a sync copies.
        average: the mean of the agents' fast weights, (T, d).
        fast: each agent's fast weights, (T, n, d).
    """

    slow: Weights
    average: Weights
    fast: Weights


def follow(
    levels: Sequence[Level],
    quadratics: Quadratics,
    rates: Sequence[float],
    moments: Moments,
    *,
    agents: int,
    settles: Tensor | None = None,
) -> Trajectory:
    """Return what the weights do from the given moments on.

    By symmetry the covariance of n agents that are alike is known from that of p = 2: with C for p, and bars for what
    agents share and for means over the agents,

        Var_n of a bar = p/n C(bar),      Var_n of one agent's = p/n C(bar) + (1 - 1/n) / (1 - 1/p) [C(one) - C(bar)].

    Args:
        levels: innermost first.
        quadratics: of the p agents that are in the state.
        rates: fast learning rate of each step.
        moments: of the state before the first step.
        agents: n; more than p where two stand for all.
        settles: (d,), coordinates for which the moments mean anything; others get mean nan and variance infinity.
    """
    readout = _readout(levels, quadratics.mesh, moments.mean.shape[-1])
    states = unroll(levels, quadratics, rates, moments)
    pairs = [(s.mean @ readout.T, ((readout @ s.covariance) * readout).sum(dim=-1)) for s in states]
    mean, variance = (torch.stack(parts).mT for parts in zip(*pairs, strict=True))
    slow_bar, average = variance[:, 0], variance[:, 2]
    shared = quadratics.agents / agents
    apart = (1 - 1 / agents) / (1 - 1 / quadratics.agents) if agents > 1 else 0.0
    slow = shared * slow_bar + apart * (variance[:, 1] - slow_bar)
    fast = shared * average[:, None] + apart * (variance[:, 3:] - average[:, None])
    average = shared * average
    if settles is not None:
        mean = mean.where(settles, float("nan"))
        slow, average, fast = (part.where(settles, float("inf")) for part in (slow, average, fast))
    return Trajectory(
        slow=_weights(quadratics, mean[:, 1], slow),
        average=_weights(quadratics, mean[:, 2], average),
        fast=_for_each(_weights(quadratics, mean[:, 3:], fast), agents),
    )


def _readout(levels: Sequence[Level], mesh: Mesh, size: int) -> Tensor:
    """Rows that take from the state: slow weights as a mean over agents, one agent's, the mean of x, each x."""
    layout = layout_of(levels, mesh)
    columns, outer = torch.eye(size, dtype=torch.float64), layout.places[-1]
    x = columns[layout.fast]
    average = x.mean(dim=0, keepdim=True)
    slow = columns[outer.slow][list(outer.holders)] if outer.keeps_slow_weights else average
    return torch.cat((slow.mean(dim=0, keepdim=True), slow[:1], average, x))


def _weights(quadratics: Quadratics, mean: Tensor, variance: Tensor) -> Weights:
    """Add the loss; the mean over agents is taken in their coefficients, so that agents' weights need no pairs."""
    a, mu, sigma = quadratics.curvature, quadratics.offsets, quadratics.noise
    bent, tilted = a.mean(dim=0), (a * mu).mean(dim=0)
    least = (a * (mu**2 + sigma**2)).mean(dim=0)
    loss = (bent * (mean**2 + variance) - 2 * tilted * mean + least).sum(dim=-1) / 2
    return Weights(mean=mean, variance=variance, loss=loss.where(variance.isfinite().all(dim=-1), float("inf")))


def _for_each(weights: Weights, agents: int) -> Weights:
    """Show agents that are alike, of which there are two, as n."""
    if weights.mean.shape[1] == agents:
        return weights
    mean, variance = (tensor[:, :1].expand(-1, agents, -1) for tensor in (weights.mean, weights.variance))
    return Weights(mean=mean, variance=variance, loss=weights.loss[:, :1].expand(-1, agents))
