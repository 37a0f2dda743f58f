"""The communicator: what an agent needs from the others, and nothing more.

Code that communicates is written as a generator which starts collectives and yields each pending `Work` before it
reads the result. The communicator drives the generator: one with real processes waits for each work in turn; a
simulated one steps the generators of all its agents together, in one process. So there is one code path for both.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dist_lookahead.mesh import Mesh


class Work(Protocol):
    """A collective that has been started."""

    def wait(self) -> object:
        """Block until the result has arrived."""
        ...


class Rest:
    """No collective, but a place where agents may part: one that has more to communicate than others goes on here.

    A real process goes on at once. A simulated one waits here until all agents communicate again.
    """

    def wait(self) -> object:
        """Nothing is under way."""
        return None


@dataclass(frozen=True)
class Together:
    """Several works as one."""

    works: Sequence[Work]

    def wait(self) -> None:
        """Block until all results have arrived."""
        for work in self.works:
            work.wait()


REST = Rest()
Pending = Generator[Work, None, None]
Letter = tuple[int, Tensor]  # to or from an agent of the group, by its number there


class CollectiveError(RuntimeError):
    """A collective failed or timed out.

    Args:
        message: what failed.
        absent: ranks that did not report; () where that is not known.
        where: these agents are, in words; "" where that is not known.
    """

    def __init__(self, message: str, absent: tuple[int, ...] = (), where: str = "") -> None:
        super().__init__(message)
        self.absent, self.where = absent, where

    @property
    def who(self) -> str:
        """Say which agents are lost."""
        if not self.absent:
            return "which agents are lost is not known"
        return f"agents {list(self.absent)} did not report" + (f" ({self.where})" if self.where else "")


class Communicator(Protocol):
    """One agent's end of a group of agents.

    All agents call the same collectives in the same order with tensors of the same size and dtype.
    """

    @property
    def rank(self) -> int:
        """This agent's number, 0 <= rank < size."""
        ...

    @property
    def size(self) -> int:
        """Number of agents."""
        ...

    @property
    def members(self) -> tuple[int, ...]:
        """Ranks of the group's agents in the whole world, in order."""
        ...

    @property
    def mesh(self) -> Mesh:
        """The mesh of all agents."""
        ...

    @property
    def bytes_sent(self) -> int:
        """Bytes that this agent has sent so far: in collectives as `ring_bytes` counts them, and to single agents."""
        ...

    @property
    def bytes_along(self) -> Mapping[str, int]:
        """The same by the axis of the group that it sent them to."""
        ...

    @property
    def seconds_syncing(self) -> float:
        """Seconds spent in `run` so far: waiting for others, transfer and slow steps."""
        ...

    @property
    def seconds_waiting(self) -> float:
        """Seconds of them in which this process was blocked by a collective; on CUDA the host only, not the device."""
        ...

    def axis(self, name: str) -> "Communicator":
        """Return the communicator along a mesh axis; "world" is the whole group."""
        ...

    def all_reduce(self, tensor: Tensor) -> Work:
        """Start to sum `tensor` over the agents, in place."""
        ...

    def reduce_scatter(self, output: Tensor, tensor: Tensor) -> Work:
        """Start to sum `tensor` (size * D,) over the agents; agent r gets part r in `output` (D,)."""
        ...

    def all_gather(self, output: Tensor, tensor: Tensor) -> Work:
        """Start to collect every agent's `tensor` (D,) in `output` (size * D,)."""
        ...

    def all_to_all(self, output: Tensor, tensor: Tensor) -> Work:
        """Start to send part r of `tensor` (size * D,) to agent r; part r of `output` is what agent r has sent."""
        ...

    def broadcast(self, tensor: Tensor) -> Work:
        """Start to overwrite `tensor` with agent 0's."""
        ...

    def exchange(self, sends: Sequence[Letter], receives: Sequence[Letter]) -> Work:
        """Start to send tensors to single agents, and to overwrite others with what single agents send.

        All agents of the group exchange together, be it with nobody. What one agent sends to another arrives in the
        order in which it was sent.

        Args:
            sends: (agent, tensor) each, tensors contiguous and left as they are until all has arrived.
            receives: (agent, tensor) each, of the size and dtype that the other agent sends.
        """
        ...

    def run(self, pending: Pending) -> None:
        """Drive a communicating generator to its end; a failure is thrown into it as a `CollectiveError`."""
        ...


def ring_bytes(collective: str, nbytes: int, size: int) -> int:
    """Bytes that one agent sends in a collective over the whole tensor of `nbytes` (ring algorithms).

    An all-reduce is a reduce-scatter and an all-gather of (n - 1) / n of the bytes each. In an all-to-all each agent
    keeps one part of n and sends the others where they belong. A broadcast is counted as a pipeline, in which each
    agent but the last passes the tensor on once.

    Example:
        >>> ring_bytes("all_reduce", 1000, size=2), ring_bytes("all_gather", 1000, size=4)
        (1000, 750)
    """
    passes = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1, "all_to_all": 1, "broadcast": 1}[collective]
    return passes * nbytes * (size - 1) // size


def letter_bytes(sends: Iterable[Letter]) -> int:
    """Bytes that one agent sends in an exchange.

    Example:
        >>> import torch
        >>> letter_bytes([(1, torch.zeros(10)), (2, torch.zeros(10))])
        80
    """
    return sum(tensor.numel() * tensor.element_size() for _, tensor in sends)
