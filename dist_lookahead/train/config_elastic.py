"""What does not go with `faults.agents: elastic`, where the number of agents may change when a run goes on.

It needs moments at which all agents hold the same weights and nothing else that differs for good, and samples that any
number of agents can share out.
"""

from collections.abc import Iterator

from dist_lookahead.averaging.exact import Exact
from dist_lookahead.fragments import WHOLE
from dist_lookahead.level import Level
from dist_lookahead.mesh import WORLD, Mesh
from dist_lookahead.train.config_inner import Inner
from dist_lookahead.train.config_levels import Levels
from dist_lookahead.train.config_mesh import write_mesh
from dist_lookahead.train.config_sections import FaultHandling

TASKS_OF_SO_MANY = {
    "language": "each row of its batches is a stream of its own, and there are as many streams as rows on all agents",
    "quadratic": "its samples are kinds of agents, each of which stays what it is",
}


def elastic(
    faults: FaultHandling, task: str, agents: int, mesh: Mesh | None, inner: Inner, levels: Levels
) -> Iterator[str]:
    """Say what depends on the number of agents, or has no moment at which they are all alike."""
    if faults.agents != "elastic":
        if faults.on_lost_agent == "continue":
            yield (
                "faults.on_lost_agent='continue' with faults.agents='fixed': those that are left are fewer; use elastic"
            )
        return
    for fault in _faults(task, agents, mesh, inner, levels):
        yield f"faults.agents='elastic' with {fault}"


def _faults(task: str, agents: int, mesh: Mesh | None, inner: Inner, levels: Levels) -> Iterator[str]:
    if task in TASKS_OF_SO_MANY:
        yield f"task={task!r}: {TASKS_OF_SO_MANY[task]}; use fixed"
    if agents > 1:
        yield f"agents={agents}: simulated agents are one process, and none of them is lost alone; use fixed"
    if mesh is not None:
        yield f"mesh={write_mesh(mesh)}, which says how many agents there are: leave mesh out"
    if inner.data_parallel != "none":
        yield f"inner.data_parallel={inner.data_parallel!r}, where some processes are one agent: use none"
    for index, level in enumerate(levels.stack):
        for fault in _level_faults(level, outermost=level is levels.stack[-1]):
            yield f"levels[{index}]{fault}"


def _level_faults(level: Level, *, outermost: bool) -> Iterator[str]:
    if level.when.delay:
        yield f".when.every.delay={level.when.delay}: an average is always under way or agents have gone on from it"
    if level.local_share:
        yield f".local_share={level.local_share:g}: agents go on from different weights after each sync"
    if level.params != WHOLE:
        yield f".params={level.params}: levels over parts of the parameters have their syncs at different times"
    mix = level.mix
    if mix.communicates and not isinstance(mix, Exact):
        yield f".mix={mix}: after it agents hold different weights; use mix: exact"
    elif isinstance(mix, Exact) and mix.axis != WORLD:
        yield f".mix.exact.axis={mix.axis!r}: who is in it changes with the number of agents; use world"
    elif isinstance(mix, Exact) and mix.shard:
        yield ".mix.exact.shard=true: each file holds the part of one agent of so many; use shard: false"
    elif not mix.communicates and outermost:
        yield f".mix={mix}: the outermost level must average over all agents; use mix: exact"
    elif not mix.communicates and level.move.keeps_momentum:
        yield f".move={level.move} and mix={mix}: each agent has a slow momentum of its own for good; use beta: 0"
