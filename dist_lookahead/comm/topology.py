"""Topologies: who hears whom in a gossip, pure descriptions without tensors of weights or process groups.

A topology has averaging weights W for n agents: agent j gets sum_i W_ij x_i, so that row i is how agent i splits its
weights, and column j is what agent j takes from each. Where rows sum to 1, the mean over the agents stays where it is;
where columns sum to 1 as well (W is doubly stochastic), each agent gets a weighted mean. All named topologies are such.
One that changes has another W in each of `period(n)` turns, and then begins again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

SUMS = 1e-9  # how far the weights of a matrix may be from 1 in sum


@dataclass(frozen=True)
class Ring:
    """Each agent hears both of its neighbours: W_jj = W_(j-1)j = W_(j+1)j = 1/3.

    The eigenvalues are 1/3 + 2/3 cos(2 pi k / n), so that the spectral gap shrinks as 1/n^2. Two agents have one
    neighbour each: W = 1/2.

    Example:
        >>> Ring().weights(4)[0].round(decimals=3)
        tensor([0.3330, 0.3330, 0.0000, 0.3330], dtype=torch.float64)

    Reference: arXiv 1705.09056.
    """

    def period(self, agents: int) -> int:
        """Return the number of different turns: 1."""
        return 1

    def weights(self, agents: int, turn: int = 0) -> Tensor:
        """Return W (n, n), float64."""
        return _circulant(agents, (1, -1))


@dataclass(frozen=True)
class Complete:
    """Each agent hears all others: W = 1 1^T / n. The exact mean, at n - 1 messages of an agent.

    Example:
        >>> Complete().weights(2)[0]
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def period(self, agents: int) -> int:
        """Return the number of different turns: 1."""
        return 1

    def weights(self, agents: int, turn: int = 0) -> Tensor:
        """Return W (n, n), float64."""
        return _circulant(agents, range(1, agents))


@dataclass(frozen=True)
class StaticExponential:
    """Each agent hears those at the distances 1, 2, 4, .. below n behind it: all weights 1 / (1 + ceil(log2 n)).

    Example:
        >>> StaticExponential().weights(8)[:, 0].nonzero().flatten().tolist()
        [0, 4, 6, 7]

    Reference: arXiv 2110.13363.
    """

    def period(self, agents: int) -> int:
        """Return the number of different turns: 1."""
        return 1

    def weights(self, agents: int, turn: int = 0) -> Tensor:
        """Return W (n, n), float64."""
        return _circulant(agents, _powers_of_two(agents))


@dataclass(frozen=True)
class OnePeerExponential:
    """Each agent hears one other, 2^turn behind it: W_jj = W_(j - 2^turn)j = 1/2, with period ceil(log2 n).

    Where n is a power of 2, the product over a period is the exact mean.

    Example:
        >>> graph = OnePeerExponential()
        >>> [graph.weights(8, turn)[:, 0].nonzero().flatten().tolist() for turn in range(graph.period(8))]
        [[0, 7], [0, 6], [0, 4]]

    Reference: arXiv 1811.10792, appendix A; arXiv 2110.13363.
    """

    def period(self, agents: int) -> int:
        """Return the number of different turns: ceil(log2 n), 1 for a single agent."""
        return max(len(_powers_of_two(agents)), 1)

    def weights(self, agents: int, turn: int = 0) -> Tensor:
        """Return W (n, n), float64, of a turn >= 0."""
        distances = _powers_of_two(agents)
        return _circulant(agents, distances[turn % len(distances) :][:1] if distances else ())


@dataclass(frozen=True)
class BipartiteExponential:
    """Pairs: each even rank j and the odd rank j + d exchange, d = 1, 3, 5, 9, .. 1 + 2^turn: W_jj = W_(j+d)j = 1/2.

    W is symmetric, and no agent waits for more than one other. The period is 1 + floor(log2(n - 1)).

    Raises:
        ValueError: for an odd number of agents above 1.

    Example:
        >>> graph = BipartiteExponential()
        >>> [graph.weights(8, turn)[:, 0].nonzero().flatten().tolist() for turn in range(graph.period(8))]
        [[0, 1], [0, 3], [0, 5]]

    Reference: arXiv 1811.10792; the distances are those of its authors' code.
    """

    def period(self, agents: int) -> int:
        """Return the number of different turns: 1 + floor(log2(n - 1))."""
        return len(self._distances(agents))

    def weights(self, agents: int, turn: int = 0) -> Tensor:
        """Return W (n, n), float64, of a turn >= 0."""
        distances = self._distances(agents)
        if agents == 1:
            return torch.ones(1, 1, dtype=torch.float64)
        even = torch.arange(0, agents, 2)
        odd = (even + distances[turn % len(distances)]) % agents
        weights = torch.eye(agents, dtype=torch.float64) / 2
        weights[even, odd] = weights[odd, even] = 0.5
        return weights

    def _distances(self, agents: int) -> list[int]:
        _require_agents(agents)
        if agents > 1 and agents % 2:
            raise ValueError(
                f"BipartiteExponential over {agents} agents: pairs need an even number; use OnePeerExponential, or Ring"
            )
        return [1, *(1 + power for power in _powers_of_two(agents)[1:] if 1 + power < agents)]


@dataclass(frozen=True)
class Graph:
    """Weights of your own: a matrix W, or one for each turn, with what agent j takes from each in column j.

    Args:
        weights_of_turns: a matrix (n, n), or a sequence of p of them, as nested sequences of numbers >= 0 or as a
            tensor.

    Raises:
        ValueError: for matrices that are not square or not of one size, or with numbers below 0. What rows and columns
            must sum to is for `Gossip` or `PushSum` to say.

    Example:
        >>> Graph([[0.75, 0.25], [0.25, 0.75]]).weights(2)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]], dtype=torch.float64)
    """

    weights_of_turns: Sequence[Any] | Tensor

    def __post_init__(self) -> None:
        try:
            weights = torch.as_tensor(self.weights_of_turns, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Graph: {error}; give a matrix (n, n) of numbers, or a sequence of them of one size"
            ) from None
        given, weights = tuple(weights.shape), weights[None] if weights.ndim == 2 else weights
        if weights.ndim != 3 or not weights.numel() or weights.shape[1] != weights.shape[2]:
            raise ValueError(f"Graph: weights of shape {given}; give a square matrix (n, n), or p of them (p, n, n)")
        if not bool((weights >= 0).all()):
            raise ValueError(f"Graph: weights must be at least 0, the least one is {weights.min().item()}")
        object.__setattr__(self, "weights_of_turns", _as_tuples(weights.tolist()))

    def period(self, agents: int) -> int:
        """Return the number of different turns."""
        return len(self.weights_of_turns)

    def weights(self, agents: int, turn: int = 0) -> Tensor:
        """Return W (n, n), float64, of a turn >= 0."""
        weights = torch.tensor(self.weights_of_turns[turn % len(self.weights_of_turns)], dtype=torch.float64)
        if len(weights) != agents:
            raise ValueError(
                f"Graph has weights for {len(weights)} agents, and there are {agents}: give a matrix (n, n)"
            )
        return weights


Topology = Ring | Complete | OnePeerExponential | StaticExponential | BipartiteExponential | Graph
RING = Ring()  # the default: frozen, so that all may share it


def require_sums(which: str, sums: Tensor, reason: str) -> None:
    """Refuse weights whose rows or columns do not sum to 1.

    Args:
        which: "rows" or "columns".
        sums: of each of them, (.., n).
        reason: why they must sum to 1.

    Raises:
        ValueError: with the sums.
    """
    if bool(((sums - 1).abs() > SUMS).any()):
        given = sums.squeeze(0).round(decimals=6).tolist()
        raise ValueError(f"the {which} of the weights sum to {given}, and each must sum to 1: {reason}")


def _circulant(agents: int, behind: Iterable[int]) -> Tensor:
    """The same weight for oneself and for each agent at these distances behind; equal ones are one agent."""
    _require_agents(agents)
    distances = sorted({distance % agents for distance in (0, *behind)})
    own = torch.arange(agents)
    weights = torch.zeros(agents, agents, dtype=torch.float64)
    for distance in distances:
        weights[(own - distance) % agents, own] = 1 / len(distances)
    return weights


def _powers_of_two(agents: int) -> list[int]:
    """1, 2, 4, .. below n: ceil(log2 n) of them."""
    _require_agents(agents)
    return list(takewhile(lambda power: power < agents, (1 << k for k in range(agents.bit_length()))))


def _require_agents(agents: int) -> None:
    if agents < 1:
        raise ValueError(f"agents={agents}: at least 1 agent is needed")


def _as_tuples(nested: Any) -> Any:
    return tuple(map(_as_tuples, nested)) if isinstance(nested, list) else nested
