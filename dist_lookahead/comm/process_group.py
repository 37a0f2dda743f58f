"""Agents as processes: collectives over torch.distributed (NCCL, gloo)."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dist_lookahead.comm.alarm import Alarm
from dist_lookahead.comm.communicator import (
    CollectiveError,
    Communicator,
    Letter,
    Pending,
    Together,
    Work,
    letter_bytes,
    ring_bytes,
)
from dist_lookahead.comm.part_sums import PIECE, PartCopies, PartSums
from dist_lookahead.comm.simulated import simulate
from dist_lookahead.comm.torch_mesh import described, mesh_of_nodes
from dist_lookahead.mesh import NODES, WORLD, Mesh

# torch 2.15 renames them, and warns of the names that 2.11 has.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

ANSWER_SECONDS = 3.0  # within which a store that is well answers
ROLL_CALL_SECONDS = 2.0  # how long the survivors of a failure wait for each other's sign of life


def default_communicator(mesh: Mesh | DeviceMesh | None = None) -> Communicator:
    """Return the communicator of the default process group, or that of a single agent without one.

    Args:
        mesh: of the agents; None for torchrun's nodes and processes on each.
    """
    if dist.is_available() and dist.is_initialized():
        return ProcessGroupCommunicator(mesh)
    if mesh is not None:
        raise ValueError(f"mesh={mesh} without a process group: call torch.distributed.init_process_group first")
    return simulate(Mesh((1, 1), NODES))[0]


class ProcessGroupCommunicator:
    """This process's end of the default process group (`torch.distributed.init_process_group`), or of a part of it.

    Args:
        mesh: of all processes, a description or torch's own; None for `mesh_of_nodes`.
        roll_call: seconds for which the survivors of a failure wait for each other's sign of life, to say who is lost.
        alarm: ends this process's waits for others when it rings.

    Attributes:
        members: of the group, by their numbers in the world.
        ranks: of the world's agents among all processes.
        roll_call: seconds for which the survivors of a failure wait for each other's sign of life.
        alarm: ends this process's waits for others when it rings.
        waits_since: when this process has begun to wait for others, of `time.monotonic`; None while it does not.
        where: says where agents are that are lost or late; a `Watchdog` knows.

    Raises:
        ValueError: without a process group, and for a mesh of another size or order of ranks.
    """

    def __init__(
        self,
        mesh: Mesh | DeviceMesh | None = None,
        *,
        roll_call: float = ROLL_CALL_SECONDS,
        alarm: Alarm | None = None,
    ) -> None:
        if not dist.is_initialized():
            raise ValueError("no process group: call torch.distributed.init_process_group first, or use torchrun")
        self.mesh = described(mesh) if isinstance(mesh, DeviceMesh) else mesh or mesh_of_nodes()
        if self.mesh.size != dist.get_world_size():
            raise ValueError(
                f"{self.mesh} has {self.mesh.size} agents, and there are {dist.get_world_size()} processes"
            )
        self._torch_mesh = mesh if isinstance(mesh, DeviceMesh) else None
        self._whole: ProcessGroupCommunicator | None = None
        self.roll_call, self.alarm = roll_call, alarm
        self.waits_since: float | None = None
        self.where: Callable[[Sequence[int]], str] | None = None
        self.ranks = tuple(range(self.mesh.size))
        self._settle(WORLD, None, lambda: dist.group.WORLD)
        self._generation = self._agree_on_generation()

    def _settle(self, axis: str, world: "ProcessGroupCommunicator | None", group: Callable[[], Any]) -> None:
        """Become this process's end of a group of the world."""
        self._axis, self._world, self._make_group = axis, world or self, group
        self._group: Any = None
        self._axes: dict[str, ProcessGroupCommunicator] = {axis: self}
        own = self.ranks.index(dist.get_rank())
        self.members = self.mesh.group(axis, own)
        self.rank, self.size = self.members.index(own), len(self.members)
        self.bytes_sent = 0
        self.bytes_along: dict[str, int] = {}
        self.seconds_syncing = self.seconds_waiting = 0.0

    @property
    def device(self) -> str:
        """Where the backend works."""
        return "cuda" if dist.get_backend() == "nccl" else "cpu"

    @property
    def process_group(self) -> Any:
        """Torch's group, made by all processes with the first thing that they send over it.

        Not before: processes that have different levels would make different groups, and wait for each other for ever.
        """
        if self._group is None:
            with self._waiting():
                self._group = self._make_group()
        return self._group

    def axis(self, name: str) -> "ProcessGroupCommunicator":
        """Return this process's end of its group along an axis."""
        world = self._world
        if len(self.mesh.group(name, 0)) == world.size:  # refuses an axis that is not there before anybody waits
            return world
        if name not in world._axes:
            world._axes[name] = world._twin()
            world._axes[name]._settle(name, world, lambda: world.torch_mesh.get_group(name))
        return world._axes[name]

    def without(self, name: str) -> "ProcessGroupCommunicator":
        """Return a world of the processes with this one's place along an axis; all processes ask for it.

        Where an agent's weights are split along the axis, they are those that hold the same part of other agents'.
        """
        rest = {axis: size for axis, size in zip(self.mesh.names, self.mesh.shape, strict=True) if axis != name}
        worlds = [self.mesh.group(tuple(rest), place) for place in self.mesh.group(name, 0)]
        own = next(number for number, ranks in enumerate(worlds) if dist.get_rank() in ranks)
        other = self._world._twin()
        other._torch_mesh = self._world.torch_mesh
        other._whole, other.ranks = self._world, worlds[own]
        other.mesh = Mesh(tuple(rest.values()), tuple(rest)) if rest else Mesh((1,))
        groups = [dist.new_group(list(ranks)) for ranks in worlds]  # by all processes, also those that are not in it
        other._settle(other.mesh.names[0] if len(rest) == 1 else WORLD, None, lambda: groups[own])
        return other

    def _twin(self) -> "ProcessGroupCommunicator":
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    @property
    def torch_mesh(self) -> DeviceMesh:
        """Torch's mesh of all processes, which has a group for each axis; all processes ask for it."""
        if self._torch_mesh is None:
            self._torch_mesh = init_device_mesh(self.device, self.mesh.shape, mesh_dim_names=self.mesh.names)
        return self._torch_mesh

    def all_reduce(self, tensor: Tensor) -> Work:
        """Start to sum `tensor` over the processes, in place."""
        return self._start(
            "all_reduce", tensor, lambda: dist.all_reduce(tensor, group=self.process_group, async_op=True)
        )

    def reduce_scatter(self, output: Tensor, tensor: Tensor) -> Work:
        """Start to sum `tensor` over the processes; process r gets part r."""
        return self._start(
            "reduce_scatter",
            tensor,
            lambda: self._sum_parts(output, tensor),
        )

    def _sum_parts(self, output: Tensor, tensor: Tensor) -> Work | None:
        if tensor.device.type == "cpu":
            return PartSums(output, tensor, self.size, self.process_group)
        return _reduce_scatter(output, tensor, group=self.process_group, async_op=True)

    def all_gather(self, output: Tensor, tensor: Tensor) -> Work:
        """Start to collect every process's `tensor` in `output`."""
        return self._start("all_gather", output, lambda: self._gather_parts(output, tensor))

    def _gather_parts(self, output: Tensor, tensor: Tensor) -> Work | None:
        def gather(whole: Tensor, part: Tensor) -> Any:
            return _all_gather(whole, part, group=self.process_group, async_op=True)

        if tensor.device.type == "cpu" and output.numel() > PIECE:
            return PartCopies(output, tensor, self.size, gather)
        return gather(output, tensor)

    def all_to_all(self, output: Tensor, tensor: Tensor) -> Work:
        """Start to send part r of `tensor` to process r, and to collect what all send here in `output`."""
        return self._start(
            "all_to_all",
            tensor,
            lambda: dist.all_to_all_single(output, tensor, group=self.process_group, async_op=True),
        )

    def broadcast(self, tensor: Tensor) -> Work:
        """Start to overwrite `tensor` with that of the group's first process."""
        first = self.ranks[self.members[0]]
        return self._start(
            "broadcast", tensor, lambda: dist.broadcast(tensor, first, group=self.process_group, async_op=True)
        )

    def count(self, collective: str, nbytes: int) -> None:
        """Count what others have sent over this group, such as DDP."""
        self._world._count(self._axis, ring_bytes(collective, nbytes, self.size))

    def exchange(self, sends: Sequence[Letter], receives: Sequence[Letter]) -> Work:
        """Start to send tensors to single processes, and to receive others from single processes."""
        letters = [(dist.isend, letter) for letter in sends] + [(dist.irecv, letter) for letter in receives]
        operations = [
            dist.P2POp(way, tensor, self.ranks[self.members[peer]], group=self.process_group)
            for way, (peer, tensor) in letters
        ]
        start = dist.batch_isend_irecv if operations else list  # which refuses to send nothing
        return self._begin(letter_bytes(sends), lambda: Together(start(operations)), everybody=False)

    def run(self, pending: Pending) -> None:
        """Wait for each work that the generator yields."""
        start = time.perf_counter()
        try:
            while (work := next(pending, None)) is not None:
                self._wait(pending, work)
                del work  # gloo's holds a copy of what it has sent, and the generator goes on for long
        finally:
            for world in self._worlds:
                world.seconds_syncing += time.perf_counter() - start

    @property
    def _worlds(self) -> "list[ProcessGroupCommunicator]":
        """What counts for this process: the world of its agents, and that of all processes."""
        return [self._world, *([self._world._whole] if self._world._whole else [])]

    @property
    def _top(self) -> "ProcessGroupCommunicator":
        return self._worlds[-1]

    def let_go(self) -> None:
        """Drop torch's groups: what holds one keeps its connections open, and the others wait at their ends."""
        for end in self._axes.values():
            end._group = None

    @property
    def key(self) -> str:
        """Where the processes of this training keep things in the store by which they have met."""
        return f"dist_lookahead/{self._generation}"

    def absent_ranks(self) -> tuple[int, ...]:
        """After a failure: sign in at the rendezvous store; return the group's ranks that do not, () if unknown."""
        if not self._world.roll_call:
            return ()
        found: list[tuple[int, ...]] = []
        # A store whose host stands still would not answer for ever.
        asking = threading.Thread(target=lambda: found.append(self._call_the_roll()), daemon=True)
        asking.start()
        asking.join(self._world.roll_call + ANSWER_SECONDS)
        return found[0] if found else ()

    def _call_the_roll(self) -> tuple[int, ...]:
        try:
            store = dist.distributed_c10d._get_default_store()
            prefix = f"{self._world.key}/failed of {'-'.join(map(str, self.ranks))}"
            store.set(f"{prefix}/{self._world.rank}", "1")
            deadline = time.monotonic() + self._world.roll_call
            absent = self.members
            while absent and time.monotonic() < deadline:
                absent = tuple(r for r in absent if not store.check([f"{prefix}/{r}"]))
                time.sleep(0.05)
        except (RuntimeError, ValueError):  # the store died with its host
            return ()
        return absent

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        top = self._top
        top.waits_since = time.monotonic()
        try:
            yield
        finally:
            top.waits_since = None

    def _wait(self, pending: Pending, work: Work) -> None:
        start = time.perf_counter()
        with self._waiting():
            try:
                self._await(work)
            except RuntimeError as error:
                pending.throw(self._failed(error, everybody=not isinstance(work, Together)))
                raise
        waited = time.perf_counter() - start
        for world in self._worlds:
            world.seconds_waiting += waited

    def _await(self, work: Work) -> None:
        if self._world.alarm:
            self._world.alarm.wait(work)
        else:
            work.wait()

    def _start(self, kind: str, whole: Tensor, start: Callable[[], Work | None]) -> Work:
        return self._begin(ring_bytes(kind, whole.numel() * whole.element_size(), self.size), start)

    def _begin(self, nbytes: int, start: Callable[[], Work | None], *, everybody: bool = True) -> Work:
        self._world._count(self._axis, nbytes)
        try:
            work = start()
        except RuntimeError as error:  # a group that has failed before refuses at once
            raise self._failed(error, everybody=everybody) from error
        assert work is not None  # None stands for "not a member of the group"
        return work

    def _failed(self, error: RuntimeError, *, everybody: bool) -> CollectiveError:
        # An exchange fails on the neighbours of a lost agent only: that others do not sign in says nothing.
        absent = self.absent_ranks() if everybody else ()
        return CollectiveError(str(error), absent, self._tell(absent))

    def _tell(self, absent: tuple[int, ...]) -> str:
        return self._top.where([self.ranks[rank] for rank in absent]) if absent and self._top.where else ""

    def _count(self, axis: str, nbytes: int) -> None:
        self.bytes_sent += nbytes
        self.bytes_along[axis] = self.bytes_along.get(axis, 0) + nbytes
        if self._whole:
            self._whole._count(axis, nbytes)

    def _agree_on_generation(self) -> int:
        # The store may outlive a restart of the workers, so that yesterday's roll call must not count today.
        generation = torch.tensor([time.time_ns()], device=self.device)
        work = dist.broadcast(generation, 0, async_op=True)
        assert work is not None
        self._await(work)
        return int(generation.item())

    def __deepcopy__(self, memo: dict[int, Any]) -> "ProcessGroupCommunicator":
        # A process group cannot be copied: a copied optimizer talks through the same one.
        return self

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return default_communicator, ()
