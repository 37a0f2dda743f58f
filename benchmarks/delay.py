"""Cables whose frames arrive later: pairs of TAP devices, between which a thread of this process carries the frames."""

import contextlib
import fcntl
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

TUN, TUNSETIFF, IFF_TAP, IFF_NO_PI = Path("/dev/net/tun"), 0x400454CA, 0x0002, 0x1000
FRAME = 65536  # bytes, more than any frame has


class Delay:
    """All delayed cables of a network; a context, in which frames are carried.

    Args:
        seconds: that a frame takes from the inner to the outer end of its cable; back it takes none.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._cables: list[tuple[int, int]] = []
        self._over = threading.Event()
        self._carrier = threading.Thread(target=self._carry, daemon=True)

    def cable(self, inner: str, outer: str) -> None:
        """Make a cable before the context is entered: two devices of these names, for `ip link` to put in place."""
        self._cables.append((_tap(inner), _tap(outer)))

    def __enter__(self) -> "Delay":
        self._carrier.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._carrier.join()
        for end in (end for cable in self._cables for end in cable):
            os.close(end)

    def _carry(self) -> None:
        """Bring frames from each end to the other one when they are due."""
        other = dict(self._cables) | {outer: inner for inner, outer in self._cables}
        late = {inner: self.seconds for inner, _ in self._cables}
        waiting: dict[int, deque[tuple[float, bytes]]] = {end: deque() for end in other}
        while not self._over.is_set():
            first = min((frames[0][0] for frames in waiting.values() if frames), default=time.monotonic() + 0.1)
            ready, _, _ = select.select(list(other), [], [], max(first - time.monotonic(), 0.0))
            for end in ready:
                due = time.monotonic() + late.get(end, 0.0)
                waiting[end].extend((due, frame) for frame in _frames(end))
            for end, frames in waiting.items():
                while frames and frames[0][0] <= time.monotonic():
                    with contextlib.suppress(OSError):  # a full queue loses frames, as a switch does
                        os.write(other[end], frames.popleft()[1])


def _tap(name: str) -> int:
    end = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return end


def _frames(end: int) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield os.read(end, FRAME)
