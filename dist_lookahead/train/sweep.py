"""Running the points of a sweep side by side, each as `dist-lookahead train` in a process of its own.

A point is finished when the folder of its run says so; what is in memory counts for nothing, so that a sweep goes on
after any interruption. Its runs go on from their checkpoints.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dist_lookahead.train.config import ConfigError, load_config
from dist_lookahead.train.outcome import read_outcome, state_of
from dist_lookahead.train.result_table import COST
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.signals import LAST_WORDS, STOPPING
from dist_lookahead.train.sweep_file import Point, Sweep
from dist_lookahead.train.sweep_results import folder_of, result_of, write_results

FAILED = 1
PAUSE = 0.1  # seconds between two looks at the runs
LAST_LINES = 5  # of a failed run's output
DONE = ("finished", "diverged")

Say = Callable[[str], object]


def run_sweep(sweep: Sweep, points: Sequence[Point], *, jobs: int | None, say: Say) -> int:
    """Run all points that are not finished; return 0, 1 if some failed, or 128 + the signal that stopped it.

    Args:
        sweep: name, folder and threads.
        points: validated.
        jobs: runs at a time; None for as many as there are cores for.
        say: takes lines for a person.

    Raises:
        ConfigError: a folder of a point holds another run.
        ValueError: jobs is below 1, or another sweep is at work in the folder.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs={jobs} must be at least 1")
    _require_own_folders(sweep, points)
    with _locked(sweep.folder) as lock, _Signals() as signals:
        write_results(sweep.folder, points)  # so that what is there can be compared while the rest runs
        runs = _Runs(sweep, lock, total=len(points), say=say)
        waiting = [point for point in points if not runs.skip(point)]
        at_once = jobs or max(1, len(os.sched_getaffinity(0)) // sweep.threads)
        say(f"{sweep.name}: {len(points)} points, {len(points) - len(waiting)} finished before; {at_once} at a time")
        while (waiting or runs.running) and signals.received is None:
            while waiting and len(runs.running) < at_once:
                runs.start(waiting.pop(0))
            time.sleep(PAUSE)
            runs.collect()
        if signals.received is not None:
            runs.stop()
            say(
                f"Stopped by signal {signals.received}: {runs.done} of {len(points)} points are finished. "
                "Go on with the same command"
            )
            return 128 + signals.received
    return FAILED if runs.failed else 0


@dataclass(frozen=True)
class _Run:
    point: Point
    process: subprocess.Popen[bytes]


class _Runs:
    """The processes of a sweep, and the count of what became of them."""

    def __init__(self, sweep: Sweep, lock: IO[str], *, total: int, say: Say) -> None:
        self._files, self._lock, self._total, self._say = sweep.folder / "points", lock, total, say
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(sweep.threads), "MKL_NUM_THREADS": str(sweep.threads)}
        self.running: list[_Run] = []
        self.done = self.failed = 0
        self._stopping = False

    def skip(self, point: Point) -> bool:
        """Count a point that is finished already."""
        finished = _state(point) in DONE
        self.done += finished
        return finished

    def start(self, point: Point) -> None:
        """Start a point's process, which goes on from a checkpoint where there is one."""
        folder, name = folder_of(point), point.config.run.name
        if folder.is_dir() and not RunDirectory(folder).checkpoints.is_dir():
            shutil.rmtree(folder)  # interrupted before its first checkpoint; else it would get a new name
        self._files.mkdir(exist_ok=True)
        file = self._files / f"{name}.yaml"
        file.write_text(point.config.to_yaml(), encoding="utf-8")
        with self._log(point).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dist_lookahead", "train", str(file), "--resume"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C comes to the sweep alone, which passes it on once
                pass_fds=[self._lock.fileno()],  # held until the last of them is gone, also if the sweep is killed
            )
        self.running.append(_Run(point, process))

    def collect(self) -> None:
        """Say what became of the processes that have ended."""
        for run in [run for run in self.running if run.process.poll() is not None]:
            self.running.remove(run)
            self._report(run)

    def stop(self) -> None:
        """Let all processes save and end; kill those that do not within their own time of grace."""
        self._stopping = True
        for run in self.running:
            run.process.terminate()
        for run in self.running:
            try:
                run.process.wait(timeout=run.point.config.checkpoint.grace + 3 * LAST_WORDS)
            except subprocess.TimeoutExpired:
                run.process.kill()
                run.process.wait()
        self.collect()

    def _report(self, run: _Run) -> None:
        state = _state(run.point)
        if state in DONE:
            self.done += 1
            self._say(f"[{self.done}/{self._total}] {run.point.label}: {_in_words(run.point)}")
        elif not (self._stopping and run.process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)):
            self.failed += 1
            self._say(f"{run.point.label} failed with exit status {run.process.returncode}; its last lines:")
            for line in self._log(run.point).read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]:
                self._say(f"    {line}")

    def _log(self, point: Point) -> Path:
        return self._files / f"{point.config.run.name}.log"


class _Signals:
    """While it is entered, SIGINT and SIGTERM are remembered and nothing else."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "_Signals":
        self._before = {signum: signal.signal(signum, self._remember) for signum in STOPPING}
        return self

    def __exit__(self, *raised: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _remember(self, signum: int, frame: object) -> None:
        self.received = signum


@contextmanager
def _locked(folder: Path) -> Iterator[IO[str]]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another sweep, or runs that one has left behind, are at work in {folder}: wait for them, end them, "
                "or give this sweep another name"
            ) from error
        yield lock


def _require_own_folders(sweep: Sweep, points: Sequence[Point]) -> None:
    """Refuse a folder that holds another run than its point: hand-made, or of a version with other defaults."""
    faults = []
    for point in points:
        directory = RunDirectory(folder_of(point))
        begun = directory.checkpoints.is_dir() or directory.outcome.exists()
        if begun and load_config(directory.config) != point.config:
            faults.append(f"{point.label}: {directory.path} holds another run; move it away, or name the sweep anew")
    if faults:
        raise ConfigError(str(sweep.folder), faults)


def _state(point: Point) -> str:
    """Of its outcome alone: its records may be long."""
    return state_of(read_outcome(RunDirectory(folder_of(point))))


def _in_words(point: Point) -> str:
    result = result_of(point)
    if result.outcome is None or result.state == "diverged":
        return f"diverged: {result.outcome and result.outcome['reason']}"
    values = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.final().items() if name not in COST]
    return ", ".join([*values, f"{result.outcome['seconds']:.0f} s"])
