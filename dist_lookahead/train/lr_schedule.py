"""The factor of the fast learning rate: a pure function of the fast step, for torch's `LambdaLR`.

Step k, counted from 0, is taken with the learning rate lr * factor(k).
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol


class Factor(Protocol):
    """The factor at a fast step."""

    def __call__(self, step: int) -> float:
        """Return the factor at fast step `step`, counted from 0."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """Always 1.

    Example:
        >>> Constant()(1000)
        1.0
    """

    def __call__(self, step: int) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Multistep:
    """gamma^m after m milestones.

    Args:
        milestones: fast steps from which the next power holds, increasing.
        gamma: factor of one milestone.

    Example:
        >>> factor = Multistep(milestones=(10, 20), gamma=0.5)
        >>> factor(9), factor(10), factor(20)
        (1.0, 0.5, 0.25)
    """

    milestones: tuple[int, ...]
    gamma: float

    def __call__(self, step: int) -> float:
        """Return gamma to the number of milestones reached."""
        return float(self.gamma ** bisect_right(self.milestones, step))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine:
    """Half a cosine from 1 at fast step `start` to `floor` at `stop`; 1 before, `floor` after.

    Args:
        start: first step of the decay.
        stop: number of steps of the run, > start.
        floor: factor at the end.

    Example:
        >>> round(Cosine(start=0, stop=10, floor=0.0)(5), 6)
        0.5

    Reference: arXiv 1608.03983, eq. 5, without restarts.
    """

    start: int
    stop: int
    floor: float

    def __call__(self, step: int) -> float:
        """Return the factor at fast step `step`."""
        done = _done(step, self.start, self.stop)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A straight line from 1 at fast step `start` to `floor` at `stop`; 1 before, `floor` after.

    Args:
        start: first step of the decay.
        stop: number of steps of the run, > start.
        floor: factor at the end.

    Example:
        >>> Linear(start=0, stop=10, floor=0.0)(5)
        0.5
    """

    start: int
    stop: int
    floor: float

    def __call__(self, step: int) -> float:
        """Return the factor at fast step `step`."""
        return 1 + (self.floor - 1) * _done(step, self.start, self.stop)


@dataclass(frozen=True, kw_only=True, slots=True)
class Warmup:
    """Linear warm-up: (k + 1) / steps times what follows, for the first `steps` fast steps.

    It is never 0 and reaches 1 at step `steps` - 1.

    Args:
        steps: length, >= 1.
        then: the factor that is warmed up; its own steps count from 0 too.

    Example:
        >>> [Warmup(steps=4, then=Constant())(step) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]

    Reference: arXiv 1706.02677, section 2.2 (there from 1/n instead of 1/steps).
    """

    steps: int
    then: Factor

    def __call__(self, step: int) -> float:
        """Return the factor at fast step `step`."""
        return min((step + 1) / self.steps, 1.0) * self.then(step)


def _done(step: int, start: int, stop: int) -> float:
    """Return which part of the way from `start` to `stop` is done, in [0, 1]."""
    return min(max((step - start) / (stop - start), 0.0), 1.0)
