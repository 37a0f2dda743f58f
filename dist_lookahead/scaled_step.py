"""A fast step as others ask for it: GradScaler (none after an overflow), and hooks of torch's optimizers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def scaled_step(
    inner: Optimizer, closure: Callable[[], float] | None, found_inf: Tensor, grad_scale: Tensor | None
) -> float | None:
    """Take the step of an optimizer as GradScaler asks for it: unscaled, or not at all.

    Args:
        inner: the fast optimizer, which may know how to do both itself.
        closure: of the step.
        found_inf: not 0 where a gradient is not finite.
        grad_scale: by which gradients are too large; None where they have been unscaled.
    """
    if getattr(inner, "_step_supports_amp_scaling", False):
        inner.found_inf, inner.grad_scale = found_inf, grad_scale  # pyright: ignore[reportAttributeAccessIssue] - GradScaler's protocol
        try:
            return inner.step(closure)
        finally:
            del inner.found_inf, inner.grad_scale  # pyright: ignore[reportAttributeAccessIssue] - see above
    if found_inf.item():
        return None
    if grad_scale is not None:
        grads = [p.grad for group in inner.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(grads, grad_scale.double().reciprocal().float().item())
    return inner.step(closure)


def closure_after(result: tuple[Any, dict[str, Any]] | None, closure: Any) -> Any:
    """Return the closure after a hook, which may replace the step's arguments: (self, closure), or keywords."""
    if result is None:
        return closure
    args, keywords = result
    return args[1] if len(args) > 1 else keywords.get("closure")
