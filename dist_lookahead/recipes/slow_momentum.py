"""SlowMo and its relatives: slow weights that keep momentum."""

from collections.abc import Sequence

from dist_lookahead.adaptive import Tau
from dist_lookahead.averaging.codec import Codec
from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.mixer import Alone
from dist_lookahead.fragments import Part
from dist_lookahead.level import Every, FastBuffers, Level
from dist_lookahead.move import Pull
from dist_lookahead.schedule import Scheduled


def slowmo(
    tau: Tau = 12,
    alpha: Scheduled = 1.0,
    beta: Scheduled = 0.6,
    *,
    delay: int = 0,
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
        delay: fast steps from where an average begins to where it lands, 0 <= delay < tau; the progress made meanwhile
            is kept.
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
    return [Level(Every(tau, delay), Exact(shard=shard, codec=codec), move, fast_buffers)]


def slowmo_over(
    base: Sequence[Level],
    tau: Tau = 48,
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
        >>> from dist_lookahead.recipes import dpsgd
        >>> [level.when.tau for level in slowmo_over(dpsgd(), tau=48)]
        [1, 48]

    Reference: arXiv 1910.00643, Algorithm 1.
    """
    return [*base, *slowmo(tau, alpha, beta, shard=shard, fast_buffers=fast_buffers)]


def bmuf(
    tau: Tau = 50,
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
    tau: Tau = 500,
    alpha: Scheduled = 0.7,
    beta: Scheduled = 0.9,
    *,
    delay: int = 0,
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
        delay: fast steps from where an average begins to where it lands, 0 <= delay < tau; the progress made meanwhile
            is kept.
        shard: split slow weights and slow momentum over the agents.
        codec: in what code values travel: None, `Cast`, `Quantised` or `TopK`.
        fast_buffers: "keep", "reset" or "average".

    Defaults: OpenDiLoCo's.

    Example:
        >>> diloco()[0].when
        Every(tau=500)

    Reference: arXiv 2311.08105, Algorithm 1.
    """
    return [Level(Every(tau, delay), Exact(shard=shard, codec=codec), Pull(alpha, beta, nesterov=True), fast_buffers)]


def snoo(
    tau: Tau = 10,
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


def streaming_diloco(
    tau: int = 100,
    parts: int = 4,
    alpha: Scheduled = 0.4,
    beta: Scheduled = 0.9,
    *,
    strided: bool = False,
    codec: Codec | None = None,
    delay: int = 0,
    local_share: float = 0.0,
    fast_buffers: FastBuffers = "keep",
) -> list[Level]:
    """Streaming DiLoCo: one part of the parameters at a time, so that what is sent at once is a part of the model.

    Part p of P fires after the fast steps k with k mod tau = (p + 1) tau / P mod tau, each by DiLoCo's rule: the last
    part at every multiple of tau, the others evenly between.

    Args:
        tau: fast steps between two syncs of a parameter (H in the paper), at least as many as parts.
        parts: P >= 2, equal in bytes as far as whole parameters allow.
        alpha: outer learning rate, > 0.
        beta: outer Nesterov momentum, 0 <= beta < 1.
        strided: every P-th parameter makes a part, in place of neighbours.
        codec: in what code averages travel (4 bits in the paper).
        delay: fast steps from where an average begins to where it lands, below tau.
        local_share: share of its own weights that an agent keeps there, the paper's mixing factor (alpha there):
            x_i <- z + share (x_i - z); 0 keeps the progress made meanwhile instead.
        fast_buffers: "keep", "reset" or, without a delay, "average", each for the part that is averaged.

    Defaults: tau and the momentum are the paper's, as far as known; alpha is taken from its experiments, uncertain. The
    paper has a delay, and a share of 1/2.

    Example:
        >>> [(level.when.phase, level.params.index) for level in streaming_diloco(tau=100, parts=4)]
        [(25, 0), (50, 1), (75, 2), (0, 3)]

    Reference: arXiv 2501.18512.
    """
    if tau < parts:
        raise ValueError(f"tau={tau} must be at least parts={parts}: two parts would fire after the same step")
    return [
        Level(
            Every(tau, delay, phase=(part + 1) * tau // parts % tau),
            Exact(codec=codec),
            Pull(alpha, beta, nesterov=True),
            fast_buffers,
            Part(part, parts, strided),
            local_share,
        )
        for part in range(parts)
    ]
