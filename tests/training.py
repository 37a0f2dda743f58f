"""Running the trainer inside a test, and comparing what two runs have become."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_lookahead.train.agent import Agent
from dist_lookahead.train.checkpoint import CheckpointStore
from dist_lookahead.train.config import Config, parse_config
from dist_lookahead.train.outcome import Outcome
from dist_lookahead.train.recorder import read_metrics
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.trainer import Trainer
from dist_lookahead.train.world import join_world


def small_config(folder: Path, **sections: Any) -> Config:
    """A run of a few steps on the digits; sections are merged into it."""
    plain: dict[str, Any] = {
        "run": {"name": "small", "dir": str(folder), "steps": 13, "device": "cpu"},
        "data": {"name": "digits", "batch_size": 8},
        "model": {"name": "mlp", "width": 16},
        "inner": {"name": "SGD", "lr": 0.05, "momentum": 0.9},
        "levels": {"recipe": "slowmo", "tau": 4, "beta": 0.2},
        "evaluation": {"every": 6, "unit": "steps"},
        "checkpoint": {"every": 3},
        "logging": {"progress": "off", "tensorboard": False, "plots": False},
    }
    for name, value in sections.items():
        merge = isinstance(value, dict) and name in plain and name not in ("levels", "inner", "model")
        plain[name] = {**plain[name], **value} if merge else value
    return parse_config(plain)


def folder_of(config: Config) -> Path:
    """Where the first run of this name has its files."""
    return Path(config.run.dir) / config.run.name


def train(config: Config, *, resume: bool = False) -> Outcome:
    """Train in this process."""
    torch.set_num_threads(1)
    with join_world(agents=config.agents, device=config.run.device, timeout=60, mesh=config.mesh) as world:
        directory = RunDirectory(folder_of(config))
        return Trainer(config, config.build_task(), world, directory, resume=resume).run()


def final_states(folder: Path, agents: int = 1) -> list[dict[str, Any]]:
    """The newest checkpoint of each agent."""
    stores = [CheckpointStore(folder / "checkpoints", agent, agents) for agent in range(agents)]
    return [store.load(store.steps()[-1])["agent"] for store in stores]


def records(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics without what a clock has measured."""
    return [
        {name: value for name, value in record.items() if not name.startswith("seconds")}
        for record in read_metrics(folder / "metrics.jsonl")
    ]


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Name every place in which two states differ by a bit."""
    if isinstance(a, torch.Tensor):
        if not (isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)):
            yield path
    elif isinstance(a, Mapping):
        for key in a.keys() | b.keys():
            yield from differences(a.get(key), b.get(key), f"{path}/{key}")
    elif isinstance(a, Sequence) and not isinstance(a, str):
        if len(a) != len(b):
            yield f"{path} has another length"
        for index, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from differences(x, y, f"{path}/{index}")
    elif a != b:
        yield f"{path}: {a} != {b}"


class Crash(Exception):
    """The power fails."""


def crash_before(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every agent fail when it comes to compute the gradients after so many fast steps."""
    original = Agent.backward

    def backward(agent: Agent, factor: float) -> None:
        if agent.step == step:
            raise Crash
        original(agent, factor)

    monkeypatch.setattr(Agent, "backward", backward)
