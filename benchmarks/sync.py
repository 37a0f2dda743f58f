"""A whole sync against the bare collectives of the same bytes plus the slow step's memory floor.

Two processes over gloo on this machine; or under torchrun, with NCCL where there is CUDA:

    torchrun --nproc-per-node 8 -m benchmarks.sync
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from benchmarks import agents, measure, picture, report
from dist_lookahead import DistributedLookahead, Level, distributed_lookahead, local_sgd, slowmo

NEVER = 10**9  # steps between syncs: only the benchmark asks for one
SMALL = 64  # elements of every second tensor: biases and norms
SIZES = {"11M": (11_000_000, 324), "1M": (1_000_000, 20), "0.1M": (100_000, 4)}
STAGING = 12  # bytes per bfloat16 parameter: read it, write float32, and back


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A recipe under test.

    Args:
        levels: the recipe.
        arrays: float32 arrays that its slow step reads and writes.
        dtype: of the parameters.
        sharded: whether each agent moves its own part only.
    """

    levels: Callable[[], list[Level]]
    arrays: int
    dtype: torch.dtype = torch.float32
    sharded: bool = False


RECIPES = {
    "local_sgd": Kind(levels=lambda: local_sgd(tau=NEVER), arrays=1),
    "distributed_lookahead": Kind(levels=lambda: distributed_lookahead(tau=NEVER, alpha=0.5), arrays=2),
    "slowmo": Kind(levels=lambda: slowmo(tau=NEVER), arrays=3),
    "slowmo, sharded": Kind(levels=lambda: slowmo(tau=NEVER, shard=True), arrays=3, sharded=True),
    "slowmo, bfloat16": Kind(levels=lambda: slowmo(tau=NEVER), arrays=3, dtype=torch.bfloat16),
}
ABOUT = (
    "Milliseconds, medians of interleaved rounds, the slowest process of each round. bare: all-reduce of one flat "
    "tensor in place (sharded: reduce-scatter and all-gather). floor: the bytes that the slow step must read and "
    f"write, and {STAGING} per element for bfloat16 parameters that are staged in float32, over the bandwidth of a "
    "plain copy that all processes make at once. ratio: sync / (bare + floor); at best: by the fastest rounds. wire: "
    "bytes that each process sends in a sync, in copies of the float32 weights, counted at the loopback interface; ? "
    "where the processes do not talk over it."
)
COLUMNS = ("recipe", "parameters", "tensors", "agents", "sync", "bare", "floor", "ratio", "at best", "wire")
COUNTED = 3  # syncs whose bytes are counted
PICTURE = picture.Bars(panels=[["ratio"]], by=["recipe", "parameters"])


class Weights(nn.Module):
    """A model of nothing but parameters: every second one small, the others equal.

    Args:
        elements: of all parameters together.
        tensors: how many parameters.
        dtype: of the parameters.
        device: where they are.
    """

    def __init__(self, elements: int, tensors: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        large = (elements - SMALL * (tensors // 2)) // (tensors - tensors // 2)
        sizes = [SMALL if index % 2 else large for index in range(tensors)]
        self.weights = nn.ParameterList(torch.ones(size, dtype=dtype, device=device) for size in sizes)


def sync_row(name: str, elements: int, tensors: int, rounds: int, device: torch.device) -> list[report.Cell]:
    """Measure one recipe at one size; a collective."""
    kind = RECIPES[name]
    n = dist.get_world_size()
    model = Weights(elements, tensors, kind.dtype, device)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = DistributedLookahead(inner, kind.levels(), model=model)
    flat = torch.zeros(optimizer.stack.buckets[0].fast.numel(), device=device)
    copy = measure.PlainCopy(kind.arrays, elements, device)

    def one_more_step() -> None:
        optimizer.step()  # without gradients: nothing changes but the clock
        dist.barrier()

    cases = {
        "copy": measure.Case(run=copy.case.run, prepare=dist.barrier),
        "bare": measure.Case(run=functools.partial(_bare, flat, sharded=kind.sharded), prepare=dist.barrier),
        "sync": measure.Case(run=optimizer.sync, prepare=one_more_step),
    }
    times = {
        case: agents.slowest(t, device) for case, t in measure.interleave(cases, rounds, device, wall=True).items()
    }
    traffic = 8 * kind.arrays * elements // (n if kind.sharded else 1)
    traffic += STAGING * elements if kind.dtype == torch.bfloat16 else 0
    sync, bare, floor = times["sync"].median, times["bare"].median, copy.floor(traffic, times["copy"].median)
    best = times["sync"].best / (times["bare"].best + copy.floor(traffic, times["copy"].best))
    wire = _wire(optimizer, elements)
    return [name, f"{elements:,}", tensors, n, sync * 1e3, bare * 1e3, floor * 1e3, sync / (bare + floor), best, wire]


def measure_all(options: argparse.Namespace) -> None:
    """Measure as one of the agents; rank 0 reports."""
    torch.set_num_threads(options.threads)
    first = dist.get_rank() == 0
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    cases = [(recipe, *SIZES[size]) for size in options.sizes for recipe in options.recipes]
    before, rows = report.load_average(), []
    for recipe, elements, tensors in track(cases, "sync", console=Console(stderr=True), disable=not first):
        rows.append(sync_row(recipe, elements, tensors, options.rounds, device))
    if first:
        load = before, report.load_average()
        table = report.Report(name="sync", about=ABOUT, columns=COLUMNS, rows=rows, load=load, picture=PICTURE)
        report.publish(table, options)


def _wire(optimizer: DistributedLookahead, elements: int) -> report.Cell:
    """Return what a process sends in a sync; a collective."""
    before = _sent_over_loopback()
    for _ in range(COUNTED):
        optimizer.step()
        optimizer.sync()
    dist.barrier()
    sent = (_sent_over_loopback() - before) / dist.get_world_size() / COUNTED
    return sent / (4 * elements) if sent and dist.get_backend() == "gloo" else "?"


def _sent_over_loopback() -> int:
    """Return the bytes that this machine has sent to itself so far; 0 where the kernel does not say."""
    counters = Path("/proc/net/dev")
    lines = counters.read_text().splitlines() if counters.exists() else []
    return next((int(line.split()[9]) for line in lines if line.strip().startswith("lo:")), 0)


def _bare(flat: Tensor, *, sharded: bool) -> None:
    if not sharded:
        dist.all_reduce(flat)
        return
    part = flat.chunk(dist.get_world_size())[dist.get_rank()]
    dist.reduce_scatter_tensor(part, flat)
    dist.all_gather_into_tensor(flat, part)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every recipe at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=2, help="processes, where torchrun does not start them")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="numbers of parameters")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--threads", type=int, default=1, help="of each process, on CPU (%(default)s)")
    report.add_options(parser, rounds=31)
    options = parser.parse_args(arguments)
    agents.run_agents(functools.partial(measure_all, options), options.agents)


if __name__ == "__main__":
    main()
