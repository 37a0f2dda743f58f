"""One run at a time in a folder: a lock that says who holds it, and that dies with its holder."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dist_lookahead.train.run_lock import RunLock
from tests.launching import environment, run
from tests.training import folder_of, small_config

pytestmark = pytest.mark.timeout(240)

PROGRAM = """
import os, sys
from pathlib import Path
from dist_lookahead.train.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]), agent=0)
assert lock.acquire() == ""
if sys.argv[2] == "fork" and os.fork() == 0:
    sys.stdin.readline()  # a process that reads data, which outlives its parent for a while
    sys.exit()
print("locked", flush=True)
sys.stdin.readline()
lock.release()
"""


@contextmanager
def holder(folder: Path, how: str = "alone") -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock until it is killed, or told to let go."""
    command = [sys.executable, "-c", PROGRAM, str(folder), how]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment(), text=True, stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        said = RunLock(tmp_path, agent=0).acquire()
    assert said.startswith(f"{tmp_path}/agent-0.lock is held by process {process.pid} on ")


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_it_is_free_as_soon_as_its_holder_is_dead(how: str, tmp_path: Path) -> None:
    """Breaks if loader workers, forked from the agent, keep the lock after a kill."""
    with holder(tmp_path, how) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        lock = RunLock(tmp_path, agent=0)
        assert lock.acquire() == ""
        assert f"process {os.getpid()} on" in lock.path.read_text(encoding="utf-8")
        lock.release()
        assert not lock.path.exists()


def test_other_agents_of_the_run_have_locks_of_their_own(tmp_path: Path) -> None:
    with holder(tmp_path):
        lock = RunLock(tmp_path, agent=1)
        assert lock.acquire() == ""
        lock.release()


def try_often(folder: Path, rounds: int) -> int:
    """Count how often the lock was taken, and fail if somebody else was inside meanwhile."""
    taken, inside = 0, folder / "inside"
    for _ in range(rounds):
        lock = RunLock(folder, agent=0)
        if not lock.acquire():
            inside.touch(exist_ok=False)
            inside.unlink()
            lock.release()
            taken += 1
    return taken


def test_many_that_come_and_go_are_never_inside_together(tmp_path: Path) -> None:
    """Breaks if one locks a file that its holder has just removed."""
    with multiprocessing.get_context("forkserver").Pool(3) as pool:
        taken = pool.starmap(try_often, [(tmp_path, 100)] * 3)
    assert min(taken) > 0


def test_a_run_that_still_trains_is_not_resumed_beside_itself(tmp_path: Path) -> None:
    config = small_config(tmp_path, logging={"progress": "off"})
    (folder_of(config) / "checkpoints").mkdir(parents=True)
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    with holder(folder_of(config)) as process:
        done = run(["train", str(file), "--resume"])
    assert done.returncode == 2
    assert f"another run trains in {folder_of(config)}: " in done.stdout
    assert f"is held by process {process.pid} on" in done.stdout
    assert not list((folder_of(config) / "checkpoints").iterdir())
