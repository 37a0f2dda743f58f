"""Every optimizer of torch.optim, by name, with its buffers kept, reset and averaged.

An optimizer may fill its state at construction, keep it under its first parameter only, hold numbers and lists in it
beside tensors, or need a closure. What a reset leaves must be what a new optimizer begins with.
"""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dist_lookahead import DistributedLookahead, Level, distributed_lookahead, lookahead, simulate
from dist_lookahead.level import FastBuffers

SKIPPED = {"Optimizer": "the base class", "SparseAdam": "takes sparse gradients only, which cannot be averaged"}
NAMES = [
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, Optimizer) and name not in SKIPPED
]
SHAPE = (3, 2)  # Muon takes matrices only
TAU, STEPS = 3, 7


def make(name: str, parameters: Sequence[Tensor]) -> Optimizer:
    return getattr(torch.optim, name)(parameters, lr=0.05, **({"momentum": 0.5} if name == "SGD" else {}))


class Agent:
    """Two matrices on a bent quadratic of this agent's own."""

    def __init__(self, rank: int, dtype: torch.dtype) -> None:
        self.target = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(rank), dtype=dtype)
        self.weights = [nn.Parameter(torch.ones(SHAPE, dtype=dtype)) for _ in range(2)]
        self.optimizer: Optimizer = torch.optim.SGD(self.weights)

    def closure(self) -> float:
        self.optimizer.zero_grad()
        away = torch.stack([*self.weights]) - self.target
        loss = (away.square() + 0.5 * away.sin()).sum()
        loss.backward()
        return loss.item()

    def step(self) -> None:
        self.optimizer.step(self.closure)


def shell_agents(name: str, levels: list[Level], n: int, dtype: torch.dtype = torch.float64) -> list[Agent]:
    agents = [Agent(rank, dtype) for rank in range(n)]
    for agent, end in zip(agents, simulate(n), strict=True):
        agent.optimizer = DistributedLookahead(make(name, agent.weights), levels, communicator=end)
    return agents


def plain_agents(name: str, n: int) -> list[Agent]:
    agents = [Agent(rank, torch.float64) for rank in range(n)]
    for agent in agents:
        agent.optimizer = make(name, agent.weights)
    return agents


def weights(agents: Sequence[Agent]) -> Tensor:
    return torch.stack([torch.stack([w.detach() for w in agent.weights]) for agent in agents])


def average_buffers(agents: Sequence[Agent]) -> None:
    for members in zip(*(agent.weights for agent in agents), strict=True):
        states: list[dict[str, Any]] = [agent.optimizer.state[w] for agent, w in zip(agents, members, strict=True)]
        for key, value in states[0].items():
            if isinstance(value, Tensor) and value.is_floating_point():
                mean = torch.stack([state[key] for state in states]).mean(dim=0)
                for state in states:
                    state[key].copy_(mean)


def test_optimizers_were_found() -> None:
    assert {"SGD", "Adam", "Adagrad", "NAdam", "Rprop", "ASGD", "LBFGS"} <= set(NAMES)


@pytest.mark.parametrize("buffers", ["keep", "reset", "average"])
@pytest.mark.parametrize("name", NAMES)
def test_optimizer_under_levels_is_the_plain_one_with_pulls_between(name: str, buffers: FastBuffers) -> None:
    """For a reset the plain loop builds a new optimizer at each pull."""
    ours = shell_agents(name, distributed_lookahead(TAU, 0.5, fast_buffers=buffers), 2)
    plain = plain_agents(name, 2)
    z = weights(plain)[0].clone()
    for step in range(1, STEPS + 1):
        for agent in [*ours, *plain]:
            agent.step()
        if step % TAU == 0:
            z += 0.5 * (weights(plain).mean(dim=0) - z)
            for agent in plain:
                with torch.no_grad():
                    for w, value in zip(agent.weights, z, strict=True):
                        w.copy_(value)
                if buffers == "reset":
                    agent.optimizer = make(name, agent.weights)
            if buffers == "average":
                average_buffers(plain)
        torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("buffers", ["keep", "reset"])
@pytest.mark.parametrize("name", NAMES)
def test_optimizer_resumes_in_mid_round_bit_for_bit(name: str, buffers: FastBuffers) -> None:
    """In float32: torch's own load turns NAdam's float32 product into the parameter's dtype."""
    levels = lookahead(TAU, fast_buffers=buffers)
    (agent,), (resumed,) = (shell_agents(name, levels, 1, torch.float32) for _ in range(2))
    for _ in range(TAU + 1):
        agent.step()
    with torch.no_grad():
        for w, value in zip(resumed.weights, agent.weights, strict=True):
            w.copy_(value)
    resumed.optimizer.load_state_dict(copy.deepcopy(agent.optimizer.state_dict()))
    for _ in range(STEPS):
        agent.step()
        resumed.step()
    assert torch.equal(weights([agent]), weights([resumed]))
