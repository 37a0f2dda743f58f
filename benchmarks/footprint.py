"""Memory of this process, phase by phase: what it holds, and the most that it held at once.

On CUDA by torch's allocator. On a CPU by the kernel's count of resident pages (Linux), which sees what every thread and
library holds, process groups too, to about a megabyte: measure tensors of many. Each large block is made to come from
the kernel and go back to it, so that nothing is kept for later.
"""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

M_MMAP_THRESHOLD = -3  # of mallopt, in malloc.h
LARGE = 2**16  # bytes: what is larger has pages of its own
SMALLEST = 2**23  # bytes: of smaller models the kernel's count says little


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes of a phase, counted from where the footprint was made.

    Attributes:
        peak: the most there were at once.
        after: those that were left at the end.
    """

    peak: int
    after: int


class Footprint:
    """Follow the memory of this process from here on.

    Args:
        device: whose memory.

    Attributes:
        usage: by the name of the phase.

    Raises:
        OSError: where the kernel does not count: on anything but CUDA and Linux.

    Example:
        >>> footprint = Footprint(torch.device("cpu"))
        >>> with footprint.phase("sum"):
        ...     kept = torch.ones(4_000_000)
        ...     total = (kept + kept).sum()
        >>> round(footprint.usage["sum"].peak / 16e6), round(footprint.usage["sum"].after / 16e6)
        (2, 1)
    """

    def __init__(self, device: torch.device) -> None:
        self.usage: dict[str, Usage] = {}
        self._cuda = device.type == "cuda"
        if not self._cuda:
            _require_linux()
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
        gc.collect()  # what others leave behind must not be let go of meanwhile
        self._before = self._now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Name what happens inside. Of a name that comes again, the highest peak and the last end are kept."""
        self._forget_peak()
        yield
        peak, after = self._peak() - self._before, self._now() - self._before
        highest = max(peak, self.usage[name].peak) if name in self.usage else peak
        self.usage[name] = Usage(highest, after)

    def _now(self) -> int:
        return torch.cuda.memory_allocated() if self._cuda else _resident("VmRSS")

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self._cuda else _resident("VmHWM")

    def _forget_peak(self) -> None:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _require_linux() -> None:
    if not Path("/proc/self/clear_refs").exists():
        raise OSError(
            f"memory on a CPU is counted by Linux, in /proc/self/clear_refs; {sys.platform} has none: use CUDA"
        )
