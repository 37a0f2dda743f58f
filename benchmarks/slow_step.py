"""The slow step against its memory floor.

Each rule reads and writes each of its arrays once: `Copy` x (8 bytes per float32 element), `Pull(alpha)` x and z
(16 bytes), `Pull(alpha, beta)`, with or without Nesterov, x, z and v (24 bytes). The floor is the time that this many
bytes take in a plain copy of the same working set. `--chunks` compares chunk sizes.

`--tensors` times instead the whole sync of a lone agent with so many parameter tensors, with all that lies around the
slow step; bfloat16 parameters are read, written in float32, and brought back, 12 bytes per element more.
"""

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.optim import SGD

from benchmarks import measure, picture, report
from dist_lookahead import Alone, Copy, DistributedLookahead, Every, Level, Pull, move

STAGING = 12  # bytes per bfloat16 parameter: read it, write float32, and back
NEVER = 10**9  # steps between syncs: only the benchmark asks for one
AGENTS = 2  # the sum arrives from two agents, so that every rule divides
RULES: dict[str, tuple[int, move.Move]] = {  # number of arrays, rule
    "Copy": (1, Copy()),
    "Pull(0.5)": (2, Pull(0.5)),
    "Pull(1, 0.6)": (3, Pull(1.0, 0.6)),
    "Pull(0.7, 0.9, nesterov)": (3, Pull(0.7, 0.9, nesterov=True)),
}
ABOUT = (
    "Milliseconds of the slow step (float32, sum of 2 agents), medians of interleaved rounds. floor: the bytes that "
    "the rule must read and write, over the bandwidth of a plain copy with the same working set. of floor: share of "
    "that bandwidth which the rule reaches, by medians; at best: by the fastest rounds."
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COLUMNS = ("rule", "elements", "threads", "chunk", "B/element", "copy GB/s", "ms", "floor ms", "of floor", "at best")
PICTURE = picture.Lines(x="elements", panels=[["of floor"]], by=["rule", "threads", "chunk"])


def slow_step_row(name: str, elements: int, rounds: int, device: torch.device) -> list[report.Cell]:
    """Measure one rule at one size."""
    arrays, rule = RULES[name]
    x, z, v = (torch.ones(elements, device=device) for _ in range(3))
    alpha, beta = rule.coefficients(0)
    slow = z if rule.keeps_slow_weights else None
    momentum = v.zero_() if rule.keeps_momentum else None

    def step() -> None:
        move.slow_step(rule, x, slow, momentum, agents=AGENTS, alpha=alpha, beta=beta)

    copy = measure.PlainCopy(arrays, elements, device)
    # Equal agents: their sum is AGENTS * x, the step leaves x, and no number decays into the slow denormals.
    cases = {"copy": copy.case, "step": measure.Case(run=step, prepare=lambda: x.mul_(AGENTS))}
    times = measure.interleave(cases, rounds, device)
    traffic = 2 * arrays * x.element_size()
    floor, best = (copy.floor(traffic * elements, s) for s in (times["copy"].median, times["copy"].best))
    took = times["step"]
    chunk = move.CHUNK if device.type == "cpu" else elements
    speed = copy.moved / times["copy"].median / 1e9
    places = [name, f"{elements:,}", torch.get_num_threads(), f"{chunk:,}", traffic, f"{speed:.1f}"]
    return [*places, took.median * 1e3, floor * 1e3, floor / took.median, best / took.best]


def sync_row(
    name: str, elements: int, tensors: int, dtype: str, rounds: int, device: torch.device
) -> list[report.Cell]:
    """Measure the sync of a lone agent; none with Copy, which does nothing to it."""
    arrays, rule = RULES[name]
    each = max(elements // tensors, 1)
    parameters = [nn.Parameter(torch.ones(each, dtype=DTYPES[dtype], device=device)) for _ in range(tensors)]
    optimizer = DistributedLookahead(SGD(parameters, lr=0.1), [Level(Every(NEVER), Alone(), rule)])
    copy = measure.PlainCopy(arrays, elements, device)
    # A step without gradients changes nothing but the clock.
    times = measure.interleave(
        {"copy": copy.case, "sync": measure.Case(run=optimizer.sync, prepare=optimizer.step)}, rounds, device, wall=True
    )
    traffic = 8 * arrays + (STAGING if dtype == "bfloat16" else 0)
    floor, best = (copy.floor(traffic * elements, s) for s in (times["copy"].median, times["copy"].best))
    took = times["sync"]
    speed = copy.moved / times["copy"].median / 1e9
    places = [name, dtype, f"{elements:,}", tensors, traffic, f"{speed:.1f}"]
    return [*places, took.median * 1e3, floor * 1e3, floor / took.median, best / took.best]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every rule at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000]
    parser.add_argument("--elements", type=int, nargs="+", default=sizes, help="lengths of the flat tensors")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()], help="on CPU")
    parser.add_argument("--chunks", type=int, nargs="+", default=[move.CHUNK], help="elements of a chunk, on CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tensors", type=int, nargs="+", help="numbers of parameters: times a whole sync instead")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="with --tensors")
    report.add_options(parser, rounds=31)
    options = parser.parse_args(arguments)
    if options.tensors:
        _main_of_syncs(options)
        return
    cases = [(t, c, n, r) for t in options.threads for n in options.elements for r in RULES for c in options.chunks]
    before, rows = report.load_average(), []
    for threads, chunk, elements, rule in track(cases, "slow step", console=Console(stderr=True)):
        torch.set_num_threads(threads)
        move.CHUNK = chunk
        rows.append(slow_step_row(rule, elements, options.rounds, torch.device(options.device)))
    load = before, report.load_average()
    table = report.Report(name="slow_step", about=ABOUT, columns=COLUMNS, rows=rows, load=load, picture=PICTURE)
    report.publish(table, options)


def _main_of_syncs(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads[0])
    rules = [name for name, (_, rule) in RULES.items() if rule.keeps_slow_weights]
    cases = [(n, t, d, r) for n in options.elements for t in options.tensors for d in options.dtypes for r in rules]
    before, rows = report.load_average(), []
    for elements, tensors, dtype, rule in track(cases, "lone syncs", console=Console(stderr=True)):
        rows.append(sync_row(rule, elements, tensors, dtype, options.rounds, torch.device(options.device)))
    load = before, report.load_average()
    columns = (COLUMNS[0], "dtype", COLUMNS[1], "tensors", *COLUMNS[4:])
    drawn = picture.Bars(panels=[["of floor"]], by=["rule", "dtype", "elements", "tensors"])
    table = report.Report(name="lone_sync", about=ABOUT, columns=columns, rows=rows, load=load, picture=drawn)
    report.publish(table, options)


if __name__ == "__main__":
    main()
