"""Torch's process group of the agents that are there now: made, and left when one of them is lost."""

import contextlib
import ctypes
import gc
import os
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from dist_lookahead.comm.alarm import Alarm
from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh
from dist_lookahead.survivors.signs_of_life import Generation
from dist_lookahead.survivors.sockets import Sockets, opened_by, shut_down

_set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # before torch 2.14
CONNECTING_SECONDS = 10.0  # for agents all of which have just been there

# Off is what torch does by itself when a collective over NCCL fails: it ends the process (error handling, monitoring),
# after a minute (wait) in which it looks up where the program was (buffers) and writes that down (dump).
OWN_HANDLING = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "0",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "0",  # TORCH_FR_BUFFER_SIZE in later versions
    "TORCH_FR_BUFFER_SIZE": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_NONBLOCKING_TIMEOUT": str(int(CONNECTING_SECONDS)),
}


class TorchGroup:
    """The default process group of torch, which is another one in each generation of agents.

    Args:
        store: where its members meet.
        device: of the parameters: over NCCL for a GPU, over gloo for the CPU.
        timeout: seconds of silence after which a collective fails.
        ring: says why it is of no use to wait for the others; "" where nothing is known.
    """

    def __init__(self, store: dist.Store, device: torch.device, timeout: float, ring: Callable[[], str]) -> None:
        self._store, self._timeout = store, timeout
        self._on_gpu = device.type == "cuda"
        self.alarm = Alarm(ring)
        self._sockets: Sockets = {}

    def check_levels(self, levels: Sequence[Level]) -> None:
        """Refuse levels that need what torch cannot do over such a group.

        Raises:
            ValueError: codes on a GPU.
        """
        coded = [index for index, level in enumerate(levels) if getattr(level.mix, "codec", None)]
        if self._on_gpu and coded:
            raise ValueError(
                f"levels[{coded[0]}].mix={levels[coded[0]].mix} sends codes by an all-to-all, which torch does not do "
                "over a group of NCCL that can be left while it waits: leave codec out, or let all agents restart when "
                "one is lost"
            )

    def form(self, generation: Generation, rank: int) -> None:
        """Meet the other members.

        Raises:
            RuntimeError: one of them is lost by now.
        """
        # Torch counts the groups of a process, also those that were not made, and its keys begin with that number:
        # agents that have tried another number of times would not find each other.
        dist.distributed_c10d._world.group_count = 0
        if self._on_gpu:
            os.environ |= OWN_HANDLING
        self.alarm.left_works = False
        patience = min(self._timeout, CONNECTING_SECONDS)
        self._sockets = opened_by(
            lambda: dist.init_process_group(
                "nccl" if self._on_gpu else "gloo",
                store=dist.PrefixStore(f"{generation.number}/group", self._store),
                rank=rank,
                world_size=len(generation.members),
                timeout=timedelta(seconds=patience),
                pg_options=_interruptible() if self._on_gpu else None,
            )
        )
        _set_timeout(timedelta(seconds=self._timeout))

    def communicator(self, size: int) -> ProcessGroupCommunicator:
        """Return this agent's end of all members; the agreement of the members says who is lost, no roll call."""
        return ProcessGroupCommunicator(Mesh((size,)), roll_call=0, alarm=self.alarm)

    def leave(self) -> None:
        """Close its connections at once, whatever is under way, so that others who wait in it find out as well."""
        group = dist.group.WORLD
        if group is None:
            return
        if self._on_gpu:
            group._get_backend(torch.device("cuda")).abort()
        elif self.alarm.left_works:
            # Gloo has no abort. Without connections the lost agent cannot come to the end of a sync that the others do
            # anew; and to destroy the group would wait for its threads, some of which do not see that they are gone,
            # such as one that sends to a killed agent. So it is never destroyed, not at the end of the process either;
            # its threads end their waits by the timeout.
            shut_down(self._sockets)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
        self.close()

    def close(self) -> None:
        """Drop it."""
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError):  # it has failed already
                dist.destroy_process_group()
        gc.collect()


def _interruptible() -> object:
    """Return options of NCCL with which a member may be lost while they meet: the others wait in a way that ends."""
    options = dist.ProcessGroupNCCL.Options()
    options.config.blocking = 0
    return options
