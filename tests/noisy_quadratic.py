"""A small training in float64 that papers' loops and the package run alike: noisy quadratics, one for each agent."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

MakeFast = Callable[[list[Tensor]], Optimizer]

FAST: dict[str, MakeFast] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.05),
    "momentum": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda parameters: AdamW(parameters, lr=0.05, weight_decay=0.1),
}


def constant(_step: int) -> float:
    return 0.05


@dataclass
class Problem:
    """n agents that each have their own noisy gradients of their own bent quadratic.

    Attributes:
        agents: n.
        fast: makes each agent's fast optimizer.
        rate: fast learning rate of each step.
        steps: number of fast steps.
        size: number of weights, D.
    """

    agents: int = 1
    fast: MakeFast = FAST["sgd"]
    rate: Callable[[int], float] = constant
    steps: int = 24
    size: int = 11
    start: Tensor = field(init=False)
    curvature: Tensor = field(init=False)
    targets: Tensor = field(init=False)
    noise: Tensor = field(init=False)

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(20)
        self.start = torch.randn(self.size, generator=random, dtype=torch.float64)
        self.curvature = torch.linspace(0.1, 3.0, self.size, dtype=torch.float64)
        self.targets = torch.randn(self.agents, self.size, generator=random, dtype=torch.float64)
        self.noise = torch.randn(self.steps, self.agents, self.size, generator=random, dtype=torch.float64)

    def gradient(self, x: Tensor, agent: int, step: int) -> Tensor:
        away = x - self.targets[agent]
        return self.curvature * away + 0.1 * away.sin() + self.noise[step, agent]

    def loss(self, x: Tensor, agent: int) -> float:
        away = x - self.targets[agent]
        return float((self.curvature * away.square() / 2 + 0.1 * (1 - away.cos())).sum())
