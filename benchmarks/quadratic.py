"""Many repetitions of a noisy quadratic by simulated agents, against the same arithmetic in plain torch.

Agent i has the loss a_i / 2 (x - c)^2 with random c. Each repetition is one element of its weight, so that one step of
its optimizer is a fast step of all of them. The formulas of `dist_lookahead.theory` are tested against such runs.
"""

import argparse
import itertools
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from benchmarks import measure, picture, report
from dist_lookahead import DistributedLookahead, simulate, slowmo

TAU, BETA, LR = 12, 0.6, 0.1
ABOUT = (
    f"Microseconds of one fast step of one agent, the sync after every {TAU} of them included, medians of interleaved "
    "rounds. floor: n SGD optimizers of torch in turn, and a sync by hand that moves one z for all agents; simulated: "
    "DistributedLookahead with slowmo, n simulated agents. Gradients are set in place, from noise drawn before. "
    "ratio: simulated / floor; at best: by the fastest rounds. M steps/s: millions of agents x repetitions x fast "
    "steps per second, simulated."
)
COLUMNS = ("agents", "repetitions", "floor", "simulated", "difference", "ratio", "at best", "M steps/s")
PICTURE = picture.Bars(panels=[["ratio"]], by=["agents", "repetitions"])


class Agents:
    """A weight for each agent, and its optimizer.

    Args:
        agents: n, >= 1.
        repetitions: elements of each weight.
    """

    def __init__(self, agents: int, repetitions: int) -> None:
        random = torch.Generator().manual_seed(1)
        self._draws = torch.randn(TAU, repetitions, generator=random, dtype=torch.float64)
        self._curvature = torch.linspace(0.5, 1.5, agents).tolist()
        self.weights = [nn.Parameter(torch.zeros(repetitions, dtype=torch.float64)) for _ in range(agents)]
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD([weight], lr=LR) for weight in self.weights]

    def round(self) -> None:
        """Take `TAU` fast steps on every agent."""
        for step in range(TAU):
            for agent, (weight, optimizer) in enumerate(zip(self.weights, self.optimizers, strict=True)):
                draw = self._draws[(step + agent) % TAU]
                torch.sub(weight.detach(), draw, out=weight.grad).mul_(self._curvature[agent])
                optimizer.step()


class Simulated(Agents):
    """Agents of the package: the last fast step of a round ends with the sync."""

    def __init__(self, agents: int, repetitions: int) -> None:
        super().__init__(agents, repetitions)
        self.optimizers = [
            DistributedLookahead(inner, slowmo(TAU, beta=BETA), communicator=end)
            for inner, end in zip(self.optimizers, simulate(agents), strict=True)
        ]


class ByHand(Agents):
    """The least that must be done: z and v are kept once, since they are the same on every agent."""

    def __init__(self, agents: int, repetitions: int) -> None:
        super().__init__(agents, repetitions)
        self._slow = torch.zeros(repetitions, dtype=torch.float64)
        self._momentum = torch.zeros_like(self._slow)

    def round(self) -> None:
        """Take `TAU` fast steps on every agent, then sync."""
        super().round()
        self._sync()

    @torch.no_grad()
    def _sync(self) -> None:
        total = self.weights[0].clone()
        for weight in self.weights[1:]:
            total.add_(weight)
        self._momentum.mul_(BETA).add_(total.div_(len(self.weights)).sub_(self._slow))
        self._slow.add_(self._momentum)
        for weight in self.weights:
            weight.copy_(self._slow)


def quadratic_row(agents: int, repetitions: int, rounds: int) -> list[report.Cell]:
    """Measure one number of agents at one number of repetitions."""
    cases = {
        "floor": measure.Case(run=ByHand(agents, repetitions).round),
        "simulated": measure.Case(run=Simulated(agents, repetitions).round),
    }
    times = measure.interleave(cases, rounds, torch.device("cpu"))
    floor, simulated = (times[case].median / (agents * TAU) for case in ("floor", "simulated"))
    best = times["simulated"].best / times["floor"].best
    figures = [floor * 1e6, simulated * 1e6, (simulated - floor) * 1e6, simulated / floor, best]
    return [agents, f"{repetitions:,}", *figures, repetitions / simulated / 1e6]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every number of agents at every number of repetitions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 8, 32], help="simulated in one process")
    parser.add_argument("--repetitions", type=int, nargs="+", default=[1, 1000, 10_000], help="elements of a weight")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    report.add_options(parser, rounds=101)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    before, rows = report.load_average(), []
    cases = list(itertools.product(options.agents, options.repetitions))
    for agents, repetitions in track(cases, "quadratic", console=Console(stderr=True)):
        rows.append(quadratic_row(agents, repetitions, options.rounds))
    load = before, report.load_average()
    table = report.Report(name="quadratic", about=ABOUT, columns=COLUMNS, rows=rows, load=load, picture=PICTURE)
    report.publish(table, options)


if __name__ == "__main__":
    main()
