"""Runs of the real optimizer on gradients known by formula, for comparison with what `theory` predicts."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import SGD

from dist_lookahead import DistributedLookahead, Level, simulate

Gradient = Callable[[Tensor], Tensor]  # of one agent's weights; noise is drawn anew at each call

TWO_SIDED_99 = 2.576  # standard deviations of a Gaussian


class Agents:
    """Simulated agents under a stack of levels.

    Fast steps of SGD and slow steps act on each weight for itself, so that a tensor of weights is as many runs at once.

    Args:
        levels: innermost first.
        start: weights of all agents before the first step, any shape.
        lr: gamma.
        agents: n.
        momentum: of SGD, heavy ball.

    Example:
        >>> from dist_lookahead import lookahead
        >>> run = Agents(lookahead(tau=2, alpha=0.5), torch.ones(1), lr=0.5)
        >>> run.steps(2, gradient=lambda x: x)
        >>> run.slow.item()
        0.625
    """

    def __init__(
        self, levels: Sequence[Level], start: Tensor, *, lr: float, agents: int = 1, momentum: float = 0.0
    ) -> None:
        self._weights = [torch.nn.Parameter(start.clone()) for _ in range(agents)]
        self._optimizers = [
            DistributedLookahead(SGD([w], lr=lr, momentum=momentum), levels, communicator=end)
            for w, end in zip(self._weights, simulate(agents), strict=True)
        ]

    def steps(self, count: int, gradient: Gradient) -> None:
        """Take `count` fast steps on every agent, with the slow steps that are due."""
        for _ in range(count):
            for w, optimizer in zip(self._weights, self._optimizers, strict=True):
                w.grad = gradient(w.detach())
                optimizer.step()

    @property
    def fast(self) -> Tensor:
        """Fast weights of all agents, (n, ..)."""
        return torch.stack([w.detach() for w in self._weights])

    @property
    def slow(self) -> Tensor:
        """Agent 0's outermost slow weights."""
        with self._optimizers[0].slow_weights():
            return self._weights[0].detach().clone()


def noisy_gradient(curvature: Tensor, random: torch.Generator) -> Gradient:
    """Return the gradient of a/2 (x - c)^2 with a fresh c ~ N(0, 1) for each weight at each call.

    Args:
        curvature: a, broadcast against the weights.
        random: where the noise comes from.
    """
    return lambda x: curvature * (x - torch.randn(x.shape, generator=random, dtype=x.dtype))


def mean_and_error(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of independent repetitions (.., R), and half of its 99 % interval.

    Example:
        >>> mean, error = mean_and_error(torch.tensor([1.0, 3.0]).repeat(500))
        >>> mean.item(), round(error.item(), 2)
        (2.0, 0.08)
    """
    return sample.mean(dim=-1), TWO_SIDED_99 * sample.std(dim=-1) / math.sqrt(sample.shape[-1])
