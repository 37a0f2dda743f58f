"""Where a run takes place: the processes that torchrun started, or one process with simulated agents."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.comm.simulated import simulate
from dist_lookahead.mesh import NODES, Mesh
from dist_lookahead.replicas import everybody_in
from dist_lookahead.survivors.agents import STORE, Survivors
from dist_lookahead.train.company import Company, Surviving
from dist_lookahead.train.meeting import meet
from dist_lookahead.train.phase import Phase


@dataclass(frozen=True)
class World:
    """The agents of this process.

    Attributes:
        communicators: one per agent that lives here: a single one under torchrun, all of them in a simulation.
        device: of this process.
        phase: what this process is doing.
        company: the agents of other processes, and whether they may be lost.
    """

    communicators: list[Communicator]
    device: torch.device
    phase: Phase = field(default_factory=Phase)
    company: Company = field(default_factory=Company)

    @property
    def agents(self) -> int:
        """Number of agents of the whole run."""
        return self.communicators[0].size

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's files and talks to the person."""
        return self.communicators[0].rank == 0 and not self.company.joins


@contextmanager
def join_world(
    *, agents: int, device: str, timeout: float, mesh: Mesh | None = None, survives: bool = False
) -> Iterator[World]:
    """Enter the process group of torchrun if there is one, else simulate.

    Args:
        agents: agents to simulate in this process.
        device: "auto", "cpu" or "cuda".
        timeout: seconds of silence after which a collective fails.
        mesh: axes of the agents; None for those of nodes, of which a simulation has one.
        survives: whether the run goes on without agents that are lost, which `dist-lookahead launch` has started.

    Raises:
        ValueError: for simulated agents under torchrun, a mesh of another size, a device that is not there, agents that
            were told different numbers of agents, and agents that go on without others but were not started so.
    """
    chosen = _device(device)
    if survives or STORE in os.environ:
        with _survivors(chosen, timeout, survives=survives) as world:
            yield world
        return
    if "WORLD_SIZE" not in os.environ:
        yield World(simulate(mesh or Mesh((1, agents), NODES)), chosen)
        return
    if agents > 1:
        raise ValueError(
            f"agents={agents} in {os.environ['WORLD_SIZE']} processes: under torchrun every process is one agent. "
            "Leave `agents` out of the run file, or start without torchrun to simulate them in one process"
        )
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    own_device = chosen if backend == "nccl" else None
    silence = timedelta(seconds=timeout)
    if store := meet(timeout):
        rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=silence, device_id=own_device)
    else:
        dist.init_process_group(backend, timeout=silence, device_id=own_device)
    try:
        yield World([everybody_in(mesh)], chosen)
    finally:
        dist.destroy_process_group()


@contextmanager
def _survivors(device: torch.device, timeout: float, *, survives: bool) -> Iterator[World]:
    if not survives:
        raise ValueError(
            "`dist-lookahead launch` leaves the others running when an agent ends, and this run needs all of them: set "
            "faults.on_lost_agent: continue (and faults.agents: elastic), or use torchrun"
        )
    if STORE not in os.environ:
        raise ValueError(
            "faults.on_lost_agent='continue' needs agents that nobody ends when one of them ends, as torchrun would: "
            "start them with `dist-lookahead launch --agents N -m dist_lookahead train FILE`"
        )
    survivors = Survivors.from_environment(timeout=timeout, device=device)
    try:
        yield World([survivors.communicator()], device, company=Surviving(survivors))
    finally:
        survivors.end()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("run.device='cuda', but torch sees no CUDA device here: use 'cpu' or 'auto'")
    device = torch.device("cuda", _place(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def _place(process: int, devices: int) -> int:
    """Return the GPU of a process of this node: one for each, or turn by turn where they are to be shared."""
    if process < devices:
        return process
    if os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1":
        # An NCCL that does not know that variable refuses a GPU which two processes of one host have.
        os.environ.setdefault("NCCL_HOSTID", f"{socket.gethostname()}-{process}")
        return process % devices
    raise ValueError(
        f"process {process} of this node has no GPU: torch sees {devices}. Start one process per GPU "
        "(--nproc-per-node), or let processes share them, slowly, with NCCL_MULTI_RANK_GPU_ENABLE=1"
    )
