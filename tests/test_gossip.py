"""Gossip over simulated agents and processes: the weights of its graph, to the last bit, and only neighbours' bytes."""

import os
import signal
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from descending import Agent, crowd, descend, descend_and_sync
from processes import run_processes
from torch import Tensor, nn

from dist_lookahead import (
    BipartiteExponential,
    Complete,
    Copy,
    Every,
    Exact,
    Gossip,
    Graph,
    Level,
    LevelStack,
    Mesh,
    OnePeerExponential,
    Optimal,
    Pull,
    Ring,
    StaticExponential,
    SyncError,
    dpsgd,
    simulate,
    slowmo_over,
)
from dist_lookahead.comm.communicator import Communicator, Letter, Pending
from dist_lookahead.comm.process_group import default_communicator

LOPSIDED = Graph(
    [[0.7, 0.3, 0, 0], [0.0, 0.7, 0.3, 0], [0, 0, 0.7, 0.3], [0.3, 0, 0, 0.7]]
)  # nobody hears who hears it
STACKS: dict[str, list[Level]] = {
    "ring": dpsgd(),
    "one peer, twice": [Level(Every(2), Gossip(topology=OnePeerExponential(), rounds=2), Pull(0.5, 0.4))],
    "exponential": dpsgd(StaticExponential(), tau=2),
    "pairs": dpsgd(BipartiteExponential(), fast_buffers="reset"),
    "lopsided": dpsgd(LOPSIDED),
    "SlowMo over gossip": slowmo_over(dpsgd(), tau=3),
    "gossip between nodes": [
        Level(Every(1), Exact("local"), Copy(), "average"),
        Level(Every(2), Gossip("node", Ring()), Pull(0.8)),
    ],
    "gossip in a node": [Level(Every(1), Gossip("local"), Copy()), Level(Every(3), Exact("node"), Pull(0.5))],
}


# --- processes


def in_a_process(names: Sequence[str]) -> dict[str, Tensor]:
    """Each stack for seven steps and a flush, in float32."""
    results = {}
    for name in names:
        agent = Agent(dist.get_rank(), STACKS[name], mesh=Mesh((2, 2), ("node", "local")))
        descend_and_sync([agent], 7)
        results[name] = agent.weights()
    return results


@pytest.mark.timeout(120)
def test_processes_give_the_bits_of_simulated_agents() -> None:
    """Breaks if letters went to other ranks, or were summed in the order of their arrival."""
    results = run_processes(in_a_process, 4, list(STACKS))
    for name, levels in STACKS.items():
        agents = crowd(levels, Mesh((2, 2), ("node", "local")))
        descend_and_sync(agents, 7)
        for rank, agent in enumerate(agents):
            tolerance = 1e-6 if name == "SlowMo over gossip" else 0.0  # four add up in another order in an all-reduce
            difference = (results[rank][name] - agent.weights()).abs().max()
            assert difference <= tolerance, f"{name}, agent {rank}"


def lose_one(at: int) -> dict[str, Any]:
    agent = Agent(dist.get_rank(), dpsgd())
    descend([agent], at)
    if dist.get_rank() == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        descend([agent], 3)
    except SyncError as error:
        return {"message": str(error), "absent": list(error.absent), "finite": bool(agent.weights().isfinite().all())}
    return {"message": "no error"}


@pytest.mark.timeout(60)
def test_a_lost_neighbour_ends_the_run_and_nobody_else_is_blamed() -> None:
    """The neighbours notice at once, others only when these have ended: a roll call would name agents that are well."""
    results = run_processes(lose_one, 4, 2, silence=4.0, may_die=[2])
    for rank in (0, 1, 3):
        assert results[rank]["message"].startswith("the sync of levels[0] over axis 'world' after fast step")
        assert f"failed on agent {rank} of 4: which agents are lost is not known" in results[rank]["message"]
        assert results[rank]["absent"] == []
        assert results[rank]["finite"]


# --- what is averaged


@pytest.mark.parametrize("topology", [Ring(), Complete(), OnePeerExponential(), StaticExponential(), LOPSIDED])
@pytest.mark.parametrize("rounds", [1, 3])
def test_unit_vectors_through_the_mixer_are_the_weights_of_the_graph(topology: Any, rounds: int) -> None:
    mix, n = Gossip(topology=topology, rounds=rounds), 4
    ends = simulate(n)
    mixers = [mix.bind(end) for end in ends]
    for turn in range(5):
        columns = torch.eye(n, dtype=torch.float64)
        own = [columns[rank].clone() for rank in range(n)]
        for end, mixer, tensor in zip(ends, mixers, own, strict=True):
            end.run(mixer.collect([tensor], turn, ()))
        torch.testing.assert_close(torch.stack(own, dim=1), mix.weights(Mesh((n,)), turn), rtol=1e-14, atol=1e-16)
        if rounds == 1:
            assert torch.equal(torch.stack(own, dim=1), topology.weights(n, turn))


def test_the_mean_stays_and_agents_agree_in_the_end() -> None:
    agents = crowd(dpsgd(), 5)
    descend(agents, 1)
    mean = torch.stack([agent.weights() for agent in agents]).mean(dim=0)
    for agent in agents:
        agent.optimizer.param_groups[0]["lr"] = 0.0
    descend(agents, 60)
    for agent in agents:
        torch.testing.assert_close(agent.weights(), mean)


def test_an_exact_level_above_makes_agents_agree_to_the_last_bit() -> None:
    """`check_every` is 1: the checksums of the exact level are compared, those of the gossip would differ."""
    agents = crowd(slowmo_over(dpsgd(), tau=3), 5)
    descend(agents, 2)
    assert not torch.equal(agents[0].weights(), agents[1].weights())
    descend(agents, 1)
    assert torch.equal(agents[0].weights(), agents[1].weights())


def test_an_exact_pull_under_a_gossip_is_no_longer_alike_and_nobody_says_that_it_must_be() -> None:
    """Each agent's z comes from the gossip above: a checksum would be a false alarm; levels above must send all."""
    mesh = Mesh((3, 2), ("node", "local"))
    below = [Level(Every(1), Exact("local"), Pull(0.5)), Level(Every(2), Gossip("world"), Pull(0.5))]
    agents = crowd([*below, Level(Every(4), Exact("world"), Copy())], mesh)
    descend(agents, 3)
    assert not torch.equal(agents[0].weights(), agents[1].weights())
    descend(agents, 1)
    assert torch.equal(agents[0].weights(), agents[3].weights())


# --- what is sent


def sent_in_a_sync(levels: Sequence[Level], agents: int, size: int = 40) -> int:
    """Bytes that the busiest agent sends in one fast step after the first."""
    everybody = crowd(levels, agents, size=size)
    ends = [agent.optimizer.stack.communicator for agent in everybody]
    descend(everybody, 1)
    before = [end.bytes_sent for end in ends]
    descend(everybody, 1)
    return max(end.bytes_sent - b for end, b in zip(ends, before, strict=True))


@pytest.mark.filterwarnings("ignore:levels.* is unstable:UserWarning")
def test_what_an_agent_sends_does_not_grow_with_the_agents() -> None:
    """Breaks if mail, checksums or any collective over all travelled with a gossip; also under an exact level."""
    weights = 4 * 40
    for agents in (4, 16, 256):
        assert sent_in_a_sync(dpsgd(), agents) == 2 * weights
        assert sent_in_a_sync(dpsgd(OnePeerExponential()), agents) == weights
    assert sent_in_a_sync(slowmo_over(dpsgd(), tau=4), 256) == 2 * weights
    assert sent_in_a_sync([Level(Every(1), Gossip(rounds=3), Pull(0.5))], 16) == 6 * weights


# --- letters


def exchanging(end: Communicator, sends: list[Letter], receives: list[Letter]) -> Pending:
    yield end.exchange(sends, receives)


def test_letters_between_two_agents_arrive_in_the_order_in_which_they_were_sent() -> None:
    one, other = simulate(2)
    first, second = torch.zeros(2), torch.zeros(3)
    one.run(exchanging(one, [(1, torch.ones(2)), (1, torch.full((3,), 2.0))], []))
    other.run(exchanging(other, [], [(0, first), (0, second)]))
    assert (first.tolist(), second.tolist()) == ([1.0, 1.0], [2.0, 2.0, 2.0])
    assert (one.bytes_sent, other.bytes_sent) == (20, 0)


@pytest.mark.parametrize(
    ("sends", "receives", "message"),
    [
        ([], [(0, torch.zeros(2))], "agent 1 waits for agent 0, which sends it nothing more"),
        ([(1, torch.zeros(2))], [], "agent 0 sends to agent 1, which does not wait for it"),
        (
            [(1, torch.zeros(3))],
            [(0, torch.zeros(2))],
            r"sends \(3,\) torch.float32 to agent 1, which waits for \(2,\)",
        ),
    ],
)
def test_letters_that_do_not_fit_are_an_error(sends: list[Letter], receives: list[Letter], message: str) -> None:
    one, other = simulate(2)
    one.run(exchanging(one, sends, []))
    with pytest.raises(RuntimeError, match=message):
        other.run(exchanging(other, [], receives))


def letters_along_an_axis() -> list[float]:
    """Each process sends its rank to the other one along "node", by its number in that group."""
    end = default_communicator(Mesh((2, 2), ("node", "local"))).axis("node")
    got = torch.zeros(1)
    other = 1 - end.rank
    end.run(exchanging(end, [(other, torch.tensor([float(dist.get_rank())]))], [(other, got)]))
    end.run(exchanging(end, [], []))
    return [got.item(), end.bytes_sent]


@pytest.mark.timeout(60)
def test_processes_address_each_other_by_their_number_in_the_group() -> None:
    results = run_processes(letters_along_an_axis, 4)
    assert [got for got, _ in results] == [2.0, 3.0, 0.0, 1.0]


# --- parameters that join, copies, and refusals


@pytest.mark.parametrize("levels", [dpsgd(tau=2), slowmo_over(dpsgd(), tau=2)], ids=["dpsgd", "slowmo over it"])
def test_parameters_that_join_start_from_their_mean(levels: list[Level]) -> None:
    agents = crowd(levels, 3)
    descend(agents, 1)
    joined = [nn.Parameter(torch.full((2,), float(rank))) for rank in range(3)]
    for agent, parameter in zip(agents, joined, strict=True):
        agent.optimizer.add_param_group({"params": [parameter]})
    descend(agents, 1)
    assert [parameter.tolist() for parameter in joined] == [[1.0, 1.0]] * 3
    joined[0].grad = torch.full((2,), 3.0)
    descend(agents, 2)
    assert joined[1].tolist() != [1.0, 1.0], "it takes part from then on"


def test_other_parameters_on_some_agents_are_named_also_without_mail() -> None:
    agents = crowd(dpsgd(), 2)
    descend(agents, 1)
    for agent, size in zip(agents, (2, 3), strict=True):
        agent.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(size))]})
    with pytest.raises(ValueError, match="agents differ"):
        descend(agents, 1)


def test_slow_weights_are_each_agents_own_and_averaged_weights_are_not() -> None:
    agents = crowd([Level(Every(1), Gossip(), Pull(0.5))], 5)
    descend(agents, 2)
    slow, everybody = [], [agent.weights() for agent in agents]
    for agent in agents:
        with agent.optimizer.slow_weights():
            slow.append(agent.weights())
    assert all(torch.equal(a, b) for a, b in zip(slow, everybody, strict=True))
    assert not torch.equal(slow[0], slow[1])


def stacked(levels: Sequence[Level], mesh: Mesh) -> LevelStack:
    return Agent(0, levels, communicator=simulate(mesh)[0]).optimizer.stack


REFUSED = [
    (lambda: Level(Every(2), Gossip(), Copy(), "average"), "fast_buffers='average' needs a mean of all"),
    (lambda: Level(Every(2), Gossip(), Pull(Optimal(0.2, 1.0))), "each agent would find another alpha"),
    (
        lambda: stacked([Level(Every(1), Exact(shard=True), Pull(0.5)), Level(Every(2), Gossip(), Copy())], Mesh((2,))),
        "no z to be split over the agents: leave shard out",
    ),
    (lambda: stacked(dpsgd(LOPSIDED), Mesh((3,))), "weights for 4 agents, and there are 3"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_a_gossip_cannot_do_is_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
