"""Small networks trained by simulated agents in one process, on CPU, against as many trainings in plain torch.

Every agent takes forward, backward and an SGD step with momentum on batches of its own. Agents step apart (a round of
one, then a round of the next) or in turn (a step of each): a network that has just taken a step is still in the
processor's cache, one that waited for the others may not be. Simulated agents can do either, with the same result,
since they meet at the sync only. With two agents, two real processes train as well (`--processes`).
"""

import argparse
import copy
import functools
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks import agents, measure, picture, report
from dist_lookahead import DistributedLookahead, simulate, slowmo
from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from dist_lookahead.tasks.models import build_model

TAU, BATCH = 12, 32
SIZE, CLASSES = 8, 10  # those of the embedded digits
ABOUT = (
    f"Milliseconds of a round, {TAU} fast steps of all agents on batches of {BATCH} images of {SIZE} x {SIZE}, medians "
    "of interleaved rounds. apart: plain torch, a round of one training after the other; in turn: plain torch, a step "
    "of each; simulated: DistributedLookahead with slowmo, in turn, with its sync; by rounds: the same, apart. ratio: "
    "simulated / apart; at best: by the fastest rounds. locality: in turn / apart; overhead: by rounds / apart. "
    "processes: as many real agents; speed-up: simulated / processes."
)
COLUMNS = (
    *("model", "agents", "apart", "in turn", "simulated", "by rounds"),
    *("ratio", "at best", "locality", "overhead", "processes", "speed-up"),
)
PICTURE = picture.Bars(panels=[["ratio", "locality", "overhead"]], by=["model", "agents"])


class Agent:
    """A network and its optimizer.

    Args:
        model: to start from.
        rank: decides with which batch it begins.
        communicator: this agent's end; None for plain torch.
    """

    def __init__(self, model: nn.Module, rank: int, communicator: Communicator | None) -> None:
        random = torch.Generator().manual_seed(1)
        images = torch.randn(TAU, BATCH, 1, SIZE, SIZE, generator=random)
        labels = torch.randint(CLASSES, (TAU, BATCH), generator=random)
        self._batches = [(images[(rank + step) % TAU], labels[(rank + step) % TAU]) for step in range(TAU)]
        self.model = copy.deepcopy(model)
        self._optimizer: torch.optim.Optimizer = torch.optim.SGD(self.model.parameters(), lr=0.001, momentum=0.9)
        if communicator is not None:
            self._optimizer = DistributedLookahead(
                self._optimizer, slowmo(TAU), model=self.model, communicator=communicator
            )

    def step(self, step: int) -> None:
        """Take a fast step on the batch of that number."""
        images, labels = self._batches[step]
        self._optimizer.zero_grad()
        cross_entropy(self.model(images), labels).backward()
        self._optimizer.step()


def apart(team: Sequence[Agent]) -> None:
    """Take a round of each agent before that of the next."""
    for agent in team:
        for step in range(TAU):
            agent.step(step)


def in_turn(team: Sequence[Agent]) -> None:
    """Take a step of each agent before the next step."""
    for step in range(TAU):
        for agent in team:
            agent.step(step)


def simulation_row(name: str, n: int, rounds: int) -> list[report.Cell]:
    """Measure n agents of one model; a collective, of which rank 0 has the row."""
    first = dist.get_rank() == 0
    cases = _in_this_process(name, n) if first else {}
    if n == dist.get_world_size():
        agent = Agent(_network(name), dist.get_rank(), ProcessGroupCommunicator())
        cases["processes"] = measure.Case(run=functools.partial(apart, [agent]), prepare=dist.barrier)
    times = measure.interleave(cases, rounds, torch.device("cpu"))
    return [name, n, *_figures(times)] if first else []


def measure_all(options: argparse.Namespace) -> None:
    """Measure as one of the processes; rank 0 reports."""
    torch.set_num_threads(options.threads)
    first = dist.get_rank() == 0
    before, rows = report.load_average(), []
    cases = list(itertools.product(options.models, options.agents))
    for name, n in track(cases, "simulation", console=Console(stderr=True), disable=not first):
        rows.append(simulation_row(name, n, options.rounds))
    if first:
        load = before, report.load_average()
        table = report.Report(name="simulation", about=ABOUT, columns=COLUMNS, rows=rows, load=load, picture=PICTURE)
        report.publish(table, options)


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, channels=1, size=SIZE, classes=CLASSES)


def _in_this_process(name: str, n: int) -> dict[str, measure.Case]:
    model = _network(name)

    def case(run: Callable[[Sequence[Agent]], None], ends: Sequence[Communicator | None]) -> measure.Case:
        return measure.Case(run=functools.partial(run, [Agent(model, rank, end) for rank, end in enumerate(ends)]))

    return {
        "apart": case(apart, [None] * n),
        "in turn": case(in_turn, [None] * n),
        "simulated": case(in_turn, simulate(n)),
        "by rounds": case(apart, simulate(n)),
    }


def _figures(times: dict[str, measure.Times]) -> list[report.Cell]:
    floor, turns, simulated, by_rounds = (times[case].median for case in COLUMNS[2:6])
    best = times["simulated"].best / times["apart"].best
    ratios = [simulated / floor, best, turns / floor, by_rounds / floor]
    real = times["processes"].median if "processes" in times else None
    beside: list[report.Cell] = ["-", "-"] if real is None else [real * 1e3, simulated / real]
    return [floor * 1e3, turns * 1e3, simulated * 1e3, by_rounds * 1e3, *ratios, *beside]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every model with every number of agents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("mlp", "cnn"), default=["mlp", "cnn"])
    parser.add_argument("--agents", type=int, nargs="+", default=[2, 8, 32], help="simulated in one process")
    parser.add_argument("--processes", type=int, default=2, help="real agents, beside as many simulated ones")
    parser.add_argument("--threads", type=int, default=1, help="of each process (%(default)s)")
    report.add_options(parser, rounds=21)
    options = parser.parse_args(arguments)
    agents.run_agents(functools.partial(measure_all, options), options.processes)


if __name__ == "__main__":
    main()
