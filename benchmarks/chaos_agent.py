"""One agent of `benchmarks.chaos`: it trains until the end, whatever happens to the others, and writes what it does."""

import hashlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_lookahead import DistributedLookahead, Guard, slowmo
from dist_lookahead.survivors.agents import NAME, Survivors
from dist_lookahead.survivors.membership import LeftOut
from dist_lookahead.tasks.vision import VisionTask
from dist_lookahead.train.sampler import BatchSampler

WIDTH, BATCH, LR, BETA, SEED = 64, 16, 0.02, 0.3, 1
CAME_TOO_LATE = 3  # exit status of an agent that was cut off or stopped, and came back after the end
LOOKED_AT = 512  # training samples whose loss is the last one


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """What every agent does.

    Args:
        folder: where each writes a file of its own.
        steps: until the end.
        tau: steps of a round.
        pause: seconds that a step takes besides its arithmetic, so that faults have time to happen.
        timeout: seconds of silence in a collective.
        silence: seconds without a sign of life.
    """

    folder: Path
    steps: int
    tau: int
    pause: float
    timeout: float
    silence: float


class _Heard(logging.Handler):
    """Notes when this agent has heard of a fault, for the first time since its last sync."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.created

    def take(self) -> float | None:
        first, self.first = self.first, None
        return first


def train(course: Course) -> None:
    """Train, and write one line for each sync: when, after which step, with whom, and a checksum of the weights."""
    torch.set_num_threads(1)
    logging.basicConfig(format=f"%(asctime)s.%(msecs)03d {os.environ[NAME]}: %(message)s", datefmt="%X", force=True)
    try:
        _train(course)
    except LeftOut as error:
        logging.warning("%s", error)
        sys.exit(CAME_TOO_LATE)


def _train(course: Course) -> None:
    task = VisionTask(data="digits", model="mlp")
    agents = Survivors.from_environment(timeout=course.timeout, silence=course.silence)
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    inner = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    levels = slowmo(course.tau, beta=BETA)
    optimizer = DistributedLookahead(inner, levels, model=model, guard=Guard(), recoverable=True)
    signal.signal(signal.SIGUSR1, lambda *_: _poison(model))
    agents.enter(optimizer)
    heard = _Heard()
    logging.getLogger("dist_lookahead").addHandler(heard)
    with (course.folder / f"{os.environ[NAME]}.jsonl").open("w", encoding="utf-8") as file:
        while optimizer.stack.clock < course.steps:
            step, rounds = optimizer.stack.clock, optimizer.stack.bound[-1].rounds
            optimizer.zero_grad()
            task.loss(model, _batch(task, agents, step)).backward()
            agents.step(optimizer)
            if optimizer.stack.bound[-1].rounds != rounds:
                row = {"time": time.time(), "heard": heard.take(), **_held(optimizer, agents)}
                if optimizer.stack.clock >= course.steps:
                    row["loss"] = _loss(optimizer, task, model)
                file.write(json.dumps(row) + "\n")
                file.flush()
            time.sleep(course.pause)
    agents.end()


def _batch(task: VisionTask, agents: Survivors, step: int) -> Any:
    sampler = BatchSampler(
        samples=task.samples, batch_size=BATCH, rank=agents.rank, agents=agents.size, seed=SEED, order=task.order
    )
    return task.train_batch(sampler.batch(step))


@torch.no_grad()
def _poison(model: nn.Module) -> None:
    next(model.parameters()).fill_(torch.nan)


def _held(optimizer: DistributedLookahead, agents: Survivors) -> dict[str, Any]:
    bound = optimizer.stack.bound[-1]
    bits = b"".join(slow.numpy().tobytes() for slow in bound.slow)
    return {
        "clock": optimizer.stack.clock,
        "rounds": bound.rounds,
        "generation": agents.generation.number,
        "members": agents.generation.members,
        "checksum": hashlib.sha256(bits).hexdigest()[:16],
    }


@torch.no_grad()
def _loss(optimizer: DistributedLookahead, task: VisionTask, model: nn.Module) -> float:
    with optimizer.slow_weights():
        return task.loss(model, task.train_batch([(0, index) for index in range(LOOKED_AT)])).item()


def rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what all agents have written, each with its name; a line that was cut short by a kill is none."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            if line.endswith("}"):
                yield path.stem, json.loads(line)
