"""Binding levels: each description meets the agents, and becomes a mixer with slow state and counters to be filled."""

from collections.abc import Iterator, Sequence

from dist_lookahead.alike import likeness
from dist_lookahead.averaging.compressed import Compressed
from dist_lookahead.averaging.exact import Exact
from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.fragments import possible_cells
from dist_lookahead.guard import Guard, Watch
from dist_lookahead.level import Level
from dist_lookahead.mass import mass_of, require_exact_above
from dist_lookahead.pace import Pace


def bind_levels(
    levels: Sequence[Level],
    communicator: Communicator,
    data_parallel: str | None = None,
    cells: Sequence[Sequence[int]] = (),
    *,
    offload: bool = False,
    guard: Guard | None = None,
    recoverable: bool = False,
) -> Iterator[BoundLevel]:
    """Bind each level: it fires on the result of the one below, which leaves some agents alike and others not.

    Args:
        levels: innermost first.
        communicator: this agent's end of all agents.
        data_parallel: axis along which agents share their gradients, and so their weights.
        cells: the levels that act on the same parameters, innermost first; by default those that there can be.
        offload: whether slow state is kept in host memory.
        guard: of the means of agents that do not hold the same weights before.
        recoverable: whether averages leave the fast weights as they are until they have landed.

    Raises:
        ValueError: for a level that splits its slow weights over agents that do not hold the same, and for others that
            do not fit each other or the agents.
    """
    mesh = communicator.mesh
    shared = mesh.axes(data_parallel) if data_parallel else ()
    cells = cells or possible_cells([level.params for level in levels])
    require_exact_above(levels, cells, mesh)
    for index, (level, agents) in enumerate(zip(levels, likeness(levels, mesh, shared, cells), strict=True)):
        below, alike = agents.before, agents.after
        mixer = level.mix.bind(communicator, below)
        group = mixer.group
        everybody = len(mesh.group(alike, communicator.rank)) == communicator.size
        hearing = (communicator if everybody else group) if group and mixer.communicates else None
        if mixer.shards > 1 and alike != level.mix.alike(mesh, below):
            raise ValueError(
                f"levels[{index}].mix={level.mix}: a gossip above gives each agent slow weights of its own, and "
                "there is no z to be split over the agents: leave shard out"
            )
        watch = None
        # Agents that share their weights before it have met at a level below, which has looked at them.
        apart = hearing and (isinstance(mixer, Compressed) or mixer.agents == hearing.size > 1)
        if guard and apart and isinstance(level.mix, Exact):
            guard.check(index, level)
            watch = Watch(guard)
        weighs = (level.mix.weighted is not None or watch is not None) and mixer.communicates
        pace = Pace(level, communicator.rank, weighs=weighs)
        if pace.adaptive and communicator.size > 1 and (hearing is None or hearing.size < communicator.size):
            raise ValueError(
                f"levels[{index}].tau={level.when.tau} depends on what all agents know alike, and no mail of all of "
                f"them travels with mix={level.mix} here: give a number or a schedule of the step, or average exactly "
                "over all agents"
            )
        agreeing = group and set(group.members) <= set(mesh.group(alike, communicator.rank))
        due = 0 if pace.adaptive else level.when.after(0)
        mass = mass_of(level.mix, mesh, communicator.rank)
        kept = recoverable and mixer.communicates
        yield BoundLevel(
            index, level, mixer, hearing, group if agreeing else None, pace, due, mass, offload, watch, kept
        )
