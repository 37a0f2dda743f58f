"""Lookahead and its relatives: slow weights without slow momentum."""

from collections.abc import Sequence

from dist_lookahead.adaptive import Tau
from dist_lookahead.averaging.codec import Codec
from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.mixer import Alone
from dist_lookahead.level import Every, FastBuffers, Level
from dist_lookahead.move import Alpha, Pull
from dist_lookahead.schedule import Scheduled


def lookahead(tau: Tau = 5, alpha: Alpha = 0.5, *, fast_buffers: FastBuffers = "keep") -> list[Level]:
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


def distributed_lookahead(
    tau: Tau = 5,
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
        Exact(axis='world', shard=False, codec=None, weighted=None)

    Reference: Wang, Tantia, Ballas and Rabbat, ICASSP 2020, eq. 4 for two agents.
    """
    return [Level(Every(tau), Exact(shard=shard, codec=codec), Pull(alpha), fast_buffers)]


def polyak(alpha: Scheduled = 0.001, tau: Tau = 1) -> list[Level]:
    """Polyak averaging: the slow weights are a running mean of the fast ones, which never come back to them.

    Every tau steps: z <- z + alpha (x - z), each agent for itself. A baseline for what pulling back does: train with
    the fast weights, evaluate and keep the slow ones.

    Args:
        alpha: weight of the present weights, > 0; 1 - alpha is the decay of an exponential moving average. A schedule
            that is 1 / k after k averages gives all of them equal weights.
        tau: fast steps from one average to the next, >= 1.

    Defaults: choices of ours.

    Example:
        >>> polyak(alpha=0.01)[0].local_share
        1.0

    Reference: Polyak and Juditsky, SIAM J. Control Optim. 30 (1992); arXiv 1907.08610, section 2 (compared with).
    """
    return [Level(Every(tau), Alone(), Pull(alpha), local_share=1.0)]
