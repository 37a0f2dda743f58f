"""Starting the command line in processes of its own, as a person would, with hard time limits."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dist_lookahead.train.config import Config

LIMIT = 100.0  # seconds for a whole command


def environment() -> dict[str, str]:
    """One thread per process: as under torchrun, so that sums are in the same order everywhere."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def command(processes: int) -> list[str]:
    """The program alone, or under torchrun."""
    module = ["-m", "dist_lookahead"]
    if processes == 1:
        return [sys.executable, *module]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *module]


def run(
    arguments: Sequence[str], *, processes: int = 1, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end; the output holds stdout and stderr together."""
    return subprocess.run(
        [*command(processes), *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def train_in_processes(config: Config, processes: int) -> str:
    """Train under torchrun to the end, which must be a good one; the output holds stdout and stderr together."""
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
    with subprocess.Popen(
        [*command(processes), *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _wait_for(when, process)
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


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the process ended or hung before its signal: {process.communicate()[0]}")
        time.sleep(0.02)
