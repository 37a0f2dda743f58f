"""Exact averaging: every agent gets the mean of all along an axis of the mesh."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_lookahead.averaging.mixer import Mixer, Own
from dist_lookahead.averaging.reduction import AllReduced, Sharded, Split
from dist_lookahead.comm.communicator import Communicator
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

    def period(self, mesh: Mesh) -> int:
        """Return the number of different turns."""
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

    def alike(self, mesh: Mesh, below: Sequence[str]) -> tuple[str, ...]:
        """Return the axes along which agents hold the same weights afterwards, given those from before."""
        return tuple(dict.fromkeys((*below, *mesh.axes(self.axis))))

    def bind(self, communicator: Communicator, alike: Collection[str] = ()) -> Mixer:
        """Return the mixer over the agents of this axis.

        Args:
            communicator: this agent's end of all agents.
            alike: axes along which agents hold the same weights already, since lower levels have just averaged there.
        """
        mesh, group = communicator.mesh, communicator.axis(self.axis)
        if group.size == 1:
            return Own(None)
        sizes = dict(zip(mesh.names, mesh.shape, strict=True))
        own = mesh.axes(self.axis)
        differing = [name for name in own if name not in alike and sizes[name] > 1]
        sharing = [name for name in alike if sizes[name] > 1 and (differing or name in own)]
        return self._over(differing, sharing, communicator) if differing or self.shard else Own(group)

    def _over(self, differing: Sequence[str], sharing: Sequence[str], communicator: Communicator) -> Mixer:
        """Split each tensor among agents that are near or alike, so that a byte goes far once and not for each."""
        group = communicator.axis(self.axis)
        if sharing:
            far, near = self._over(differing, sharing[:-1], communicator), communicator.axis(sharing[-1])
            return Split(far, near, group, alike=True, shard=self.shard)
        if not differing:
            return Own(group)
        last = communicator.axis(differing[-1])
        if len(differing) > 1:
            far = self._over(differing[:-1], (), communicator)
            return Split(far, last, group, alike=False, shard=self.shard)
        return Sharded(last, group) if self.shard else AllReduced(last, group)
