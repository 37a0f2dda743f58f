"""The tests' own launcher: a test that hangs, leaks processes or swallows a failure would make all others worthless."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from processes import run_processes


def who_am_i(offset: int) -> tuple[int, torch.Tensor]:
    total = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(total)
    return dist.get_rank(), total


def fail_on_last() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the reason")


def sleep_on_first() -> None:
    time.sleep(60 if dist.get_rank() == 0 else 0)


def die_on_last() -> str:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def test_results_come_back_by_rank() -> None:
    assert run_processes(who_am_i, 2, 10) == [(0, torch.tensor([21])), (1, torch.tensor([21]))]


def test_a_childs_traceback_is_raised_in_the_parent() -> None:
    with pytest.raises(RuntimeError, match=r"rank 1: Traceback(.|\n)*in fail_on_last(.|\n)*ValueError: the reason"):
        run_processes(fail_on_last, 2)


def test_a_late_process_is_killed_and_named() -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[0\] of 2 still ran after 3.0 s"):
        run_processes(sleep_on_first, 2, timeout=3.0)
    assert not multiprocessing.active_children()


def test_a_killed_process_is_an_error_unless_it_may_die() -> None:
    with pytest.raises(RuntimeError, match="rank 1 ended with exit code -9"):
        run_processes(die_on_last, 2)
    assert run_processes(die_on_last, 2, may_die=[1]) == ["alive", None]
