"""Training over a slow network: wall time and bytes until the same training loss, of DDP, its hooks, torchft and ours.

Each node is a network namespace on this machine, with agents that are processes of their own; the links between them
are limited to each of the rates in turn. Every node has its own share of the data. Needs root and iproute2.

Where gradients are averaged in each step, what is learnt does not depend on the link: the steps to the target are
counted once, on a link without limit, and the time of a step is measured over a few steps on each link (--whole takes
all of them there). All others train to the target on each link. The default rates are the best of those that were
tried, on a link without limit: 0.0025, 0.005, 0.01 and 0.02 where gradients are averaged, 0.0015 to 0.02 for local
steps with a slow momentum of 0.3, 0.5 and 0.6. --ddp-lr, --lr and --beta try others.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import network, picture, report
from benchmarks.contenders import AVERAGING_GRADIENTS, CONTENDERS, DDP, NOTHING, chosen
from benchmarks.slow_network_agent import Outcome, Training

ABOUT = (
    "Until the loss on the same training samples is at most the target. tau: fast steps of a round. steps: of each "
    "agent to the target. ms/step: wall time of a fast step, syncs included. seconds: wall time to the target; the "
    "clock stands still while agents look at the loss, and what is under way goes on. MB sent: by the first node, "
    "counted at its interface, headers included. DDP's time: how many times as long DDP takes. alone: ms/step over "
    "that without communication on the same link. DDP and its hooks are counted on a link without limit and timed over "
    "a few steps of each link, unless the command says --whole."
)
COLUMNS = ("method", "Mbit/s", "tau", "steps", "ms/step", "seconds", "MB sent", "DDP's time", "alone")
PICTURE = picture.Bars(panels=[["seconds"], ["MB sent"]], by=["Mbit/s", "method"], log=True)
UNLIMITED = "without limit"


def run(
    options: argparse.Namespace, title: str, trainings: Sequence[Training], mbit: float | None
) -> dict[str, Outcome]:
    """Train in several ways on nodes of their own; return what came of each, by name."""
    given = {name: getattr(options, name) for name in ("data_set", "data", "parameters", "batch")}
    given |= {name: getattr(options, name) for name in ("ddp_lr", "lr", "beta")}
    asked = {"title": title, "options": given, "trainings": [asdict(training) for training in trainings]}
    with tempfile.TemporaryDirectory() as folder, network.Network(options.nodes, mbit, options.delay / 1e3) as nodes:
        files = {name: Path(folder) / f"{name}.json" for name in ("asked", "outcomes")}
        files["asked"].write_text(json.dumps(asked))
        command = [sys.executable, "-m", "benchmarks.slow_network_agent"]
        command += [text for name, file in files.items() for text in (f"--{name}", str(file))]
        nodes.run(command, timeout=options.timeout, local=options.local)
        outcomes = json.loads(files["outcomes"].read_text())
    return {training.name: Outcome(**outcome) for training, outcome in zip(trainings, outcomes, strict=True)}


def counted(options: argparse.Namespace, names: Sequence[str]) -> dict[str, int | None]:
    """Return how many steps those need that average gradients; None for more than are allowed."""
    trainings = [Training(name=name, tau=1, steps=options.steps, target=options.target) for name in names]
    outcomes = run(options, UNLIMITED, trainings, None) if trainings else {}
    return {name: own.steps if own.reached(options.target) else None for name, own in outcomes.items()}


def on_link(
    options: argparse.Namespace, names: Sequence[str], steps: Mapping[str, int | None], mbit: float, tau: int
) -> list[list[report.Cell]]:
    """Train on one link; return a row for each contender."""
    trainings = [_training(options, name, tau) for name in names]
    outcomes = run(options, f"{mbit:g} Mbit/s", trainings, mbit)
    alone = _pace(outcomes[NOTHING]) if NOTHING in outcomes else None
    figures = {name: _figures(outcome, steps, name, options.target) for name, outcome in outcomes.items()}
    baseline = figures[DDP][1] if DDP in figures else None
    rows = []
    for name, (needed, seconds, sent) in figures.items():
        pace = _pace(outcomes[name])
        beside = [_ratio(baseline, seconds), _ratio(pace, alone)]
        shown: report.Cell = "-" if name in AVERAGING_GRADIENTS or name == NOTHING else tau
        cells = ["-" if value is None else value for value in (needed, pace * 1e3, seconds, sent, *beside)]
        rows.append([name, f"{mbit:g}", shown, *cells])
    return rows


def _training(options: argparse.Namespace, name: str, tau: int) -> Training:
    if name == NOTHING:
        return Training(name=name, tau=tau, steps=max(options.alone, tau))
    if name in AVERAGING_GRADIENTS and not options.whole:
        return Training(name=name, tau=1, steps=options.sample)
    return Training(name=name, tau=tau, steps=options.steps, target=options.target)


def _figures(
    outcome: Outcome, counted_steps: Mapping[str, int | None], name: str, target: float
) -> tuple[int | None, float | None, float | None]:
    """Return steps, seconds and MB to the target; None where it was not reached, or not aimed at."""
    needed = outcome.steps if outcome.reached(target) else None
    needed = counted_steps.get(name, needed)
    if needed is None or name == NOTHING:
        return None, None, None
    seconds, sent = outcome.after(needed)
    return needed, seconds, sent / 1e6


def _pace(outcome: Outcome) -> float:
    """Seconds of a step, without the first ones that take their own time."""
    begun = outcome.warm_up - 1
    return (outcome.seconds[-1] - outcome.seconds[begun]) / (outcome.steps - 1 - begun)


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--rates", type=float, nargs="+", default=[1000, 100, 20], help="of the links, in Mbit/s")
    parser.add_argument("--taus", type=int, nargs="+", default=[32, 32, 48], help="fast steps of a round, on each link")
    parser.add_argument("--delay", type=float, default=0, help="one way, in milliseconds")
    parser.add_argument("--nodes", type=int, default=2, help="on the network (%(default)s)")
    parser.add_argument("--local", type=int, default=1, help="agents on each node (%(default)s)")
    parser.add_argument(
        "--methods", nargs="+", choices=CONTENDERS, help="all that can take part, unless some are named"
    )
    parser.add_argument("--data-set", default="digits", choices=("digits", "mnist", "fashion_mnist", "cifar10"))
    parser.add_argument("--data", metavar="DIR", help="where the files of another data set than the digits lie")
    parser.add_argument("--parameters", type=int, default=5_000_000, help="of the network (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="of each agent (%(default)s)")
    parser.add_argument("--target", type=float, default=0.02, help="training loss (%(default)s)")
    parser.add_argument("--steps", type=int, default=1500, help="after which a method has failed (%(default)s)")
    parser.add_argument("--sample", type=int, default=6, help="steps of DDP that are timed on each link")
    parser.add_argument("--alone", type=int, default=200, help="steps without communication, for their time")
    parser.add_argument("--whole", action="store_true", help="train with DDP to the target on each link: hours")
    parser.add_argument("--ddp-lr", type=float, default=0.005, help="where gradients are averaged (%(default)s)")
    parser.add_argument("--lr", type=float, default=0.0025, help="of local steps (%(default)s)")
    parser.add_argument("--beta", type=float, default=0.3, help="slow momentum (%(default)s)")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds for each link (%(default)s)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train in all ways on all links."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    report.add_options(parser)
    options = parser.parse_args(arguments)
    if len(options.taus) != len(options.rates):
        parser.error(f"--taus {options.taus} for --rates {options.rates}: give one tau for each rate")
    try:
        names = chosen(options.methods, options.nodes * options.local)
    except ValueError as error:
        parser.error(str(error))
    network.require()
    before, rows = report.load_average(), []
    steps = {} if options.whole else counted(options, [name for name in names if name in AVERAGING_GRADIENTS])
    for mbit, tau in zip(options.rates, options.taus, strict=True):
        rows += on_link(options, names, steps, mbit, tau)
    load = before, report.load_average()
    table = report.Report(name="slow_network", about=ABOUT, columns=COLUMNS, rows=rows, load=load, picture=PICTURE)
    report.publish(table, options)


if __name__ == "__main__":
    main()
