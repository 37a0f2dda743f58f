"""Slow state in host memory, for models that leave no room on the GPU: it passes through the GPU window by window.

    stream "in"       z, v of window k + 1 to the GPU
    current stream    slow step of window k
    stream "out"      z, v of window k - 1 back to the host

The host memory is page-locked, so that copies run beside the kernels. The numbers are those of slow state on the GPU.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dist_lookahead.level import Level

Offload = Literal["cpu"]
Step = Callable[[Tensor, Tensor | None, Tensor | None], None]
WINDOW = 2**22  # elements: 16 MB take 0.3 ms over PCIe 5, long beside a launch, and little memory
SLOTS = 3  # windows on the GPU at a time: one coming, one in work, one going


def check_offload(offload: str | None, levels: Sequence[Level]) -> None:
    """Refuse an offload that is unknown, has no effect, or does not fit the levels.

    Raises:
        ValueError: for each of these.
    """
    if offload is None:
        return
    if offload not in get_args(Offload):
        raise ValueError(f"offload={offload!r} must be None or 'cpu'")
    if not any(level.move.keeps_slow_weights for level in levels):
        raise ValueError("offload='cpu' has no effect: no level keeps slow weights; leave it out")
    for index, level in enumerate(levels):
        codec = getattr(level.mix, "codec", None)
        if codec or level.when.delay or level.local_share or level.move.searches:
            raise ValueError(
                f"offload='cpu' with levels[{index}]={level}: a codec, a delay, a local share and alpha=Optimal need "
                "the slow weights on the device between slow steps; leave one of the two out"
            )


@torch.no_grad()
def on_host(tensor: Tensor) -> Tensor:
    """Return a copy in page-locked host memory; of a tensor that is there already, a plain copy."""
    if not tensor.is_cuda:
        return tensor.clone()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)


def through_device(step: Step, fast: Tensor, slow: Tensor | None, momentum: Tensor | None) -> None:
    """Take the slow step of flat fast weights whose slow state may lie on the host.

    Args:
        step: of the whole, or of a window: it changes fast weights, slow weights and slow momentum in place.
        fast: flat (D,).
        slow: flat (D,), or None.
        momentum: flat (D,), or None.

    Example:
        >>> def step(x, z, v):
        ...     z.copy_(x)
        >>> z = torch.zeros(2)
        >>> through_device(step, torch.ones(2), z, None)
        >>> z
        tensor([1., 1.])
    """
    kept = [tensor for tensor in (slow, momentum) if tensor is not None]
    if all(tensor.device == fast.device for tensor in kept):
        step(fast, slow, momentum)
    else:
        _stream(step, fast, kept)


def _stream(step: Step, fast: Tensor, kept: Sequence[Tensor]) -> None:
    current = torch.cuda.current_stream(fast.device)
    coming, going = torch.cuda.Stream(fast.device), torch.cuda.Stream(fast.device)
    slots = [[fast.new_empty(min(WINDOW, fast.numel())) for _ in kept] for _ in range(SLOTS)]
    coming.wait_stream(current)  # what the slots' memory was used for before
    free: list[Any] = [None] * SLOTS
    windows = zip(fast.split(WINDOW), zip(*(tensor.split(WINDOW) for tensor in kept), strict=True), strict=True)
    for number, (own, home) in enumerate(windows):
        slot = number % SLOTS
        here = [place[: own.numel()] for place in slots[slot]]
        with torch.cuda.stream(coming):
            if event := free[slot]:
                coming.wait_event(event)
            for place, source in zip(here, home, strict=True):
                place.copy_(source, non_blocking=True)
            current.wait_event(coming.record_event())
        step(own, *(*here, None)[:2])
        with torch.cuda.stream(going):
            going.wait_event(current.record_event())
            for place, source in zip(here, home, strict=True):
                source.copy_(place, non_blocking=True)
            free[slot] = going.record_event()
    current.wait_stream(going)  # the slots' memory goes back to the current stream
    going.synchronize()  # the host may read its memory at once
