"""The mass of push-sum: what an agent's weights are a multiple of.

Agent j holds x_j of mass w_j. Between fast steps its model has x_j / w_j, at which gradients are taken, and during a
fast step and a sync x_j itself, of which the mean over the agents is kept.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.push_sum import PushSum
from dist_lookahead.bucket import Bucket
from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh


class Mass:
    """The masses of all agents at a level, which each agent finds for itself from the graph.

    Args:
        mix: of the level.
        mesh: of all agents.
        rank: of this agent.

    Example:
        >>> from dist_lookahead import Graph
        >>> mass = Mass(PushSum(topology=Graph([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 1, 0]])), Mesh((3,)), rank=1)
        >>> mass.mix(turn=0)
        >>> mass.own
        2.0
    """

    def __init__(self, mix: PushSum, mesh: Mesh, rank: int) -> None:
        self._mix, self._mesh, self._rank = mix, mesh, rank
        self.all = torch.ones(mesh.size, dtype=torch.float64)

    @property
    def own(self) -> float:
        """W of this agent."""
        return float(self.all[self._rank])

    def mix(self, turn: int) -> None:
        """Go on to what the masses are after a sync: w <- w W.

        Args:
            turn: how often the level has fired before.
        """
        self.all = self.all @ self._mix.weights(self._mesh, turn)

    def reset(self) -> None:
        """All agents hold the same weights, or begin anew: w = 1."""
        self.all.fill_(1.0)

    @torch.no_grad()
    def put_in(self, buckets: Sequence[Bucket]) -> None:
        """Turn x / w into x."""
        self._scale(buckets, self.own)

    @torch.no_grad()
    def take_out(self, buckets: Sequence[Bucket]) -> None:
        """Turn x into x / w."""
        self._scale(buckets, 1 / self.own)

    def _scale(self, buckets: Sequence[Bucket], factor: float) -> None:
        if factor == 1:
            return
        for bucket in buckets:
            bucket.gather()
            bucket.weights.mul_(factor)
            bucket.scatter()


class Masses:
    """The masses of a stack's levels, each with the weights that it belongs to."""

    def __init__(self, levels: Sequence[tuple[Mass, Sequence[Bucket]]]) -> None:
        self._levels = levels

    def __bool__(self) -> bool:
        return bool(self._levels)

    def of(self, bucket: Bucket) -> Mass | None:
        """Return the mass of a bucket's weights, None where it is always 1."""
        return next((mass for mass, buckets in self._levels if bucket in buckets), None)

    def put_in(self) -> None:
        """Turn the weights at which gradients are taken into those that are stepped and averaged."""
        for mass, buckets in self._levels:
            mass.put_in(buckets)

    def take_out(self) -> None:
        """Undo `put_in`."""
        for mass, buckets in self._levels:
            mass.take_out(buckets)


def mass_of(mix: object, mesh: Mesh, rank: int) -> Mass | None:
    """Return the masses of a level that needs them."""
    return Mass(mix, mesh, rank) if isinstance(mix, PushSum) and mix.is_biased(mesh) else None


def require_exact_above(levels: Sequence[Level], cells: Sequence[Sequence[int]], mesh: Mesh) -> None:
    """Refuse levels above push-sum that do not take the mean of its agents: others would lose the masses.

    Args:
        levels: innermost first.
        cells: the levels that act together on some parameter.
        mesh: of all agents.

    Raises:
        ValueError: for those.
    """
    for index, level in enumerate(levels):
        if not isinstance(level.mix, PushSum) or not level.mix.is_biased(mesh):
            continue
        together = {other for cell in cells if index in cell for other in cell}
        for above in range(index + 1, len(levels)):
            mix = levels[above].mix
            exact = isinstance(mix, Exact) and set(mesh.axes(mix.axis)) >= set(mesh.axes(level.mix.axis))
            if above in together and not exact:
                raise ValueError(
                    f"levels[{above}].mix={mix} above levels[{index}].mix={level.mix}, whose agents hold different "
                    "multiples of a mean: above it only Exact along its axis, or 'world', finds the mean again"
                )


def biased(mass: Mass | None, weights: Tensor) -> Tensor:
    """Return a copy of weights, times their mass."""
    return weights * mass.own if mass else weights.clone()
