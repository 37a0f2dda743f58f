"""Agents of a training that were started with different files or numbers are told so, all of them, at once."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_lookahead.agreement import AgentsDiffer
from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from dist_lookahead.mesh import Mesh
from dist_lookahead.train.meeting import require_same_size
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.run_lock import RunLock
from dist_lookahead.train.start import own_folder, require_same_run
from dist_lookahead.train.world import World, join_world
from tests.launching import LIMIT, environment, free_port, torchrun_environment
from tests.processes import run_processes
from tests.training import small_config

pytestmark = pytest.mark.timeout(240)


def told(folder: Path, **other: Any) -> str:
    """What an agent hears before its run starts; the last agent has other settings."""
    world = World([ProcessGroupCommunicator()], torch.device("cpu"))
    config = small_config(folder, **(other if dist.get_rank() == dist.get_world_size() - 1 else {}))
    try:
        require_same_run(config, world)
        with own_folder(config, world, resume=False) as directory:
            return f"trains in {directory.path}"
    except ValueError as error:
        return str(error)


def told_with_another_evaluation(folder: Path) -> str:
    return told(folder, evaluation={"every": 4})


def told_with_a_folder_of_its_own(folder: Path) -> str:
    return told(folder, run={"dir": str(folder / "of the last node")})


def test_different_settings_are_named_on_every_agent(tmp_path: Path) -> None:
    """Evaluations at different steps would be added to something else."""
    heard = set(run_processes(told_with_another_evaluation, 3, tmp_path, timeout=120))
    differ = "evaluation.every: 6.0 on agents [0, 1]; evaluation.every: 4.0 on agents [2]"
    assert heard == {f"agents differ: {differ}. Give the same file and --set to every agent"}
    assert not (tmp_path / "small").exists()


def told_of_another_mesh(folder: Path, port: int) -> str:
    """What an agent hears that torchrun starts; the last one's file has a mesh of four agents."""
    rank, size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    os.environ |= torchrun_environment(rank, size, port)
    mesh = Mesh((2, 2), ("node", "local")) if rank == size - 1 else None
    try:
        with join_world(agents=1, device="cpu", timeout=60, mesh=mesh) as world:
            require_same_run(small_config(folder), world)
    except ValueError as error:
        return str(error)
    return "trains"


def test_a_mesh_that_one_agent_refuses_is_named_on_every_agent(tmp_path: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first, last = run_processes(told_of_another_mesh, 2, tmp_path, store.port, timeout=120)
    assert "has 4 agents, and there are 2 processes" in last
    assert "has 4 agents, and there are 2 processes" in first
    assert first.startswith("agents differ: ")


def test_where_files_are_may_differ_from_node_to_node(tmp_path: Path) -> None:
    first, last = run_processes(told_with_a_folder_of_its_own, 2, tmp_path, timeout=120)
    assert first == f"trains in {tmp_path / 'small'}"
    assert last == f"trains in {tmp_path / 'of the last node' / 'small'}"


def test_a_folder_that_one_agent_finds_taken_is_refused_on_every_agent(tmp_path: Path) -> None:
    """Breaks if the others go on, and wait for the one that has been refused."""
    lock = RunLock(tmp_path / "of the last node" / "small", agent=1)
    assert lock.acquire() == ""
    try:
        heard = set(run_processes(told_with_a_folder_of_its_own, 2, tmp_path, timeout=120))
    finally:
        lock.release()
    (message,) = heard
    assert message.startswith(
        f"another run trains in {lock.path.parent}: {lock.path} is held by process {os.getpid()} on"
    )
    assert message.endswith("or start a new run on agents [1]")


def told_sizes(sizes: Sequence[int]) -> list[str]:
    """What agents hear that were told different numbers of agents, in threads around one store."""
    store = dist.HashStore()

    def hear(rank: int) -> str:
        try:
            require_same_size(store, rank, sizes[rank])
        except AgentsDiffer as error:
            return str(error)
        return "go on"

    with ThreadPoolExecutor(len(sizes)) as pool:
        return list(pool.map(hear, range(len(sizes))))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((2, 3), "2 on agents [0]; 3 on agents [1]"),
        ((3, 2), "3 on agents [0]; 2 on agents [1]"),  # the third, which agent 0 expects, never comes
        ((4, 4, 4, 5), "4 on agents [0, 1, 2]; 5 on agents [3]"),
    ],
)
def test_different_numbers_of_agents_are_named_on_every_agent(sizes: tuple[int, ...], said: str) -> None:
    """Gloo would wait for the one that is not there until its timeout."""
    told = told_sizes(sizes)
    assert len(set(told)) == 1
    assert told[0].startswith(f"agents were told different numbers of agents: WORLD_SIZE={said}. Start all of them")


def test_the_same_number_for_all_lets_them_go_on() -> None:
    assert told_sizes((3, 3, 3)) == ["go on"] * 3


PRETEND = """
import glob, os, sys
from dist_lookahead.train import world

def listening():
    own = {os.readlink(fd)[8:-1] for fd in glob.glob("/proc/self/fd/*") if os.path.lexists(fd)}
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in open(table).readlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in own:
                yield fields[1].split(":")[0]

with world.join_world(agents=1, device="cpu", timeout=60.0) as joined:
    print("listening at", *sorted(set(listening())))
"""


def test_nothing_listens_but_at_the_address_that_was_given(tmp_path: Path) -> None:
    """Torch's own store listens at every address of the machine."""
    here = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "-c", PRETEND],
        env={**here, "RANK": "0", "WORLD_SIZE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert done.stdout == "listening at 0100007F\n"  # 127.0.0.1, as the kernel writes it


@pytest.mark.parametrize("name", ["../small", "/etc", "small/..", "small-2/x", "other", "small\n", ""])
def test_agent_0_cannot_send_others_to_a_folder_that_is_not_the_runs(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"agent 0 has chosen the folder"):
        RunDirectory.named(small_config(tmp_path), name)


def test_the_folders_that_agent_0_may_choose(tmp_path: Path) -> None:
    for name in ("small", "small-2", "small-17"):
        assert RunDirectory.named(small_config(tmp_path), name).path == tmp_path / name
