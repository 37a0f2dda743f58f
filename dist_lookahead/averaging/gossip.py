"""Gossip: every agent averages with its neighbours in a graph, so that what it sends does not grow with the agents."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_lookahead.averaging.mixer import Memory, Mixer, Own
from dist_lookahead.averaging.within_groups import within_groups
from dist_lookahead.comm.communicator import Communicator, Letter, Pending
from dist_lookahead.comm.topology import RING, Graph, Topology, require_sums
from dist_lookahead.mesh import Mesh

PIECE = 2**18  # elements that are summed at a time: they stay in cache, and sums of whole tensors need no memory


@dataclass(frozen=True)
class OnGraph:
    """An average over the neighbours in a graph: what `Gossip` and `PushSum` have in common."""

    axis: str = "world"
    topology: Topology = RING
    rounds: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.rounds, int) or self.rounds < 1:
            name = type(self).__name__
            raise ValueError(f"{name}.rounds={self.rounds!r} must be a whole number of exchanges, at least 1")
        if isinstance(self.topology, Graph):
            self.check_sums(torch.tensor(self.topology.weights_of_turns, dtype=torch.float64))

    def check_sums(self, weights: Tensor) -> None:
        """Refuse weights (.., n, n) of a user's graph that move the mean over the agents.

        Raises:
            ValueError: with the sums.
        """
        require_sums("rows", weights.sum(dim=-1), "else a gossip moves the mean over the agents")

    @property
    def communicates(self) -> bool:
        """Whether other agents take part."""
        return True

    @property
    def shard(self) -> bool:
        """Whether the slow state is split over the agents."""
        return False

    @property
    def weighted(self) -> None:
        """What agents are weighted by: the graph, never their work."""
        return None

    def period(self, mesh: Mesh) -> int:
        """Return the number of different turns."""
        turns = self.topology.period(len(mesh.group(self.axis, 0)))
        return turns // math.gcd(turns, self.rounds)

    def weights(self, mesh: Mesh, turn: int = 0) -> Tensor:
        """Return the averaging weights W (n, n), float64: those of the graph, within each group along the axis.

        Example:
            >>> Gossip("local").weights(Mesh((2, 2), ("node", "local")))[0]
            tensor([0.5000, 0.5000, 0.0000, 0.0000], dtype=torch.float64)
        """
        return within_groups(mesh, self.axis, self._own_weights(len(mesh.group(self.axis, 0)), turn))

    def alike(self, mesh: Mesh, below: Sequence[str]) -> tuple[str, ...]:
        """Return the axes along which agents hold the same weights afterwards, given those from before."""
        return tuple(name for name in below if name not in mesh.axes(self.axis))

    def bind(self, communicator: Communicator, alike: Collection[str] = ()) -> Mixer:
        """Return the mixer of this agent and its neighbours along the axis."""
        group = communicator.axis(self.axis)
        return Gossiping(self.topology, self.rounds, group) if group.size > 1 else Own(None)

    def _own_weights(self, agents: int, turn: int) -> Tensor:
        first, *others = (self.topology.weights(agents, turn * self.rounds + r) for r in range(self.rounds))
        return torch.linalg.multi_dot([first, *others]) if others else first


@dataclass(frozen=True)
class Gossip(OnGraph):
    """Weighted means over the neighbours in a graph: x_j <- sum_i W_ij x_i, with rows and columns of W that sum to 1.

    The mean over all agents stays where it is, and their distance from it shrinks (`theory.spectral_gap`), but they do
    not hold the same weights afterwards. Fast weights are averaged, never displacements: each agent's slow weights are
    its own. No mail travels: a signal, or an agent that is at another step, is noticed by levels that average exactly.

    Args:
        axis: mesh axis along which agents are neighbours; "world" is all agents.
        topology: the graph.
        rounds: R >= 1, so many exchanges one after the other: W^R, or the next R turns of a graph that changes.

    Raises:
        ValueError: for a graph whose rows or columns do not sum to 1: the mean would move, or would be none.

    Example:
        >>> Gossip(rounds=2)
        Gossip(axis='world', topology=Ring(), rounds=2)

    Reference: arXiv 1705.09056.
    """

    def check_sums(self, weights: Tensor) -> None:
        """Refuse weights (.., n, n) that are not doubly stochastic.

        Raises:
            ValueError: with the sums.
        """
        super().check_sums(weights)
        reason = "what an agent takes from each is a weighted mean; PushSum divides by what does not sum to 1"
        require_sums("columns", weights.sum(dim=-2), reason)


@dataclass(frozen=True)
class Neighbours:
    """Whom an agent hears in an exchange, and who hears it.

    Attributes:
        shares: (agent, what is taken from it) by rank, itself among them.
        hearers: agents that take something from this one.
    """

    shares: tuple[tuple[int, float], ...]
    hearers: tuple[int, ...]

    @classmethod
    def of(cls, weights: Tensor, rank: int) -> "Neighbours":
        """Read them off averaging weights W (n, n)."""
        column, row = weights[:, rank].tolist(), weights[rank].tolist()
        shares = tuple((agent, share) for agent, share in enumerate(column) if share)
        return cls(shares, tuple(agent for agent, share in enumerate(row) if share and agent != rank))


class Gossiping:
    """The mixer of an agent and its neighbours: what it collects is its mean already.

    Args:
        topology: the graph.
        rounds: number of exchanges in a sync.
        along: the agents of the graph.
    """

    agents = 1
    communicates = True
    sums_tails = False
    compares = False
    shards = 1
    parts = 1
    group = None  # no group of agents holds the same weights afterwards

    def __init__(self, topology: Topology, rounds: int, along: Communicator) -> None:
        self._rounds, self._along = rounds, along
        self._turns = [
            Neighbours.of(topology.weights(along.size, turn), along.rank) for turn in range(topology.period(along.size))
        ]

    def owned(self, length: int) -> slice:
        """Return all of it."""
        return slice(0, length)

    def residuals(self, length: int) -> tuple[slice, ...]:
        """Return none: nothing is lost."""
        return ()

    def collect(self, tensors: Sequence[Tensor], turn: int, memory: Sequence[Memory]) -> Pending:
        """Leave the mean over the neighbours in the tensors."""
        for exchange in range(turn * self._rounds, (turn + 1) * self._rounds):
            yield from self._exchange(tensors, self._turns[exchange % len(self._turns)])

    def phases(self, tensors: int) -> list[int]:
        """Return one exchange a round."""
        return [1] * self._rounds

    def distribute(self, tensors: Sequence[Tensor]) -> Pending:
        """Nothing is left to be distributed."""
        yield from ()

    @torch.no_grad()
    def _exchange(self, tensors: Sequence[Tensor], neighbours: Neighbours) -> Pending:
        own = self._along.rank
        heard = {
            agent: tensors if agent == own else [torch.empty_like(tensor) for tensor in tensors]
            for agent, _ in neighbours.shares
        }
        sends = [(agent, tensor) for agent in neighbours.hearers for tensor in tensors]
        receives: list[Letter] = [
            (agent, buffer) for agent, buffers in heard.items() if agent != own for buffer in buffers
        ]
        yield self._along.exchange(sends, receives)
        shares = [share for _, share in neighbours.shares]
        for index, tensor in enumerate(tensors):
            pieces = [heard[agent][index].split(PIECE) for agent, _ in neighbours.shares]
            for target, *terms in zip(tensor.split(PIECE), *pieces, strict=True):
                target.copy_(_weighted_sum(list(zip(terms, shares, strict=True))))


def _weighted_sum(terms: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Sum in the order of ranks: the same bits for simulated agents and processes."""
    (first, share), *others = terms
    total = first * share
    for term, share in others:
        total.add_(term, alpha=share)
    return total
