"""Averaging along the axes of a mesh: processes like simulated agents, and each byte far once per node."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from descending import Agent, crowd, descend, descend_and_sync
from processes import run_processes
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from dist_lookahead import Alone, Copy, Every, Exact, Level, Mesh, Pull, simulate
from dist_lookahead.comm.communicator import ring_bytes
from dist_lookahead.comm.process_group import ProcessGroupCommunicator

NAMES = ("node", "local")
STACKS: dict[str, list[Level]] = {
    "hierarchical local SGD": [Level(Every(2), Exact("local"), Copy()), Level(Every(4), Exact("node"), Copy())],
    "Lookahead in a node, SlowMo across": [
        Level(Every(2), Exact("local"), Pull(0.5)),
        Level(Every(4), Exact("node"), Pull(1.0, 0.6, follow_lr=True)),
    ],
    "sharded across": [
        Level(Every(2), Exact("local", shard=True), Pull(0.5)),
        Level(Every(4), Exact("world", shard=True), Pull(0.8, 0.6)),
    ],
    "all at once": [Level(Every(2), Exact("world"), Pull(0.5))],
    "momentum averaged in a node": [Level(Every(2), Exact("local"), Copy(), "average")],
    "across nodes only": [Level(Every(1), Alone(), Pull(0.9)), Level(Every(3), Exact("node"), Pull(0.5))],
}


def in_a_process(names: Sequence[str], *, own_mesh: bool = False) -> dict[str, Tensor]:
    """Each stack for seven steps and a flush: two rounds and a partial one."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=NAMES) if own_mesh else Mesh((2, 2), NAMES)
    weights = {}
    for name in names:
        agent = Agent(dist.get_rank(), STACKS[name], mesh=mesh)
        descend_and_sync([agent], 7)
        weights[name] = agent.weights()
    return weights


@pytest.mark.timeout(120)
def test_processes_on_a_mesh_give_the_numbers_of_simulated_agents() -> None:
    """Two summands along each axis: sums are the same in any order, so that all bits are."""
    results = run_processes(in_a_process, 4, list(STACKS))
    for name, levels in STACKS.items():
        agents = crowd(levels, Mesh((2, 2), NAMES))
        descend_and_sync(agents, 7)
        for rank, agent in enumerate(agents):
            assert torch.equal(results[rank][name], agent.weights()), f"{name}, agent {rank}"


def by_torchs_mesh() -> dict[str, Tensor]:
    return in_a_process(["sharded across"], own_mesh=True)


@pytest.mark.timeout(120)
def test_torchs_own_mesh_serves_as_well() -> None:
    name = "sharded across"
    agents = crowd(STACKS[name], Mesh((2, 2), NAMES))
    descend_and_sync(agents, 7)
    results = run_processes(by_torchs_mesh, 4)
    assert all(torch.equal(result[name], agent.weights()) for result, agent in zip(results, agents, strict=True))


def meshes(local: int) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", str(local))
        end = ProcessGroupCommunicator()
    refusals = []
    for build in (
        lambda: ProcessGroupCommunicator(Mesh((3,))),
        lambda: ProcessGroupCommunicator(init_device_mesh("cpu", (2,))),
        lambda: end.axis("rack"),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the messages are compared where they are returned to
            build()
        refusals.append(str(error.value))
    return [end.mesh.shape, end.mesh.names, end.axis("local").members, *refusals]


@pytest.mark.timeout(120)
def test_torchruns_nodes_are_the_default_mesh_and_others_are_refused() -> None:
    for rank, (shape, names, members, *refusals) in enumerate(run_processes(meshes, 2, 1)):
        assert (shape, names, members) == ((2, 1), NAMES, (rank,))
        assert "has 3 agents, and there are 2 processes" in refusals[0]
        assert "give mesh_dim_names" in refusals[1]
        assert "axis 'rack' does not exist; allowed: node, local, world" in refusals[2]
    assert [result[:3] for result in run_processes(meshes, 2, 2)] == [[(1, 2), NAMES, (0, 1)]] * 2


def sent_far(levels: Sequence[Level], shape: tuple[int, int]) -> tuple[int, int]:
    """Bytes that an agent sends across nodes in a sync of all levels, and those of its weights."""
    agents = crowd(levels, Mesh(shape, NAMES))
    ends = [agent.optimizer.stack.communicator for agent in agents]
    before = [end.bytes_along.get("node", 0) for end in ends]
    descend(agents, 4)
    (sent,) = {end.bytes_along.get("node", 0) - b for end, b in zip(ends, before, strict=True)}
    return sent, agents[0].optimizer.stack.buckets[0].fast.nbytes


@pytest.mark.parametrize(
    "levels",
    [
        [Level(Every(2), Exact("local"), Copy()), Level(Every(4), Exact("node"), Pull(0.5))],
        [Level(Every(2), Exact("local"), Copy()), Level(Every(4), Exact("world"), Pull(0.5))],
        [Level(Every(4), Exact("world"), Pull(0.5))],
    ],
    ids=["node over local", "world over local", "world alone"],
)
def test_each_byte_crosses_the_nodes_once_for_all_agents_of_a_node(levels: list[Level]) -> None:
    sent, weights = sent_far(levels, (2, 4))
    checksums = 8 * 3  # of three other agents: `check_every`, along the axis "node" where that is the level's
    assert sent - ring_bytes("all_reduce", weights // 4, 2) in (0, checksums // 3)


def test_agents_that_hold_the_same_weights_do_not_send_them_again() -> None:
    two = [Level(Every(2), Exact(), Copy()), Level(Every(4), Exact(), Pull(0.5, 0.5), "average")]
    agents = crowd(two, Mesh((2, 2), NAMES))
    mixers = [bound.mixer for bound in agents[0].optimizer.stack.bound]
    assert [mixer.communicates for mixer in mixers] == [True, False]
    descend(agents, 4)
    momenta = [agent.optimizer.state[agent.weight]["momentum_buffer"] for agent in agents]
    assert all(torch.equal(momentum, momenta[0]) for momentum in momenta), "the buffers still differ, and are averaged"


def test_a_flag_reaches_all_agents_in_the_same_sync() -> None:
    agents = crowd(STACKS["hierarchical local SGD"], Mesh((2, 2), NAMES))
    descend(agents, 1)
    agents[3].optimizer.stack.raise_flag(7)
    heard = []
    for _ in range(3):
        descend(agents, 1)
        heard.append([agent.optimizer.stack.flags for agent in agents])
    assert heard[0] == [(0, 0, 0, 0)] * 4, (
        "the sync inside the nodes tells half of them, and they keep it to themselves"
    )
    assert heard[2] == [(0, 0, 0, 7)] * 4


def test_agents_out_of_step_are_named_by_their_rank_in_the_world() -> None:
    levels = [Level(Every(1), Exact("local"), Copy())]
    agents = crowd(levels, Mesh((2, 2), NAMES))
    agents[3].optimizer.stack.clock = 5
    with pytest.raises(RuntimeError, match=r"1 on agents \[2\]; 6 on agents \[3\]"):
        descend(agents, 1)


def test_the_same_agents_along_two_axes_do_not_mix_up_their_collectives() -> None:
    """Breaks if they meet on one board: a sum under way in the world would be taken for one along the axis."""
    ends = simulate(Mesh((2, 1), NAMES))
    far, near = ([torch.tensor([float(rank + 1)]) for rank in range(2)] for _ in range(2))
    works = [
        (end.axis("node").all_reduce(a), end.all_reduce(b.mul_(10))) for end, a, b in zip(ends, far, near, strict=True)
    ]
    for along, world in works:
        world.wait()
        along.wait()
    assert [t.item() for t in (*far, *near)] == [3.0, 3.0, 30.0, 30.0]


def test_a_mesh_beside_a_communicator_is_refused() -> None:
    with pytest.raises(ValueError, match="has no effect beside a communicator"):
        Agent(0, STACKS["all at once"], mesh=Mesh((1,)), communicator=simulate(1)[0])
    with pytest.raises(ValueError, match="without a process group"):
        Agent(0, STACKS["all at once"], mesh=Mesh((1,)))


@pytest.mark.parametrize(
    ("shape", "names", "message"),
    [
        ((2,), ("node", "local"), "give one name for each axis"),
        ((2, 0), NAMES, "at least 1 agent is needed along each axis"),
        ((2, 2), ("node", "node"), "must differ"),
        ((2, 2), ("world", "node"), "'world' stands for all axes"),
    ],
)
def test_a_mesh_that_makes_no_sense_is_refused(shape: tuple[int, ...], names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mesh(shape, names)
