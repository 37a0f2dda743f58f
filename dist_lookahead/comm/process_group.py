"""Agents as processes: collectives over torch.distributed (NCCL, gloo)."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_lookahead.comm.communicator import CollectiveError, Communicator, Pending, Work, ring_bytes
from dist_lookahead.comm.simulated import simulate

ROLL_CALL_SECONDS = 2.0  # how long the survivors of a failure wait for each other's sign of life


def default_communicator() -> Communicator:
    """Return the communicator of the default process group, or that of a single agent without one."""
    if dist.is_available() and dist.is_initialized():
        return ProcessGroupCommunicator()
    return simulate(1)[0]


class ProcessGroupCommunicator:
    """This process's end of the default process group (`torch.distributed.init_process_group`)."""

    def __init__(self) -> None:
        if not dist.is_initialized():
            raise ValueError("no process group: call torch.distributed.init_process_group first, or use torchrun")
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.members = tuple(range(self.size))
        self.bytes_sent = 0
        self.seconds_syncing = 0.0
        self._generation = self._agree_on_generation()

    def axis(self, name: str) -> "ProcessGroupCommunicator":
        """Return this communicator for "world"."""
        if name != "world":
            raise ValueError(f"axis {name!r} does not exist: the process group has the axis 'world' only")
        return self

    def all_reduce(self, tensor: Tensor) -> Work:
        """Start to sum `tensor` over the processes, in place."""
        return self._start("all_reduce", tensor, lambda: dist.all_reduce(tensor, async_op=True))

    def reduce_scatter(self, output: Tensor, tensor: Tensor) -> Work:
        """Start to sum `tensor` over the processes; process r gets part r."""
        return self._start("reduce_scatter", tensor, lambda: dist.reduce_scatter_tensor(output, tensor, async_op=True))

    def all_gather(self, output: Tensor, tensor: Tensor) -> Work:
        """Start to collect every process's `tensor` in `output`."""
        return self._start("all_gather", output, lambda: dist.all_gather_into_tensor(output, tensor, async_op=True))

    def broadcast(self, tensor: Tensor) -> Work:
        """Start to overwrite `tensor` with process 0's."""
        return self._start("broadcast", tensor, lambda: dist.broadcast(tensor, 0, async_op=True))

    def run(self, pending: Pending) -> None:
        """Wait for each work that the generator yields."""
        start = time.perf_counter()
        try:
            work = next(pending, None)
            while work is not None:
                work = self._advance(pending, work)
        finally:
            self.seconds_syncing += time.perf_counter() - start

    def absent_ranks(self) -> tuple[int, ...]:
        """After a failure: sign in at the rendezvous store and return the ranks that do not, () if unknown."""
        try:
            store = dist.distributed_c10d._get_default_store()
            prefix = f"dist_lookahead/{self._generation}/failed"
            store.set(f"{prefix}/{self.rank}", "1")
            deadline = time.monotonic() + ROLL_CALL_SECONDS
            absent = tuple(range(self.size))
            while absent and time.monotonic() < deadline:
                absent = tuple(r for r in absent if not store.check([f"{prefix}/{r}"]))
                time.sleep(0.05)
        except (RuntimeError, ValueError):  # the store died with its host
            return ()
        return absent

    def _advance(self, pending: Pending, work: Work) -> Work | None:
        try:
            work.wait()
        except RuntimeError as error:
            pending.throw(CollectiveError(str(error), self.absent_ranks()))
            raise
        return next(pending, None)

    def _start(self, kind: str, whole: Tensor, start: Callable[[], Work | None]) -> Work:
        self.bytes_sent += ring_bytes(kind, whole.numel() * whole.element_size(), self.size)
        try:
            work = start()
        except RuntimeError as error:  # a group that has failed before refuses at once
            raise CollectiveError(str(error), self.absent_ranks()) from error
        assert work is not None  # None stands for "not a member of the group"
        return work

    def _agree_on_generation(self) -> int:
        # The store may outlive a restart of the workers, so that yesterday's roll call must not count today.
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        generation = torch.tensor([time.time_ns()], device=device)
        dist.broadcast(generation, 0)
        return int(generation.item())

    def __deepcopy__(self, memo: dict[int, Any]) -> "ProcessGroupCommunicator":
        # A process group cannot be copied: a copied optimizer talks through the same one.
        return self

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return default_communicator, ()
