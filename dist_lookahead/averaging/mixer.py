"""Mixers: how the fast weights of a level's agents come together.

A level's `mix` is a description (`Alone()`, `Exact("world")`). For n agents it has weights W: agent j's average is
sum_i W_ij x_i, a different W in each of `period(mesh)` turns where it changes from sync to sync. That is all that the
theory knows of it. Bound to a communicator it becomes a `Mixer`, which works on flat tensors in two halves, with the
slow step between them:

    collect      afterwards the owned part of each tensor holds the sum over `agents` agents
    distribute   afterwards each whole tensor holds what the owners have made of it

A mixer keeps nothing from sync to sync. What it needs to remember it declares, and the level keeps it, saves it and
brings it back (`Memory`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dist_lookahead.comm.communicator import Communicator, Pending
from dist_lookahead.mesh import Mesh


@dataclass(frozen=True)
class Memory:
    """What a level keeps of a tensor from sync to sync for a mixer that compares.

    Attributes:
        reference: (D,), the slow weights, which all agents of the level share.
        residuals: what codes have lost and the next sync adds, one tensor for each stretch that the mixer asks for.
        draw: numbers that no other sync and no other tensor has, for codes that round at random.
    """

    reference: Tensor
    residuals: tuple[Tensor, ...]
    draw: tuple[int, ...]

    def of(self, part: slice) -> "Memory":
        """Return the memory of a part of the tensor, to which all residuals belong."""
        return replace(self, reference=self.reference[part])


class Mixer(Protocol):
    """A level's way to average, bound to a communicator."""

    @property
    def group(self) -> Communicator | None:
        """This agent's end of the group that has the same average; None where each agent has its own."""
        ...

    @property
    def agents(self) -> int:
        """Number of agents in the sum."""
        ...

    @property
    def communicates(self) -> bool:
        """Whether weights travel: not within a group whose agents hold the same ones already."""
        ...

    @property
    def sums_tails(self) -> bool:
        """Whether all elements of a tensor are summed over the group as they are, so that mail may travel with them."""
        ...

    @property
    def compares(self) -> bool:
        """Whether it sends differences from the slow weights, and so needs a `Memory` of each tensor."""
        ...

    @property
    def shards(self) -> int:
        """Number of parts into which the slow state is split."""
        ...

    @property
    def parts(self) -> int:
        """Number of equal parts into which a tensor must be divisible."""
        ...

    def owned(self, length: int) -> slice:
        """Return the part of a tensor of `length` whose slow state this agent keeps."""
        ...

    def residuals(self, length: int) -> tuple[slice, ...]:
        """Return the stretches of a tensor of `length` for which this agent keeps what its codes have lost."""
        ...

    def collect(self, tensors: Sequence[Tensor], turn: int, memory: Sequence[Memory]) -> Pending:
        """Sum the tensors over the agents, in place; all are under way before the first is waited for.

        Args:
            tensors: flat, each of a multiple of `parts` elements.
            turn: how often the level has fired before, for averages that change from sync to sync.
            memory: of each tensor, where the mixer compares; else empty.
        """
        ...

    def phases(self, tensors: int) -> list[int]:
        """Return of how many works `collect` waits in each phase, before it starts the next one.

        Args:
            tensors: number of tensors to collect.
        """
        ...

    def distribute(self, tensors: Sequence[Tensor]) -> Pending:
        """Bring each owner's part to everybody."""
        ...


@dataclass(frozen=True)
class Alone:
    """No averaging: the agent's own fast weights, P = I over the other agents.

    Example:
        >>> Alone()
        Alone()
    """

    @property
    def communicates(self) -> bool:
        """Whether other agents take part."""
        return False

    @property
    def shard(self) -> bool:
        """Whether the slow state is split over the agents."""
        return False

    @property
    def weighted(self) -> None:
        """What agents are weighted by: nothing."""
        return None

    def period(self, mesh: Mesh) -> int:
        """Return the number of different turns."""
        return 1

    def weights(self, mesh: Mesh, turn: int = 0) -> Tensor:
        """Return the averaging weights W (n, n), float64: the identity."""
        return torch.eye(mesh.size, dtype=torch.float64)

    def alike(self, mesh: Mesh, below: Sequence[str]) -> tuple[str, ...]:
        """Return the axes along which agents hold the same weights afterwards, given those from before."""
        return tuple(below)

    def bind(self, communicator: Communicator, alike: Collection[str] = ()) -> Mixer:
        """Return the mixer of an agent that listens to itself only."""
        return Own(None)


class Own:
    """The mixer of one agent: the sum over one is the tensor itself.

    Args:
        group: of agents that all hold the same weights already; None for a level of one agent.
    """

    agents = 1
    communicates = False
    sums_tails = False
    compares = False
    shards = 1
    parts = 1

    def __init__(self, group: Communicator | None) -> None:
        self.group = group

    def owned(self, length: int) -> slice:
        """Return all of it."""
        return slice(0, length)

    def residuals(self, length: int) -> tuple[slice, ...]:
        """Return none: nothing is sent."""
        return ()

    def collect(self, tensors: Sequence[Tensor], turn: int, memory: Sequence[Memory]) -> Pending:
        """Nothing is to be collected."""
        yield from ()

    def phases(self, tensors: int) -> list[int]:
        """Return none: nothing is waited for."""
        return []

    def distribute(self, tensors: Sequence[Tensor]) -> Pending:
        """Nothing is to be distributed."""
        yield from ()
