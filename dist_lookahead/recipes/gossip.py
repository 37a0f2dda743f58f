"""Averages over the neighbours in a graph."""

from dist_lookahead.averaging.gossip import Gossip
from dist_lookahead.averaging.push_sum import PushSum
from dist_lookahead.comm.topology import RING, OnePeerExponential, Topology
from dist_lookahead.level import Every, FastBuffers, Level
from dist_lookahead.move import Copy
from dist_lookahead.schedule import Scheduled

ONE_PEER = OnePeerExponential()


def dpsgd(
    topology: Topology = RING, tau: Scheduled = 1, *, axis: str = "world", fast_buffers: FastBuffers = "keep"
) -> list[Level]:
    """Decentralised parallel SGD: after every tau steps each agent averages with its neighbours, x_j <- sum_i W_ij x_i.

    What an agent sends does not grow with the number of agents. They do not end with the same weights: evaluate and
    keep `averaged_weights`. The paper adds the step to the average of the weights before it, so that gradients and
    messages overlap; here the average comes after the step, as in SlowMo's experiments over gossip.

    Args:
        topology: the graph, with doubly stochastic weights.
        tau: fast steps between gossips, >= 1.
        axis: mesh axis along which agents are neighbours.
        fast_buffers: "keep" or "reset".

    Defaults: the paper's ring, and a gossip after each step.

    Example:
        >>> dpsgd()[0].mix
        Gossip(axis='world', topology=Ring(), rounds=1)

    Reference: arXiv 1705.09056, Algorithm 1.
    """
    return [Level(Every(tau), Gossip(axis, topology), Copy(), fast_buffers)]


def sgp(
    topology: Topology = ONE_PEER, tau: Scheduled = 1, *, axis: str = "world", fast_buffers: FastBuffers = "keep"
) -> list[Level]:
    """Stochastic gradient push: after every tau steps each agent splits its weights among those that hear it.

    x_j <- sum_i W_ij x_i with masses w_j <- sum_i W_ij w_i, and gradients at x_j / w_j. Agents do not end with the same
    weights: evaluate and keep `averaged_weights`.

    Args:
        topology: the graph; each agent's shares must sum to 1, what it gets need not.
        tau: fast steps between two exchanges, >= 1.
        axis: mesh axis along which agents are neighbours.
        fast_buffers: "keep" or "reset".

    Defaults: the paper's graph, in which each agent hears one other, and an exchange after each step.

    Example:
        >>> sgp()[0].mix
        PushSum(axis='world', topology=OnePeerExponential(), rounds=1)

    Reference: arXiv 1811.10792, Algorithm 1.
    """
    return [Level(Every(tau), PushSum(axis, topology), Copy(), fast_buffers)]


def osgp(
    topology: Topology = ONE_PEER,
    tau: Scheduled = 2,
    delay: int = 1,
    *,
    axis: str = "world",
    fast_buffers: FastBuffers = "keep",
) -> list[Level]:
    """Overlapped stochastic gradient push: messages travel while the agents take fast steps.

    As `sgp`, and what was sent after step s arrives after step s + delay: x_j <- x_j + (sum_i W_ij q_i - q_j) with
    q = x of step s, and the masses then. The paper takes away what an agent sends when it is sent, and steps from the
    rest and its mass meanwhile; here an agent keeps its weights whole until those of others are there.

    Args:
        topology: the graph.
        tau: fast steps from one exchange to the next, >= 2.
        delay: fast steps that a message may take, 1 <= delay < tau.
        axis: mesh axis along which agents are neighbours.
        fast_buffers: "keep" or "reset".

    Defaults: the paper's graph; tau and delay are the shortest that overlap.

    Example:
        >>> osgp()[0].when
        Every(tau=2, delay=1)

    Reference: arXiv 1811.10792, section 3 (overlap).
    """
    if not delay:
        raise ValueError(f"osgp(delay={delay}) overlaps nothing: use sgp, or a delay of at least 1")
    return [Level(Every(tau, delay), PushSum(axis, topology), Copy(), fast_buffers)]
