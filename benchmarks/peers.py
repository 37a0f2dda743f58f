"""Other packages' methods beside the recipe here that computes the same: a sync, a local step, and memory.

Each pair trains the same weights with the same given gradients in the same run, two gloo processes on this machine;
or under torchrun, with NCCL where there is CUDA. What is not installed is a row that says absent; it is in the extra
`bench`.
"""

import argparse
import functools
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track

from benchmarks import agents, measure, picture, report
from benchmarks.footprint import SMALLEST, Footprint
from benchmarks.rivals import in_accelerate, in_decent_dp, in_fairscale, in_torch, in_torchft
from benchmarks.rivals.trainer import TAU, Model, Rival, Trainer

RIVALS = {
    rival.name: rival
    for package in (in_torch, in_accelerate, in_torchft, in_fairscale, in_decent_dp)
    for rival in package.RIVALS
}
SIZES = {"0.1M": (100_000, 4), "2M": (2_000_000, 62), "11M": (11_000_000, 324), "100M": (100_000_000, 148)}
SHARE = {"100M": 0.25}  # of the rounds: they are long
STEPS_WATCHED = 2 * TAU  # for memory: slow state may be made late
ABOUT = (
    f"Milliseconds, medians of interleaved rounds of {TAU} steps, the slowest process of each round. step: a fast step "
    "that does not sync, the optimizer's own part included, which inner is alone. sync: a step that does, less inner. "
    "Gradients are given; methods that act in the backward pass (DDP, decent-dp) are timed with one that computes "
    "nothing, and so is what they are compared with. memory: the most that a process holds at once, in copies of the "
    "model beyond parameters and gradients, from construction on. x: theirs / ours of the same. Ours: "
    f"{', '.join(f'{rival.ours} beside {rival.name}' for rival in RIVALS.values())}. Sizes: "
    f"{', '.join(f'{size} in {tensors} tensors' for size, (_, tensors) in SIZES.items())}."
)
COLUMNS = (
    "theirs",
    "size",
    "inner",
    "step, theirs",
    "step, ours",
    "step x",
    "sync, theirs",
    "sync, ours",
    "sync x",
    "memory, theirs",
    "memory, ours",
)
PICTURE = picture.Bars(panels=[["step x"], ["sync x"]], by=["theirs", "size"])
ABSENT = "-"


def pair_cells(rival: Rival, elements: int, tensors: int, rounds: int, device: torch.device) -> list[report.Cell]:
    """Measure one rival and our equivalent at one size, and return all but their names; a collective."""
    fresh = functools.partial(Model, elements, tensors, device)
    for build in (rival.build, rival.build_ours):  # code is loaded, connections are made
        extra_copies(build, functools.partial(Model, 1000, 4, device), device)
    memory = [extra_copies(build, fresh, device) for build in (rival.build, rival.build_ours)]
    models = {who: fresh() for who in ("inner", "theirs", "ours")}
    builders = {"inner": rival.build_inner, "theirs": rival.build, "ours": rival.build_ours}
    trainers = {who: build(models[who]) for who, build in builders.items()}
    times = _times(trainers, rounds, device)
    _require_same_course(rival, models, trainers, steps=TAU * (rounds + measure.WARM_UP))
    for trainer in trainers.values():
        trainer.close()
    inner = times["inner, local"] * 1e3
    step, own_step = (times.get(f"{who}, local", 0.0) * 1e3 for who in ("theirs", "ours"))
    sync, own_sync = (times[f"{who}, sync"] * 1e3 - inner for who in ("theirs", "ours"))
    compared: list[report.Cell] = [step, own_step, step / own_step] if step else [ABSENT, own_step, ABSENT]
    return [inner, *compared, sync, own_sync, sync / own_sync, *memory]


def extra_copies(build: Callable[[Model], Trainer], fresh: Callable[[], Model], device: torch.device) -> float | str:
    """Return the most memory in two rounds, in copies of the model beyond parameters and gradients."""
    footprint = Footprint(device)
    with footprint.phase("all"):
        model = fresh()
        trainer = build(model)
        for index in range(STEPS_WATCHED):
            trainer.prepare()
            step = trainer.sync if (index + 1) % TAU == 0 else trainer.local or trainer.sync
            step()
    trainer.close()
    size = sum(weight.numel() * weight.element_size() for weight in model.weights)
    return footprint.usage["all"].peak / size - 2 if size >= SMALLEST or device.type == "cuda" else ABSENT


def measure_all(options: argparse.Namespace) -> None:
    """Measure as one of the agents; rank 0 reports."""
    torch.set_num_threads(options.threads)
    first = dist.get_rank() == 0
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    cases = [(RIVALS[name], size) for size in options.sizes for name in options.rivals]
    before, rows = report.load_average(), []
    for rival, size in track(cases, "peers", console=Console(stderr=True), disable=not first):
        elements, tensors = SIZES[size]
        rounds = max(1, round(options.rounds * SHARE.get(size, 1)))
        names = [rival.name, size]
        if rival.installed:
            rows.append([*names, *pair_cells(rival, elements, tensors, rounds, device)])
        else:
            rows.append([*names, "absent", *[ABSENT] * (len(COLUMNS) - len(names) - 1)])
    if first:
        load = before, report.load_average()
        table = report.Report(name="peers", about=ABOUT, columns=COLUMNS, rows=rows, load=load, picture=PICTURE)
        report.publish(table, options)


def _times(trainers: dict[str, Trainer], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each trainer's local steps and of its steps that sync, each in turn."""
    cases = {}
    for turn in ("local", "sync"):
        for who, trainer in trainers.items():
            if run := getattr(trainer, turn):
                cases[f"{who}, {turn}"] = measure.Case(run=run, prepare=functools.partial(_together, trainer.prepare))
    times = measure.interleave(cases, rounds, device)
    return {case: agents.slowest(own, device).median for case, own in times.items()}


def _together(prepare: Callable[[], object]) -> None:
    prepare()
    dist.barrier()


@torch.no_grad()
def _require_same_course(rival: Rival, models: dict[str, Model], trainers: dict[str, Trainer], steps: int) -> None:
    """Refuse to compare methods that compute different things: how far the agents' mean has come, per step."""
    ways = []
    for who in ("theirs", "ours"):
        trainer = trainers[who]
        taken = trainer.ahead + (steps if trainer.local else steps // TAU)
        way = torch.stack([1 - weight.mean() for weight in models[who].weights])
        dist.all_reduce(way)
        ways.append(way / taken)
    torch.testing.assert_close(*ways, rtol=1e-3, atol=0, msg=lambda text: f"{rival.name} is not {rival.ours}: {text}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every pair at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=2, help="processes, where torchrun does not start them")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="numbers of parameters")
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="NAME", help="which")
    parser.add_argument("--threads", type=int, default=1, help="of each process, on CPU (%(default)s)")
    report.add_options(parser, rounds=31)
    options = parser.parse_args(arguments)
    agents.run_agents(functools.partial(measure_all, options), options.agents)


if __name__ == "__main__":
    main()
