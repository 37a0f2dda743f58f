"""Named methods as stacks of levels, innermost first.

Every recipe returns a list of `Level`s, to be used as it is, changed, or extended by further levels.
"""

from collections.abc import Sequence

from dist_lookahead.averaging.codec import Codec
from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.gossip import Gossip
from dist_lookahead.averaging.mixer import Alone
from dist_lookahead.comm.topology import RING, Topology
from dist_lookahead.level import Every, FastBuffers, Level
from dist_lookahead.move import Alpha, Copy, Pull
from dist_lookahead.schedule import Piecewise, Scheduled


def lookahead(tau: Scheduled = 5, alpha: Alpha = 0.5, *, fast_buffers: FastBuffers = "keep") -> list[Level]:
    """Lookahead: k steps forward, 1 step back, each agent for itself.

    Every tau steps: z <- z + alpha (x - z), x <- z.

    Args:
        tau: fast steps between pulls (k in the paper), >= 1.
        alpha: slow step size, > 0.
        fast_buffers: "keep" (the paper's experiments maintain the inner optimizer's buffers) or "reset".

    Defaults: tau = 5 is that of the authors' code; alpha = 0.5 lies inside the range {0.5, 0.8} they tuned over.

    Example:
        >>> lookahead()[0].when
        Every(tau=5)

    Reference: arXiv 1907.08610, Algorithm 1.
    """
    return [Level(Every(tau), Alone(), Pull(alpha), fast_buffers)]


def multilayer_lookahead(
    taus: Sequence[int] = (5, 5),
    alphas: Sequence[Scheduled] = (0.5, 0.5),
    *,
    fast_buffers: FastBuffers = "keep",
) -> list[Level]:
    """Multilayer Lookahead: layer m pulls every taus[m] pulls of layer m - 1, and overwrites all below it.

    At steps that are multiples of taus[0] ... taus[m]: z_m <- z_m + alphas[m] (z_{m-1} - z_m), with z_{-1} = x;
    then x, z_0 .. z_{m-1} <- z_m.

    Args:
        taus: pulls of the layer below (fast steps for the first) per pull of each layer, each >= 1.
        alphas: slow step size of each layer, > 0.
        fast_buffers: what becomes of the fast optimizer's buffers at each pull.

    Defaults: two layers like Lookahead's; the paper's own values are not known to us.

    Example:
        >>> [level.when.tau for level in multilayer_lookahead(taus=(5, 2))]
        [5, 10]

    Reference: arXiv 2110.14254.
    """
    if len(taus) != len(alphas):
        raise ValueError(f"multilayer_lookahead has {len(taus)} taus and {len(alphas)} alphas: give one pair per layer")
    levels, steps = [], 1
    for tau, alpha in zip(taus, alphas, strict=True):
        steps *= tau
        levels.append(Level(Every(steps), Alone(), Pull(alpha), fast_buffers))
    return levels


def local_sgd(tau: Scheduled = 8, *, codec: Codec | None = None, fast_buffers: FastBuffers = "keep") -> list[Level]:
    """Local SGD (parallel SGD with periodic averaging): every tau steps x_i <- mean_j x_j.

    Args:
        tau: fast steps between averagings, >= 1.
        codec: in what code values travel: None, `Cast`, `Quantised` or `TopK`.
        fast_buffers: "keep", "reset" or "average".

    Defaults: tau = 8 is a middling choice of ours; the right one depends on the link.

    Example:
        >>> local_sgd(tau=8)[0].move
        Copy()

    Reference: arXiv 1805.09767.
    """
    return [Level(Every(tau), Exact(codec=codec), Copy(), fast_buffers)]


def post_local_sgd(
    tau: int = 16, *, start: int, codec: Codec | None = None, fast_buffers: FastBuffers = "keep"
) -> list[Level]:
    """Post-local SGD: averaging after every step until `start`, every tau steps from there on.

    Args:
        tau: fast steps between averagings from `start` on, >= 1.
        start: fast step from which the agents step alone, >= 1 (usually the first decay of the learning rate).
        codec: in what code values travel: None, `Cast`, `Quantised` or `TopK`.
        fast_buffers: "keep", "reset" or "average".

    Defaults: tau = 16 as in the authors' ResNet-20 example.

    Example:
        >>> post_local_sgd(tau=16, start=1000)[0].when.after(1000)
        1016

    Reference: arXiv 1808.07217.
    """
    return [Level(Every(Piecewise(values=(1, tau), boundaries=(start,))), Exact(codec=codec), Copy(), fast_buffers)]


def hierarchical_local_sgd(
    taus: Sequence[int] = (4, 32), *, axes: Sequence[str] = ("local", "node"), fast_buffers: FastBuffers = "keep"
) -> list[Level]:
    """Hierarchical local SGD: average often over agents that are near, seldom over those far away.

    Every taus[0] steps x_i <- the mean over axes[0], every taus[1] steps then the mean over axes[1] of that, ..

    Args:
        taus: fast steps between averagings along each axis, each a multiple of the one before.
        axes: of the mesh of agents, the nearest first; "local" and "node" are torchrun's.
        fast_buffers: "keep", "reset" or "average", at the sync of each level over its axis.

    Raises:
        ValueError: where taus and axes are not equally many.

    Defaults: taus are a choice of ours; the right ones depend on the links.

    Example:
        >>> [(level.when.tau, level.mix.axis) for level in hierarchical_local_sgd((2, 8))]
        [(2, 'local'), (8, 'node')]

    Reference: arXiv 1808.07217.
    """
    if len(taus) != len(axes):
        raise ValueError(f"taus={tuple(taus)} and axes={tuple(axes)}: give one tau for each axis")
    return [Level(Every(tau), Exact(axis), Copy(), fast_buffers) for tau, axis in zip(taus, axes, strict=True)]


def distributed_lookahead(
    tau: Scheduled = 5,
    alpha: Alpha = 0.5,
    *,
    shard: bool = False,
    codec: Codec | None = None,
    fast_buffers: FastBuffers = "keep",
) -> list[Level]:
    """Lookahead with n fast agents: every tau steps z <- z + alpha (mean_i x_i - z), x_i <- z.

    The mixing matrix of the sync is P = a 1^T with a = [alpha/n, .., alpha/n, 1 - alpha]; n = 1 is Lookahead and
    alpha = 1 is local SGD.

    Args:
        tau: fast steps between syncs, >= 1.
        alpha: slow step size, > 0.
        shard: split the slow weights over the agents.
        codec: in what code values travel: None, `Cast`, `Quantised` or `TopK`.
        fast_buffers: "keep", "reset" or "average".

    Defaults: those of `lookahead`.

    Example:
        >>> distributed_lookahead(tau=5, alpha=0.5)[0].mix
        Exact(axis='world', shard=False, codec=None)

    Reference: Wang, Tantia, Ballas and Rabbat, ICASSP 2020, eq. 4 for two agents.
    """
    return [Level(Every(tau), Exact(shard=shard, codec=codec), Pull(alpha), fast_buffers)]


def slowmo(
    tau: Scheduled = 12,
    alpha: Scheduled = 1.0,
    beta: Scheduled = 0.6,
    *,
    shard: bool = False,
    codec: Codec | None = None,
    fast_buffers: FastBuffers = "keep",
) -> list[Level]:
    """SlowMo: local steps, exact average, slow momentum in units of gradients.

    Every tau steps: u <- beta u + (z - mean) / gamma,  z <- z - alpha gamma u,  x_i <- z.

    Args:
        tau: fast steps between syncs, >= 1.
        alpha: slow learning rate, > 0.
        beta: slow momentum, 0 <= beta < 1. A large one is unstable over fast momentum that is kept through short
            rounds: you are warned.
        shard: split slow weights and slow momentum over the agents.
        codec: in what code values travel: None, `Cast`, `Quantised` or `TopK`.
        fast_buffers: "keep", "reset" or "average" (the paper's maintain, reset, average).

    Defaults: alpha = 1 as fairscale recommends not to change; beta = 0.6 is the optimum its authors report for 16
    nodes (0 below 4 nodes, 0.2 for 4, 0.5 for 8); tau = 12 keeps that beta stable above a fast momentum of 0.9.

    Example:
        >>> slowmo(tau=12)[0].move
        Pull(alpha=1.0, beta=0.6, nesterov=False, follow_lr=True)

    Reference: arXiv 1910.00643, Algorithm 1.
    """
    move = Pull(alpha, beta, follow_lr=beta != 0)
    return [Level(Every(tau), Exact(shard=shard, codec=codec), move, fast_buffers)]


def bmuf(
    tau: Scheduled = 50,
    zeta: Scheduled = 1.0,
    eta: Scheduled = 0.875,
    *,
    shard: bool = False,
    codec: Codec | None = None,
    fast_buffers: FastBuffers = "keep",
) -> list[Level]:
    """Blockwise model-update filtering: slow momentum in units of parameters.

    Every tau steps: v <- eta v + (mean - z),  z <- z + zeta v,  x_i <- z. Unlike SlowMo's, the momentum does not
    shrink when the fast learning rate decays.

    Args:
        tau: fast steps per block, >= 1.
        zeta: block learning rate, > 0.
        eta: block momentum, 0 <= eta < 1.
        shard: split slow weights and slow momentum over the agents.
        codec: in what code values travel: None, `Cast`, `Quantised` or `TopK`.
        fast_buffers: "keep", "reset" or "average".

    Defaults: fairseq's.

    Example:
        >>> bmuf()[0].move
        Pull(alpha=1.0, beta=0.875, nesterov=False, follow_lr=False)

    Reference: Chen and Huo, ICASSP 2016.
    """
    return [Level(Every(tau), Exact(shard=shard, codec=codec), Pull(zeta, eta), fast_buffers)]


def diloco(
    tau: Scheduled = 500,
    alpha: Scheduled = 0.7,
    beta: Scheduled = 0.9,
    *,
    shard: bool = False,
    codec: Codec | None = None,
    fast_buffers: FastBuffers = "keep",
) -> list[Level]:
    """DiLoCo: many local steps (of AdamW), Nesterov momentum on the average of the displacements.

    Every tau steps, with delta = mean - z: v <- beta v + delta,  z <- z + alpha (delta + beta v),  x_i <- z.

    Args:
        tau: fast steps between syncs (H in the paper), >= 1.
        alpha: outer learning rate, > 0.
        beta: outer Nesterov momentum, 0 < beta < 1.
        shard: split slow weights and slow momentum over the agents.
        codec: in what code values travel: None, `Cast`, `Quantised` or `TopK`.
        fast_buffers: "keep", "reset" or "average".

    Defaults: OpenDiLoCo's.

    Example:
        >>> diloco()[0].when
        Every(tau=500)

    Reference: arXiv 2311.08105, Algorithm 1.
    """
    return [Level(Every(tau), Exact(shard=shard, codec=codec), Pull(alpha, beta, nesterov=True), fast_buffers)]


def snoo(
    tau: Scheduled = 10,
    alpha: Scheduled = 0.7,
    beta: Scheduled = 0.9,
    *,
    fast_buffers: FastBuffers = "keep",
) -> list[Level]:
    """Step-K Nesterov outer optimizer: DiLoCo's outer step for a single agent.

    Every tau steps, with delta = x - z: v <- beta v + delta,  z <- z + alpha (delta + beta v),  x <- z.

    Args:
        tau: fast steps between outer steps (K in the paper), >= 1.
        alpha: outer learning rate, > 0.
        beta: outer Nesterov momentum, 0 < beta < 1.
        fast_buffers: "keep" or "reset".

    Defaults: those of the authors' code.

    Example:
        >>> snoo()[0].mix
        Alone()

    Reference: arXiv 2510.15830.
    """
    return [Level(Every(tau), Alone(), Pull(alpha, beta, nesterov=True), fast_buffers)]


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


def slowmo_over(
    base: Sequence[Level],
    tau: Scheduled = 48,
    alpha: Scheduled = 1.0,
    beta: Scheduled = 0.6,
    *,
    shard: bool = False,
    fast_buffers: FastBuffers = "keep",
) -> list[Level]:
    """SlowMo over a base algorithm: its levels go on as they are, and every tau steps comes SlowMo's exact average.

    Args:
        base: levels below, innermost first, such as `dpsgd()`.
        tau: fast steps between exact averages, a multiple of the base's.
        alpha: slow learning rate, > 0.
        beta: slow momentum, 0 <= beta < 1.
        shard: split slow weights and slow momentum over the agents.
        fast_buffers: "keep", "reset" or "average".

    Defaults: tau = 48 as in the authors' experiments over SGP; the others are those of `slowmo`.

    Example:
        >>> [level.when.tau for level in slowmo_over(dpsgd(), tau=48)]
        [1, 48]

    Reference: arXiv 1910.00643, Algorithm 1.
    """
    return [*base, *slowmo(tau, alpha, beta, shard=shard, fast_buffers=fast_buffers)]
