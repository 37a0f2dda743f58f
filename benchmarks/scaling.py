"""What a sync costs as the agents become more: seconds, and bytes that each of them sends.

A few agents are processes over gloo, which take the time of a sync; many are simulated in one process, where time says
nothing of a network, and count their bytes. Of exact averages, of exact ones first inside nodes of two agents and then
across, and of a gossip with one neighbour.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from torch import nn

from benchmarks import agents, measure, picture, report
from dist_lookahead import DistributedLookahead, Level, Mesh, OnePeerExponential, dpsgd, local_sgd, simulate
from dist_lookahead.comm.communicator import Communicator

NEAR = 2  # agents of a node
ITEM = 4  # bytes of a parameter
ABOUT = (
    "sync: milliseconds, median of interleaved rounds, the slowest process of each; all processes share this machine's "
    "cores, so that more of them need not be a slower network. bytes: sent by an agent for each parameter of float32 "
    "in a sync, as its communicator has counted them; far: those of them that leave its node, of two agents where the "
    "average is hierarchical, of one otherwise. by formula: 8 (n - 1) / n for exact; 4 + 4 (N - 1) / N over N = n / 2 "
    "nodes, of which far is the second; 4 for one neighbour, whatever n is."
)
COLUMNS = ("average", "agents", "as", "sync", "bytes", "by formula", "far", "far by formula")
PICTURE = picture.Lines(
    x="agents", panels=[["sync"], ["bytes", "by formula"], ["far", "far by formula"]], by=["average"], log=True
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Average:
    """An average under test.

    Args:
        levels: the recipe.
        nodes: how many nodes n agents are on.
        formula: bytes that each of n agents sends for a parameter, and those of them that leave its node.
    """

    levels: Callable[[], list[Level]]
    nodes: Callable[[int], int]
    formula: Callable[[int], tuple[float, float]]

    def mesh(self, n: int) -> Mesh:
        """Return n agents on their nodes."""
        return Mesh((self.nodes(n), n // self.nodes(n)), ("node", "local"))


def _exact(n: int) -> tuple[float, float]:
    sent = 2 * ITEM * (n - 1) / n
    return sent, sent


def _hierarchical(n: int) -> tuple[float, float]:
    near = 2 * ITEM * (NEAR - 1) / NEAR
    far = 2 * ITEM / NEAR * (n // NEAR - 1) / (n // NEAR)
    return near + far, far


def _gossip(n: int) -> tuple[float, float]:
    return ITEM, ITEM


AVERAGES = {
    "exact": Average(levels=lambda: local_sgd(tau=1), nodes=lambda n: n, formula=_exact),
    "hierarchical": Average(levels=lambda: local_sgd(tau=1), nodes=lambda n: n // NEAR, formula=_hierarchical),
    "gossip": Average(levels=lambda: dpsgd(OnePeerExponential(), tau=1), nodes=lambda n: n, formula=_gossip),
}


class Agent:
    """An agent with one parameter that has no gradient: all that its steps do is to average.

    Args:
        average: over its agents.
        n: how many.
        elements: of the parameter.
        communicator: of a simulated agent.
    """

    def __init__(self, average: Average, n: int, elements: int, communicator: Communicator | None = None) -> None:
        inner = torch.optim.SGD([nn.Parameter(torch.ones(elements))], lr=0.1)
        mesh = None if communicator else average.mesh(n)
        self._nodes = average.nodes(n)
        self._optimizer = DistributedLookahead(inner, average.levels(), mesh=mesh, communicator=communicator)
        self.step = self._optimizer.step

    def sent(self) -> tuple[int, int]:
        """Return the bytes sent so far, and those of them that have left the node."""
        end = self._optimizer.stack.communicator
        return end.bytes_sent, end.bytes_sent - end.bytes_along.get("local", 0) if self._nodes > 1 else 0


def simulated(name: str, n: int, elements: int) -> list[report.Cell]:
    """Return the row of n simulated agents."""
    average = AVERAGES[name]
    team = [Agent(average, n, elements, end) for end in simulate(average.mesh(n))]
    before: tuple[int, int] = (0, 0)
    for _ in range(2):  # what agents compare once, at their first sync, does not count
        before = team[0].sent()
        for agent in team:
            agent.step()
    return _row(name, n, elements, "simulated", "-", before, team[0].sent())


def measure_processes(rows: list[list[report.Cell]], elements: int, rounds: int) -> None:
    """Measure all averages as one of the processes; the first one has the rows."""
    torch.set_num_threads(1)
    n = dist.get_world_size()
    for name, average in AVERAGES.items():
        agent = Agent(average, n, elements)
        case = measure.Case(run=agent.step, prepare=dist.barrier)
        own = measure.interleave({name: case}, rounds, torch.device("cpu"))[name]
        seconds = torch.tensor(own.seconds, dtype=torch.float64)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        before = agent.sent()
        agent.step()
        rows.append(_row(name, n, elements, "processes", seconds.median().item() * 1e3, before, agent.sent()))


def _row(
    name: str, n: int, elements: int, kind: str, sync: report.Cell, before: tuple[int, int], after: tuple[int, int]
) -> list[report.Cell]:
    counted = [(new - old) / elements for new, old in zip(after, before, strict=True)]
    (sent, far), (all_of_it, leaving) = counted, AVERAGES[name].formula(n)
    return [name, n, kind, sync, sent, float(all_of_it), far, float(leaving)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure with a few processes, and count with many simulated agents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4, 8], help="numbers of real agents, even")
    numbers = [16, 32, 64, 128, 256, 512, 1024]
    parser.add_argument("--agents", type=int, nargs="+", default=numbers, help="numbers of simulated agents, even")
    parser.add_argument("--elements", type=int, default=1_000_000, help="parameters of a process (%(default)s)")
    parser.add_argument("--simulated", type=int, default=100_000, help="parameters of a simulated agent (%(default)s)")
    report.add_options(parser, rounds=21)
    options = parser.parse_args(arguments)
    if odd := [n for n in (*options.processes, *options.agents) if n < NEAR or n % NEAR]:
        parser.error(f"{odd} agents cannot be on nodes of {NEAR}: give even numbers")
    before, rows = report.load_average(), []
    console = Console(stderr=True)
    for n in track(options.processes, "processes", console=console):
        agents.run_agents(functools.partial(measure_processes, rows, options.elements, options.rounds), n)
    cases: list[tuple[str, int]] = list(itertools.product(AVERAGES, options.agents))
    for name, n in track(cases, "simulated", console=console):
        rows.append(simulated(name, n, options.simulated))
    rows.sort(key=lambda row: list(AVERAGES).index(str(row[0])))  # stable: by the number of agents within
    load = before, report.load_average()
    table = report.Report(name="scaling", about=ABOUT, columns=COLUMNS, rows=rows, load=load, picture=PICTURE)
    report.publish(table, options)


if __name__ == "__main__":
    main()
