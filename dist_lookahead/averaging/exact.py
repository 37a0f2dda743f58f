"""Exact averaging: every agent gets the mean of all along an axis of the mesh."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from dist_lookahead.averaging.codec import Codec
from dist_lookahead.averaging.compressed import Compressed
from dist_lookahead.averaging.mixer import Mixer, Own
from dist_lookahead.averaging.reduction import AllReduced, Sharded, Split
from dist_lookahead.averaging.within_groups import within_groups
from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.mesh import Mesh

Weighted = Literal["steps", "samples"]


@dataclass(frozen=True)
class Exact:
    """The mean over all agents of a mesh axis: P = a 1^T with a = [alpha/n, .., alpha/n, 1 - alpha].

    Args:
        axis: mesh axis over which the mean is taken; "world" is all agents.
        shard: split slow weights and slow momentum over the agents: reduce-scatter, each moves its own part,
            all-gather. The same numbers with 1/n of the slow memory, but mid-round nobody has all slow weights.
        codec: in what code values travel: `Cast`, `Quantised` or `TopK`; None for the weights as they are. Where a
            tensor is split among agents that are near or alike (a mesh), only what goes far is encoded. The level
            keeps slow weights to send differences from, with `Copy` too, and what the codes have lost.
        weighted: mean = sum_i w_i x_i / sum_i w_i with the work of each agent in the round as w_i: its fast "steps",
            or the "samples" that it says it has seen (`optimizer.report(samples=...)`); None for the plain mean. The
            same weights of all give the plain mean, bit for bit; of samples, where they are those of the round before.

    Raises:
        ValueError: for what is no codec, for a codec of a sharded level, and for a codec or an unknown name beside or
            as `weighted`.

    Example:
        >>> from dist_lookahead import Quantised
        >>> Exact("node", codec=Quantised(bits=8)).codec.bits
        8
    """

    axis: str = "world"
    shard: bool = False
    codec: Codec | None = None
    weighted: Weighted | None = None

    def __post_init__(self) -> None:
        if self.weighted not in (None, *get_args(Weighted)):
            raise ValueError(
                f"Exact.weighted={self.weighted!r} must be None, or one of {', '.join(get_args(Weighted))}"
            )
        if self.weighted and self.codec:
            raise ValueError(
                f"Exact(weighted={self.weighted!r}, codec={self.codec}): what a code has lost belongs to the weight of "
                "its own round, and would be sent with that of the next one; leave one of the two out"
            )
        if not isinstance(self.codec, Codec | None):
            raise ValueError(f"Exact.codec={self.codec!r} must be None, or one of Cast(), Quantised(), TopK(fraction)")
        if self.codec and self.shard:
            raise ValueError(
                f"Exact(shard=True, codec={self.codec}): a code carries differences from the slow weights, which every "
                "agent must have whole, and shard leaves each a part of them; leave one of the two out"
            )

    @property
    def communicates(self) -> bool:
        """Whether other agents take part."""
        return True

    def period(self, mesh: Mesh) -> int:
        """Return the number of different turns."""
        return 1

    def weights(self, mesh: Mesh, turn: int = 0) -> Tensor:
        """Return the averaging weights W (n, n), float64: 1 / m among the m agents of a group along the axis.

        A weighted mean has those of agents that do the same work: how much they will do is not known beforehand.

        Example:
            >>> Exact("local").weights(Mesh((2, 2), ("node", "local")))[0]
            tensor([0.5000, 0.5000, 0.0000, 0.0000], dtype=torch.float64)
        """
        return within_groups(mesh, self.axis, 1 / len(mesh.group(self.axis, 0)))

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
        if self.weighted and (sharing or not differing):
            raise ValueError(
                f"Exact(weighted={self.weighted!r}) along {self.axis!r}: agents along {', '.join(sharing)} hold the "
                "same weights before this sync, which have no one agent's work in them; weight the level below alone"
            )
        return self._over(differing, sharing, communicator) if differing or self.shard else Own(group)

    def _over(
        self, differing: Sequence[str], sharing: Sequence[str], communicator: Communicator, summed: int = 1
    ) -> Mixer:
        """Split each tensor among agents that are near or alike, so that a byte goes far once and not for each.

        What comes to the far mixer is the sum over `summed` near agents.
        """
        group = communicator.axis(self.axis)
        if sharing:
            far, near = self._over(differing, sharing[:-1], communicator, summed), communicator.axis(sharing[-1])
            return Split(far, near, group, alike=True, shard=self.shard)
        if not differing:
            return Own(group)
        last = communicator.axis(differing[-1])
        if len(differing) > 1:
            far = self._over(differing[:-1], (), communicator, summed * last.size)
            return Split(far, last, group, alike=False, shard=self.shard)
        if self.codec:
            return Compressed(last, group, self.codec, summed)
        return Sharded(last, group) if self.shard else AllReduced(last, group)
