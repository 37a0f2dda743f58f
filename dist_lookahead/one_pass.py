"""Whether the slow step can be one kernel on a GPU: Triton comes with torch, and needs a C compiler once."""

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def kernel_for(fast: Tensor) -> Callable[..., None] | None:
    """Return the kernel's `slow_step`; None where plain operations are used.

    Args:
        fast: flat weights of a bucket.

    Example:
        >>> kernel_for(torch.zeros(3)) is None  # chunks that stay in a CPU's cache are one pass already
        True
    """
    return _kernel(fast.device) if fast.is_cuda and fast.dtype == torch.float32 else None


def way(devices: Iterable[torch.device]) -> str:
    """Say how slow steps on some devices are taken: agents must do it alike, or their last bits may drift apart.

    Example:
        >>> way([torch.device("cpu")])
        'slow steps in plain operations'
    """
    kernel = any(_kernel(device) for device in devices if device.type == "cuda")
    return f"slow steps in {'one kernel' if kernel else 'plain operations'}"


@functools.cache
def _kernel(device: torch.device) -> Callable[..., None] | None:
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        # Not at the top: Triton is not there without a GPU, and takes a second where nobody needs it.
        slow_step = importlib.import_module("dist_lookahead.slow_kernel").slow_step
        one = torch.ones(1, device=device)
        slow_step(one, None, None, agents=1, alpha=1.0, beta=0.0, decay=0.0, nesterov=False)
    except Exception as error:  # of a compiler, a driver, or a Triton that does not fit torch: any kind
        warnings.warn(
            f"the slow step on {device} passes over memory several times, since Triton cannot build its kernel: "
            f"{error}. A C compiler (CC=gcc) is what is missing most often",
            stacklevel=2,
        )
        return None
    return slow_step
