"""The command line: train, sweep, compare, validate, theory, plan, settings, export, figure."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.failure import SyncError
from dist_lookahead.figures.registry import FIGURES, chosen, descriptions
from dist_lookahead.guard import PoisonedError
from dist_lookahead.planner.advice import EXPOSED
from dist_lookahead.same_weights import WeightsDifferError
from dist_lookahead.stability import instabilities
from dist_lookahead.survivors.launcher import add_launch
from dist_lookahead.survivors.membership import LeftOut
from dist_lookahead.tasks.task import Task
from dist_lookahead.train.comparison import X
from dist_lookahead.train.comparison_report import write_comparison
from dist_lookahead.train.config import Config, ConfigError, load_config
from dist_lookahead.train.curves import draw_curves
from dist_lookahead.train.exchange import texts_of_agents
from dist_lookahead.train.export import export
from dist_lookahead.train.inner_loop_picture import draw_inner_loop
from dist_lookahead.train.outcome import Outcome, write_divergence, write_outcome
from dist_lookahead.train.plan import Target
from dist_lookahead.train.plan_facts import Asked, facts_of
from dist_lookahead.train.plan_report import percent, show_plan
from dist_lookahead.train.prediction_report import report
from dist_lookahead.train.recorder import read_metrics
from dist_lookahead.train.restart import require_restarts
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.settings import settings, sweep_settings
from dist_lookahead.train.stalls import patience, watched
from dist_lookahead.train.start import own_folder, require_same_run
from dist_lookahead.train.summary import summary
from dist_lookahead.train.sweep import run_sweep
from dist_lookahead.train.sweep_file import load_sweep
from dist_lookahead.train.sweep_results import LINES, TABLE, write_results
from dist_lookahead.train.theory_report import theory_report
from dist_lookahead.train.theory_report_setting import Assumptions
from dist_lookahead.train.trainer import DivergedError, Trainer
from dist_lookahead.train.world import World, join_world

BAD_INPUT, LOST_AGENT = 2, 1
BAD = (ConfigError, ValueError, OSError, DivergedError, PoisonedError)
LOST = (SyncError, WeightsDifferError, LeftOut)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, 1 for lost or differing agents, 2 for bad input, 128 + signal."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (*BAD, *LOST) as error:
        print(f"dist-lookahead {options.command}: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return LOST_AGENT if isinstance(error, LOST) else BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dist-lookahead", description="Communication-efficient training.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="run a YAML file, alone or under torchrun")
    _add_config(train)
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    train.add_argument(
        "--probe",
        choices=["inner_loop"],
        help="measure after every fast step and sync of the last rounds; the same as --set probe.name=inner_loop",
    )
    train.set_defaults(run=_train)
    validate = commands.add_parser("validate", help="check a YAML file without running it")
    _add_config(validate)
    validate.set_defaults(run=_validate)
    exporter = commands.add_parser("export", help="write the averaged model of a run as a plain state dict")
    exporter.add_argument("directory", type=Path, metavar="RUN", help="folder of the run")
    exporter.add_argument("--out", type=Path, default=Path("model.pt"), help="file to write (default: %(default)s)")
    exporter.add_argument("--step", type=int, help="fast step of the checkpoint (default: the newest)")
    exporter.set_defaults(run=_export)
    figure = commands.add_parser("figure", help="draw the pictures of the docs from scratch")
    figure.add_argument("names", nargs="*", metavar="NAME", help="of a figure, or all")
    what = figure.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print all names with what they show")
    what.add_argument("--out", type=Path, default=Path("docs/figures"), help="folder to write (default: %(default)s)")
    figure.set_defaults(run=_figure)
    theory = commands.add_parser("theory", help="say what the levels of a YAML file will do, from theory alone")
    _add_config(theory)
    _add_assumptions(theory)
    theory.set_defaults(run=_theory)
    plan = commands.add_parser("plan", help="predict what levels cost on given links, or on those of torchrun's nodes")
    _add_config(plan)
    _add_links(plan)
    plan.set_defaults(run=_plan)
    _add_comparisons(commands)
    add_launch(commands)
    everything = commands.add_parser("settings", help="print all settings of a run file with defaults and meanings")
    everything.add_argument("--sweep", action="store_true", help="of a sweep file, in place of a run file")
    everything.set_defaults(run=_settings)
    return parser


def _add_comparisons(commands: Any) -> None:
    sweep = commands.add_parser("sweep", help="run all points of a sweep file; again, to go on after an interruption")
    sweep.add_argument("file", type=Path, help="the sweep file")
    sweep.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: cores / threads of a run)")
    sweep.add_argument("--dry-run", action="store_true", help="check and list all points without running them")
    sweep.set_defaults(run=_sweep)
    compare = commands.add_parser("compare", help="curves and a table of runs, with mean and spread over seeds")
    compare.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folder of a run, or of a sweep")
    compare.add_argument("--x", choices=X, default="steps", help="what to draw against (default: %(default)s)")
    compare.add_argument(
        "--y", nargs="+", default=[], metavar="NAME", help="what to draw: loss, test_accuracy, any value recorded"
    )
    compare.add_argument(
        "--group-by", nargs="+", default=[], metavar="KEY", help="settings of a group (default: all but run.seed)"
    )
    compare.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="runs, or methods of a sweep; * stands for anything"
    )
    compare.add_argument(
        "--tuned",
        nargs="+",
        default=[],
        metavar="KEY",
        help="show each method at its best value of these settings alone",
    )
    compare.add_argument("--out", type=Path, default=Path("comparison"), help="folder to write (default: %(default)s)")
    compare.set_defaults(run=_compare)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the run file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a setting, for instance --set levels.tau=24",
    )


def _add_assumptions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", type=int, metavar="N", help="number of agents (default: the file's, or 4)")
    for name, symbol, meaning in (
        ("smoothness", "L", "of the gradient (default: in units of it)"),
        ("lr", "GAMMA", "in place of inner.lr"),
        ("noise", "SIGMA", "standard deviation of the gradient"),
        ("gap", "DELTA", "of the loss, from the start to its infimum"),
    ):
        parser.add_argument(f"--{name}", type=float, metavar=symbol, help=meaning)
    parser.add_argument("--curvature", type=float, nargs="+", default=[], metavar="A", help="of quadratics to look at")


def _add_links(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, metavar="N", help="number of nodes (default: the file's agents)")
    parser.add_argument("--per-node", type=int, metavar="M", help="agents on each node (default: 1)")
    parser.add_argument("--bandwidth", metavar="B", help="of a node, shared by its agents: 100mbit, 1gbit")
    parser.add_argument("--latency", metavar="L", help="one way, from one node to the next: 20ms, 50us (default: 0)")
    parser.add_argument(
        "--link", action="append", default=[], metavar="AXIS=B,L", help="along another axis: local=10gbit,50us"
    )
    parser.add_argument("--exposed", type=percent, default=EXPOSED, metavar="P", help="waiting at most (default: 5%%)")
    parser.add_argument("--max-tau", type=int, default=512, metavar="TAU", help="longest rounds (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the run file with the recommended levels")


def _theory(options: argparse.Namespace) -> int:
    config = load_config(options.file, options.overrides)
    names = ("agents", "smoothness", "lr", "noise", "gap")
    assumed = Assumptions(**{name: getattr(options, name) for name in names}, curvatures=tuple(options.curvature))
    print("\n".join(theory_report(config, assumed)))
    return 0


def _plan(options: argparse.Namespace) -> int:
    config = load_config(options.file, options.overrides)
    target = Target(exposed=options.exposed, longest=options.max_tau)
    _set_precision(config)
    distributed = "WORLD_SIZE" in os.environ
    names = ("nodes", "per_node", "bandwidth", "latency")
    asked = Asked(**{name: getattr(options, name) for name in names}, links=tuple(options.link))
    device, timeout = config.run.device, patience(config)
    with join_world(agents=config.agents, device=device, timeout=timeout, mesh=config.mesh) as world:
        task = _build_task(config, world.communicators, world.device)
        facts = facts_of(config, task, world, asked, distributed=distributed)
    if world.leads:
        show_plan(config, task, facts, target, options.out)
    return 0


def _validate(options: argparse.Namespace) -> int:
    config = load_config(options.file, options.overrides)
    print(f"{options.file} is valid. Levels, innermost first:")
    for level in config.levels_stack():
        print(f"    {level}")
    inner = config.inner.build([torch.nn.Parameter(torch.zeros(1))])
    for sentence in instabilities(config.levels_stack(), inner, agents=config.agents):
        print(f"warning: {sentence}", file=sys.stderr)
    return 0


def _settings(options: argparse.Namespace) -> int:
    print("\n".join(sweep_settings() if options.sweep else settings()))
    return 0


def _export(options: argparse.Namespace) -> int:
    print(export(options.directory, options.out, step=options.step))
    return 0


def _figure(options: argparse.Namespace) -> int:
    if options.list:
        if options.names:
            raise ValueError(f"--list prints all figures: leave out {', '.join(options.names)}")
        print("\n".join(descriptions()))
        return 0
    console = Console(stderr=True)
    for name in chosen(options.names):
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(name, total=1.0)
            FIGURES[name](options.out, lambda done, bar=bar, task=task: bar.update(task, completed=done))
        print(options.out / f"{name}.png")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    if "WORLD_SIZE" in os.environ:
        raise ValueError("a sweep starts its runs itself: leave out torchrun, and simulate agents with `agents`")
    sweep, points = load_sweep(options.file)
    if options.dry_run:
        print(*(point.label for point in points), sep="\n")
        return 0
    status = run_sweep(sweep, points, jobs=options.jobs, say=partial(print, flush=True))
    print("", write_results(sweep.folder, points), "", f"Also in {sweep.folder / TABLE} and {LINES}", sep="\n")
    return status


def _compare(options: argparse.Namespace) -> int:
    chosen = {"group_by": options.group_by, "only": options.only, "tuned_over": options.tuned}
    print(write_comparison(options.folders, options.out, x=options.x, y=options.y, **chosen))
    print("", f"Also in {options.out}, with curves", sep="\n")
    return 0


def _train(options: argparse.Namespace) -> int:
    probe = [f"probe.name={options.probe}"] if options.probe else []
    config = load_config(options.file, [*options.overrides, *probe])
    _set_precision(config)
    device, timeout = config.run.device, patience(config)
    require_restarts(config)
    survives = config.faults.on_lost_agent == "continue"
    joined = join_world(agents=config.agents, device=device, timeout=timeout, mesh=config.mesh, survives=survives)
    with joined as world, watched(config, world):
        require_same_run(config, world)
        task = _build_task(config, world.communicators, world.device)
        with own_folder(config, world, resume=options.resume) as directory:
            outcome = _train_there(config, task, world, directory)
    return 0 if outcome.signal is None else 128 + outcome.signal


def _train_there(config: Config, task: Task, world: World, directory: RunDirectory) -> Outcome:
    trainer = Trainer(config, task, world, directory, resume=directory.goes_on)
    try:
        outcome = trainer.run()
    except (DivergedError, PoisonedError) as error:
        if world.leads:
            write_divergence(directory, str(error))
        raise
    if world.leads:
        if config.logging.plots:
            draw_curves(directory.metrics, directory.curves, config.run.name)
            draw_inner_loop(directory.inner_loop, config.run.name, list(read_metrics(directory.metrics)))
        if outcome.signal is None:
            write_outcome(directory, outcome)
            # Before the summary, which names the files that are there.
            compared = [*report(config, directory, agents=world.agents, steps=outcome.step)]
            Console().print(summary(outcome, directory, name=config.run.name, agents=world.agents), *compared)
        else:
            print(
                f"Stopped by signal {outcome.signal} at the sync after fast step {outcome.step}, which is saved in "
                f"{directory.checkpoints}: go on with the same command and --resume"
            )
    return outcome


def _build_task(config: Config, communicators: Sequence[Communicator], device: torch.device) -> Task:
    """Let agent 0 come first: it downloads what is missing, once."""
    first = communicators[0].rank == 0
    task = config.build_task() if first or not config.feed.download else None
    texts_of_agents(communicators, ["ready"] * len(communicators), device)
    return task or config.build_task()


def _set_precision(config: Config) -> None:
    if config.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    if config.run.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
