"""Local SGD and its relatives: exact averages without slow weights."""

from collections.abc import Sequence

from dist_lookahead.adaptive import Tau
from dist_lookahead.averaging.codec import Codec
from dist_lookahead.averaging.exact import Exact
from dist_lookahead.level import Every, FastBuffers, Level
from dist_lookahead.move import Copy
from dist_lookahead.schedule import Piecewise, Scheduled


def local_sgd(tau: Tau = 8, *, codec: Codec | None = None, fast_buffers: FastBuffers = "keep") -> list[Level]:
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


def overlapped_local_sgd(
    tau: Scheduled = 8, delay: int = 4, *, codec: Codec | None = None, fast_buffers: FastBuffers = "keep"
) -> list[Level]:
    """Local SGD whose averages travel while the agents train, with the progress made meanwhile kept.

    Every tau steps q_i = x_i, and delay steps later x_i <- x_i + (mean_j q_j - q_i). That is CoCoD-SGD's rule, whose
    averages take a whole round, delay = tau. It is not Overlap-Local-SGD (arXiv 2002.09539), which pulls the agents
    toward an anchor, so that they keep a part of their distance from it.

    Args:
        tau: fast steps from where one average begins to where the next one does, >= 2.
        delay: fast steps from where an average begins to where it lands, 1 <= delay < tau.
        codec: in what code values travel: None, `Cast`, `Quantised` or `TopK`.
        fast_buffers: "keep", or "reset" where an average lands.

    Raises:
        ValueError: for delay=0, which is `local_sgd`.

    Defaults: tau as in `local_sgd`, and half of it for the average; right is what the average takes on your link.

    Example:
        >>> overlapped_local_sgd(tau=8, delay=3)[0].when
        Every(tau=8, delay=3)

    Reference: arXiv 1906.12043, Algorithm 1.
    """
    if not delay:
        raise ValueError(
            f"overlapped_local_sgd(delay={delay}) overlaps nothing: use local_sgd, or a delay of at least 1"
        )
    return [Level(Every(tau, delay), Exact(codec=codec), Copy(), fast_buffers)]


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
