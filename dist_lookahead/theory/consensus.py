"""Consensus: how far agents that gossip are from their mean, and how fast a graph brings them back to it."""

import torch
from torch import Tensor

from dist_lookahead.comm.topology import Topology
from dist_lookahead.theory.eigenvalues import eigenvalues
from dist_lookahead.theory.trajectory import Trajectory


def spectral_gap(topology: Topology, agents: int) -> float:
    """Return 1 - |lambda_2|: what a period of a graph takes away from the disagreement of the agents, in the long run.

    lambda_2 is the largest eigenvalue of W - 1 1^T / n, of the product over a period for a graph that changes. Without
    fast steps the distance of the agents from their mean shrinks by |lambda_2| per period: 1 is the exact mean, 0 says
    that some agents never hear of others.

    Args:
        topology: the graph, with doubly stochastic weights.
        agents: n >= 1.

    Example:
        >>> from dist_lookahead import OnePeerExponential, Ring, StaticExponential
        >>> [round(spectral_gap(graph, 16), 3) for graph in (Ring(), StaticExponential(), OnePeerExponential())]
        [0.051, 0.4, 1.0]

    Reference: arXiv 1705.09056; arXiv 2110.13363, for exponential graphs.
    """
    mean = torch.full((agents, agents), 1 / agents, dtype=torch.float64)
    product = torch.eye(agents, dtype=torch.float64)
    for turn in range(topology.period(agents)):
        product = product @ topology.weights(agents, turn)
    return min(max(1 - float(eigenvalues(product - mean).abs().max()), 0.0), 1.0)


def consensus_distance(run: Trajectory) -> Tensor:
    """Return the expected squared distance of the agents from their mean, (T, d): E 1/n sum_i (x_i - mean x)^2.

    As the mean squared over agents and noise, less that of the mean of the agents.

    Args:
        run: of `noisy_quadratic`, or the round of `stationary`.

    Example:
        >>> from dist_lookahead import dpsgd
        >>> from dist_lookahead.theory.quadratic_oracle import stationary
        >>> settled = stationary(dpsgd(), curvature=1.0, noise=1.0, lr=0.5, agents=8)
        >>> round(consensus_distance(settled.round)[0].item(), 4)
        0.0602
    """
    agents = (run.fast.mean**2 + run.fast.variance).mean(dim=1)
    return agents - (run.average.mean**2 + run.average.variance)
