"""Chaos: agents on emulated nodes train while some are killed, stopped, cut off and poisoned, and others join.

Each run draws its faults from its own seed. Each node is a network namespace on this machine, with one agent; the store
by which they agree is on a node of its own. A killed agent's node starts a new one, which joins. A run is well when all
agents that are left come to the end, in time, with the same weights, and nobody has ever held others after the same
sync. An agent that the others have lost, and done a sync anew without, may come to the end of it with what it had been
sent before; that does not count, since it takes their weights when it joins them. Needs root and iproute2.
"""

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks import network, picture, report
from benchmarks.chaos_agent import CAME_TOO_LATE, Course, rows, train
from dist_lookahead.survivors.agents import JOINS, NAME, STORE, TOKEN, first_name
from dist_lookahead.survivors.membership import connect, serve

FORK = multiprocessing.get_context("fork")  # an agent need not import torch anew
FAULTS = ("kill", "stop", "cut", "poison")
LONGEST = {"stop": 8.0, "cut": 8.0}  # seconds
BETWEEN = (1.0, 3.0)  # seconds from one fault to the next
HIT_BEFORE = 20.0  # seconds for which an agent that was hit may hear of it later than the others
SECRET = "chaos"
NEW_NETWORK, NEW_MOUNTS = 0x40000000, 0x00020000  # CLONE_NEWNET, CLONE_NEWNS

ABOUT = (
    "Per run: faults: how many of each kind happened. lost: fast steps of some agent that went into no average, the "
    "shares of agents that were cut off or stopped included. after ..: the most seconds from such a fault to the next "
    "sync of those who were not hit. recovery: the most seconds from an error of the collectives to "
    "the next average, on those. loss: training loss at the end, over that of a run without faults. end: well, or what "
    "was wrong."
)
COLUMNS = ("run", *FAULTS, "joined", "syncs", "lost", *(f"after {kind}" for kind in FAULTS), "recovery", "loss", "end")
PICTURE = picture.Bars(
    panels=[["after kill", "after stop", "after cut"], ["recovery"], ["lost"]], by=["run"], log=False
)


@dataclass
class Chaos:
    """One run.

    Args:
        nodes: the last one keeps the store.
        agents: at the beginning, one on each of the other nodes.
        course: of the agents.
        seed: decides the faults.
        faults: how many there are.
        limit: seconds after which a run is stuck.
    """

    nodes: network.Network
    agents: int
    course: Course
    seed: int
    faults: int
    limit: float
    happened: list[tuple[float, str, str]] = field(default_factory=list)
    joined: int = 0
    _processes: dict[str, tuple[BaseProcess, int]] = field(default_factory=dict)
    _hurt: dict[str, float] = field(default_factory=dict)  # by name, until when

    def run(self) -> str:
        """Train, and return how it ended: "well", or what was wrong."""
        with self._store() as self._address:
            try:
                for node in range(self.agents):
                    self._start(first_name(node), node, {"RANK": str(node), "WORLD_SIZE": str(self.agents)})
                return self._watch()
            finally:
                for process, _ in self._processes.values():
                    process.kill()
                    process.join()
                for node in range(self.agents):
                    self._link(node, up=True)

    def _watch(self) -> str:
        drawn, begun = random.Random(self.seed), time.monotonic()
        while not any(True for _ in rows(self.course.folder)):
            time.sleep(0.05)
            if time.monotonic() - begun > self.limit:
                return "did not begin"
        due = time.monotonic() + drawn.uniform(*BETWEEN)
        later: list[tuple[float, Callable[[], None]]] = []
        while alive := [name for name, (process, _) in self._processes.items() if process.is_alive()]:
            now = time.monotonic()
            for planned in [planned for planned in later if planned[0] <= now]:
                later.remove(planned)
                planned[1]()
            if len(self.happened) < self.faults and now >= due:
                due = now + drawn.uniform(*BETWEEN)
                self._hurt_somebody(drawn, alive, now, later)
            if now - begun > self.limit:
                return f"stuck: {', '.join(alive)}"
            time.sleep(0.02)
        return verdict(self.course, {name: process.exitcode for name, (process, _) in self._processes.items()})

    def _hurt_somebody(
        self, drawn: random.Random, alive: Sequence[str], now: float, later: list[tuple[float, Callable[[], None]]]
    ) -> None:
        """One agent at least has synced since it was hit last, and is left in peace: nobody can go on from nothing."""
        synced = {name: row["time"] for name, row in rows(self.course.folder)}
        well = [name for name in alive if synced.get(name, 0.0) > self._hurt.get(name, 0.0)]
        if len(well) < 2:
            return
        kind, name = drawn.choice(FAULTS), drawn.choice(well)
        process, node = self._processes[name]
        seconds = drawn.uniform(0.5, LONGEST.get(kind, 0.5))
        assert process.pid is not None
        if kind == "kill":
            os.kill(process.pid, signal.SIGKILL)
            self._keeper.send(name)
            later.append((now + seconds, lambda: self._join(node)))
        elif kind == "stop":
            os.kill(process.pid, signal.SIGSTOP)
            later.append((now + seconds, lambda pid=process.pid: os.kill(pid, signal.SIGCONT)))
        elif kind == "cut":
            self._link(node, up=False)
            later.append((now + seconds, lambda: self._link(node, up=True)))
        else:
            os.kill(process.pid, signal.SIGUSR1)
        self._hurt[name] = time.time() + seconds
        self.happened.append((time.time(), kind, name))

    def _join(self, node: int) -> None:
        self.joined += 1
        self._start(f"joined-{self.joined}", node, {JOINS: "1"})

    def _start(self, name: str, node: int, place: dict[str, str]) -> None:
        environment = {STORE: self._address, TOKEN: SECRET, NAME: name, **place}
        environment["GLOO_SOCKET_IFNAME"] = network.INTERFACE
        process = FORK.Process(target=_on_node, args=(self.nodes.names[node], environment, train, self.course))
        process.start()
        self._processes[name] = process, node

    @contextlib.contextmanager
    def _store(self) -> Iterator[str]:
        host, (self._keeper, theirs) = self.nodes.address(self.agents), FORK.Pipe()
        keeper = FORK.Process(target=_on_node, args=(self.nodes.names[self.agents], {}, _keep, host, theirs))
        keeper.start()
        try:
            yield f"{host}:{self._keeper.recv()}"
        finally:
            keeper.kill()
            keeper.join()

    def _link(self, node: int, *, up: bool) -> None:
        state = "up" if up else "down"
        link = ["ip", "-n", self.nodes.names[node], "link", "set", network.INTERFACE, state]
        subprocess.run(link, check=True)


def verdict(course: Course, statuses: dict[str, int | None]) -> str:
    """Say what is wrong with a run that has ended, or "well"."""
    failed = {name: status for name, status in statuses.items() if status not in (0, CAME_TOO_LATE, -signal.SIGKILL)}
    if failed or 0 not in statuses.values():
        return f"failed: {failed}"
    if differing := differing_rounds(course):
        return f"agents differ after syncs {differing[:5]}"
    ends = {name: row["clock"] for name, row in rows(course.folder)}
    missing = [name for name, status in statuses.items() if status == 0 and ends.get(name, 0) < course.steps]
    return f"not at the end: {missing}" if missing else "well"


def differing_rounds(course: Course) -> list[int]:
    """Return the rounds after which agents held different weights that have not lost each other in them."""
    held: dict[int, list[tuple[str, dict[str, Any]]]] = {}
    for name, row in rows(course.folder):
        held.setdefault(row["rounds"], []).append((name, row))
    return sorted(
        rounds
        for rounds, all_held in held.items()
        if any(
            one["checksum"] != other["checksum"]
            and one["generation"] <= other["generation"]
            and (one["generation"] == other["generation"] or name in other["members"])
            for name, one in all_held
            for _, other in all_held
        )
    )


def slowest_recovery(course: Course, happened: Sequence[tuple[float, str, str]], kind: str) -> report.Cell:
    """Return the most seconds from a fault of this kind to the next sync of somebody who was not hit by it."""
    syncs = sorted((row["time"], name) for name, row in rows(course.folder))
    faults = [(when, hit) for when, what, hit in happened if what == kind]
    return max(
        (next((at - when for at, name in syncs if at > when and name != hit), 0.0) for when, hit in faults), default="-"
    )


def longest_recovery(chaos: Chaos) -> report.Cell:
    """Return the most seconds from an error of the collectives to the next average, on agents that were not hit."""
    heard = [(name, row["heard"], row["time"]) for name, row in rows(chaos.course.folder) if row["heard"]]
    hit = {(name, when) for when, _, name in chaos.happened}
    return max(
        (
            at - since
            for name, since, at in heard
            if not any(name == other and since - HIT_BEFORE < when < at for other, when in hit)
        ),
        default="-",
    )


def lost_steps(course: Course, agents: int) -> int:
    """Return how many fast steps went into no average, of as many agents as there were at the beginning."""
    members: dict[int, int] = {}
    clocks: dict[int, int] = {}
    for _, row in rows(course.folder):
        members[row["rounds"]], clocks[row["rounds"]] = len(row["members"]), row["clock"]
    order = sorted(clocks)
    lengths = [clocks[this] - clocks.get(before, 0) for before, this in zip([0, *order], order, strict=False)]
    return sum(max(agents - members[rounds], 0) * length for rounds, length in zip(order, lengths, strict=True))


def last_loss(course: Course) -> float:
    """Return the training loss at the end."""
    return next(row["loss"] for _, row in rows(course.folder) if "loss" in row)


def _keep(host: str, parent: Any) -> None:
    """Keep the store, and say of killed agents that they are gone, as the launcher of their node would."""
    kept, port = serve(host, 0)
    parent.send(port)
    store = connect(host, port, SECRET, timeout=60)
    while kept:
        store.set(f"gone/{parent.recv()}", "1")


def _on_node(namespace: str, environment: dict[str, str], work: Callable[..., None], *arguments: Any) -> None:
    """Work inside a node, as `ip netns exec` would: with its network, and its names of addresses."""
    system = ctypes.CDLL(None, use_errno=True)
    with (network.NAMESPACES / namespace).open() as file:
        if system.setns(file.fileno(), NEW_NETWORK) or system.unshare(NEW_MOUNTS):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for path in (network.FILES / namespace).iterdir():
        subprocess.run(["mount", "--bind", path, Path("/etc", path.name)], check=True)
    os.environ.update(environment)
    log = os.environ.get("CHAOS_LOG")
    target = os.open(log or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(target, sys.stdout.fileno())
    os.dup2(target, sys.stderr.fileno())
    work(*arguments)


def one(nodes: network.Network, options: argparse.Namespace, seed: int, faults: int) -> tuple[Chaos, str]:
    """Run once; its files are in a folder that is removed with the command."""
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    names = ("steps", "tau", "pause", "timeout", "silence")
    course = Course(folder=folder, **{name: getattr(options, name) for name in names})
    chaos = Chaos(nodes, options.agents, course, seed, faults, options.limit)
    return chaos, chaos.run()


def measure(options: argparse.Namespace, nodes: network.Network) -> list[list[report.Cell]]:
    """Run as often as asked for; return a row for each, and one for all."""
    undisturbed, end = one(nodes, options, seed=0, faults=0)
    if end != "well":
        raise RuntimeError(f"a run without faults ended so: {end}")
    baseline, table = last_loss(undisturbed.course), []
    for seed in track(range(options.seed, options.seed + options.runs), "chaos", console=Console(stderr=True)):
        chaos, end = one(nodes, options, seed, options.faults)
        kinds = Counter(kind for _, kind, _ in chaos.happened)
        syncs = max((row["rounds"] for _, row in rows(chaos.course.folder)), default=0)
        loss: report.Cell = last_loss(chaos.course) / baseline if end == "well" else "-"
        lost = lost_steps(chaos.course, options.agents)
        slowest = [slowest_recovery(chaos.course, chaos.happened, kind) for kind in FAULTS]
        table.append(
            [
                str(seed),
                *(kinds[kind] for kind in FAULTS),
                chaos.joined,
                syncs,
                lost,
                *slowest,
                longest_recovery(chaos),
                loss,
                end,
            ]
        )
        if end != "well" and options.keep:
            shutil.copytree(chaos.course.folder, options.keep / str(seed), dirs_exist_ok=True)
            (options.keep / str(seed) / "faults.json").write_text(json.dumps(chaos.happened))
    return [*table, _median(table), _worst(table)]


def _median(table: Sequence[Sequence[Any]]) -> list[report.Cell]:
    columns = [[cell for cell in column if not isinstance(cell, str)] for column in zip(*table, strict=True)]
    medians = [statistics.median(column) if column else "-" for column in columns[1:-1]]
    return ["median", *medians, f"{sum(row[-1] == 'well' for row in table)} of {len(table)} well"]


def _worst(table: Sequence[Sequence[Any]]) -> list[report.Cell]:
    columns = [[cell for cell in column if not isinstance(cell, str)] for column in zip(*table, strict=True)]
    return ["most", *(max(column, default="-") for column in columns[1:-1]), ""]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run often, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="with faults (%(default)s)")
    parser.add_argument("--faults", type=int, default=5, help="of each run (%(default)s)")
    parser.add_argument("--agents", type=int, default=4, help="at the beginning (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first run (%(default)s)")
    parser.add_argument("--steps", type=int, default=640, help="of each agent (%(default)s)")
    parser.add_argument("--tau", type=int, default=8, help="fast steps of a round (%(default)s)")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds after a fast step (%(default)s)")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds of silence in a collective (%(default)s)")
    parser.add_argument("--silence", type=float, default=3.0, help="seconds without a sign of life (%(default)s)")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which a run is stuck (%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="what agents have written, of runs that are not well")
    report.add_options(parser)
    options = parser.parse_args(arguments)
    network.require()
    before = report.load_average()
    with tempfile.TemporaryDirectory() as options.folder, network.Network(options.agents + 1) as nodes:
        table = measure(options, nodes)
    load = before, report.load_average()
    report.publish(
        report.Report(name="chaos", about=ABOUT, columns=COLUMNS, rows=table, load=load, picture=PICTURE), options
    )


if __name__ == "__main__":
    main()
