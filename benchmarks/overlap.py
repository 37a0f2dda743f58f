"""Rounds of local SGD whose average lands later, against the same fast steps without any communication.

On one machine the link is too fast to see much. Over a slow one between two nodes:

    torchrun --nnodes 2 --node-rank R --master-addr HOST --nproc-per-node 1 -m benchmarks.overlap
"""

import argparse
import functools
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from benchmarks import agents, measure, picture, report
from dist_lookahead import Copy, DistributedLookahead, Every, Exact, Level

NEVER = 10**9  # steps between syncs of agents that only compute
SIDE = 256  # of the matrices that are multiplied in a fast step
ABOUT = (
    "Milliseconds of a round of tau fast steps, medians of interleaved rounds, the slowest process of each round. Each "
    "round begins right after an average has landed and ends where the next one does, so that what is under way never "
    "has the time of another case. computing: the same fast steps without communication. bare: the all-reduce of the "
    "weights alone. ratio: round / computing; at best: by the fastest rounds."
)
COLUMNS = ("delay", "tau", "parameters", "agents", "round", "computing", "bare", "ratio", "at best")
PICTURE = picture.Bars(panels=[["round", "computing", "bare"]], by=["delay"])


class Trained:
    """An agent that computes in each fast step.

    Args:
        elements: of its only parameter.
        tau: fast steps between averages.
        delay: fast steps until one lands.
        multiplications: of matrices in each fast step.
        device: where it computes.
    """

    def __init__(self, elements: int, tau: int, delay: int, multiplications: int, device: torch.device) -> None:
        weight = nn.Parameter(torch.ones(elements, device=device))
        self._optimizer = DistributedLookahead(
            torch.optim.SGD([weight], lr=0.1), [Level(Every(tau, delay), Exact(), Copy())]
        )
        self._matrix, self._multiplications = torch.full((SIDE, SIDE), 1 / SIDE, device=device), multiplications
        self.train(delay)

    def train(self, steps: int) -> None:
        """Take fast steps; without gradients, so that all of their time is that of the multiplications."""
        for _ in range(steps):
            for _ in range(self._multiplications):
                self._matrix = self._matrix @ self._matrix
            self._optimizer.step()


def measure_all(options: argparse.Namespace) -> None:
    """Measure as one of the agents; rank 0 reports."""
    torch.set_num_threads(1)
    tau, elements, delays = options.tau, options.elements, sorted(set(options.delays))
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    flat, before = torch.zeros(elements, device=device), report.load_average()
    cases: dict[str, Callable[[], object]] = {"bare": functools.partial(dist.all_reduce, flat)}
    for name, every, delay in (("computing", NEVER, 0), *((f"delay {delay}", tau, delay) for delay in delays)):
        cases[name] = functools.partial(Trained(elements, every, delay, options.multiplications, device).train, tau)
    timed = {name: measure.Case(run=run, prepare=dist.barrier) for name, run in cases.items()}
    times = {
        name: agents.slowest(own, device)
        for name, own in measure.interleave(timed, options.rounds, device, wall=True).items()
    }
    computing, bare = times["computing"].median, times["bare"].median
    rows = []
    for delay in delays:
        took, counts = times[f"delay {delay}"], [delay, tau, f"{elements:,}", dist.get_world_size()]
        best = took.best / times["computing"].best
        rows.append([*counts, took.median * 1e3, computing * 1e3, bare * 1e3, took.median / computing, best])
    if dist.get_rank() == 0:
        load = before, report.load_average()
        table = report.Report(name="overlap", about=ABOUT, columns=COLUMNS, rows=rows, load=load, picture=PICTURE)
        report.publish(table, options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a round with each delay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=2, help="processes, where torchrun does not start them")
    parser.add_argument("--elements", type=int, default=1_000_000, help="number of parameters (%(default)s)")
    parser.add_argument("--tau", type=int, default=8, help="fast steps of a round (%(default)s)")
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 4, 7], help="of the averages, in fast steps")
    parser.add_argument("--multiplications", type=int, default=100, help="in each fast step (%(default)s)")
    report.add_options(parser, rounds=15)
    options = parser.parse_args(arguments)
    agents.run_agents(functools.partial(measure_all, options), options.agents)


if __name__ == "__main__":
    main()
