"""Child of test_signals: what a trainer does while a signal arrives, in a process of its own.

Its first argument names one of the functions below; it prints "ready" when the signal may come.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from dist_lookahead.train import signals
from dist_lookahead.train.sampler import BatchSampler, loader
from dist_lookahead.train.signals import StopRequest


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - read by the test


def last_words(signum: int) -> None:
    print(f"ended by {signum}, last checkpoint: step 120")  # noqa: T201 - read by the test; not flushed here


def wait_for_signal(stop: StopRequest) -> int:
    while stop.signal is None:
        time.sleep(0.001)
    return stop.signal


def compute() -> None:
    """Notice the first of two signals, then take longer than the grace."""
    with StopRequest(grace=0.5, on_expire=last_words) as stop:
        say("ready")
        say("stopped by", wait_for_signal(stop))
        stop.done()
        sys.stdin.readline()  # the test sends the second signal before
        time.sleep(0.7)
        say("still", stop.signal)
    say("restored", signal.getsignal(signal.SIGINT) is signal.default_int_handler)


def block(rank: str, file: str) -> None:
    """Agent 0 waits in a collective in which agent 1 never takes part."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=int(rank), world_size=2)
    if rank == "1":
        say("ready")
        time.sleep(60)
    with StopRequest(grace=0.3, on_expire=last_words):
        threading.Timer(0.2, say, ("ready",)).start()  # the main thread is in C++ by then
        dist.all_reduce(torch.ones(1))


def divide_by_zero(signum: int) -> None:
    raise ZeroDivisionError


def fail_in_last_words() -> None:
    with StopRequest(grace=0.0, on_expire=divide_by_zero):
        say("ready")
        time.sleep(60)


def hang_in_last_words() -> None:
    signals.LAST_WORDS = 0.3
    with StopRequest(grace=0.0, on_expire=lambda signum: time.sleep(60)):
        say("ready")
        time.sleep(60)


def read_batches() -> None:
    """Go on with the workers' batches when the whole process group is signalled, as a run does up to its sync."""
    sampler = BatchSampler(samples=100, batch_size=2, rank=0, agents=1, seed=0)
    with StopRequest(grace=20.0, on_expire=last_words) as stop:
        batches: Iterator[tuple[torch.Tensor, ...]] = loader(slow_batch, sampler, workers=2)
        next(batches)
        say("ready")
        signum = wait_for_signal(stop)
        time.sleep(0.2)  # long enough for a worker to die
        say("stopped by", signum, "read", sum(len(next(batches)) for _ in range(20)))
        del batches
    say("workers left", len(multiprocessing.active_children()))


def slow_batch(keys: list[tuple[int, int]]) -> tuple[torch.Tensor, ...]:
    time.sleep(0.01)
    return (torch.tensor(keys),)


def signal_worker() -> None:
    """Signal a worker, not the agent: it must neither live on nor tell the agent."""
    context = multiprocessing.get_context("fork")
    with StopRequest(grace=20.0, on_expire=last_words) as stop:
        is_ready = context.Event()
        worker = context.Process(target=be_a_worker, args=(is_ready,))
        worker.start()
        is_ready.wait()
        assert worker.pid
        os.kill(worker.pid, signal.SIGINT)
        worker.join(0.2)
        say("after SIGINT it is alive:", worker.is_alive())
        os.kill(worker.pid, signal.SIGTERM)
        worker.join()
        say("after SIGTERM:", worker.exitcode)
        say("agent knows of", stop.signal)


def be_a_worker(is_ready) -> None:
    signals.reset_in_worker(0)
    is_ready.set()
    time.sleep(60)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit that it is ignored
    signal.alarm(60)  # should nobody end it
    globals()[sys.argv[1]](*sys.argv[2:])
