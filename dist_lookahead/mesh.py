"""The agents as points of a grid with named axes, a pure description: no tensors, no process groups.

A level averages along an axis: `Exact("local")` over the agents of a node, `Exact("node")` over the agents with the
same place in each node, `Exact("world")` over all.
"""

import math
from dataclasses import dataclass

WORLD = "world"


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

    def group(self, axis: str, rank: int) -> tuple[int, ...]:
        """Return the ranks along an axis through an agent, itself among them, in order.

        Raises:
            ValueError: for an axis that does not exist.
        """
        if axis == WORLD:
            return tuple(range(self.size))
        if axis not in self.names:
            allowed = ", ".join(dict.fromkeys((*self.names, WORLD)))
            raise ValueError(f"axis {axis!r} does not exist; allowed: {allowed}")
        place = self.names.index(axis)
        stride = math.prod(self.shape[place + 1 :])
        first = rank - rank // stride % self.shape[place] * stride
        return tuple(range(first, first + stride * self.shape[place], stride))


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
