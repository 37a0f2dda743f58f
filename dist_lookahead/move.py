"""Moves: how the slow weights of a level move toward the average of the fast weights.

    delta = mean - z
    v <- beta * ratio * v + delta
    z <- z + alpha * v                    (nesterov: z <- z + alpha * (delta + beta * v))
    x <- z

`ratio` is gamma_t / gamma_prev where the slow momentum follows the fast learning rate, else 1.

Everything works in place on flat tensors, and the whole rule is one pass over memory: on a CPU plain operations on
chunks that stay in cache, on a GPU one kernel. Every agent must do the same arithmetic in the same order, or slow
weights drift apart in their last bits.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_lookahead.one_pass import kernel_for
from dist_lookahead.optimal import Optimal
from dist_lookahead.schedule import Scheduled, check_scheduled, value_at

Alpha = Scheduled | Optimal
CHUNK = 2**18  # elements; x, z and v of one chunk (float32: 3 MB together) stay in cache, yet calls are few


@dataclass(frozen=True)
class Copy:
    """Take the average as it is: x <- mean. No slow weights are kept.

    Example:
        >>> Copy()
        Copy()
    """

    @property
    def keeps_slow_weights(self) -> bool:
        """Whether the level owns a copy of the weights."""
        return False

    @property
    def keeps_momentum(self) -> bool:
        """Whether the level owns a slow momentum."""
        return False

    @property
    def follow_lr(self) -> bool:
        """Whether the slow momentum is scaled with the fast learning rate."""
        return False

    @property
    def searches(self) -> bool:
        """Whether alpha is measured at each sync."""
        return False

    def coefficients(self, step: int) -> tuple[float, float]:
        """Return (alpha, beta) after `step` fast steps: always (1, 0)."""
        return 1.0, 0.0


@dataclass(frozen=True)
class Pull:
    """Pull the slow weights toward the average: z <- z + alpha * v with v <- beta * v + (mean - z).

    With alpha = 1 and beta = 0 the result is the mean itself, bit for bit.

    Args:
        alpha: slow step size, above 0 (above 1 extrapolates); a number, a schedule of the fast step, or
            `Optimal(low, high)`, measured at each sync.
        beta: slow momentum, 0 <= beta < 1; a number or a schedule.
        nesterov: z <- z + alpha * (delta + beta * v) instead (DiLoCo, SNOO).
        follow_lr: scale v by the change of the fast learning rate, which keeps SlowMo's momentum in units of
            gradients: with v = -gamma_t u this is u <- beta u + (z - mean) / gamma_t, z <- z - alpha gamma_t u,
            written without the division so that a learning rate of 0 is safe.

    Raises:
        ValueError: for values out of range, for nesterov or follow_lr without momentum, and for Optimal with it.

    Example:
        >>> Pull(alpha=0.5)
        Pull(alpha=0.5, beta=0.0, nesterov=False, follow_lr=False)

    Reference: arXiv 1907.08610 (alpha), arXiv 1910.00643 Algorithm 1 (beta, follow_lr), arXiv 2311.08105 (nesterov).
    """

    alpha: Alpha
    beta: Scheduled = 0.0
    nesterov: bool = False
    follow_lr: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.alpha, Optimal):
            check_scheduled("Pull.alpha", self.alpha)
        elif self.keeps_momentum:
            raise ValueError(
                f"Pull.alpha={self.alpha} with beta={self.beta}: the best alpha is known without slow momentum only. "
                "Use beta=0, or a number for alpha"
            )
        check_scheduled("Pull.beta", self.beta)
        if isinstance(self.alpha, int | float):
            _check_alpha(self.alpha)
        if isinstance(self.beta, int | float):
            _check_beta(self.beta)
        for option in ("nesterov", "follow_lr"):
            if getattr(self, option) and not self.keeps_momentum:
                raise ValueError(f"Pull.{option}=True has no effect with beta=0: give beta > 0 or leave it out")

    @property
    def keeps_slow_weights(self) -> bool:
        """Whether the level owns a copy of the weights."""
        return True

    @property
    def keeps_momentum(self) -> bool:
        """Whether the level owns a slow momentum."""
        return self.beta != 0.0

    @property
    def searches(self) -> bool:
        """Whether alpha is measured at each sync."""
        return isinstance(self.alpha, Optimal)

    def coefficients(self, step: int) -> tuple[float, float]:
        """Return (alpha, beta) after `step` fast steps, checked.

        Raises:
            ValueError: for values out of range, and for an alpha that is not known before the sync.
        """
        if isinstance(self.alpha, Optimal):
            raise ValueError(f"alpha={self.alpha} is measured at each sync: give a number, such as {self.alpha.low}")
        alpha, beta = value_at(self.alpha, step), value_at(self.beta, step)
        _check_alpha(alpha)
        _check_beta(beta)
        return alpha, beta


Move = Copy | Pull


@torch.no_grad()
def slow_step(
    move: Move,
    fast: Tensor,
    slow: Tensor | None,
    momentum: Tensor | None,
    *,
    agents: float,
    alpha: float,
    beta: float,
    ratio: float = 1.0,
) -> None:
    """Apply a move in place: `fast` holds the agents' sum before, the level's new weights after.

    Args:
        move: the rule.
        fast: flat (D,), the sum over the agents; overwritten with the new weights.
        slow: flat (D,), z; None for `Copy`.
        momentum: flat (D,), v; None without slow momentum.
        agents: number of agents in the sum, or their weights' sum; mean = sum / agents, never sum * (1 / agents),
            which differs.
        alpha: slow step size of this sync.
        beta: slow momentum of this sync.
        ratio: gamma_t / gamma_prev.

    Example:
        >>> x, z = torch.tensor([6.0]), torch.tensor([1.0])
        >>> slow_step(Pull(0.5), x, z, None, agents=2, alpha=0.5, beta=0.0)
        >>> z.item(), x.item()
        (2.0, 2.0)
    """
    nesterov = isinstance(move, Pull) and move.nesterov
    decay = beta * ratio
    if kernel := kernel_for(fast):
        kernel(fast, slow, momentum, agents=agents, alpha=alpha, beta=beta, decay=decay, nesterov=nesterov)
        return
    is_mean = alpha == 1.0 and beta == 0.0  # z + (mean - z) is not the mean, bit for bit
    # By a number, a GPU would multiply with 1 / n.
    divisor = torch.full((), agents, dtype=fast.dtype, device=fast.device) if fast.is_cuda else agents
    for x, z, v in _chunks(fast, slow, momentum):
        if agents != 1:
            x.div_(divisor)
        if z is None:
            continue
        if is_mean:
            if v is not None:
                torch.sub(x, z, out=v)
            z.copy_(x)
            continue
        if v is None:
            z.lerp_(x, alpha)  # z + alpha * (mean - z) in one pass
        else:
            delta = x.sub_(z)
            torch.add(delta, v, alpha=decay, out=v)
            z.add_(delta.add_(v, alpha=beta) if nesterov else v, alpha=alpha)
        x.copy_(z)


def _chunks(
    fast: Tensor, slow: Tensor | None, momentum: Tensor | None
) -> Iterable[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Cut the tensors into pieces that fit a cache; on an accelerator one piece saves kernel launches."""
    length = CHUNK if fast.device.type == "cpu" else max(fast.numel(), 1)
    if fast.numel() <= length:
        return [(fast, slow, momentum)]
    pieces = [itertools.repeat(None) if tensor is None else tensor.split(length) for tensor in (slow, momentum)]
    return zip(fast.split(length), *pieces, strict=False)


def _check_alpha(alpha: float) -> None:
    if not alpha > 0:
        raise ValueError(f"Pull.alpha={alpha} must be above 0: with 0 the slow weights never move")


def _check_beta(beta: float) -> None:
    if not 0 <= beta < 1:
        raise ValueError(f"Pull.beta={beta} must be at least 0 and below 1: from 1 on the slow momentum never decays")
