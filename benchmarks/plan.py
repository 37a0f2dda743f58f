"""The planner's predictions against real trainings, of two nodes on this machine with a slow link between them.

For each stack of levels: the time of a fast step and the link as `dist-lookahead plan` measures them, what it predicts
from that, and what the trainer then takes. Needs root and iproute2.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch

from benchmarks import network, picture, report
from dist_lookahead import Quantised, local_sgd, overlapped_local_sgd, slowmo, streaming_diloco
from dist_lookahead.level import Level
from dist_lookahead.planner.forecast import forecast
from dist_lookahead.planner.link import Link, with_world
from dist_lookahead.planner.rehearsal import rehearse
from dist_lookahead.tasks.task import Batch, Key
from dist_lookahead.tasks.vision import VisionTask
from dist_lookahead.train.config import Config, parse_config
from dist_lookahead.train.config_levels import Levels
from dist_lookahead.train.plan_facts import Asked, facts_of
from dist_lookahead.train.plan_measure import slowest_of, step_seconds
from dist_lookahead.train.plan_onlooker import TrainerOnlooker
from dist_lookahead.train.recorder import read_metrics
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.trainer import Trainer
from dist_lookahead.train.world import World, join_world

STACKS: Mapping[str, list[Level]] = {
    "local SGD": local_sgd(tau=8),
    "SlowMo": slowmo(tau=32),
    "SlowMo, 8 bits": slowmo(tau=32, codec=Quantised(bits=8)),
    "overlapped": overlapped_local_sgd(tau=64, delay=48),
    "4 parts, 8 bits, overlapped": streaming_diloco(tau=64, parts=4, delay=12, codec=Quantised(bits=8)),
}
NODES = 2
PERIODS = 3  # that are timed, after one that is not
LONGEST = 1800  # seconds that the trainings on one link may take
ABOUT = (
    "Milliseconds of wall time per fast step of two agents: computing alone (mean of before and after the training), "
    "predicted from the link as measured and as given, and taken by the trainer. ratio: taken / predicted from the "
    "measured link. waiting: predicted and taken shares of the time."
)
COLUMNS = (
    *("levels", "Mbit/s", "ms", "tau", "computing", "predicted", "as given", "taken", "ratio"),
    *("waiting, predicted", "waiting, taken"),
)
PICTURE = picture.Bars(panels=[["predicted", "taken"]], by=["levels", "Mbit/s", "ms"])


class Paced(VisionTask):
    """Digits that take their time to come: a fast step lasts about as long however busy the machine is.

    Args:
        width: of the network.
        pause: seconds for each batch.
    """

    def __init__(self, width: int, pause: float) -> None:
        super().__init__(data="digits", model="mlp", width=width)
        self._pause = pause

    def train_batch(self, keys: Sequence[Key]) -> Batch:
        """Read a batch, slowly."""
        time.sleep(self._pause)
        return super().train_batch(keys)


def run_file(folder: Path, levels: Sequence[Level], width: int, steps: int) -> Config:
    """Return a training on digits with a network as large as asked for, and nothing beside fast steps and syncs."""
    weights = "averaged" if any(not level.move.keeps_slow_weights for level in levels) else "slow"
    plain = {
        "run": {"name": "plan", "dir": str(folder), "steps": steps, "device": "cpu"},
        "data": {"name": "digits", "batch_size": 32},
        "model": {"name": "mlp", "width": width},
        "inner": {"name": "SGD", "lr": 0.01},
        "levels": Levels(stack=tuple(levels)).plain(),
        "evaluation": {"every": None, "weights": [weights]},
        "checkpoint": {"every": 10**6},
        "logging": {"progress": "off", "tensorboard": False, "plots": False},
    }
    return parse_config(plain)


def compare(world: World, name: str, given: Link, options: argparse.Namespace, folder: Path) -> list[report.Cell]:
    """Predict the cost of a stack, train with it, and return the row of the table."""
    levels, task = STACKS[name], Paced(options.width, options.pause / 1e3)
    config = run_file(folder, levels, options.width, steps=10**6)
    facts = facts_of(config, task, world, Asked(), distributed=True)
    onlooker = TrainerOnlooker(config, facts.mesh)
    noted = rehearse(levels, task.model(), config.inner.build, facts.mesh, onlooker=onlooker)
    real = run_file(folder, levels, options.width, _steps(levels, noted.period))
    seconds, waiting = taken(real, task, world, noted.period)
    after = slowest_of(world.communicators[0], [step_seconds(config, task, world.device)], world.device)
    step = mean([facts.step_seconds, *after])
    told = forecast(noted, step, facts.links)
    nominal = forecast(noted, step, with_world({axis: given for axis in facts.mesh.names}, facts.mesh))
    milliseconds = [1e3 * value for value in (step, told.seconds, nominal.seconds, seconds)]
    return [name, *_numbers(given), noted.period, *milliseconds, seconds / told.seconds, told.exposed, waiting]


def taken(config: Config, task: Paced, world: World, period: int) -> tuple[float, float]:
    """Train; return the seconds of a fast step in all periods but the first, and the share of waiting in them."""
    directory = RunDirectory(Path(config.run.dir))
    Trainer(config, task, world, directory).run()
    if not world.leads:
        return 1.0, 0.0
    landed = {record["step"]: record for record in read_metrics(directory.metrics) if record["kind"] == "sync"}
    first = min(step for step in landed if step >= period)
    last = first + PERIODS * period
    seconds = landed[last]["seconds"] - landed[first]["seconds"]
    waiting = sum(record["seconds_exposed"] for step, record in landed.items() if first < step <= last)
    return seconds / (PERIODS * period), waiting / seconds


def work(options: argparse.Namespace) -> None:
    """Measure as one of the two agents; the first one writes its rows."""
    torch.set_num_threads(1)
    given, rows = Link(bandwidth=options.rate * 1e6 / 8, latency=options.delay / 1e3), []
    with join_world(agents=1, device="cpu", timeout=600) as world:
        for name in options.levels:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(compare(world, name, given, options, Path(folder)))
        if world.leads:
            options.rows.write_text(json.dumps(rows))


def on_two_nodes(options: argparse.Namespace, rate: float, delay: float) -> list[list[report.Cell]]:
    """Start the two agents on a link, and return the rows of the first."""
    with tempfile.TemporaryDirectory() as folder, network.Network(NODES, rate, delay / 1e3) as nodes:
        rows = Path(folder) / "rows.json"
        asked = ["--rows", rows, "--rate", rate, "--delay", delay, "--width", options.width, "--pause", options.pause]
        command = [sys.executable, "-m", "benchmarks.plan", *map(str, asked), "--levels", *options.levels]
        nodes.run(command, timeout=LONGEST)
        return json.loads(rows.read_text())


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare what is predicted with what is taken, on each link."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[100, 20], help="of the link, in Mbit/s")
    parser.add_argument("--delays", type=float, nargs="+", default=[0, 10], help="one way, in milliseconds")
    parser.add_argument("--levels", nargs="+", choices=STACKS, default=list(STACKS), help="which stacks")
    parser.add_argument("--width", type=int, default=1000, help="of the network: about its square of parameters")
    parser.add_argument("--pause", type=float, default=20, help="milliseconds until a batch has come (%(default)s)")
    report.add_options(parser)
    for name, kind in (("rows", Path), ("rate", float), ("delay", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)  # of one agent
    options = parser.parse_args(arguments)
    if options.rows:
        work(options)
        return
    network.require()
    before, rows = report.load_average(), []
    for rate in options.rates:
        for delay in options.delays:
            rows += on_two_nodes(options, rate, delay)
    load = before, report.load_average()
    table = report.Report(name="plan", about=ABOUT, columns=COLUMNS, rows=rows, load=load, picture=PICTURE)
    report.publish(table, options)


def _steps(levels: Sequence[Level], period: int) -> int:
    """So many that all periods come to their end, and the last average lands."""
    return (PERIODS + 1) * period + max(level.when.delay for level in levels)


def _numbers(link: Link) -> tuple[float, float]:
    return link.bandwidth * 8 / 1e6, link.latency * 1e3


if __name__ == "__main__":
    main()
