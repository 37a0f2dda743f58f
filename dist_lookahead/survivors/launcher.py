"""Starts the agents of a training that goes on without those that are lost, and keeps the store by which they agree.

Unlike torchrun it does not end all agents because one has ended.
"""

import argparse
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType

import torch.distributed as dist

from dist_lookahead.survivors.agents import JOINS, NAME, STORE, TOKEN, first_name
from dist_lookahead.survivors.membership import connect, serve

_log = logging.getLogger(__name__)

POLL_SECONDS, SILENCE_SECONDS = 0.05, 10.0
HERE = "127.0.0.1:0"


@dataclass
class Launch:
    """What one node starts.

    Args:
        command: of each agent.
        agents: of this node.
        nodes: that start as many agents each.
        node: this one, from 0; node 0 keeps the store.
        store: HOST:PORT where that listens, the same on all nodes; port 0 for a free one on a single node.
        token: that all nodes know, so that nobody else joins; made up on a single node.
        rejoin: how many agents may be started anew on this node, to join those that have gone on.

    Raises:
        ValueError: for numbers out of their range, and for several nodes without an address or a token.
    """

    command: Sequence[str]
    agents: int
    nodes: int = 1
    node: int = 0
    store: str = HERE
    token: str = field(default="", repr=False)
    rejoin: int = 0

    def __post_init__(self) -> None:
        if not self.command:
            raise ValueError("no command: give a script with its arguments, or -m and a module")
        if self.agents < 1 or self.nodes < 1 or self.rejoin < 0 or not 0 <= self.node < self.nodes:
            raise ValueError(
                f"agents={self.agents}, nodes={self.nodes}, node={self.node}, rejoin={self.rejoin}: at least 1 agent "
                "and 1 node, a node from 0 to nodes - 1, and 0 or more that rejoin"
            )
        host, _, port = self.store.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"store={self.store!r} must be HOST:PORT, such as 10.0.0.1:29400")
        if self.nodes > 1 and (self.store == HERE or int(port) == 0 or not self.token):
            raise ValueError(
                f"{self.nodes} nodes need the address of node 0 and a secret of their own, the same on all of them: "
                f"give --store HOST:PORT, and {TOKEN} in the environment"
            )

    def run(self) -> int:
        """Start the agents, and wait for them; return 0 if one of them came to its end, or what one has failed with."""
        host, _, port = self.store.rpartition(":")
        token = self.token or secrets.token_hex(16)
        _kept, number = serve(host, int(port)) if self.node == 0 else (None, int(port))
        store = connect(host, number, token, timeout=300)
        others = _OtherNodes(self, store)
        status = _Agents(self, f"{host}:{number}", token, store).watch(others)
        while others.live():  # the store must not end before their agents have
            time.sleep(POLL_SECONDS)
        store.set(f"done/{self.node}", "1")
        return status


class _OtherNodes:
    """The launchers for which node 0 keeps the store, and when each was last heard of: also while agents run here."""

    def __init__(self, launch: Launch, store: dist.Store) -> None:
        self._store = store
        self._heard = {node: (-1, time.monotonic()) for node in range(1, launch.nodes if launch.node == 0 else 1)}

    def live(self) -> bool:
        """Look at them; return whether one is there that has not ended."""
        for node, (beats, _) in list(self._heard.items()):
            if (now := self._store.add(f"launcher/{node}", 0)) != beats:
                self._heard[node] = now, time.monotonic()
            if self._store.check([f"done/{node}"]):
                del self._heard[node]
        return any(time.monotonic() - since < SILENCE_SECONDS for _, since in self._heard.values())


class _Agents:
    """The processes of one node."""

    def __init__(self, launch: Launch, address: str, token: str, store: dist.Store) -> None:
        self._launch, self._store = launch, store
        self._shared = {**os.environ, STORE: address, TOKEN: token}
        self._shared.setdefault("OMP_NUM_THREADS", "1")
        if launch.nodes == 1:
            self._shared.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self._started = 0
        self._running: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        self._statuses: list[int] = []
        self._signal = 0

    def watch(self, others: _OtherNodes) -> int:
        """Start them, tell the others of those that end, and start some anew; return the status of the node."""
        handlers = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for place in range(self._launch.agents):
                self._start(place, first_name(self._launch.node * self._launch.agents + place), {})
            while self._running:
                self._look()
                others.live()
                self._store.add(f"launcher/{self._launch.node}", 1)
                time.sleep(POLL_SECONDS)
        finally:
            for process, _ in self._running.values():
                process.kill()
                process.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self._signal:
            return 128 + self._signal
        return 0 if 0 in self._statuses else abs(self._statuses[0])

    def _start(self, place: int, name: str, more: dict[str, str]) -> None:
        launch = self._launch
        own = {"RANK": launch.node * launch.agents + place, "WORLD_SIZE": launch.nodes * launch.agents}
        own |= {"LOCAL_RANK": place, "LOCAL_WORLD_SIZE": launch.agents}
        environment = {**self._shared, **{key: str(value) for key, value in own.items()}, NAME: name, **more}
        self._running[name] = subprocess.Popen([sys.executable, *launch.command], env=environment), place

    def _look(self) -> None:
        for name, (process, place) in list(self._running.items()):
            if (status := process.poll()) is None:
                continue
            del self._running[name]
            self._statuses.append(status)
            self._store.set(f"gone/{name}", "1")
            if status == 0 or self._signal:
                continue
            _log.warning("dist-lookahead launch: %s has ended with %s", name, _described(status))
            if self._running and self._started < self._launch.rejoin:
                self._started += 1
                self._start(place, f"{name}+{self._started}", {JOINS: "1"})

    def _hear(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        for process, _place in self._running.values():
            process.send_signal(number)


def _described(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def add_launch(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to a parser."""
    launch = commands.add_parser("launch", help="start agents that go on without those that are lost")
    launch.add_argument("--agents", type=int, required=True, metavar="N", help="on each node")
    launch.add_argument("--nodes", type=int, default=1, help="number of nodes (default: %(default)s)")
    launch.add_argument("--node", type=int, default=0, help="this node, from 0 (default: %(default)s)")
    launch.add_argument("--store", default=HERE, metavar="HOST:PORT", help="of node 0 (default: %(default)s)")
    launch.add_argument("--rejoin", type=int, default=0, metavar="K", help="start up to K lost agents anew, to join")
    launch.add_argument("-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE ...", help="with its arguments")
    launch.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT ...", help="in place of -m MODULE")
    launch.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    names = ("agents", "nodes", "node", "store", "rejoin")
    given = {name: getattr(options, name) for name in names}
    command = ["-m", *options.module] if options.module else options.script
    return Launch(command, token=os.environ.get(TOKEN, ""), **given).run()
