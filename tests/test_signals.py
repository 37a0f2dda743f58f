"""A signal is noticed at once, ends a blocked process in time, and reaches nobody else."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dist_lookahead.train import signals
from dist_lookahead.train.sampler import BatchSampler, loader
from dist_lookahead.train.signals import StopRequest, reset_in_worker

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),  # from Python 3.12 on
    pytest.mark.timeout(60),
]

SIGINT, SIGTERM = signal.SIGINT, signal.SIGTERM
FORK = multiprocessing.get_context("fork")  # a process of its own without another import of torch


@contextmanager
def forked(target: Callable[..., None], *arguments: object) -> Iterator[tuple[BaseProcess, Connection]]:
    """Run a function in another process, with a connection to it, and leave nothing behind."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=in_own_group, args=(target, there, *arguments))
    process.start()
    there.close()  # so that the end of the process ends a wait for its message
    try:
        yield process, here
    finally:
        process.kill()
        process.join()


def in_own_group(target: Callable[..., None], connection: Connection, *arguments: object) -> None:
    os.setpgid(0, 0)  # as torchrun starts its agents
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)  # should nobody end it
    connection.send("started")
    target(connection, *arguments)


def ignore(signum: int) -> None:
    """Do nothing when the grace is over."""


def wait_for_signal(stop: StopRequest) -> int:
    while stop.signal is None:
        time.sleep(0.001)
    return stop.signal


def send_signal(process: BaseProcess, signum: int) -> None:
    assert process.pid
    os.kill(process.pid, signum)


# --- a process that stops, or does not get there


def stop_slowly(connection: Connection) -> None:
    with StopRequest(grace=0.5, on_expire=ignore) as stop:
        connection.send("ready")
        connection.send(wait_for_signal(stop))
        stop.done()
        connection.recv()
        time.sleep(0.7)  # longer than the grace
        connection.send(stop.signal)


@pytest.mark.parametrize(("first", "second"), [(SIGINT, SIGTERM), (SIGTERM, SIGINT)])
def test_first_signal_wins_and_the_stop_may_take_its_time(first: int, second: int) -> None:
    """Breaks if a repeated signal counts or kills, or the clock runs on while the checkpoint is being saved."""
    with forked(stop_slowly) as (process, connection):
        assert [connection.recv(), connection.recv()] == ["started", "ready"]
        send_signal(process, first)
        assert connection.recv() == first
        send_signal(process, second)
        connection.send("go on")
        assert connection.recv() == first
        process.join()
        assert process.exitcode == 0


def save_before_the_signal(connection: Connection) -> None:
    with StopRequest(grace=0.0, on_expire=ignore) as stop:
        stop.done()
        signal.raise_signal(SIGTERM)
        connection.send(wait_for_signal(stop))
        time.sleep(0.3)


def test_a_signal_that_comes_while_the_last_checkpoint_is_saved_does_not_end_that() -> None:
    """Breaks for an agent that stops because of another one's signal, and gets its own a little later."""
    with forked(save_before_the_signal) as (process, connection):
        assert [connection.recv(), connection.recv()] == ["started", SIGTERM]
        process.join()
        assert process.exitcode == 0


def wait_in_a_collective(connection: Connection, folder: Path, rank: int) -> None:
    """Agent 0 waits for agent 1, which takes no part."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    if rank == 1:
        connection.recv()
    sys.stdout = (folder / "output").open("w")  # buffered, as a pipe is
    with StopRequest(grace=0.3, on_expire=lambda signum: print(f"{signum}: step 120")):  # noqa: T201 - the last words
        threading.Timer(0.2, connection.send, ("blocked",)).start()  # the main thread is in C++ by then
        dist.all_reduce(torch.ones(1))


def test_a_process_blocked_in_a_collective_ends_after_the_grace(tmp_path: Path) -> None:
    """Breaks with a Python handler alone: it would run when the collective returns, that is never."""
    with (
        forked(wait_in_a_collective, tmp_path, 1),
        forked(wait_in_a_collective, tmp_path, 0) as (process, connection),
    ):
        assert [connection.recv(), connection.recv()] == ["started", "blocked"]
        send_signal(process, SIGTERM)
        process.join()
        assert process.exitcode == 128 + SIGTERM
        assert (tmp_path / "output").read_text() == f"{SIGTERM:d}: step 120\n"


def divide_by_zero(signum: int) -> None:
    raise ZeroDivisionError


def hang(signum: int) -> None:
    time.sleep(60)


def leave(signum: int) -> None:
    sys.exit(0)


def expire_at_once(connection: Connection, on_expire: Callable[[int], None]) -> None:
    signals.LAST_WORDS = 0.3
    with StopRequest(grace=0.0, on_expire=on_expire):
        signal.raise_signal(SIGINT)
        time.sleep(60)


@pytest.mark.parametrize("way", [divide_by_zero, hang, leave])
def test_the_process_ends_whatever_its_last_words_do(way: Callable[[int], None], capfd) -> None:
    """Breaks if an error in them, or their waiting for a lock, keeps the process alive."""
    with forked(expire_at_once, way) as (process, _):
        process.join()
        assert process.exitcode == 128 + SIGINT
    assert ("ZeroDivisionError" in capfd.readouterr().err) == (way is divide_by_zero)


# --- loader workers


def train_to_the_sync(connection: Connection) -> None:
    sampler = BatchSampler(samples=100, batch_size=2, rank=0, agents=1, seed=0)
    with StopRequest(grace=30.0, on_expire=ignore) as stop:
        batches = loader(slow_batch, sampler, workers=1)
        next(batches)
        connection.send("ready")
        signum = wait_for_signal(stop)
        time.sleep(0.2)  # long enough for a worker to die
        connection.send((signum, sum(len(next(batches)) for _ in range(20))))
        del batches
        connection.send(len(multiprocessing.active_children()))


def slow_batch(keys: list[tuple[int, int]]) -> tuple[torch.Tensor, ...]:
    time.sleep(0.01)
    return (torch.tensor(keys),)


def test_loader_workers_go_on_when_the_process_group_is_told_to_stop() -> None:
    """Breaks if workers stay in the agent's group, which torchrun signals: their death ends the agent too early."""
    with forked(train_to_the_sync) as (process, connection):
        assert [connection.recv(), connection.recv()] == ["started", "ready"]
        assert process.pid
        os.killpg(process.pid, SIGTERM)
        assert connection.recv() == (SIGTERM, 20)
        assert connection.recv() == 0
        process.join()
        assert process.exitcode == 0


def work(connection: Connection) -> None:
    reset_in_worker(0)
    while True:
        connection.send("alive")
        connection.recv()


def test_a_signal_to_a_worker_ends_it_and_does_not_reach_the_agent() -> None:
    """Breaks if a worker keeps the inherited wake-up descriptor or handlers: the agent would stop, the worker not."""
    with StopRequest(grace=30.0, on_expire=ignore) as stop, forked(work) as (worker, connection):
        assert [connection.recv(), connection.recv()] == ["started", "alive"]
        send_signal(worker, SIGINT)
        connection.send("are you?")
        assert connection.recv() == "alive"
        send_signal(worker, SIGTERM)
        worker.join(20)
        assert worker.exitcode == -SIGTERM
        signal.raise_signal(SIGINT)
        assert wait_for_signal(stop) == SIGINT  # not the worker's SIGTERM, which came before


# --- what it touches in its own process


def state() -> tuple[object, ...]:
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    return descriptor, signal.getsignal(SIGINT), signal.getsignal(SIGTERM), len(list(Path("/proc/self/fd").iterdir()))


def leave_by_an_error() -> None:
    with StopRequest(grace=20.0, on_expire=ignore) as stop:
        signal.raise_signal(SIGTERM)
        wait_for_signal(stop)
        raise KeyError


def test_handlers_and_descriptors_are_as_before_afterwards() -> None:
    """Breaks if leaving by an error forgets something, or takes the wake-up descriptor from an event loop."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    with receiver, sender:
        descriptor = signal.set_wakeup_fd(sender.fileno())
        try:
            check_that_all_is_restored()
        finally:
            signal.set_wakeup_fd(descriptor)


def check_that_all_is_restored() -> None:
    before = state()
    with pytest.raises(KeyError):
        leave_by_an_error()
    assert state() == before
    with StopRequest(grace=20.0, on_expire=ignore) as again:
        assert again.signal is None
    assert state() == before
    assert not [thread for thread in threading.enumerate() if thread.name == "stop request"]


def test_other_signals_are_not_taken_for_a_stop() -> None:
    """Breaks if any byte on the wake-up descriptor counts: DataLoader has a handler for the death of a child."""
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda signum, frame: seen.append(signum))
    try:
        with StopRequest(grace=20.0, on_expire=ignore) as stop:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(SIGTERM)
            assert (wait_for_signal(stop), seen) == (SIGTERM, [signal.SIGUSR1])
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
