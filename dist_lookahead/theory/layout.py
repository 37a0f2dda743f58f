"""The columns of the state X: the agents' fast weights, then each level's slow weights and slow momentum.

Two agents share the z of a level, and a column, if they hold the same numbers at all times: where their averages are
the same at this level, and they share the z of the level above, which overwrites this one. That is a partition of the
agents for each level, found by refining the coarsest one until it no longer changes.

A code in which values travel (`codec`) changes no P_k and has no column: what it loses of an average, and the residuals
that give it back later, are not modelled. Nor is what it measures from with `Copy`: the x of the level's last sync.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh, as_mesh
from dist_lookahead.theory.modelled import modelled


@dataclass(frozen=True, slots=True)
class Place:
    """Where the columns of a level are.

    Attributes:
        slow: columns of z, empty where the level keeps none.
        momentum: columns of v, likewise.
        holders: for each agent the column, counted from the first, of its z.
        first: for each column the first agent that holds it.
    """

    slow: slice
    momentum: slice
    holders: tuple[int, ...]
    first: tuple[int, ...]

    @property
    def keeps_slow_weights(self) -> bool:
        """Whether the level has columns of z."""
        return self.slow.stop > self.slow.start


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the columns of a stack are.

    Attributes:
        levels: innermost first.
        mesh: of the n agents.
        names: of the S columns.
        fast: columns of the n fast weights.
        places: of each level's columns.
        averages: of each level, W (n, n) for each turn: agent j's average is sum_i W_ij x_i.
    """

    levels: tuple[Level, ...]
    mesh: Mesh
    names: tuple[str, ...]
    fast: slice
    places: tuple[Place, ...]
    averages: tuple[tuple[Tensor, ...], ...]

    def average(self, index: int, turn: int) -> Tensor:
        """Return the W of a level when it has fired `turn` times before."""
        return self.averages[index][turn % len(self.averages[index])]

    def mask(self) -> Tensor:
        """Return 1 for each x and z and 0 for each v, (S,)."""
        return torch.tensor([not name.startswith("v") for name in self.names], dtype=torch.float64)


def layout_of(levels: Sequence[Level], agents: int | Mesh) -> Layout:
    """Return the columns of a stack.

    Args:
        levels: innermost first.
        agents: n >= 1, or a mesh of agents.

    Raises:
        ValueError: for a stack that does not fit together, levels over parts of the parameters, and an axis that the
            mesh does not have.

    Example:
        >>> from dist_lookahead import Every, Exact, Pull
        >>> levels = [Level(Every(2), Exact("local"), Pull(0.5)), Level(Every(4), Exact("node"), Pull(0.5))]
        >>> layout_of(levels, Mesh((2, 2), ("node", "local"))).names
        ('x0', 'x1', 'x2', 'x3', 'z0@0,1', 'z0@2,3', 'z1')
    """
    levels, mesh = modelled(levels), as_mesh(agents)
    averages = tuple(_averages(index, level, mesh) for index, level in enumerate(levels))
    names, places = [f"x{agent}" for agent in range(mesh.size)], []
    for index, (level, holders) in enumerate(zip(levels, _partitions(averages, mesh.size), strict=True)):
        groups = [[agent for agent, own in enumerate(holders) if own == column] for column in sorted(set(holders))]
        endings = [""] if len(groups) == 1 else ["@" + ",".join(map(str, group)) for group in groups]
        edges = [len(names)]
        for letter, kept in (("z", level.move.keeps_slow_weights), ("v", level.move.keeps_momentum)):
            names += [f"{letter}{index}{ending}" for ending in endings if kept]
            edges.append(len(names))
        first = tuple(group[0] for group in groups)
        places.append(Place(slice(*edges[:2]), slice(*edges[1:]), holders, first))
    return Layout(levels, mesh, tuple(names), slice(0, mesh.size), tuple(places), averages)


def _averages(index: int, level: Level, mesh: Mesh) -> tuple[Tensor, ...]:
    try:
        return tuple(level.mix.weights(mesh, turn) for turn in range(level.mix.period(mesh)))
    except ValueError as error:
        raise ValueError(f"levels[{index}].mix: {error}") from error


def _partitions(averages: Sequence[Sequence[Tensor]], agents: int) -> list[tuple[int, ...]]:
    """Return for each level the number of the part that each agent is in."""
    parts = [(0,) * agents for _ in averages]
    while True:
        refined = []
        below: tuple[int, ...] = tuple(range(agents))  # before the first average all agents differ
        for index, turns in enumerate(averages):
            above = parts[index + 1] if index + 1 < len(parts) else (0,) * agents
            sources = _sources(turns, below)
            below = _numbered(list(zip(sources, parts[index], above, strict=True)))
            refined.append(below)
        if refined == parts:
            return parts
        parts = refined


def _sources(turns: Sequence[Tensor], below: Sequence[int]) -> list[Hashable]:
    """Return for each agent how much of each part below its average takes, in every turn."""
    shares = torch.nn.functional.one_hot(torch.tensor(below)).double().T
    taken = torch.cat([(shares @ weights).T for weights in turns], dim=1)
    return [tuple(row) for row in taken.mul(2**40).round().tolist()]  # equal up to rounding


def _numbered(keys: Sequence[Hashable]) -> tuple[int, ...]:
    """Number equal keys alike, in the order of their first appearance."""
    numbers: dict[Hashable, int] = {}
    return tuple(numbers.setdefault(key, len(numbers)) for key in keys)
