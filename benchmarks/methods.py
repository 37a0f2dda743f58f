"""Methods beside each other: what each comes to on the same task, and what it sends, by agents simulated here.

The fast optimizer, its learning rate and the data are the same for all, and no method is tuned: it is a table of costs,
and of what to expect, not a contest. Four agents, on two nodes where a method asks for nodes.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from benchmarks import picture, report
from dist_lookahead.train.config import parse_config
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.trainer import Trainer
from dist_lookahead.train.world import join_world

AGENTS = 4
ABOUT = (
    f"{AGENTS} simulated agents, the same fast optimizer and data for all methods, none of them tuned. test loss, test "
    "accuracy: of the slow weights, or of the mean of the agents where they have none in common; mean over the seeds, "
    "and the standard deviation of the loss. sent: bytes that an agent sends in the run, DDP's gradients for scale. "
    "syncs: of levels that communicate, after how many fast steps."
)
COLUMNS = (
    "method",
    "task",
    "test loss",
    "spread",
    "test accuracy",
    "MB sent",
    "of every step's",
    "syncs",
    "fast steps",
)
PICTURE = picture.Bars(panels=[["test loss"], ["MB sent"]], by=["method", "task"], log=True)
TASKS: dict[str, dict[str, Any]] = {
    "digits": {
        "run": {"epochs": 20},
        "data": {"name": "digits", "batch_size": 32},
        "model": {"name": "cnn", "width": 32},
        "inner": {"name": "SGD", "lr": 0.03, "momentum": 0.9},
    },
    "mnist": {  # 3.4 million parameters
        "run": {"steps": 240},
        "data": {"name": "mnist", "batch_size": 32},
        "model": {"name": "mlp", "width": 1500},
        "inner": {"name": "SGD", "lr": 0.02, "momentum": 0.9},
    },
}
SLOW = {"alpha": 1.0, "beta": 0.3, "fast_buffers": "reset"}
SGP = {"when": {"every": {"tau": 1}}, "mix": {"push_sum": {"topology": "one_peer_exponential"}}, "move": "copy"}
MEAN = {"evaluation": {"weights": ["averaged"]}}
NODES = {"agents": 1, "mesh": {"node": 2, "local": 2}}


@dataclass(frozen=True)
class Method:
    """The section `levels` of a run file, and what else it asks for."""

    levels: Mapping[str, Any]
    rest: Mapping[str, Any]


def _method(recipe: str, rest: Mapping[str, Any] | None = None, **arguments: Any) -> Method:
    return Method({"recipe": recipe, **arguments}, rest or {})


METHODS: dict[str, Method] = {
    "an average every step": _method("local_sgd", tau=1, fast_buffers="average"),
    "local SGD": _method("local_sgd", tau=12),
    "post-local SGD": _method("post_local_sgd", tau=12, start=48),
    "QSR": _method("local_sgd", tau={"qsr": {"base": 4, "coefficient": 0.05}}),
    "AdaComm": _method("local_sgd", tau={"ada_comm": {"start": 16, "interval": 48}}),
    "hierarchical local SGD": _method("hierarchical_local_sgd", NODES, taus=[3, 12]),
    "overlapped local SGD": _method("overlapped_local_sgd", MEAN, tau=12, delay=6),
    "distributed Lookahead": _method("distributed_lookahead", tau=12, alpha=0.8),
    "SlowMo": _method("slowmo", tau=12, **SLOW),
    "SlowMo, sharded": _method("slowmo", tau=12, shard=True, **SLOW),
    "SlowMo, delayed": _method("slowmo", tau=12, delay=6, **SLOW),
    "SlowMo, 8 bit": _method("slowmo", tau=12, codec={"quantised": {"bits": 8}}, **SLOW),
    "SlowMo, 4 bit": _method("slowmo", tau=12, codec={"quantised": {"bits": 4}}, **SLOW),
    "SlowMo, top 1 %": _method("slowmo", tau=12, codec={"top_k": {"fraction": 0.01}}, **SLOW),
    "BMUF": _method("bmuf", tau=12, zeta=1.0, eta=0.3),
    "DiLoCo": _method("diloco", tau=12, alpha=0.7, beta=0.3),
    "streaming DiLoCo, 4 parts, 4 bit": _method(
        "streaming_diloco", tau=12, parts=4, alpha=0.7, beta=0.3, codec={"quantised": {"bits": 4}}
    ),
    "D-PSGD, ring": _method("dpsgd", MEAN),
    "SGP, one peer": _method("sgp", MEAN),
    "OSGP, one peer": _method("osgp", MEAN),
    "SlowMo over SGP": _method("slowmo_over", base=[SGP], tau=12, **SLOW),
}


def outcome_of(method: Method, task: str, seed: int, data: Path | None, steps: int | None) -> dict[str, float]:
    """Train, and return what the table says of it."""
    plain: dict[str, Any] = {"agents": AGENTS, "lr_schedule": {"name": "cosine"}}
    plain |= {name: dict(section) for name, section in TASKS[task].items()}
    plain |= {"levels": dict(method.levels), **method.rest}
    plain["logging"] = {"progress": "off", "tensorboard": False, "plots": False, "dynamics": False, "every": 1000}
    if steps:
        plain["run"] = {"steps": steps}
    if data:
        plain["data"]["path"] = str(data)
    with tempfile.TemporaryDirectory() as folder:
        plain["run"] |= {"name": "run", "dir": folder, "seed": seed, "device": "cpu"}
        config = parse_config(plain)
        with join_world(agents=config.agents, device="cpu", timeout=60, mesh=config.mesh) as world:
            trainer = Trainer(config, config.build_task(), world, RunDirectory(Path(folder) / "run"))
            outcome = trainer.run()
            bounds = trainer.agents[0].optimizer.stack.bound
            syncs = sum(bound.rounds for bound in bounds if bound.mixer.communicates)
    (metrics,) = outcome.metrics.values()
    return {
        "loss": metrics["loss"],
        "accuracy": metrics["accuracy"],
        "sent": outcome.bytes_sent,
        "ddp": outcome.ddp_bytes,
        "syncs": syncs,
        "steps": outcome.step,
    }


def row_of(name: str, task: str, seeds: Sequence[int], data: Path | None, steps: int | None) -> list[report.Cell]:
    """Return a row of the table."""
    runs = [outcome_of(METHODS[name], task, seed, data, steps) for seed in seeds]
    losses = [run["loss"] for run in runs]
    spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
    sent, ddp = runs[0]["sent"], runs[0]["ddp"]
    accuracy = f"{100 * statistics.mean(run['accuracy'] for run in runs):.2f} %"
    counts: list[report.Cell] = [int(runs[0]["syncs"]), int(runs[0]["steps"])]
    shares: list[report.Cell] = [f"{float(f'{sent / 1e6:.3g}'):g}", f"{100 * sent / ddp:.2f} %"]
    return [name, task, f"{statistics.mean(losses):.4f}", f"{spread:.4f}", accuracy, *shares, *counts]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every method on every task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["digits"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--data", type=Path, help="where MNIST lies, or is downloaded to")
    parser.add_argument("--steps", type=int, help="cut each run to so many fast steps")
    parser.add_argument("--threads", type=int, default=1, help="of each process (%(default)s)")
    report.add_options(parser, rounds=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    before, cases = report.load_average(), [(task, name) for task in options.tasks for name in options.methods]
    rows = [
        row_of(name, task, range(options.rounds), options.data if task == "mnist" else None, options.steps)
        for task, name in track(cases, "training", console=Console(stderr=True))
    ]
    load = before, report.load_average()
    table = report.Report(name="methods", about=ABOUT, columns=COLUMNS, rows=rows, load=load, picture=PICTURE)
    report.publish(table, options)


if __name__ == "__main__":
    main()
