"""A signal is noticed at once, ends a blocked process in time, and reaches nobody else."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dist_lookahead.train import signals
from dist_lookahead.train.signals import StopRequest

ROOT = Path(signals.__file__).parents[2]
SIGINT, SIGTERM = signal.SIGINT, signal.SIGTERM


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a function of signals_child in a process group of its own, until it is ready; leave nothing behind."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("signals_child.py")), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    assert process.stdout.readline() == "ready\n", process.communicate()[1]


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


# --- in a process of its own


@pytest.mark.parametrize(("first", "second"), [(SIGINT, SIGTERM), (SIGTERM, SIGINT)])
def test_first_signal_wins_and_the_stop_may_take_its_time(first: int, second: int) -> None:
    """Breaks if a repeated signal counts or kills, or the clock runs on while the checkpoint is being saved."""
    with child("compute") as process:
        wait_until_ready(process)
        assert process.stdout
        process.send_signal(first)
        assert process.stdout.readline() == f"stopped by {first:d}\n"
        process.send_signal(second)
        assert end(process) == (0, f"still {first:d}\nrestored True\n", "")


def test_a_process_blocked_in_a_collective_ends_after_the_grace(tmp_path: Path) -> None:
    """Breaks with a Python handler alone: it would run when the collective returns, that is never."""
    file = str(tmp_path / "store")
    with child("block", "1", file) as absent, child("block", "0", file) as process:
        wait_until_ready(absent)
        wait_until_ready(process)
        process.send_signal(SIGTERM)
        status, output, _ = end(process)
        assert (status, output) == (128 + SIGTERM, f"ended by {SIGTERM:d}, last checkpoint: step 120\n")


@pytest.mark.parametrize(
    ("fault", "message"), [("fail_in_last_words", "ZeroDivisionError"), ("hang_in_last_words", "")]
)
def test_the_process_ends_whatever_its_last_words_do(fault: str, message: str) -> None:
    with child(fault) as process:
        wait_until_ready(process)
        process.send_signal(SIGINT)
        status, _, errors = end(process)
        assert status == 128 + SIGINT
        assert message in errors


def test_loader_workers_go_on_when_the_process_group_is_told_to_stop() -> None:
    """Breaks if workers stay in the agent's group, which torchrun signals: their death ends the agent too early."""
    with child("read_batches") as process:
        wait_until_ready(process)
        os.killpg(process.pid, SIGTERM)
        assert end(process) == (0, f"stopped by {SIGTERM:d} read 20\nworkers left 0\n", "")


def test_a_signal_to_a_worker_ends_it_and_does_not_reach_the_agent() -> None:
    """Breaks if a worker keeps the inherited wake-up descriptor or handlers: the agent would stop, the worker not."""
    with child("signal_worker") as process:
        expected = f"after SIGINT it is alive: True\nafter SIGTERM: -{SIGTERM:d}\nagent knows of None\n"
        assert end(process) == (0, expected, "")


# --- in this process


def ignore(signum: int) -> None:
    """Do nothing when the grace is over."""


def state() -> tuple[object, ...]:
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    return descriptor, signal.getsignal(SIGINT), signal.getsignal(SIGTERM), len(os.listdir("/proc/self/fd"))


def test_handlers_descriptors_and_threads_are_as_before_afterwards() -> None:
    before, threads = state(), threading.active_count()
    with pytest.raises(KeyError), StopRequest(grace=20.0, on_expire=ignore) as stop:
        signal.raise_signal(SIGTERM)
        while stop.signal is None:
            pass
        raise KeyError
    assert state() == before
    assert threading.active_count() <= threads + 1  # a cancelled clock may be about to end
    with StopRequest(grace=20.0, on_expire=ignore) as again:
        assert again.signal is None
    assert state() == before


def test_other_signals_are_not_taken_for_a_stop() -> None:
    """Breaks if any byte on the wake-up descriptor counts: DataLoader has a handler for the death of a child."""
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda signum, frame: seen.append(signum))
    try:
        with StopRequest(grace=20.0, on_expire=ignore) as stop:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(SIGTERM)
            while stop.signal is None:
                pass
            assert (stop.signal, seen) == (SIGTERM, [signal.SIGUSR1])
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_outside_the_main_thread_nothing_is_touched() -> None:
    before, seen = state(), []

    def enter() -> None:
        with StopRequest(grace=20.0, on_expire=ignore) as stop:
            seen.append((signal.getsignal(SIGINT), stop.signal))
            stop.done()

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(before[1], None)]
    assert state() == before


def test_a_negative_grace_is_refused() -> None:
    with pytest.raises(ValueError, match="grace must be a number of seconds, 0 or more; got -1"):
        StopRequest(grace=-1, on_expire=ignore)
