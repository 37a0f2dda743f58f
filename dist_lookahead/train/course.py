"""How far a run is at each fast step: its epochs, its learning rates, its evaluations and its end.

With one number of agents all of that is counted in fast steps. Where it has changed, it is counted in samples: a run
of so many epochs ends after them, and its learning rates go on where they were in their schedule. A run of so many fast
steps stays one; what its settings give in epochs is found by samples there too.
"""

import math
from dataclasses import replace
from fractions import Fraction

from dist_lookahead.comm.communicator import ring_bytes
from dist_lookahead.schedule import value_at
from dist_lookahead.train.config import Config
from dist_lookahead.train.eras import Eras


class Course:
    """The course of a run.

    Args:
        config: the run.
        samples: training samples of the task.
        eras: how many agents it has and has had.
    """

    def __init__(self, config: Config, *, samples: int, eras: Eras) -> None:
        self.eras, self._evaluation = eras, config.evaluation
        now = config.length(samples=samples, agents=eras.agents)
        self._whole = replace(now, eras=eras)
        self.total = self._whole.total
        self.period = config.evaluation.period(now)
        self._steps_per_epoch = samples / (config.feed.batch_size * eras.agents)
        self._turns_per_epoch = Fraction(samples, config.feed.batch_size)
        first = config.length(samples=samples, agents=eras.begun[0][1])
        self._stretched = len(eras.begun) > 1 and first.unit == "epochs"
        self._factor = config.lr_schedule.factor(first if self._stretched else self._whole)

    def rate_factor(self, step: int) -> float:
        """Return the factor of the learning rates in the fast step after so many."""
        # In fast steps of as many agents as there were at first.
        clock = self.eras.turns(step) // self.eras.begun[0][1] if self._stretched else step
        return value_at(self._factor, clock)

    def epochs(self, step: int) -> float:
        """Return how often all agents together have gone through the samples."""
        since = self.eras.since
        before = float(self.eras.turns(since) / self._turns_per_epoch)
        return before + (step - since) / self._steps_per_epoch

    def next_evaluation(self, step: int) -> int:
        """Return the fast step from which on the next evaluation after `step` is due; 0 for none but at the end."""
        every = self._evaluation.every
        if every is None or self.period is None:
            return 0
        if len(self.eras.begun) == 1 or self._evaluation.unit == "steps":
            return (step // self.period + 1) * self.period
        exact = Fraction(str(every))
        passed = math.floor(self.eras.turns(step) / self._turns_per_epoch / exact)
        return self.eras.step_of((passed + 1) * exact * self._turns_per_epoch)

    def ddp_bytes(self, step: int, weights: int) -> int:
        """Return what one agent would have sent to average gradients after every step.

        Args:
            step: fast steps done.
            weights: bytes of the gradients.
        """
        return sum((end - begin) * ring_bytes("all_reduce", weights, n) for begin, end, n in self.eras.parts(step))
