"""Many agents in one process: the collectives of an in-memory board, stepped in lockstep."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dist_lookahead.comm.board import Board, Letters, Post
from dist_lookahead.comm.communicator import Communicator, Letter, Pending, Work, letter_bytes, ring_bytes
from dist_lookahead.mesh import WORLD, Mesh, as_mesh


def simulate(agents: int | Mesh) -> list[Communicator]:
    """Return the communicators of simulated agents, one for each optimizer.

    Step the agents in turn. What an agent has to communicate waits until every other agent has come to the same
    point, and then happens for all of them at once; an agent that runs ahead gets an error, never a deadlock.

    Args:
        agents: number of agents, >= 1, or a mesh of agents with named axes to average along.

    Example:
        >>> import torch
        >>> from dist_lookahead import DistributedLookahead, local_sgd
        >>> weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        >>> agents = [
        ...     DistributedLookahead(torch.optim.SGD([w], lr=1.0), local_sgd(tau=1), communicator=c)
        ...     for w, c in zip(weights, simulate(2), strict=True)
        ... ]
        >>> for gradient, w, optimizer in zip([1.0, 3.0], weights, agents, strict=True):
        ...     w.grad = torch.tensor([gradient])
        ...     optimizer.step()
        >>> [w.item() for w in weights]
        [-2.0, -2.0]
    """
    mesh = as_mesh(agents)
    boards: _Boards = {}
    return [SimulatedCommunicator(boards, mesh, rank) for rank in range(mesh.size)]


_Boards = dict[tuple[str, tuple[int, ...]], Board]


class SimulatedCommunicator:
    """One agent's end of a board in memory; alone on its board it is the communicator of a single process.

    Args:
        boards: the boards of all groups of agents, by axis and ranks; those that are missing are set up.
        mesh: of all agents.
        rank: this agent's number in the mesh.
        axis: along which its group lies.
        world: this agent's end of the group of all, for a smaller one.
    """

    def __init__(
        self,
        boards: _Boards,
        mesh: Mesh,
        rank: int,
        axis: str = WORLD,
        world: "SimulatedCommunicator | None" = None,
    ) -> None:
        self.members = mesh.group(axis, rank)
        self.rank, self.size = self.members.index(rank), len(self.members)
        self.mesh, self._axis = mesh, axis
        self._boards, self._world = boards, world or self
        # Also by axis: the same agents along two axes count their collectives apart.
        self._board = boards.setdefault((axis, self.members), Board(self.size))
        self._axes: dict[str, SimulatedCommunicator] = {axis: self}
        self._started = 0
        self.bytes_sent = 0
        self.bytes_along: dict[str, int] = {}
        self.seconds_syncing = 0.0
        self.seconds_waiting = 0.0  # in memory nothing is on its way

    def axis(self, name: str) -> "SimulatedCommunicator":
        """Return this agent's end of its group along an axis of the mesh."""
        world = self._world
        if len(self.mesh.group(name, world.rank)) == world.size:
            return world
        if name not in world._axes:
            world._axes[name] = SimulatedCommunicator(self._boards, self.mesh, world.rank, name, world)
        return world._axes[name]

    def all_reduce(self, tensor: Tensor) -> Work:
        """Start to sum `tensor` over the agents, in place."""
        return self._post("all_reduce", tensor, tensor, tensor)

    def reduce_scatter(self, output: Tensor, tensor: Tensor) -> Work:
        """Start to sum `tensor` over the agents; agent r gets part r."""
        return self._post("reduce_scatter", tensor, output, tensor)

    def all_gather(self, output: Tensor, tensor: Tensor) -> Work:
        """Start to collect every agent's `tensor` in `output`."""
        return self._post("all_gather", tensor, output, output)

    def all_to_all(self, output: Tensor, tensor: Tensor) -> Work:
        """Start to send part r of `tensor` to agent r, and to collect what all send here in `output`."""
        return self._post("all_to_all", tensor, output, tensor)

    def broadcast(self, tensor: Tensor) -> Work:
        """Start to overwrite `tensor` with agent 0's."""
        return self._post("broadcast", tensor, tensor, tensor)

    def exchange(self, sends: Sequence[Letter], receives: Sequence[Letter]) -> Work:
        """Start to send tensors to single agents, and to receive others from single agents."""
        return self._start(letter_bytes(sends), Letters(sends, receives))

    def run(self, pending: Pending) -> None:
        """Park the generator until every agent of the world has one, then drive all of them together."""
        start, world = time.perf_counter(), self._world
        try:
            world._board.enter(world.rank, pending)
        finally:
            world.seconds_syncing += time.perf_counter() - start

    def _post(self, kind: str, tensor: Tensor, output: Tensor, whole: Tensor) -> Work:
        nbytes = ring_bytes(kind, whole.numel() * whole.element_size(), self.size)
        return self._start(nbytes, Post(kind, tensor, output))

    def _start(self, nbytes: int, post: Post | Letters) -> Work:
        number, self._started = self._started, self._started + 1
        self._world._count(self._axis, nbytes)
        self._board.post(number, self.rank, post)
        return _BoardWork(self._board, number)

    def _count(self, axis: str, nbytes: int) -> None:
        self.bytes_sent += nbytes
        self.bytes_along[axis] = self.bytes_along.get(axis, 0) + nbytes

    def __deepcopy__(self, memo: dict[int, Any]) -> "SimulatedCommunicator":
        # A copied optimizer is a spare of the same agent: it talks through the same end.
        return self


@dataclass
class _BoardWork:
    board: Board
    number: int

    def wait(self) -> None:
        self.board.complete(self.number)
