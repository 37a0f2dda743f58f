"""Push-sum: averages in graphs where agents hear others than hear them, and not equally many."""

from dataclasses import dataclass

import torch

from dist_lookahead.averaging.gossip import OnGraph
from dist_lookahead.mesh import Mesh


@dataclass(frozen=True)
class PushSum(OnGraph):
    """Each agent splits its weights among those that hear it: x_j <- sum_i W_ij x_i, with rows of W that sum to 1.

    What an agent gets need not sum to 1: it holds a multiple of a mean, x_j of mass w_j with w_j <- sum_i W_ij w_i,
    and w = 1 in the beginning. Gradients are taken at x_j / w_j, which is what the model holds between the steps; the
    fast step changes x_j. The mean of the x_j stays where it is, and all x_j / w_j come to it. All agents know the
    graph, and find the masses each for itself: they need not travel. Where W is doubly stochastic, as those of all
    named graphs are, w = 1 always, and push-sum is a gossip.

    An exact average above takes the mean of the x_j, and w = 1 afterwards.

    Args:
        axis: mesh axis along which agents are neighbours; "world" is all agents.
        topology: the graph.
        rounds: R >= 1, so many exchanges one after the other: W^R, or the next R turns of a graph that changes.

    Raises:
        ValueError: for a graph whose rows do not sum to 1: the mean would move.

    Example:
        >>> from dist_lookahead import Graph
        >>> mix = PushSum(topology=Graph([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 1, 0]]))
        >>> mix.is_biased(Mesh((3,)))
        True

    Reference: arXiv 1811.10792, Algorithm 1, which has the transposed matrix.
    """

    def is_biased(self, mesh: Mesh) -> bool:
        """Return whether masses ever differ from 1."""
        sums = [self.weights(mesh, turn).sum(dim=0) for turn in range(self.period(mesh))]
        return not all(torch.allclose(own, torch.ones_like(own), rtol=0, atol=1e-9) for own in sums)
