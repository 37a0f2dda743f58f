"""Slow weights that differ between agents: found, named, and by choice repaired to the bits that they should have."""

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_lookahead import Every, Exact, Level, Pull, slowmo
from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.comm.process_group import default_communicator
from dist_lookahead.same_weights import Differing
from tests.digits_training import Agent, make_agent, make_agents, same, train
from tests.processes import run_processes

pytestmark = pytest.mark.timeout(120)

STACK = [Level(Every(1), Exact(), Pull(0.5, 0.4)), Level(Every(2), Exact(), Pull(0.7, 0.3))]


def flip_a_bit(agent: Agent, parameter: str, kind: str = "slow") -> None:
    """In the outermost level's state, as a bad memory would."""
    bound: BoundLevel = agent.optimizer.stack.bound[-1]
    place, slot = next(
        (place, slot)
        for place, bucket in enumerate(bound.buckets)
        for slot in bucket.slots
        if slot.weight.name == parameter
    )
    getattr(bound, kind)[place][slot.start + 1 : slot.start + 2].view(torch.int32).bitwise_xor_(1 << 20)


def state(agent: Agent) -> tuple[Any, Any]:
    """Parameters and all slow state; statistics of BatchNorm are an agent's own until the outermost sync."""
    return dict(agent.model.named_parameters()), agent.optimizer.stack.state_dict()["levels"]


def trained(agents: list[Agent], flips: dict[int, tuple[str, str]]) -> list[Any]:
    """Two rounds, bits flipped between them."""
    train(agents, range(2))
    for rank, (parameter, kind) in flips.items():
        flip_a_bit(agents[rank], parameter, kind)
    train(agents, range(2, 4))
    return [copy.deepcopy(state(agent)) for agent in agents]


def agents_of(n: int, differing: Differing) -> list[Agent]:
    return make_agents(n, STACK, check_every=1, differing=differing)


@pytest.mark.parametrize("kind", ["slow", "momentum"])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_majority_restores_the_very_bits_of_all_levels(bad: int, kind: str, caplog: Any) -> None:
    """Breaks if slow weights of a level below, or the slow momentum, keep what was wrong."""
    expected = trained(agents_of(3, "majority"), {})
    with caplog.at_level(logging.WARNING):
        assert same(trained(agents_of(3, "majority"), {bad: ("3.weight", kind)}), expected)
    assert "first '3.weight'" in caplog.text
    assert f"on agents {[0, 1, 2][:bad] + [0, 1, 2][bad + 1 :]}" in caplog.text
    assert f"Repaired: all agents have it from agent {1 if bad == 0 else 0} now" in caplog.text


def test_each_parameter_has_a_majority_of_its_own() -> None:
    expected = trained(agents_of(3, "majority"), {})
    flips = {0: ("3.weight", "slow"), 1: ("3.bias", "slow")}
    assert same(trained(agents_of(3, "majority"), flips), expected)


@pytest.mark.parametrize("differing", ["stop", "majority"])
def test_two_agents_have_no_majority_and_stop(differing: Differing) -> None:
    advice = "They must start equal" if differing == "stop" else "No more than half of the agents hold the same"
    with pytest.raises(RuntimeError, match=rf"levels\[1\] after fast step 4: .* first '3.weight' .*{advice}"):
        trained(agents_of(2, differing), {1: ("3.weight", "slow")})


def test_the_lowest_rank_is_believed_only_if_that_was_chosen() -> None:
    expected = trained(agents_of(2, "lowest"), {})
    assert same(trained(agents_of(2, "lowest"), {1: ("3.weight", "slow")}), expected)
    believed = trained(agents_of(2, "lowest"), {0: ("3.weight", "slow")})
    assert same(*believed)
    assert not same(believed, expected)


def repaired_in_a_process() -> dict[str, Tensor]:
    end = default_communicator()
    agent = make_agent(end.rank, end, slowmo(2, beta=0.5), check_every=1, differing="majority")
    train([agent], range(2))
    if end.rank == 1:
        flip_a_bit(agent, "0.weight")
    train([agent], range(2, 4))
    return {name: parameter.detach() for name, parameter in agent.model.named_parameters()}


def test_processes_repair_as_simulated_agents_do() -> None:
    agents = make_agents(3, slowmo(2, beta=0.5))
    train(agents, range(4))
    expected = {name: parameter.detach() for name, parameter in agents[0].model.named_parameters()}
    for weights in run_processes(repaired_in_a_process, 3):
        assert same(weights, expected, tolerance=1e-6)  # three numbers are summed in another order
