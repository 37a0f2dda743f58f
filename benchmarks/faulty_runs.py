"""Runs of three agents on this machine, started in the ways that there are, of which a fault will strike one."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

AGENTS, LONGEST = 3, 120.0
LAUNCH = Path(__file__).parents[1] / "launch"
KEEPER = (
    "import sys, torch.distributed as dist; "
    "store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False); "
    "print(store.port, flush=True); sys.stdin.read()"
)


@dataclass(frozen=True)
class Files:
    """Where a run reads and writes."""

    folder: Path

    @property
    def settings(self) -> Path:
        """The run file."""
        return self.folder / "run.yaml"

    @property
    def output(self) -> Path:
        """What all agents say."""
        return self.folder / "output"

    @property
    def metrics(self) -> Path:
        """What the run records."""
        return self.folder / "run" / "metrics.jsonl"

    @property
    def train(self) -> list[str]:
        """Arguments of an interpreter that trains."""
        return ["-m", "dist_lookahead", "train", str(self.settings)]


@dataclass(frozen=True)
class Run:
    """Processes of a run.

    Args:
        struck: those that the fault will strike.
        others: agents that it will not strike.
    """

    struck: Sequence[int]
    others: Sequence[int]


Start = Callable[[Files], AbstractContextManager[Run]]


@contextmanager
def by_hand(files: Files) -> Iterator[Run]:
    """Start agents as torchrun would, but for its end of all when one ends; the last one is struck."""
    with _by_hand(files) as (agents, _):
        yield Run(agents[-1:], agents[:-1])


@contextmanager
def by_hand_with_store(files: Files) -> Iterator[Run]:
    """The same, and the process that keeps the store is struck too."""
    with _by_hand(files) as (agents, keeper):
        yield Run([agents[-1], keeper], agents[:-1])


@contextmanager
def by_launch(files: Files) -> Iterator[Run]:
    """Start agents by `dist-lookahead launch`; the last one is struck."""
    with _Processes(files) as processes:
        launch = ["-m", "dist_lookahead", "launch", "--agents", str(AGENTS)]
        agents = _agents(files, processes.start([sys.executable, *launch, *files.train]))
        yield Run(agents[-1:], agents[:-1])


@contextmanager
def by_torchrun(files: Files) -> Iterator[Run]:
    """Start agents by launch/local.sh, to be started again; the last one is struck."""
    with _Processes(files) as processes:
        agents = _agents(files, processes.start([LAUNCH / "local.sh", AGENTS, files.settings], RESTARTS=3))
        yield Run(agents[-1:], agents[:-1])


@contextmanager
def by_nodes(files: Files) -> Iterator[Run]:
    """Start launch/multinode.sh as on three nodes of an agent each; all of the last node is struck."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    more = {"RENDEZVOUS": f"127.0.0.1:{port}", "NODES": "2:4", "AGENTS": 1, "RESTARTS": 3}
    with _Processes(files) as processes:
        nodes: list[int] = []
        for _ in range(AGENTS):
            nodes.append(processes.start([LAUNCH / "multinode.sh", files.settings], **more))
            until(lambda: _listens(port))  # the first one keeps the rendezvous, without which all end
        agents = [agent for node in nodes for agent in _agents(files, node)]
        yield Run([nodes[-1], agents[-1]], agents[:-1])


@contextmanager
def _by_hand(files: Files) -> Iterator[tuple[list[int], int]]:
    """Start agents, and what keeps their store."""
    with (
        _Processes(files) as processes,
        subprocess.Popen(
            [sys.executable, "-c", KEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as keeper,
    ):
        assert keeper.stdout
        port = keeper.stdout.readline().strip()
        try:
            train = [sys.executable, *files.train]
            yield [processes.start(train, **_place(rank, port)) for rank in range(AGENTS)], keeper.pid
        finally:
            keeper.kill()


class _Processes:
    """Processes that write into the run's output, and have ended afterwards with all that they have started."""

    def __init__(self, files: Files) -> None:
        self._output = files.output.open("w")
        self._started: list[subprocess.Popen[str]] = []

    def start(self, command: Sequence[object], **more: object) -> int:
        """Start one; return its number."""
        shared = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        environment = {**shared, **{name: str(value) for name, value in more.items()}}
        output, words = self._output, list(map(str, command))
        self._started.append(subprocess.Popen(words, env=environment, stdout=output, stderr=output, text=True))
        return self._started[-1].pid

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            own = _children(process.pid)
            process.kill()
            process.wait()
            for child in own:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        self._output.close()


def _place(rank: int, port: str) -> Mapping[str, object]:
    """Return what torchrun would tell an agent."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": AGENTS, "LOCAL_WORLD_SIZE": AGENTS}
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "faults"}
    return {**numbers, **told, "TORCHELASTIC_USE_AGENT_STORE": "True"}


def _agents(files: Files, starter: int) -> list[int]:
    """Return what has been started, when it trains: a launcher has other children before."""
    until(files.metrics.exists)
    return _children(starter)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")  # torchrun may start them from any of its threads
    return sorted(int(number) for task in tasks for number in task.read_text().split())


def lives(process: int) -> bool:
    """Return whether a process has not ended."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def until(condition: Callable[[], bool]) -> float:
    """Wait until something holds; return when it did."""
    deadline = time.monotonic() + LONGEST
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not happen within {LONGEST:.0f} s")
        time.sleep(0.005)
    return time.monotonic()
