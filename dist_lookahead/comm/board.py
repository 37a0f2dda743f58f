"""The board where the agents of one process meet: their generators in lockstep, and the collectives among them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dist_lookahead.comm.communicator import REST, Letter, Pending, Work


@dataclass
class Post:
    """One agent's part in a collective."""

    kind: str
    tensor: Tensor
    output: Tensor

    @property
    def described(self) -> tuple[Any, ...]:
        """What must be the same for all agents."""
        return self.kind, tuple(self.tensor.shape), self.tensor.dtype


@dataclass
class Letters:
    """One agent's part in an exchange."""

    sends: Sequence[Letter]
    receives: Sequence[Letter]
    kind: str = "exchange"

    @property
    def described(self) -> tuple[Any, ...]:
        """What must be the same for all agents; whether letters fit is seen when they are delivered."""
        return (self.kind,)


@dataclass
class Board:
    """Where the agents of one process meet."""

    size: int
    parked: dict[int, Pending] = field(default_factory=dict)
    operations: dict[int, dict[int, Any]] = field(default_factory=dict)

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
            self.parked.update((rank, generators[rank]) for rank in _lockstep(generators))

    def post(self, number: int, rank: int, post: Post | Letters) -> None:
        """Hold an agent's part in operation `number`."""
        self.operations.setdefault(number, {})[rank] = post

    def complete(self, number: int) -> None:
        """Do operation `number` for every agent, once."""
        posts = self.operations.pop(number, None)
        if posts is None:
            return
        ordered = [posts[rank] for rank in sorted(posts)]
        _check_alike(ordered, self.size)
        _COLLECTIVES[ordered[0].kind](ordered)


def _lockstep(generators: list[Pending]) -> list[int]:
    """Drive all agents to their ends, or to a rest where the others are at theirs; return who rests."""
    while True:
        works = _advance(generators)
        finished = [rank for rank, work in enumerate(works) if work is None]
        resting = [rank for rank, work in enumerate(works) if work is REST]
        if finished and len(finished) + len(resting) == len(works):
            return resting
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


def _check_alike(posts: list[Any], size: int) -> None:
    described = [post.described for post in posts]
    if len(posts) != size or len(set(described)) > 1:
        raise RuntimeError(f"simulated agents started different collectives: {described}")


@torch.no_grad()
def _sum(posts: list[Post]) -> Tensor:
    """Sum in rank order: the same order on every run."""
    total = posts[0].tensor.clone()
    for post in posts[1:]:
        total.add_(post.tensor)
    return total


@torch.no_grad()
def _all_reduce(posts: list[Post]) -> None:
    total = _sum(posts)
    for post in posts:
        post.output.copy_(total)


@torch.no_grad()
def _reduce_scatter(posts: list[Post]) -> None:
    for post, part in zip(posts, _sum(posts).chunk(len(posts)), strict=True):
        post.output.copy_(part)


@torch.no_grad()
def _all_gather(posts: list[Post]) -> None:
    whole = torch.cat([post.tensor for post in posts])
    for post in posts:
        post.output.copy_(whole)


@torch.no_grad()
def _all_to_all(posts: list[Post]) -> None:
    parts = [post.tensor.chunk(len(posts)) for post in posts]
    for rank, post in enumerate(posts):
        post.output.copy_(torch.cat([sent[rank] for sent in parts]))


@torch.no_grad()
def _broadcast(posts: list[Post]) -> None:
    for post in posts[1:]:
        post.output.copy_(posts[0].tensor)


@torch.no_grad()
def _exchange(posts: list[Letters]) -> None:
    """Deliver each letter, in the order in which the sender sent it; each must be expected, and each expected come."""
    sent: dict[tuple[int, int], list[Tensor]] = {}
    for sender, post in enumerate(posts):
        for receiver, tensor in post.sends:
            sent.setdefault((sender, receiver), []).append(tensor)
    for receiver, post in enumerate(posts):
        for sender, output in post.receives:
            waiting = sent.get((sender, receiver), [])
            if not waiting:
                raise RuntimeError(f"simulated agent {receiver} waits for agent {sender}, which sends it nothing more")
            tensor = waiting.pop(0)
            if (tensor.shape, tensor.dtype) != (output.shape, output.dtype):
                raise RuntimeError(
                    f"simulated agent {sender} sends {tuple(tensor.shape)} {tensor.dtype} to agent {receiver}, "
                    f"which waits for {tuple(output.shape)} {output.dtype}"
                )
            output.copy_(tensor)
    for (sender, receiver), unread in sent.items():
        if unread:
            raise RuntimeError(f"simulated agent {sender} sends to agent {receiver}, which does not wait for it")


_COLLECTIVES = {
    "all_reduce": _all_reduce,
    "reduce_scatter": _reduce_scatter,
    "all_gather": _all_gather,
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
    "exchange": _exchange,
}
