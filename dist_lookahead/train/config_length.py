"""The length of a run in fast steps, and periods given in steps or epochs."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from dist_lookahead.train.eras import Eras
from dist_lookahead.train.sampler import steps_for_epochs

Unit = Literal["steps", "epochs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLength:
    """How many fast steps a run, or a number of its epochs, has.

    Args:
        samples: training samples in an epoch.
        batch_size: samples per agent and fast step.
        agents: number of agents; all of them together go through an epoch once.
        amount: length of the run, in `unit`.
        unit: fast steps or epochs.
        eras: where the number of agents has changed, how many there were when: epochs then count from the run's start.

    Example:
        >>> length = RunLength(samples=100, batch_size=5, agents=2, amount=3, unit="epochs")
        >>> length.total, length.steps(0.5, "epochs")
        (30, 5)
    """

    samples: int
    batch_size: int
    agents: int
    amount: float
    unit: Unit
    eras: Eras | None = None

    @property
    def total(self) -> int:
        """Fast steps of the whole run, of each agent."""
        return self.steps(self.amount, self.unit)

    def steps(self, amount: float, unit: Unit) -> int:
        """Return `amount` in fast steps, rounded up."""
        if unit == "steps":
            return int(amount)
        if self.eras:
            return self.eras.step_of(Fraction(str(amount)) * self.samples / self.batch_size)
        return steps_for_epochs(amount, samples=self.samples, batch_size=self.batch_size, agents=self.agents)
