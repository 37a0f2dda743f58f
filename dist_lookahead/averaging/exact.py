"""Exact averaging: every agent gets the mean of all, by all-reduce or by reduce-scatter and all-gather."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_lookahead.averaging.mixer import Alone, Mixer
from dist_lookahead.comm.communicator import Communicator, Pending
from dist_lookahead.mesh import Mesh


@dataclass(frozen=True)
class Exact:
    """The mean over all agents of a mesh axis: P = a 1^T with a = [alpha/n, .., alpha/n, 1 - alpha].

    Args:
        axis: mesh axis over which the mean is taken; "world" is all agents.
        shard: split slow weights and slow momentum over the agents: reduce-scatter, each moves its own part,
            all-gather. The same numbers with 1/n of the slow memory, but mid-round nobody has all slow weights.

    Example:
        >>> Exact(shard=True)
        Exact(axis='world', shard=True)
    """

    axis: str = "world"
    shard: bool = False

    @property
    def communicates(self) -> bool:
        """Whether other agents take part."""
        return True

    @property
    def period(self) -> int:
        """Number of different turns."""
        return 1

    def weights(self, mesh: Mesh, turn: int = 0) -> Tensor:
        """Return the averaging weights W (n, n), float64: 1 / m among the m agents of a group along the axis.

        Example:
            >>> Exact("local").weights(Mesh((2, 2), ("node", "local")))[0]
            tensor([0.5000, 0.5000, 0.0000, 0.0000], dtype=torch.float64)
        """
        groups = torch.tensor([mesh.group(self.axis, rank) for rank in range(mesh.size)])
        weights = torch.zeros(mesh.size, mesh.size, dtype=torch.float64)
        return weights.scatter_(1, groups, 1 / groups.shape[1])

    def bind(self, communicator: Communicator) -> Mixer:
        """Return the mixer over the agents of this axis."""
        agents = communicator.axis(self.axis)
        if agents.size == 1:
            return Alone().bind(agents)
        return _Sharded(agents) if self.shard else _AllReduced(agents)


class _AllReduced:
    """Every agent has the whole sum."""

    communicates = True
    shards = 1

    def __init__(self, group: Communicator) -> None:
        self.group = group

    @property
    def agents(self) -> int:
        return self.group.size

    def owned(self, length: int) -> slice:
        return slice(0, length)

    def collect(self, tensors: Sequence[Tensor]) -> Pending:
        yield from [self.group.all_reduce(tensor) for tensor in tensors]

    def distribute(self, tensors: Sequence[Tensor]) -> Pending:
        yield from ()


class _Sharded:
    """Agent r has part r of n of the sum."""

    communicates = True

    def __init__(self, group: Communicator) -> None:
        self.group = group

    @property
    def agents(self) -> int:
        return self.group.size

    @property
    def shards(self) -> int:
        return self.group.size

    def owned(self, length: int) -> slice:
        part = length // self.shards
        assert part * self.shards == length
        return slice(self.group.rank * part, (self.group.rank + 1) * part)

    def collect(self, tensors: Sequence[Tensor]) -> Pending:
        yield from [self.group.reduce_scatter(self._part(tensor), tensor) for tensor in tensors]

    def distribute(self, tensors: Sequence[Tensor]) -> Pending:
        yield from [self.group.all_gather(tensor, self._part(tensor)) for tensor in tensors]

    def _part(self, tensor: Tensor) -> Tensor:
        return tensor[self.owned(tensor.numel())]


Mix = Alone | Exact
