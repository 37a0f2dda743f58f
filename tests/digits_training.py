"""A small real training for tests: handwritten digits through a little network with BatchNorm, agent by agent."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from dist_lookahead import DistributedLookahead, Level, Mesh, simulate
from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.same_weights import Differing

BATCH = 16
FAST: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.1),
    "momentum": lambda parameters: SGD(parameters, lr=0.05, momentum=0.5),
    "adam": lambda parameters: Adam(parameters, lr=0.01),
}


@cache
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.as_tensor(images, dtype=torch.float64) / 16, torch.as_tensor(labels)


def batch(rank: int, step: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Every agent sees its own samples, the same ones whenever it repeats the step."""
    images, labels = digits()
    index = (torch.arange(BATCH) + BATCH * (8 * step + rank)) % len(labels)
    return images[index].to(device, dtype), labels[index].to(device)


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    # No bias before BatchNorm: its gradient would be rounding errors only, which Adam blows up to full steps.
    return nn.Sequential(nn.Linear(64, 9, bias=False), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 10)).to(dtype)


@dataclass
class Agent:
    rank: int
    model: nn.Module
    optimizer: DistributedLookahead

    def backward(self, step: int) -> Tensor:
        """Leave the gradients of this agent's batch."""
        self.optimizer.zero_grad()
        first = next(self.model.parameters())
        images, labels = batch(self.rank, step, first.dtype, first.device)
        loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        return loss

    def step(self, step: int) -> None:
        self.optimizer.report(loss=self.backward(step), samples=BATCH)
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def make_agent(
    rank: int,
    communicator: Communicator,
    levels: Sequence[Level],
    *,
    fast: str = "momentum",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    check_every: int = 0,
    differing: Differing = "stop",
) -> Agent:
    model = make_model(seed + rank, dtype).to(device)  # agents begin with different weights, and must take agent 0's
    optimizer = DistributedLookahead(
        FAST[fast](model.parameters()),
        levels,
        model=model,
        communicator=communicator,
        check_every=check_every,
        differing=differing,
    )
    return Agent(rank, model, optimizer)


def make_agents(agents: int, levels: Sequence[Level], **options: Any) -> list[Agent]:
    """Return simulated agents, to be stepped in turn."""
    ends = simulate(mesh_for(levels, agents))
    return [make_agent(rank, end, levels, **options) for rank, end in enumerate(ends)]


def mesh_for(levels: Sequence[Level], agents: int) -> int | Mesh:
    """Two nodes where there are as many agents, for levels along their axes."""
    along = {getattr(level.mix, "axis", "world") for level in levels} - {"world"}
    nodes = 2 if agents % 2 == 0 else 1
    return Mesh((nodes, agents // nodes), ("node", "local")) if along else agents


def train(agents: Sequence[Agent], steps: Iterable[int]) -> None:
    for step in steps:
        for agent in agents:
            agent.step(step)


def same(one: Any, other: Any, tolerance: float = 0.0) -> bool:
    """Whether two states are equal in structure, dtypes and values: to the last bit, or within a tolerance."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and bool(((one - other).abs() <= tolerance).all() or torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b, tolerance) for a, b in zip(one, other, strict=True))
    return bool(one == other)
