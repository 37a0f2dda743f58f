"""Two nodes on this machine, joined by a link of a given rate and delay: Linux network namespaces.

Each node is a namespace with an interface `eth0` of its own, whose egress `tc tbf` limits. The frames between them
go through this process, which can hold them back: kernels without netem have no other delay. Needs root and iproute2.
"""

import contextlib
import fcntl
import os
import select
import shutil
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

NODES = 2
TUN, TUNSETIFF, IFF_TAP, IFF_NO_PI = Path("/dev/net/tun"), 0x400454CA, 0x0002, 0x1000
FRAME = 65536  # bytes, more than any frame has
BURST_SECONDS, LEAST_BURST = 0.002, 16_000  # of tbf's bucket: larger ones let short messages pass unhindered


def why_not() -> str | None:
    """Say what is missing for such a link; None for nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [command for command in ("ip", "tc") if shutil.which(command) is None]
    if missing:
        return f"{' and '.join(missing)} of iproute2 are not installed"
    return None if TUN.exists() else f"{TUN} is not there"


class SlowLink:
    """Two nodes with a link between them; a context.

    Args:
        mbit: rate in each direction, in Mbit/s.
        delay: one way, in seconds.
    """

    def __init__(self, mbit: float, delay: float = 0.0) -> None:
        self.mbit, self.delay = mbit, delay
        self._names = [f"dl{os.getpid()}n{node}" for node in range(NODES)]
        self._ends: list[int] = []
        self._over = threading.Event()
        self._relay = threading.Thread(target=self._carry, daemon=True)

    def __enter__(self) -> "SlowLink":
        try:
            for node in range(NODES):
                self._build(node)
        except BaseException:
            self._remove()
            raise
        self._relay.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._relay.join()
        self._remove()

    def address(self, node: int) -> str:
        """Return the address of a node."""
        return f"10.99.0.{node + 1}"

    def start(self, node: int, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Start a command on a node."""
        own = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", **environment}
        return subprocess.Popen(["ip", "netns", "exec", self._names[node], *command], env=own)

    def _build(self, node: int) -> None:
        name, device = self._names[node], f"{self._names[node]}t"
        _run("ip", "netns", "add", name)
        end = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        self._ends.append(end)
        fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TAP | IFF_NO_PI))
        _run("ip", "link", "set", device, "netns", name, "name", "eth0")
        _run("ip", "-n", name, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
        burst = max(LEAST_BURST, int(self.mbit * 1e6 / 8 * BURST_SECONDS))
        limit = ["rate", f"{self.mbit}mbit", "burst", str(burst), "latency", "100ms"]
        _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", *limit)
        for interface in ("lo", "eth0"):
            _run("ip", "-n", name, "link", "set", interface, "up")

    def _remove(self) -> None:
        for end in self._ends:
            os.close(end)
        for name in self._names:
            if Path("/run/netns", name).exists():
                _run("ip", "netns", "del", name)

    def _carry(self) -> None:
        """Bring frames from each end to the other, so much later."""
        waiting: list[deque[tuple[float, bytes]]] = [deque() for _ in self._ends]
        while not self._over.is_set():
            first = min((frames[0][0] for frames in waiting if frames), default=time.monotonic() + 0.1)
            ready, _, _ = select.select(self._ends, [], [], max(first - time.monotonic(), 0.0))
            for end in ready:
                frames = waiting[self._ends.index(end)]
                frames.extend((time.monotonic() + self.delay, frame) for frame in _frames(end))
            for end, frames in zip(reversed(self._ends), waiting, strict=True):
                while frames and frames[0][0] <= time.monotonic():
                    with contextlib.suppress(OSError):  # a full queue loses frames, as a switch does
                        os.write(end, frames.popleft()[1])


def _frames(end: int) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield os.read(end, FRAME)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
