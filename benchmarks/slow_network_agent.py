"""One agent of `benchmarks.slow_network`: it trains in each asked way, and the first agent writes what came of it."""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from torch import nn

from benchmarks import network
from benchmarks.contenders import CONTENDERS, Contender, Rates
from dist_lookahead.tasks.datasets import image_facts
from dist_lookahead.tasks.vision import VisionTask

HIDDEN = 4  # equal matrices, so that a part of the model can be a part of its bytes
LOOKED_AT = 256  # training samples, of all agents, whose loss is the target's
SEED = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What is asked for.

    Args:
        name: of a contender.
        tau: steps of a round.
        steps: at most so many.
        target: the training loss at which it ends; None to take all steps.
    """

    name: str
    tau: int
    steps: int
    target: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of it.

    Args:
        steps: taken, until the target where there was one.
        loss: on the last look.
        warm_up: steps until all take equally long.
        seconds: since the start, after each step; the clock stands still in looks at the loss.
        sent: bytes that have left the first agent's node, after each step.
    """

    steps: int
    loss: float | None
    warm_up: int
    seconds: list[float]
    sent: list[int]

    def reached(self, target: float) -> bool:
        """Whether the last look found the target."""
        return self.loss is not None and self.loss <= target

    def after(self, steps: int) -> tuple[float, float]:
        """Return the seconds and bytes of so many steps, more than were taken going on at their pace."""
        if steps <= self.steps:
            return self.seconds[steps - 1], self.sent[steps - 1]
        begun, last = self.warm_up - 1, self.steps - 1
        more = (steps - self.steps) / (last - begun)
        return (
            self.seconds[last] + more * (self.seconds[last] - self.seconds[begun]),
            self.sent[last] + more * (self.sent[last] - self.sent[begun]),
        )


class Course:
    """The task on which all train: this agent's own share of the data, and the loss that all look at.

    Args:
        options: of the command.
        rank: of this agent.
        agents: how many share the data.
    """

    def __init__(self, options: argparse.Namespace, rank: int, agents: int) -> None:
        facts = image_facts(options.data_set)
        augment = False if facts.augmented else None
        # The task gives data and loss; its own model has one matrix that holds nearly all parameters.
        self.task = VisionTask(data=options.data_set, model="mlp", path=options.data, augment=augment)
        self._inputs = facts.channels * facts.size**2
        self._parameters, self._batch = options.parameters, options.batch
        order = torch.randperm(self.task.samples, generator=torch.Generator().manual_seed(SEED)).tolist()
        self._own, self._rank = order[rank::agents], rank
        self._looked_at = self.task.train_batch([(0, index) for index in order[:LOOKED_AT]])

    def model(self, classes: int = 10) -> nn.Module:
        """Build the network, the same on each agent: hidden layers of equal width with LayerNorm."""
        torch.manual_seed(SEED)
        # HIDDEN w^2 + (inputs + classes + 3 (HIDDEN + 1)) w + classes parameters
        linear = self._inputs + classes + 3 * (HIDDEN + 1)
        width = max(1, round((sqrt(linear**2 + 4 * HIDDEN * self._parameters) - linear) / (2 * HIDDEN)))
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs in (self._inputs, *[width] * HIDDEN):
            layers += [nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(width, classes))

    def batches(self) -> Iterator[Any]:
        """Yield batches of this agent's own samples, in an order that depends on nothing else."""
        random = torch.Generator().manual_seed(SEED + self._rank)
        while True:
            order = torch.randperm(len(self._own), generator=random).tolist()
            for start in range(0, len(order) - self._batch + 1, self._batch):
                yield self.task.train_batch([(0, self._own[place]) for place in order[start : start + self._batch]])

    @torch.no_grad()
    def loss(self, contender: Contender) -> float:
        """Return the loss of the weights that the method would keep; all agents get the same number."""
        with contender.kept():
            return self.task.loss(contender.model, self._looked_at).item()


def train(contender: Contender, course: Course, asked: Training) -> Outcome:
    """Train until the target, or for as many steps as asked for."""
    seconds, sent, loss = [], [], None
    batches = course.batches()
    dist.barrier()
    start, before, looking = time.perf_counter(), network.bytes_sent(), 0.0
    for step in range(1, asked.steps + 1):
        contender.step(course.task.loss, next(batches))
        seconds.append(time.perf_counter() - start - looking)
        if contender.is_due(step):
            begun = time.perf_counter()
            loss = course.loss(contender)
            looking += time.perf_counter() - begun
        sent.append(network.bytes_sent() - before)
        if asked.target is not None and loss is not None and loss <= asked.target:
            break
    return Outcome(steps=len(seconds), loss=loss, warm_up=contender.warm_up, seconds=seconds, sent=sent)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train in each asked way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asked", type=Path, required=True, help="JSON: trainings, and the options of the command")
    parser.add_argument("--outcomes", type=Path, required=True, help="JSON that the first agent writes")
    files = parser.parse_args(arguments)
    asked = json.loads(files.asked.read_text())
    options = argparse.Namespace(**asked["options"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    course = Course(options, dist.get_rank(), dist.get_world_size())
    rates = Rates(averaged=options.ddp_lr, local=options.lr, beta=options.beta)
    first, outcomes = dist.get_rank() == 0, []
    trainings = [Training(**training) for training in asked["trainings"]]
    for training in track(trainings, asked["title"], console=Console(stderr=True), disable=not first):
        contender = CONTENDERS[training.name](course.model(), rates, training.tau)
        outcomes.append(train(contender, course, training))
        contender.close()
        dist.barrier()
    if first:
        files.outcomes.write_text(json.dumps([asdict(outcome) for outcome in outcomes]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
