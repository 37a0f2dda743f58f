"""Agents for benchmarks: this machine's own processes over gloo, or those that torchrun started."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.measure import Times


def run_agents(work: Callable[[], None], n: int) -> None:
    """Run `work()` in n processes that share a process group; under torchrun, in its processes.

    Args:
        work: picklable; rank 0 runs in this process.
        n: number of processes; torchrun's number counts instead where it started this one.
    """
    if dist.is_torchelastic_launched():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        device = None
        if backend == "nccl":
            # Where NCCL is told to share a GPU (NCCL_MULTI_RANK_GPU_ENABLE=1) there are more processes than GPUs.
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
            torch.cuda.set_device(device)
        dist.init_process_group(backend, device_id=device)
        _finish(work)
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host's name need not resolve
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        others = [context.Process(target=_join, args=(work, rank, n, store), daemon=True) for rank in range(1, n)]
        for process in others:
            process.start()
        _join(work, 0, n, store)
        for process in others:
            process.join()


def is_first() -> bool:
    """Return whether this process reports: one of torchrun's, else the one that started the others."""
    return os.environ.get("RANK", "0") == "0"


def slowest(times: Times, device: torch.device) -> Times:
    """Return the time of the slowest process of each round: a round has ended when the last process has.

    Args:
        times: of this process; a collective.
        device: where the process group works.
    """
    seconds = torch.tensor(times.seconds, device=device, dtype=torch.float64)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return Times(seconds.tolist())


def _join(work: Callable[[], None], rank: int, n: int, store: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n)
    _finish(work)


def _finish(work: Callable[[], None]) -> None:
    try:
        work()
    finally:
        dist.destroy_process_group()
