"""Many repetitions of a noisy quadratic at once, by the real optimizer: each repetition is one weight."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import SGD

from dist_lookahead import DistributedLookahead, Level, simulate
from dist_lookahead.mesh import Mesh
from dist_lookahead.schedule import Scheduled, value_at

FIVE_SIGMA = 5.0  # false alarm in one of 1.7 million Gaussian comparisons; the seeds are fixed besides


def assert_same(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=1e-14)


def measured(
    levels: Sequence[Level],
    curvature: Tensor,
    draws: Tensor,
    *,
    lr: Scheduled,
    start: float = 0.0,
    momentum: float = 0.0,
    nesterov: bool = False,
    mesh: Mesh | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the package itself, a repetition in each weight; return x (T, n, R) and agent 0's slow weights (T, R).

    `curvature` is (n,), `draws` are the minimisers c, (steps, n, R).
    """
    steps, agents, repetitions = draws.shape
    weights = [torch.nn.Parameter(torch.full((repetitions,), start, dtype=torch.float64)) for _ in range(agents)]
    optimizers = [
        DistributedLookahead(SGD([w], lr=0.1, momentum=momentum, nesterov=nesterov), levels, communicator=end)
        for w, end in zip(weights, simulate(mesh or agents), strict=True)
    ]
    fast, slow = [], []
    for step in range(steps + 1):
        fast.append(torch.stack([w.detach().clone() for w in weights]))
        if levels[-1].move.keeps_slow_weights:
            with optimizers[0].slow_weights():
                slow.append(weights[0].detach().clone())
        else:
            slow.append(fast[-1].mean(dim=0))
        if step == steps:
            break
        for agent, (w, optimizer) in enumerate(zip(weights, optimizers, strict=True)):
            w.grad = curvature[agent] * (w.detach() - draws[step, agent])
            optimizer.param_groups[0]["lr"] = value_at(lr, step)
            optimizer.step()
    return torch.stack(fast), torch.stack(slow)


def assert_sampled(sample: Tensor, mean: Tensor, variance: Tensor) -> None:
    """A sample (.., R) of a Gaussian: its mean varies by sqrt(V / R), its variance by V sqrt(2 / (R - 1))."""
    count = sample.shape[-1]
    assert ((sample.mean(dim=-1) - mean).abs() <= FIVE_SIGMA * (variance / count).sqrt() + 1e-12).all()
    off = (sample.var(dim=-1) - variance).abs()
    assert (off <= FIVE_SIGMA * variance * math.sqrt(2 / (count - 1)) + 1e-12).all()
