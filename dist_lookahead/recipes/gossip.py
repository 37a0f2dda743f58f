"""Averages over the neighbours in a graph."""

from dist_lookahead.averaging.gossip import Gossip
from dist_lookahead.comm.topology import RING, Topology
from dist_lookahead.level import Every, FastBuffers, Level
from dist_lookahead.move import Copy
from dist_lookahead.schedule import Scheduled


def dpsgd(topology: Topology = RING, tau: Scheduled = 1, *, fast_buffers: FastBuffers = "keep") -> list[Level]:
    """Decentralised parallel SGD: after every tau steps each agent averages with its neighbours, x_j <- sum_i W_ij x_i.

    What an agent sends does not grow with the number of agents. They do not end with the same weights: evaluate and
    keep `averaged_weights`. The paper adds the step to the average of the weights before it, so that gradients and
    messages overlap; here the average comes after the step, as in SlowMo's experiments over gossip.

    Args:
        topology: the graph, with doubly stochastic weights.
        tau: fast steps between gossips, >= 1.
        fast_buffers: "keep" or "reset".

    Defaults: the paper's ring, and a gossip after each step.

    Example:
        >>> dpsgd()[0].mix
        Gossip(axis='world', topology=Ring(), rounds=1)

    Reference: arXiv 1705.09056, Algorithm 1.
    """
    return [Level(Every(tau), Gossip(topology=topology), Copy(), fast_buffers)]
