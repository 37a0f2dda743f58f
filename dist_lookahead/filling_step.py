"""Steps that are none: how torch.distributed.checkpoint makes an optimizer fill its state before it loads one."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dist_lookahead.sharded import count_nonzero


def is_filling(inner: Optimizer) -> bool:
    """Return whether the coming step has all learning rates at zero, and no gradient that is not zero.

    It is no training step then: it must not move the clock, not even in the middle of a training.

    Args:
        inner: the fast optimizer.
    """
    return all(_is_zero(group.get("lr")) for group in inner.param_groups) and not any(
        p.grad is not None and bool(count_nonzero(p.grad)) for group in inner.param_groups for p in group["params"]
    )


def _is_zero(rate: Any) -> bool:
    """Whether a learning rate is zero; one on an accelerator is not asked, which would wait for the device."""
    if isinstance(rate, Tensor):
        return rate.device.type == "cpu" and not bool(rate)
    return rate == 0
