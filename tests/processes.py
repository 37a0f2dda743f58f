"""Real agents for tests: n processes over gloo that meet at a file, under a hard limit of time."""

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_A_GPU)])

# A server that has imported the heavy modules once forks the workers: as safe as spawning them, without the seconds
# that each would take to import torch.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torch",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint",
        "torch._dynamo",
        "sklearn.datasets",
        "dist_lookahead.train.command",
    ]
)


def run_processes(
    work: Callable[..., Any],
    n: int,
    *arguments: Any,
    timeout: float = 60.0,
    silence: float = 30.0,
    may_die: Collection[int] = (),
    backend: str = "gloo",
) -> list[Any]:
    """Return `work(*arguments)` of n processes, by rank; each has joined a default process group.

    Args:
        work: a function at the top of a module; it returns tensors and plain containers.
        n: number of processes.
        arguments: passed to every process.
        timeout: seconds after which all processes are killed.
        silence: seconds after which gloo gives up a peer.
        may_die: ranks that may be killed; their result is None.
        backend: "nccl" for processes that share the first GPU.

    Raises:
        RuntimeError: with the traceback of each process that failed.
        TimeoutError: with the ranks that did not come to an end.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        workers = [
            CONTEXT.Process(target=_enter, args=(work, arguments, r, n, place, silence, backend)) for r in range(n)
        ]
        try:
            for worker in workers:
                worker.start()
            late = wait(workers, timeout)
            faults = [_fault(place, rank, worker) for rank, worker in enumerate(workers) if rank not in may_die]
        finally:
            _end(workers)
        text = "\n".join(filter(None, faults))
        if late:
            raise TimeoutError(f"ranks {late} of {n} still ran after {timeout} s\n{text}")
        if text:
            raise RuntimeError(text)
        return [_result(place, rank) for rank in range(n)]


def _enter(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    rank: int,
    n: int,
    place: Path,
    silence: float,
    backend: str,
) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host's name need not resolve
    if backend == "nccl":
        os.environ |= share_a_gpu(rank)
        torch.cuda.set_device(0)
    try:
        dist.init_process_group(
            backend,
            init_method=f"file://{place}/store",
            rank=rank,
            world_size=n,
            timeout=timedelta(seconds=silence),
        )
        result = work(*arguments)
        torch.save(result, place / f"{rank}.result")
    except BaseException:
        (place / f"{rank}.error").write_text(traceback.format_exc())
        raise SystemExit(1) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def share_a_gpu(name: object) -> dict[str, str]:
    """What lets NCCL connect processes on one GPU, over loopback: as if each of them had a host of its own."""
    return {"NCCL_HOSTID": f"agent {name}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}


def wait(workers: Sequence[BaseProcess], timeout: float) -> list[int]:
    """Wait for all, and return who is late."""
    deadline = time.monotonic() + timeout
    for worker in workers:
        worker.join(max(deadline - time.monotonic(), 0))
    return [rank for rank, worker in enumerate(workers) if worker.is_alive()]


def _fault(place: Path, rank: int, worker: BaseProcess) -> str:
    error = place / f"{rank}.error"
    if error.exists():
        return f"rank {rank}: {error.read_text()}"
    return f"rank {rank} ended with exit code {worker.exitcode}" if worker.exitcode else ""


def _end(workers: Sequence[BaseProcess]) -> None:
    started = [worker for worker in workers if worker.pid is not None]
    for worker in started:
        if worker.is_alive():
            worker.kill()
    for worker in started:
        worker.join()


def _result(place: Path, rank: int) -> Any:
    path = place / f"{rank}.result"
    return torch.load(path) if path.exists() else None
