"""A laboratory of nodes on one machine, joined by slow cables: Linux network namespaces. Needs root and iproute2.

Each node is a namespace with an interface `eth0` of its own, and a bridge in one more namespace, the switch, joins
them; the machine's own network is left as it was. `tc tbf` limits what leaves either end of a cable.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from benchmarks.delay import TUN, Delay

PREFIX, NAMESPACES, FILES = "dl", Path("/run/netns"), Path("/etc/netns")
INTERFACE, PORT = "eth0", "29400"
SENT = Path("/sys/class/net", INTERFACE, "statistics/tx_bytes")
SET_NAME = 'echo "$0" > /proc/sys/kernel/hostname; exec "$@"'
# What a step frees, the next takes again; given back to the system in between, it costs a fifth of the step's time.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "2000000000"}
BURST_SECONDS, LEAST_BURST = 0.002, 16_000  # of tbf's bucket: larger ones let short messages pass unhindered


def why_not() -> str | None:
    """Say why there can be no such network here; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [command for command in ("ip", "tc", "unshare") if shutil.which(command) is None]
    if missing:
        return f"{' and '.join(missing)} (of iproute2 and util-linux) are not installed"
    if not TUN.exists():
        return f"{TUN} is not there"
    try:  # a container's root may not be allowed to
        with Network(1, mbit=100):
            return None
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` says: {error.stderr.strip()}"


def require() -> None:
    """End this command, with the reason, where there can be no such network."""
    if reason := why_not():
        sys.exit(f"no link can be made here: {reason}")


def bytes_sent() -> int:
    """Return what this process's node has sent so far, in bytes, headers included."""
    return int(SENT.read_text())


class Network:
    """Nodes with addresses, joined by a switch; a context, at whose end all that runs on a node is ended.

    Args:
        nodes: how many, >= 1.
        mbit: rate of each cable in each direction, in Mbit/s; None for what the machine can do.
        delay: one way, in seconds.

    Attributes:
        names: of the nodes' namespaces.
    """

    def __init__(self, nodes: int, mbit: float | None = None, delay: float = 0.0) -> None:
        self.nodes, self.mbit = nodes, mbit
        self._delay = Delay(delay) if delay > 0 else None
        self._switch = f"{PREFIX}{os.getpid()}s"
        self.names = [f"{PREFIX}{os.getpid()}n{node}" for node in range(nodes)]
        self._built = contextlib.ExitStack()

    def __enter__(self) -> "Network":
        remove_abandoned()
        with contextlib.ExitStack() as building:
            building.enter_context(_signals_end_contexts())
            for name in (self._switch, *self.names):
                building.callback(remove, name)
                _run("ip", "netns", "add", name)
                self._name_nodes(name)
            _run("ip", "-n", self._switch, "link", "add", "bridge", "up", "type", "bridge")
            for node in range(self.nodes):
                self._plug_in(node)
            if self._delay:
                building.enter_context(self._delay)
            self._built = building.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._built.close()

    def address(self, node: int) -> str:
        """Return the address of a node."""
        return f"10.99.0.{node + 1}"

    def start(self, node: int, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Start a command on a node, whose host name is node0, node1, .."""
        own = {**os.environ, "GLOO_SOCKET_IFNAME": INTERFACE, **environment}
        inside = ["ip", "netns", "exec", self.names[node], "unshare", "--uts", "sh", "-c", SET_NAME, f"node{node}"]
        return subprocess.Popen([*inside, *command], env=own)

    def run(self, command: Sequence[str], *, timeout: float, local: int = 1) -> None:
        """Run a command on all nodes as torchrun would: the environment says who is who, and where to meet.

        Args:
            command: of each process.
            timeout: seconds for all of them together.
            local: processes of a node.

        Raises:
            RuntimeError: where one of them fails, or is late; the others are ended then.
        """
        world = self.nodes * local
        shared = {"MASTER_ADDR": self.address(0), "MASTER_PORT": PORT, "OMP_NUM_THREADS": "1"}
        shared |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local)} | KEEP_MEMORY
        agents = [
            self.start(rank // local, command, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank % local)})
            for rank in range(world)
        ]
        try:
            _wait(agents, time.monotonic() + timeout)
        finally:
            for agent in agents:
                agent.kill()
                agent.wait()

    def _name_nodes(self, namespace: str) -> None:
        """Lay files over those in /etc there: who asks for a name or an address would wait for servers out of reach."""
        nodes = [f"{mapped}{self.address(node)} node{node}" for node in range(self.nodes) for mapped in ("", "::ffff:")]
        folder = FILES / namespace
        folder.mkdir(parents=True)
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *nodes, ""]))
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")

    def _plug_in(self, node: int) -> None:
        name, inner, outer = self.names[node], f"{self.names[node]}i", f"{self.names[node]}o"
        if self._delay:
            self._delay.cable(inner, outer)
        else:
            _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
        _run("ip", "link", "set", inner, "netns", name, "name", INTERFACE)
        _run("ip", "link", "set", outer, "netns", self._switch)
        for namespace, device in ((name, INTERFACE), (self._switch, outer)):
            self._limit(namespace, device)
        _run("ip", "-n", name, "addr", "add", f"{self.address(node)}/24", "dev", INTERFACE)
        _run("ip", "-n", self._switch, "link", "set", outer, "master", "bridge", "up")
        for device in ("lo", INTERFACE):
            _run("ip", "-n", name, "link", "set", device, "up")

    def _limit(self, namespace: str, device: str) -> None:
        if self.mbit is not None:
            burst = max(LEAST_BURST, int(self.mbit * 1e6 / 8 * BURST_SECONDS))
            rate = ["rate", f"{self.mbit}mbit", "burst", str(burst), "latency", "100ms"]
            _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *rate)


def processes_of(name: str) -> list[int]:
    """Return the processes that run in a namespace."""
    return [int(process) for process in _run("ip", "netns", "pids", name).split()]


def remove(name: str) -> None:
    """End all processes of a namespace, and remove it where it is there."""
    if not (NAMESPACES / name).exists():
        return
    while processes := processes_of(name):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)
    _run("ip", "netns", "del", name)
    shutil.rmtree(FILES / name, ignore_errors=True)


def remove_abandoned() -> None:
    """Remove the nodes of commands that were killed before they could."""
    for path in NAMESPACES.glob(f"{PREFIX}[0-9]*"):
        owner = path.name.removeprefix(PREFIX).rpartition("n" if "n" in path.name else "s")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            remove(path.name)


def _wait(agents: "Sequence[subprocess.Popen[bytes]]", deadline: float) -> None:
    """Return when all have ended well; a failure need not wait for those that hang because of it."""
    while any(statuses := [agent.poll() for agent in agents]) or None in statuses:
        if failed := {rank: status for rank, status in enumerate(statuses) if status}:
            raise RuntimeError(f"agents ended with these statuses, by rank: {failed}")
        if time.monotonic() > deadline:
            raise RuntimeError("the agents took longer than they may, and were ended")
        time.sleep(0.05)


@contextlib.contextmanager
def _signals_end_contexts() -> Iterator[None]:
    """Let signals that would end this process at once end its contexts first."""

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    ours = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, end) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
