"""Memory that each recipe costs, in copies of the model, beside what the design says: kept, in a step, a sync, a save.

One agent, then two gloo processes on this machine; or under torchrun as many as it starts, with NCCL where there is
CUDA.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track

from benchmarks import agents, picture, report
from benchmarks.footprint import Footprint
from benchmarks.sync import Weights
from dist_lookahead import (
    DistributedLookahead,
    Level,
    Mesh,
    Part,
    Quantised,
    bmuf,
    diloco,
    distributed_lookahead,
    dpsgd,
    hierarchical_local_sgd,
    local_sgd,
    lookahead,
    multilayer_lookahead,
    osgp,
    overlapped_local_sgd,
    polyak,
    post_local_sgd,
    sgp,
    slowmo,
    slowmo_over,
    snoo,
    streaming_diloco,
)

BETA = 0.2
STEPS = 8  # two rounds of the longest recipe below
TENSORS = 50
COPY = 4  # bytes of an element in a copy: slow state is float32
Levels = Callable[[], list[Level]]
RECIPES: dict[str, Levels] = {
    "lookahead": lambda: lookahead(2),
    "multilayer_lookahead": lambda: multilayer_lookahead((2, 2)),
    "polyak": polyak,
    "local_sgd": lambda: local_sgd(2),
    "local_sgd, 8 bits": lambda: local_sgd(2, codec=Quantised(bits=8)),
    "overlapped_local_sgd": lambda: overlapped_local_sgd(4, delay=2),
    "post_local_sgd": lambda: post_local_sgd(2, start=2),
    "hierarchical_local_sgd": lambda: hierarchical_local_sgd((2, 4)),
    "distributed_lookahead": lambda: distributed_lookahead(2),
    "distributed_lookahead, sharded": lambda: distributed_lookahead(2, shard=True),
    "slowmo": lambda: slowmo(2, beta=BETA),
    "slowmo, sharded": lambda: slowmo(2, beta=BETA, shard=True),
    "slowmo, delayed": lambda: slowmo(4, beta=BETA, delay=2),
    "slowmo, 8 bits": lambda: slowmo(2, beta=BETA, codec=Quantised(bits=8)),
    "slowmo, bfloat16": lambda: slowmo(2, beta=BETA),
    "bmuf": lambda: bmuf(2, eta=BETA),
    "diloco": lambda: diloco(2, beta=BETA),
    "streaming_diloco": lambda: streaming_diloco(4, parts=2, beta=BETA),
    "snoo": lambda: snoo(2, beta=BETA),
    "dpsgd": lambda: dpsgd(tau=2),
    "sgp": lambda: sgp(tau=2),
    "osgp": lambda: osgp(tau=2),
    "slowmo_over dpsgd": lambda: slowmo_over(dpsgd(tau=2), tau=4, beta=BETA),
}
ABOUT = (
    "Copies of the model in float32, beyond parameters and gradients; the first agent's. design: what a recipe is "
    "meant to cost: slow weights, slow momentum, one for half-precision parameters, two for a delay or one for a share "
    "of an agent's own weights (docs/overlap.md), 1 + 1/n for what a code has lost and one for its reference where "
    "there are no slow weights (docs/averaging.md). kept: between two steps. step, sync, save: the most at once in a "
    "step that does not communicate, in one that does, and while state dicts are made and written. start: the most at "
    "construction, when there are no gradients yet. excess: the largest of kept, step, sync and save, less design. On "
    "a CPU process groups are included: gloo passes messages on in 2 MB, and torch's gloo copies what a sharded sync "
    "sends. Gossip receives a neighbour's weights beside its own."
)
COLUMNS = ("recipe", "agents", "design", "kept", "step", "sync", "save", "start", "excess")
PICTURE = picture.Bars(panels=[["design", "sync"]], by=["recipe", "agents"])


def design(levels: Sequence[Level], n: int, dtype: torch.dtype) -> float:
    """Return the copies that the design's table allows.

    Args:
        levels: of a recipe.
        n: number of agents.
        dtype: of the parameters.

    Example:
        >>> design(slowmo(), 2, torch.float32), design(slowmo(shard=True, delay=1), 2, torch.bfloat16)
        (2.0, 4.0)
    """
    copies = 1.0 if dtype.itemsize < COPY else 0.0
    for level in levels:
        encoded = n > 1 and getattr(level.mix, "codec", None) is not None
        lost = 1 + 1 / n + (not level.move.keeps_slow_weights) if encoded else 0
        owners = n if getattr(level.mix, "shard", False) else 1
        parts = level.params.of if isinstance(level.params, Part) else 1
        slow = level.move.keeps_slow_weights + level.move.keeps_momentum
        begun = bool(level.when.delay or level.local_share) + bool(level.when.delay)
        copies += (slow / owners + begun + lost) / parts
    return copies


@dataclass(frozen=True, slots=True)
class Meter:
    """A recipe's memory, in copies of the model beyond parameters and gradients.

    Args:
        footprint: where it is measured.
        parameters: bytes of the parameters, and of the gradients.
        copy: bytes of a copy.
    """

    footprint: Footprint
    parameters: int
    copy: int

    def peak(self, phase: str) -> float:
        """Return the most at once in a phase; 0 where there was none."""
        usage = self.footprint.usage.get(phase)
        return self._beyond(usage.peak) if usage else 0.0

    def after(self, phase: str) -> float:
        """Return what was left after a phase."""
        return self._beyond(self.footprint.usage[phase].after)

    def _beyond(self, nbytes: int) -> float:
        return (nbytes - 2 * self.parameters) / self.copy


def train(name: str, elements: int, device: torch.device) -> Meter:
    """Train a recipe for some rounds, and save it; a collective."""
    dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
    mesh = Mesh((1, dist.get_world_size()), ("node", "local"))
    footprint = Footprint(device)
    with footprint.phase("start"):
        model = Weights(elements, TENSORS, dtype, device)
        inner = torch.optim.SGD(model.parameters(), lr=0.1)  # keeps nothing of its own
        optimizer = DistributedLookahead(inner, RECIPES[name](), model=model, mesh=mesh)
    for weight in model.weights:
        weight.grad = torch.full_like(weight, 0.1)
    for _ in range(STEPS):
        communicates = optimizer.stack.next_due <= optimizer.stack.clock + 1
        with footprint.phase("sync" if communicates else "step"):
            optimizer.step()
    with footprint.phase("kept"):
        dist.barrier()
    with _scratch_file() as file, footprint.phase("save"):
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    total = sum(weight.numel() for weight in model.weights)
    return Meter(footprint, total * dtype.itemsize, total * COPY)


def memory_row(name: str, elements: int, device: torch.device) -> list[report.Cell]:
    """Measure one recipe; a collective."""
    train(name, 100_000, device)  # code is loaded, connections are made
    meter = train(name, elements, device)
    n = dist.get_world_size()
    allowed = design(RECIPES[name](), n, torch.bfloat16 if "bfloat16" in name else torch.float32)
    kept, step, sync, save = meter.after("kept"), meter.peak("step"), meter.peak("sync"), meter.peak("save")
    start = meter.peak("start") + meter.parameters / meter.copy  # there were no gradients yet
    return [name, n, allowed, kept, step, sync, save, start, max(kept, step, sync, save) - allowed]


def measure_all(options: argparse.Namespace, rows: list[list[report.Cell]]) -> None:
    """Measure as one of the agents, and add to the rows."""
    torch.set_num_threads(1)
    first = dist.get_rank() == 0
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    title = f"memory, agents: {dist.get_world_size()}"
    for name in track(options.recipes, title, console=Console(stderr=True), disable=not first):
        rows.append(memory_row(name, options.elements, device))


@contextmanager
def _scratch_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "checkpoint.pt"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every recipe with every number of agents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--agents", type=int, nargs="+", default=[1, 2], help="processes, where torchrun does not start them"
    )
    parser.add_argument("--elements", type=int, default=16_000_000, help="number of parameters (%(default)s)")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="NAME", help="which")
    report.add_options(parser)
    options = parser.parse_args(arguments)
    before = report.load_average()
    rows: list[list[report.Cell]] = []
    for n in [0] if dist.is_torchelastic_launched() else options.agents:
        agents.run_agents(functools.partial(measure_all, options, rows), n)
    if agents.is_first():
        load = before, report.load_average()
        table = report.Report(name="memory", about=ABOUT, columns=COLUMNS, rows=rows, load=load, picture=PICTURE)
        report.publish(table, options)


if __name__ == "__main__":
    main()
