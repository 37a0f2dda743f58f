"""Starting the command line in processes of its own, as a person would, with hard time limits."""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from processes import CONTEXT, wait

from dist_lookahead.train.config import Config

ROOT = Path(__file__).parents[1]
LIMIT = 100.0  # seconds for a whole command


def environment() -> dict[str, str]:
    """One thread per process: as under torchrun, so that sums are in the same order everywhere."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def torchrun(processes: int) -> list[str]:
    """The program under torchrun."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*start, "-m", "dist_lookahead"]


def run(
    arguments: Sequence[str], *, processes: int = 1, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end, several processes as under torchrun; the output holds stdout and stderr of all together."""
    if processes == 1:
        return run_module("dist_lookahead", arguments, folder=folder)
    store = _store()
    return run_module("dist_lookahead", arguments, folder=folder, places=_places(processes, store.port))


@contextmanager
def started(
    arguments: Sequence[str], *, processes: int, port: int | None = None
) -> Iterator[tuple[list[BaseProcess], Path]]:
    """Start several processes as under torchrun, without its end of all when one ends; the path is of their output."""
    store = None if port else _store()
    with running("dist_lookahead", arguments, None, _places(processes, store.port if store else port)) as begun:
        yield begun


@contextmanager
def store_of_its_own() -> Iterator[tuple[BaseProcess, int]]:
    """Keep a store in a process that can be stopped; with its port."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_keep, args=(theirs,))
    process.start()
    try:
        yield process, ours.recv()
    finally:
        process.kill()
        process.join()


def _keep(parent: Connection) -> None:
    store = _store()
    parent.send(store.port)
    parent.recv()  # for ever


def _store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun keeps it likewise


def run_torchrun(arguments: Sequence[str], *, processes: int) -> subprocess.CompletedProcess[str]:
    """Run to the end under torchrun itself; the output holds stdout and stderr together."""
    return subprocess.run(
        [*torchrun(processes), *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def run_module(
    module: str,
    arguments: Sequence[str],
    *,
    folder: Path | None = None,
    places: Sequence[Mapping[str, str]] = ({},),
) -> subprocess.CompletedProcess[str]:
    """Run as `python -m` does, in processes that need not import torch once more.

    Args:
        module: to run.
        arguments: of each process.
        folder: where each starts.
        places: of each process, what its environment has beside that of the others.
    """
    with running(module, arguments, folder, places) as (processes, output):
        if wait(processes, LIMIT):
            raise subprocess.TimeoutExpired(module, LIMIT, output.read_text())
        codes = [process.exitcode for process in processes]
        return subprocess.CompletedProcess([module, *arguments], next(filter(None, codes), 0), output.read_text())


def _places(processes: int, port: int | None) -> list[dict[str, str]]:
    return [torchrun_environment(rank, processes, port) for rank in range(processes)]


def free_port() -> int:
    """Return a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def torchrun_environment(rank: int, size: int, port: int | None) -> dict[str, str]:
    """Return what torchrun would tell a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


@contextmanager
def running(
    module: str, arguments: Sequence[str], folder: Path | None = None, places: Sequence[Mapping[str, str]] = ({},)
) -> Iterator[tuple[list[BaseProcess], Path]]:
    """Start a module, each process in a group of its own with all that it starts; the path is of their output."""
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "output"
        output.touch()
        started: list[BaseProcess] = []
        try:
            for place in places:
                given = {**environment(), **place}
                started.append(CONTEXT.Process(target=_as_main, args=(module, arguments, folder, output, given)))
                started[-1].start()
            yield started, output
        finally:
            for process in started:
                _end(process)


def _end(process: BaseProcess) -> None:
    """Kill it with all that it has started."""
    if process.pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def _as_main(
    module: str, arguments: Sequence[str], folder: Path | None, output: Path, environment: Mapping[str, str]
) -> None:
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    if folder is not None:
        os.chdir(folder)
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # a program's own, where this process was told of the server
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def launched(script: str, arguments: list[str], folder: Path, **environment: str) -> list[str]:
    """Run a launcher with a torchrun that writes down its arguments."""
    fake = folder / "bin" / "torchrun"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor argument; do printf "%s\\0" "$argument"; done > "$SEEN"\n')
    fake.chmod(0o755)
    seen = folder / "seen"
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    own = {**os.environ, "PATH": path, "SEEN": str(seen), **environment}
    subprocess.run([ROOT / "launch" / script, *arguments], cwd=folder, env=own, check=True, timeout=30)
    return seen.read_text().split("\0")[:-1]


def train_in_processes(config: Config, processes: int) -> str:
    """Train as under torchrun to the end, which must be a good one; the output holds stdout and stderr together."""
    folder = Path(config.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{config.run.name}.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    done = run(["train", str(file)], processes=processes)
    assert done.returncode == 0, done.stdout
    return done.stdout


def interrupt(
    arguments: Sequence[str], *, when: Callable[[], bool], signum: signal.Signals, processes: int = 1
) -> tuple[int, str]:
    """Start, send a signal to the started process when the condition holds, and wait for the end."""
    if processes > 1:
        return _interrupt_torchrun(arguments, when, signum, processes)
    with running("dist_lookahead", arguments, None) as ([process], output):
        _wait_for(when, lambda: process.exitcode is not None, output.read_text)
        assert process.pid is not None
        os.kill(process.pid, signum)
        process.join(LIMIT)
        assert process.exitcode is not None, output.read_text()
        return process.exitcode, output.read_text()


def _interrupt_torchrun(
    arguments: Sequence[str], when: Callable[[], bool], signum: signal.Signals, processes: int
) -> tuple[int, str]:
    with subprocess.Popen(
        [*torchrun(processes), *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _wait_for(when, lambda: process.poll() is not None, lambda: process.communicate()[0])
            process.send_signal(signum)
            output, _ = process.communicate(timeout=LIMIT)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def start_agent(file: Path, rank: int, store: str) -> subprocess.Popen[str]:
    """Start one of two agents of a training by hand, with a file for a rendezvous."""
    program = (
        "import datetime, os, sys, torch.distributed as dist; from dist_lookahead.train.command import main; "
        "start = dist.init_process_group; "
        "dist.init_process_group = lambda backend, timeout, device_id: start(backend, timeout=timeout, "
        "init_method='file://' + sys.argv[1], rank=int(os.environ['RANK']), world_size=2); "
        "sys.exit(main(sys.argv[2:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, store, "train", str(file)],
        env={**environment(), "RANK": str(rank), "WORLD_SIZE": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until the condition holds, for a limited time."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.02)


def _wait_for(condition: Callable[[], bool], ended: Callable[[], bool], output: Callable[[], str]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        if ended() or time.monotonic() > deadline:
            raise AssertionError(f"the process ended or hung before its signal: {output()}")
        time.sleep(0.02)
