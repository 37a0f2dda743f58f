"""How many agents a run has had, and since which fast step: what they have read together follows from that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Eras:
    """The stretches of a run between which its number of agents has changed.

    A turn is one fast step of one agent: in each turn as many samples are read, whatever the number of agents.

    Args:
        begun: (fast steps done before, number of agents) of each stretch; the first begins at 0.

    Raises:
        ValueError: for stretches that cannot follow each other so.

    Example:
        >>> eras = Eras(((0, 3), (100, 2)))
        >>> eras.turns(100), eras.turns(101), eras.step_of(302)
        (300, 302, 101)
    """

    begun: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.begun]
        if steps[:1] != [0] or any(a >= b for a, b in pairwise(steps)) or any(n < 1 for _, n in self.begun):
            raise ValueError(
                f"eras={[list(era) for era in self.begun]} must be pairs of a fast step and a number of agents, the "
                "steps from 0 on and increasing"
            )

    @classmethod
    def read(cls, plain: Sequence[Sequence[int]]) -> "Eras":
        """Read what `plain` returned."""
        return cls(tuple((step, agents) for step, agents in plain))

    def plain(self) -> list[list[int]]:
        """Return them for a checkpoint."""
        return [list(era) for era in self.begun]

    @property
    def agents(self) -> int:
        """Number of agents now."""
        return self.begun[-1][1]

    @property
    def since(self) -> int:
        """Fast step after which there have been as many as now."""
        return self.begun[-1][0]

    def then(self, step: int, agents: int) -> "Eras":
        """Return them with another number of agents from a fast step on.

        Example:
            >>> Eras(((0, 3),)).then(100, 2).begun
            ((0, 3), (100, 2))
        """
        before = tuple(era for era in self.begun if era[0] < step)
        return self if agents == self.agents else Eras((*before, (step, agents)))

    def turns(self, step: int) -> int:
        """Return the turns that all agents together have taken up to a fast step."""
        return sum((end - begin) * agents for begin, end, agents in self.parts(step))

    def step_of(self, turns: Fraction | int) -> int:
        """Return the first fast step up to which so many turns have been taken."""
        begin, agents = max(era for era in self.begun if self.turns(era[0]) <= turns)
        return begin + math.ceil((turns - self.turns(begin)) / Fraction(agents))

    def parts(self, step: int) -> list[tuple[int, int, int]]:
        """Return (first, last fast step, agents) of each stretch up to a fast step."""
        ends = [*(begin for begin, _ in self.begun[1:]), step]
        return [(begin, min(end, step), n) for (begin, n), end in zip(self.begun, ends, strict=True) if begin < step]
