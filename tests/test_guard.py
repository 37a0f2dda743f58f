"""Agents whose weights are not finite are left out of means, and outlying ones are clipped."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from digits_training import FAST, Agent, make_model, mesh_for, same, train
from processes import run_processes
from torch import nn

from dist_lookahead import (
    Copy,
    DistributedLookahead,
    Every,
    Exact,
    Guard,
    Level,
    Mesh,
    PoisonedError,
    Quantised,
    diloco,
    hierarchical_local_sgd,
    local_sgd,
    lookahead,
    overlapped_local_sgd,
    simulate,
    slowmo,
)
from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.comm.process_group import ProcessGroupCommunicator

TAU = 3
STACKS = {
    "local SGD": local_sgd(TAU),
    "SlowMo": slowmo(TAU, beta=0.6),
    "SlowMo, sharded": slowmo(TAU, beta=0.6, shard=True),
    "DiLoCo, late": diloco(TAU, 0.7, 0.6, delay=1),
    "overlapped": overlapped_local_sgd(TAU, 2),
    "by steps": [Level(Every(TAU), Exact(weighted="steps"), Copy())],
    "nested": [*lookahead(1, 0.5), *slowmo(TAU, beta=0.6)],
    "in nodes": hierarchical_local_sgd((1, TAU)),
}
each_stack = pytest.mark.parametrize("levels", STACKS.values(), ids=STACKS)


def make(
    ends: Sequence[Communicator], levels: Sequence[Level], guard: Guard | None, fast: str = "momentum"
) -> list[Agent]:
    agents = []
    for end in ends:
        model = make_model(end.rank)
        inner = FAST[fast](model.parameters())
        optimizer = DistributedLookahead(inner, levels, model=model, communicator=end, guard=guard)
        agents.append(Agent(end.rank, model, optimizer))
    return agents


def simulated(n: int, levels: Sequence[Level], guard: Guard | None, fast: str = "momentum") -> list[Agent]:
    return make(simulate(mesh_for(levels, n)), levels, guard, fast)


def poison(agent: Agent) -> None:
    """As a diverged agent is: weights, buffers of the optimizer and statistics are all not finite."""
    with torch.no_grad():
        for tensor in agent.model.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(math.nan)
        for state in agent.optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    value.fill_(math.inf)


def finite(agent: Agent) -> bool:
    state = agent.state()
    tensors = [*state["model"].values(), *(v for s in state["optimizer"]["state"].values() for v in s.values())]
    return all(bool(tensor.isfinite().all()) for tensor in tensors if isinstance(tensor, torch.Tensor))


@each_stack
def test_without_poison_a_guard_changes_no_bit(levels: Sequence[Level]) -> None:
    """It is on in every sync: the mean of healthy agents must be the plain mean."""
    plain, guarded = simulated(4, levels, None), simulated(4, levels, Guard())
    for agents in (plain, guarded):
        train(agents, range(2 * TAU + 1))
    for one, other in zip(plain, guarded, strict=True):
        assert same(dict(one.model.state_dict()), dict(other.model.state_dict()))


@each_stack
def test_a_poisoned_agent_contributes_nothing_and_goes_on_from_the_slow_weights(
    levels: Sequence[Level], caplog: pytest.LogCaptureFixture
) -> None:
    agents = simulated(4, levels, Guard())
    train(agents, range(TAU))
    poison(agents[1])
    train(agents, range(TAU, 3 * TAU))
    assert all(map(finite, agents))
    assert "agents [1] contribute nothing to the sync of levels[" in caplog.text


def test_the_mean_is_that_of_the_others() -> None:
    def trained(*, poisoned: bool) -> list[Agent]:
        agents = simulated(3, local_sgd(TAU), Guard())
        train(agents, range(TAU - 1))
        kept = [agent.state() for agent in agents]
        if poisoned:
            poison(agents[1])
        else:  # with the mean of the two others in its place, which the mean of all then is
            middle = {
                name: (kept[0]["model"][name].double() + kept[2]["model"][name].double()) / 2
                for name, _ in agents[1].model.named_parameters()
            }
            agents[1].model.load_state_dict({**agents[1].model.state_dict(), **middle})
        for agent in agents:
            agent.optimizer.sync()
        return agents

    one, other = trained(poisoned=True), trained(poisoned=False)
    for a, b in zip(one[0].model.parameters(), other[0].model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert one[0].optimizer.stack.bound[0].pace.total == 2
    assert same(dict(one[0].model.named_parameters()), dict(one[1].model.named_parameters()))


@pytest.mark.parametrize("fast", list(FAST))
def test_its_fast_optimizer_begins_anew(fast: str) -> None:
    agents = simulated(2, slowmo(TAU, beta=0.6), Guard(), fast)
    train(agents, range(TAU - 1))
    poison(agents[1])
    train(agents, [TAU - 1])
    assert not agents[1].optimizer.state
    assert agents[0].optimizer.state or fast == "sgd"
    train(agents, [TAU])
    assert all(map(finite, agents))


def test_where_all_are_poisoned_the_slow_weights_are_back_and_it_is_said() -> None:
    agents = simulated(2, slowmo(TAU, beta=0.6), Guard())
    train(agents, range(TAU))
    slow = [parameter.clone() for parameter in agents[0].model.parameters()]
    for agent in agents:
        poison(agent)
    with pytest.raises(PoisonedError, match=r"finite weights at the sync of levels\[0\] after fast step 6"):
        train(agents, range(TAU, 2 * TAU))
    for agent in agents:
        assert all(torch.equal(a, b) for a, b in zip(slow, agent.model.parameters(), strict=True))


def test_an_outlier_is_clipped_to_a_multiple_of_the_usual_way() -> None:
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    levels = slowmo(1, alpha=1.0, beta=0.0)
    agents = [
        DistributedLookahead(torch.optim.SGD([weight], lr=1.0), levels, communicator=end, guard=Guard(clip=2.0))
        for weight, end in zip(weights, simulate(3), strict=True)
    ]
    for ways in ([3.0, 4.0, 5.0], [4.0, 4.0, 400.0]):
        before = weights[0].detach().clone()
        for weight, agent, way in zip(weights, agents, ways, strict=True):
            weight.grad = torch.tensor([-way, 0.0])
            agent.step()
    torch.testing.assert_close(weights[0].detach() - before, torch.tensor([(4.0 + 4.0 + 8.0) / 3, 0.0]))


def test_the_usual_way_is_saved() -> None:
    agents = simulated(2, slowmo(TAU, beta=0.6), Guard(clip=1.5))
    train(agents, range(TAU + 1))
    states = copy.deepcopy([agent.state() for agent in agents])
    again = simulated(2, slowmo(TAU, beta=0.6), Guard(clip=1.5))
    for agent, state in zip(again, states, strict=True):
        agent.load(state)
    for team in (agents, again):
        train(team, range(TAU + 1, 2 * TAU))
    assert same(agents[0].state(), again[0].state())


@pytest.mark.parametrize(
    ("levels", "guard", "message"),
    [
        (slowmo(TAU, codec=Quantised()), Guard(), "what a code has lost"),
        (local_sgd(TAU, fast_buffers="average"), Guard(), "fast_buffers='average'"),
        (local_sgd(TAU), Guard(clip=2.0), "needs slow weights"),
        (slowmo(TAU, shard=True), Guard(clip=2.0), "no agent has all of z"),
    ],
)
def test_what_cannot_be_guarded_is_refused(levels: Sequence[Level], guard: Guard, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulated(2, levels, guard)
    with pytest.raises(ValueError, match="above 0"):
        Guard(clip=0.0)


def poisoned_in_a_process(levels: Sequence[Level]) -> dict[str, Any]:
    (agent,) = make([ProcessGroupCommunicator(Mesh((3,)))], levels, Guard())
    for step in range(2 * TAU):
        if step == TAU and agent.rank == 1:
            poison(agent)
        train([agent], [step])
    return dict(agent.model.state_dict())


def test_real_processes_do_as_simulated_ones() -> None:
    levels = slowmo(TAU, beta=0.6)
    states = run_processes(poisoned_in_a_process, 3, levels)
    agents = simulated(3, levels, Guard())
    train(agents, range(TAU))
    poison(agents[1])
    train(agents, range(TAU, 2 * TAU))
    assert finite(agents[0])
    for state, agent in zip(states, agents, strict=True):
        assert same(state, dict(agent.model.state_dict()), tolerance=1e-6)
