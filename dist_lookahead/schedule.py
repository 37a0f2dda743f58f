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
    """A straight line from `start` at step 0 to `stop` at step `steps`, constant afterwards.

    Example:
        >>> Linear(start=0.0, stop=1.0, steps=10)(5)
        0.5
    """

    start: float
    stop: float
    steps: int

    def __post_init__(self) -> None:
        _require_positive("Linear.steps", self.steps)

    def __call__(self, step: int) -> float:
        """Return the value after `step` fast steps."""
        done = min(step / self.steps, 1.0)
        return self.start + (self.stop - self.start) * done


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` at step 0 to `stop` at step `steps`, constant afterwards.

    Example:
        >>> round(Cosine(start=1.0, stop=0.0, steps=10)(5), 6)
        0.5
    """

    start: float
    stop: float
    steps: int

    def __post_init__(self) -> None:
        _require_positive("Cosine.steps", self.steps)

    def __call__(self, step: int) -> float:
        """Return the value after `step` fast steps."""
        done = min(step / self.steps, 1.0)
        return self.stop + (self.start - self.stop) * (1 + math.cos(math.pi * done)) / 2


def value_at(value: Scheduled, step: int) -> float:
    """Return the number itself, or the schedule's value after `step` fast steps."""
    return value(step) if isinstance(value, Schedule) else value


def check_scheduled(name: str, value: object) -> None:
    """Refuse what is neither a finite number nor a frozen schedule."""
    if isinstance(value, bool) or not isinstance(value, int | float | Schedule):
        raise ValueError(f"{name}={value!r} must be a number or a schedule such as Piecewise, Linear or Cosine")
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise ValueError(f"{name}={value!r} must be finite")
    elif not _is_description(value):
        raise ValueError(
            f"{name}={value!r} is a function that cannot be compared between agents or written to a file: "
            "make it a frozen dataclass with a __call__(step) method"
        )


def _is_description(value: object) -> bool:
    parameters = getattr(type(value), "__dataclass_params__", None)
    return dataclasses.is_dataclass(value) and parameters is not None and parameters.frozen


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value!r} must be at least 1")
