"""Mixers that sum over a group of agents: by all-reduce, split over the agents, or in two steps, near and far."""

from collections.abc import Sequence

from torch import Tensor

from dist_lookahead.averaging.mixer import Memory, Mixer
from dist_lookahead.comm.communicator import Communicator, Pending


class AllReduced:
    """Every agent has the whole sum.

    Args:
        across: the agents to sum over.
        group: all agents of the level.
    """

    communicates = True
    sums_tails = True
    compares = False
    shards = 1
    parts = 1

    def __init__(self, across: Communicator, group: Communicator) -> None:
        self.group, self.agents = group, across.size
        self._across = across

    def owned(self, length: int) -> slice:
        """Return all of it."""
        return slice(0, length)

    def residuals(self, length: int) -> tuple[slice, ...]:
        """Return none: nothing is lost."""
        return ()

    def collect(self, tensors: Sequence[Tensor], turn: int, memory: Sequence[Memory]) -> Pending:
        """Sum the tensors over the agents, in place."""
        yield from [self._across.all_reduce(tensor) for tensor in tensors]

    def phases(self, tensors: int) -> list[int]:
        """Return the one phase of all sums."""
        return [tensors]

    def distribute(self, tensors: Sequence[Tensor]) -> Pending:
        """Nothing is left to be distributed."""
        yield from ()


class Sharded:
    """Agent r has part r of n of the sum.

    Args:
        across: the agents to sum over.
        group: all agents of the level.
    """

    communicates = True
    sums_tails = True
    compares = False

    def __init__(self, across: Communicator, group: Communicator) -> None:
        self.group, self.agents = group, across.size
        self.shards = self.parts = across.size
        self._across = across

    def owned(self, length: int) -> slice:
        """Return part r."""
        return part_of(self._across, length)

    def residuals(self, length: int) -> tuple[slice, ...]:
        """Return none: nothing is lost."""
        return ()

    def collect(self, tensors: Sequence[Tensor], turn: int, memory: Sequence[Memory]) -> Pending:
        """Sum the own parts over the agents, in place."""
        yield from [self._across.reduce_scatter(tensor[self.owned(tensor.numel())], tensor) for tensor in tensors]

    def phases(self, tensors: int) -> list[int]:
        """Return the one phase of all sums."""
        return [tensors]

    def distribute(self, tensors: Sequence[Tensor]) -> Pending:
        """Bring each agent's part to everybody."""
        yield from [self._across.all_gather(tensor, tensor[self.owned(tensor.numel())]) for tensor in tensors]


class Split:
    """Each of the agents that are near takes a part of the tensors, and another mixer sums that over those far away.

    So each byte goes far once for all agents of a node, in place of once for each.

    Args:
        far: sums a part.
        near: the agents that share the work.
        group: all agents of the level.
        alike: whether the near ones hold the same weights: then there is nothing to sum over them.
        shard: whether each agent keeps the slow state of its part only.
    """

    communicates = True
    sums_tails = False  # near agents that hold the same weights have mail of their own

    def __init__(self, far: Mixer, near: Communicator, group: Communicator, *, alike: bool, shard: bool) -> None:
        self.group = group
        self.agents = far.agents * (1 if alike else near.size)
        self.shards = far.shards * near.size if shard else 1
        self.parts = far.parts * near.size
        self.compares = far.compares
        self._far, self._near, self._alike = far, near, alike

    def owned(self, length: int) -> slice:
        """Return all of it, or the far mixer's part of this agent's part."""
        if self.shards == 1:
            return slice(0, length)
        part = part_of(self._near, length)
        inner = self._far.owned(part.stop - part.start)
        return slice(part.start + inner.start, part.start + inner.stop)

    def residuals(self, length: int) -> tuple[slice, ...]:
        """Return those of the far mixer in this agent's part."""
        part = part_of(self._near, length)
        far = self._far.residuals(part.stop - part.start)
        return tuple(slice(part.start + inner.start, part.start + inner.stop) for inner in far)

    def collect(self, tensors: Sequence[Tensor], turn: int, memory: Sequence[Memory]) -> Pending:
        """Sum the tensors, or their owned parts, over all agents, in place."""
        parts = self._parts_of(tensors)
        if not self._alike:
            yield from [self._near.reduce_scatter(part, tensor) for part, tensor in zip(parts, tensors, strict=True)]
        far = [own.of(part_of(self._near, len(own.reference))) for own in memory]
        yield from self._far.collect(parts, turn, far)
        if self.shards == 1:
            yield from self._gather(tensors)

    def phases(self, tensors: int) -> list[int]:
        """Return the sum over near agents that differ, the far mixer's phases, and the parts on their way back."""
        near, back = [tensors] * (not self._alike), [tensors] * (self.shards == 1)
        return [*near, *self._far.phases(tensors), *back]

    def distribute(self, tensors: Sequence[Tensor]) -> Pending:
        """Bring each owner's part to everybody."""
        if self.shards > 1:
            yield from self._far.distribute(self._parts_of(tensors))
            yield from self._gather(tensors)

    def _gather(self, tensors: Sequence[Tensor]) -> Pending:
        yield from [
            self._near.all_gather(tensor, part) for part, tensor in zip(self._parts_of(tensors), tensors, strict=True)
        ]

    def _parts_of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor[part_of(self._near, tensor.numel())] for tensor in tensors]


def part_of(group: Communicator, length: int) -> slice:
    """Return the elements of a tensor of `length` that are this agent's part, one of as many as there are agents."""
    part = length // group.size
    assert part * group.size == length
    return slice(group.rank * part, (group.rank + 1) * part)
