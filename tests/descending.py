"""Agents that descend quadratics of their own: little enough that what a sync does is all there is to see."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dist_lookahead import DistributedLookahead, Level, Mesh, simulate


class Agent:
    """Descends its own quadratic, with momentum, so that there are buffers to average."""

    def __init__(self, rank: int, levels: Sequence[Level], size: int = 24, **options: Any) -> None:
        random = torch.Generator().manual_seed(rank)
        self.target = torch.randn(size, generator=random)
        self.weight = nn.Parameter(torch.zeros(size))
        inner = torch.optim.SGD([self.weight], lr=0.1, momentum=0.5)
        self.optimizer = DistributedLookahead(inner, levels, check_every=1, **options)

    def step(self) -> None:
        self.weight.grad = self.weight.detach() - self.target
        self.optimizer.step()

    def weights(self) -> Tensor:
        return self.weight.detach().clone()


def crowd(levels: Sequence[Level], agents: int | Mesh, **options: Any) -> list[Agent]:
    return [Agent(rank, levels, communicator=end, **options) for rank, end in enumerate(simulate(agents))]


def descend(agents: Sequence[Agent], steps: int) -> None:
    for _ in range(steps):
        for agent in agents:
            agent.step()


def descend_and_sync(agents: Sequence[Agent], steps: int) -> None:
    """The last round may be a partial one."""
    descend(agents, steps)
    for agent in agents:
        agent.optimizer.sync()
