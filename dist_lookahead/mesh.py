"""The agents as points of a grid with named axes, a pure description: no tensors, no process groups.

A level averages along an axis: `Exact("local")` over the agents of a node, `Exact("node")` over the agents with the
same place in each node, `Exact("world")` over all.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

WORLD = "world"
NODES = ("node", "local")  # axes that every run has: nodes, and agents on each of them


@dataclass(frozen=True)
class Mesh:
    """A grid of agents; ranks count along the last axis first, as in torch's `init_device_mesh`.

    Args:
        shape: number of agents along each axis, each >= 1.
        names: of the axes, such as ("node", "local"); "world" always means all agents and names no axis of several.

    Raises:
        ValueError: for sizes below 1, and for names that are missing, not unique, or "world" beside others.

    Example:
        >>> mesh = Mesh((2, 4), ("node", "local"))
        >>> mesh.size, mesh.group("local", rank=5), mesh.group("node", rank=5)
        (8, (4, 5, 6, 7), (1, 5))
        >>> mesh.group("world", rank=5) == mesh.group(("local", "node"), rank=5) == tuple(range(8))
        True
    """

    shape: tuple[int, ...]
    names: tuple[str, ...] = (WORLD,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "names", tuple(self.names))
        if len(self.shape) != len(self.names) or not self.shape:
            raise ValueError(f"Mesh has the shape {self.shape} and the names {self.names}: give one name for each axis")
        if min(self.shape) < 1:
            raise ValueError(f"Mesh.shape={self.shape}: at least 1 agent is needed along each axis")
        if len(set(self.names)) < len(self.names) or (WORLD in self.names and len(self.names) > 1):
            raise ValueError(f"Mesh.names={self.names} must differ, and 'world' stands for all axes together")

    @property
    def size(self) -> int:
        """Number of agents."""
        return math.prod(self.shape)

    def axes(self, name: str) -> tuple[str, ...]:
        """Return the axis of this name; for "world" all axes.

        Raises:
            ValueError: for an axis that does not exist.
        """
        if name != WORLD and name not in self.names:
            allowed = ", ".join(dict.fromkeys((*self.names, WORLD)))
            raise ValueError(f"axis {name!r} does not exist; allowed: {allowed}")
        return self.names if name == WORLD else (name,)

    def group(self, axis: str | Collection[str], rank: int) -> tuple[int, ...]:
        """Return the ranks along an axis, or along several, through an agent; itself among them, in order.

        Raises:
            ValueError: for an axis that does not exist.
        """
        along = {name for one in ([axis] if isinstance(axis, str) else axis) for name in self.axes(one)}
        ranks, stride = (rank,), self.size
        for name, size in zip(self.names, self.shape, strict=True):
            stride //= size
            if name in along:
                ranks = tuple(r - r // stride % size * stride + i * stride for r in ranks for i in range(size))
        return ranks

    def groups(self, axis: str | Collection[str]) -> list[tuple[int, ...]]:
        """Return the groups along an axis, or along several; each agent is in one of them.

        Raises:
            ValueError: for an axis that does not exist.

        Example:
            >>> Mesh((2, 2), ("node", "local")).groups("node")
            [(0, 2), (1, 3)]
        """
        groups: list[tuple[int, ...]] = []
        seen: set[int] = set()
        for rank in range(self.size):
            if rank not in seen:
                groups.append(self.group(axis, rank))
                seen.update(groups[-1])
        return groups


def as_mesh(agents: int | Mesh) -> Mesh:
    """Return the mesh itself, or that of n agents with the single axis "world".

    Example:
        >>> as_mesh(4)
        Mesh(shape=(4,), names=('world',))
    """
    if isinstance(agents, Mesh):
        return agents
    if agents < 1:
        raise ValueError(f"agents={agents}: at least 1 agent is needed")
    return Mesh((agents,))
