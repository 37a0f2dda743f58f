"""Many agents in one process: the collectives of an in-memory board, stepped in lockstep."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dist_lookahead.comm.communicator import Communicator, Pending, Work, ring_bytes
from dist_lookahead.mesh import WORLD, Mesh, as_mesh


def simulate(agents: int | Mesh) -> list[Communicator]:
    """Return the communicators of simulated agents, one for each optimizer.

    Step the agents in turn. What an agent has to communicate waits until every other agent has come to the same
    point, and then happens for all of them at once; an agent that runs ahead gets an error, never a deadlock.

    Args:
        agents: number of agents, >= 1, or a mesh of agents with named axes to average along.

    Example:
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


@dataclass
class _Post:
    """One agent's part in a collective."""

    kind: str
    tensor: Tensor
    output: Tensor


@dataclass
class _Board:
    """Where the agents of one process meet."""

    size: int
    parked: dict[int, Pending] = field(default_factory=dict)
    operations: dict[int, dict[int, _Post]] = field(default_factory=dict)

    def enter(self, rank: int, pending: Pending) -> None:
        """Park an agent's generator; the last agent to come starts all of them."""
        if rank in self.parked:
            late = sorted(set(range(self.size)) - set(self.parked))
            raise RuntimeError(
                f"simulated agent {rank} communicates again before agents {late} have come to its last sync: "
                "step the agents in turn, all with the same levels"
            )
        self.parked[rank] = pending
        if len(self.parked) == self.size:
            generators = [self.parked[r] for r in range(self.size)]
            self.parked.clear()
            _lockstep(generators)

    def post(self, number: int, rank: int, post: _Post) -> None:
        self.operations.setdefault(number, {})[rank] = post

    def complete(self, number: int) -> None:
        """Do operation `number` for every agent, once."""
        posts = self.operations.pop(number, None)
        if posts is None:
            return
        ordered = [posts[rank] for rank in sorted(posts)]
        _check_alike(ordered, self.size)
        _COLLECTIVES[ordered[0].kind](ordered)


_Boards = dict[tuple[str, tuple[int, ...]], _Board]


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
        self._board = boards.setdefault((axis, self.members), _Board(self.size))
        self._axes: dict[str, SimulatedCommunicator] = {axis: self}
        self._started = 0
        self.bytes_sent = 0
        self.bytes_along: dict[str, int] = {}
        self.seconds_syncing = 0.0

    def axis(self, name: str) -> "SimulatedCommunicator":
        """Return this agent's end of its group along an axis of the mesh."""
        world = self._world
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

    def run(self, pending: Pending) -> None:
        """Park the generator until every agent of the world has one, then drive all of them together."""
        start, world = time.perf_counter(), self._world
        try:
            world._board.enter(world.rank, pending)
        finally:
            world.seconds_syncing += time.perf_counter() - start

    def _post(self, kind: str, tensor: Tensor, output: Tensor, whole: Tensor) -> Work:
        number, self._started = self._started, self._started + 1
        self._world._count(self._axis, ring_bytes(kind, whole.numel() * whole.element_size(), self.size))
        self._board.post(number, self.rank, _Post(kind, tensor, output))
        return _BoardWork(self._board, number)

    def _count(self, axis: str, nbytes: int) -> None:
        self.bytes_sent += nbytes
        self.bytes_along[axis] = self.bytes_along.get(axis, 0) + nbytes

    def __deepcopy__(self, memo: dict[int, Any]) -> "SimulatedCommunicator":
        # A copied optimizer is a spare of the same agent: it talks through the same end.
        return self


@dataclass
class _BoardWork:
    board: _Board
    number: int

    def wait(self) -> None:
        self.board.complete(self.number)


def _lockstep(generators: list[Pending]) -> None:
    while True:
        works = _advance(generators)
        finished = [rank for rank, work in enumerate(works) if work is None]
        if len(finished) == len(works):
            return
        if finished:
            raise RuntimeError(
                f"simulated agents {finished} have nothing more to communicate where the others wait for them: "
                "all agents need the same levels and the same number of steps"
            )
        for work in works:
            assert work is not None
            work.wait()


def _advance(generators: list[Pending]) -> list[Work | None]:
    """Bring all agents to their next wait; an error of one does not keep the others from theirs, as in processes."""
    works, errors = [], []
    for generator in generators:
        try:
            works.append(next(generator, None))
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return works


def _check_alike(posts: list[_Post], size: int) -> None:
    described = [(p.kind, tuple(p.tensor.shape), p.tensor.dtype) for p in posts]
    if len(posts) != size or len(set(described)) > 1:
        raise RuntimeError(f"simulated agents started different collectives: {described}")


@torch.no_grad()
def _sum(posts: list[_Post]) -> Tensor:
    """Sum in rank order: the same order on every run."""
    total = posts[0].tensor.clone()
    for post in posts[1:]:
        total.add_(post.tensor)
    return total


@torch.no_grad()
def _all_reduce(posts: list[_Post]) -> None:
    total = _sum(posts)
    for post in posts:
        post.output.copy_(total)


@torch.no_grad()
def _reduce_scatter(posts: list[_Post]) -> None:
    for post, part in zip(posts, _sum(posts).chunk(len(posts)), strict=True):
        post.output.copy_(part)


@torch.no_grad()
def _all_gather(posts: list[_Post]) -> None:
    whole = torch.cat([post.tensor for post in posts])
    for post in posts:
        post.output.copy_(whole)


@torch.no_grad()
def _all_to_all(posts: list[_Post]) -> None:
    parts = [post.tensor.chunk(len(posts)) for post in posts]
    for rank, post in enumerate(posts):
        post.output.copy_(torch.cat([sent[rank] for sent in parts]))


@torch.no_grad()
def _broadcast(posts: list[_Post]) -> None:
    for post in posts[1:]:
        post.output.copy_(posts[0].tensor)


_COLLECTIVES = {
    "all_reduce": _all_reduce,
    "reduce_scatter": _reduce_scatter,
    "all_gather": _all_gather,
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
}
