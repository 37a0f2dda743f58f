"""Schedules: values of tau, alpha or beta that change with the fast step.

A schedule is a frozen description called with the number of fast steps done so far. Frozen descriptions can be
compared between agents, printed, and written to YAML and back; a bare function can not, so it is refused.
"""

import dataclasses
import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """A value that depends on the fast step."""

    def __call__(self, step: int) -> float:
        """Return the value after `step` fast steps."""
        ...


Scheduled = float | Schedule


@dataclass(frozen=True)
class Piecewise:
    """Constant pieces: values[i] from boundaries[i - 1] on, before boundaries[i].

    Args:
        values: one more value than there are boundaries.
        boundaries: fast steps at which the value changes, increasing.

    Example:
        >>> tau = Piecewise(values=(1, 12), boundaries=(1000,))
        >>> tau(999), tau(1000)
        (1, 12)
    """

    values: tuple[float, ...]
    boundaries: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "boundaries", tuple(self.boundaries))
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"Piecewise has {len(self.values)} values and {len(self.boundaries)} boundaries: "
                "give one more value than boundaries"
            )
        if any(a >= b for a, b in zip((0, *self.boundaries), self.boundaries, strict=False)):
            raise ValueError(f"Piecewise.boundaries={self.boundaries} must be positive and increasing")

    def __call__(self, step: int) -> float:
        """Return the value after `step` fast steps."""
        return self.values[bisect_right(self.boundaries, step)]


@dataclass(frozen=True)
class Linear:
    """A straight line from `start` at step `begin` to `stop`, `steps` steps later; constant before and after.

    Args:
        start: first value.
        stop: last value.
        steps: length, >= 1.
        begin: fast step at which the change begins, >= 0.

    Example:
        >>> Linear(start=0.0, stop=1.0, steps=10)(5)
        0.5
    """

    start: float
    stop: float
    steps: int
    begin: int = 0

    def __post_init__(self) -> None:
        _check_stretch("Linear", self.steps, self.begin)

    def __call__(self, step: int) -> float:
        """Return the value after `step` fast steps."""
        return self.start + (self.stop - self.start) * _done(step, self.begin, self.steps)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` at step `begin` to `stop`, `steps` steps later; constant before and after.

    Args:
        start: first value.
        stop: last value.
        steps: length, >= 1.
        begin: fast step at which the change begins, >= 0.

    Example:
        >>> round(Cosine(start=1.0, stop=0.0, steps=10)(5), 6)
        0.5

    Reference: arXiv 1608.03983, eq. 5, without restarts.
    """

    start: float
    stop: float
    steps: int
    begin: int = 0

    def __post_init__(self) -> None:
        _check_stretch("Cosine", self.steps, self.begin)

    def __call__(self, step: int) -> float:
        """Return the value after `step` fast steps."""
        done = _done(step, self.begin, self.steps)
        return self.stop + (self.start - self.stop) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class InverseSqrt:
    """sqrt(steps / (k + 1)) from step k = `steps` - 1 on, 1 before: behind a warm-up of so many steps, it joins on.

    Args:
        steps: up to which the value is 1, >= 1.

    Example:
        >>> [InverseSqrt(steps=4)(step) for step in (0, 3, 15)]
        [1.0, 1.0, 0.5]

    Reference: arXiv 1706.03762, eq. 3, in units of its largest value.
    """

    steps: int

    def __post_init__(self) -> None:
        _check_stretch("InverseSqrt", self.steps, 0)

    def __call__(self, step: int) -> float:
        """Return the value after `step` fast steps."""
        return min(math.sqrt(self.steps / (step + 1)), 1.0)


@dataclass(frozen=True)
class Warmup:
    """(k + 1) / steps times another value for the first `steps` fast steps: never 0, and 1 at step `steps` - 1.

    Args:
        steps: length, >= 1.
        then: the value that is warmed up; its own steps count from 0 too.

    Example:
        >>> [Warmup(steps=4, then=1.0)(step) for step in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]

    Reference: arXiv 1706.02677, section 2.2 (there from 1/n instead of 1/steps).
    """

    steps: int
    then: Scheduled

    def __post_init__(self) -> None:
        _check_stretch("Warmup", self.steps, 0)
        check_scheduled("Warmup.then", self.then)

    def __call__(self, step: int) -> float:
        """Return the value after `step` fast steps."""
        return min((step + 1) / self.steps, 1.0) * value_at(self.then, step)


def value_at(value: Scheduled, step: int) -> float:
    """Return the number itself, or the schedule's value after `step` fast steps."""
    # Numbers first: to ask whether something is a Schedule takes longer than the rest of a sync's bookkeeping.
    return value if isinstance(value, int | float) else value(step)


def check_scheduled(name: str, value: object) -> None:
    """Refuse what is neither a finite number nor a frozen schedule."""
    if isinstance(value, bool) or not isinstance(value, int | float | Schedule):
        raise ValueError(f"{name}={value!r} must be a number or a schedule such as Piecewise, Linear or Cosine")
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise ValueError(f"{name}={value!r} must be finite")
    elif not is_description(value):
        raise ValueError(
            f"{name}={value!r} is a function that cannot be compared between agents or written to a file: "
            "make it a frozen dataclass with a __call__(step) method"
        )


def is_description(value: object) -> bool:
    """Whether a value is a frozen dataclass."""
    parameters = getattr(type(value), "__dataclass_params__", None)
    return dataclasses.is_dataclass(value) and parameters is not None and parameters.frozen


def _done(step: int, begin: int, steps: int) -> float:
    """Which part of the way is done, in [0, 1]."""
    return min(max((step - begin) / steps, 0.0), 1.0)


def _check_stretch(name: str, steps: int, begin: int) -> None:
    if steps < 1:
        raise ValueError(f"{name}.steps={steps!r} must be at least 1")
    if begin < 0:
        raise ValueError(f"{name}.begin={begin!r} must be at least 0")
