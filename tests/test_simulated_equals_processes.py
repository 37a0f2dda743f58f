"""The middle rung: processes over gloo give the numbers of agents simulated in lockstep.

What holds in the simulation then holds in a real run. Two processes agree to the last bit; four add up in another
order, so that float64 agrees to 1e-12.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from digits_training import make_agent, make_agents, same, train
from processes import run_processes
from torch import nn

from dist_lookahead import (
    Alone,
    DistributedLookahead,
    Every,
    Exact,
    Gossip,
    Level,
    Pull,
    Quantised,
    diloco,
    distributed_lookahead,
    local_sgd,
    overlapped_local_sgd,
    post_local_sgd,
    slowmo,
)
from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.comm.process_group import default_communicator

STEPS = 7  # two rounds and a partial one, which is flushed


@dataclass(frozen=True)
class Scenario:
    levels: Sequence[Level]
    options: dict[str, Any] = field(default_factory=dict)


SCENARIOS = {
    "slowmo": Scenario(slowmo(3, 1.0, 0.6)),
    "slowmo, sharded": Scenario(slowmo(3, 1.0, 0.6, shard=True)),
    "local SGD, momentum averaged": Scenario(local_sgd(3, fast_buffers="average")),
    "local SGD, Adam's moments averaged": Scenario(local_sgd(3, fast_buffers="average"), {"fast": "adam"}),
    "post-local SGD": Scenario(post_local_sgd(3, start=2)),
    "DiLoCo, sharded, reset, checked": Scenario(
        diloco(3, shard=True, fast_buffers="reset"), {"fast": "adam", "check_every": 1}
    ),
    "nested": Scenario([Level(Every(1), Alone(), Pull(0.5)), *distributed_lookahead(3, 0.5)]),
    "bf16": Scenario(slowmo(3, 1.0, 0.6), {"dtype": torch.bfloat16}),
    "late": Scenario(slowmo(3, 1.0, 0.6, delay=2)),
    "late, sharded, below another": Scenario(
        [*diloco(2, delay=1, shard=True), Level(Every(4, 3), Exact(), Pull(0.8, 0.5))], {"check_every": 1}
    ),
    "late, 8 bit, Adam": Scenario(overlapped_local_sgd(3, 2, codec=Quantised()), {"fast": "adam"}),
    "late gossip": Scenario([Level(Every(2, 1), Gossip(rounds=2), Pull(0.8)), *local_sgd(6)]),
    "late, bf16": Scenario(slowmo(3, 1.0, 0.6, delay=1), {"dtype": torch.bfloat16}),
}
IN_DOUBLE = [name for name, scenario in SCENARIOS.items() if "dtype" not in scenario.options]


def as_process(names: Sequence[str], extra: dict[str, Any]) -> dict[str, Any]:
    end = default_communicator()
    results = {}
    for name in names:
        agent = make_agent(end.rank, end, SCENARIOS[name].levels, **SCENARIOS[name].options, **extra)
        train([agent], range(STEPS))
        agent.optimizer.sync()
        results[name] = agent.state()
    results["frozen"] = frozen_weights(end)
    return results


def as_simulation(name: str, n: int, extra: dict[str, Any]) -> list[dict[str, Any]]:
    agents = make_agents(n, SCENARIOS[name].levels, **SCENARIOS[name].options, **extra)
    train(agents, range(STEPS))
    for agent in agents:
        agent.optimizer.sync()
    return [agent.state() for agent in agents]


def frozen_weights(end: Communicator) -> list[torch.Tensor]:
    """What is not trained comes from agent 0 as well, whatever its memory looks like."""
    torch.manual_seed(end.rank)
    convolution = nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last)
    convolution.weight.requires_grad_(False)
    alone = nn.Parameter(torch.randn(5), requires_grad=False)
    trained = nn.Parameter(torch.randn(5))
    inner = torch.optim.SGD([convolution.weight, alone, trained], lr=0.1)
    DistributedLookahead(inner, local_sgd(3), model=convolution, communicator=end)
    return [convolution.weight.detach(), alone.detach(), trained.detach()]


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run_processes(as_process, 2, list(SCENARIOS), {})


@pytest.fixture(scope="module")
def four() -> list[dict[str, Any]]:
    return run_processes(as_process, 4, IN_DOUBLE, {"dtype": torch.float64})


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_are_two_simulated_agents_to_the_last_bit(two: list[dict[str, Any]], name: str) -> None:
    for real, simulated in zip(two, as_simulation(name, 2, {}), strict=True):
        assert same(real[name], simulated)


@pytest.mark.parametrize("name", IN_DOUBLE)
def test_four_processes_are_four_simulated_agents_to_rounding(four: list[dict[str, Any]], name: str) -> None:
    for real, simulated in zip(four, as_simulation(name, 4, {"dtype": torch.float64}), strict=True):
        assert same(real[name], simulated, tolerance=1e-12)


@pytest.mark.parametrize("name", SCENARIOS)
def test_agents_end_with_the_same_weights(two: list[dict[str, Any]], name: str) -> None:
    assert same(*(real[name]["model"] for real in two))


def test_all_agents_start_from_agent_0_in_what_is_not_trained(two: list[dict[str, Any]]) -> None:
    """Breaks where only trainable or only contiguous tensors are sent."""
    assert same(two[0]["frozen"], two[1]["frozen"])
    torch.manual_seed(0)
    assert torch.equal(two[1]["frozen"][0], nn.Conv2d(3, 4, 3, bias=False).weight)
