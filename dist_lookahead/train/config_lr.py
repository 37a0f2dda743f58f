"""The section `lr_schedule`: how the fast learning rate changes."""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from dist_lookahead.schedule import Cosine, InverseSqrt, Linear, Piecewise, Scheduled, Warmup
from dist_lookahead.train.config_faults import Faults
from dist_lookahead.train.config_length import RunLength, Unit
from dist_lookahead.train.config_sections import Section, as_tuple


class _WarmedUp(Section, ABC):
    """What all schedules share."""

    warmup: float = Field(default=0, ge=0)
    """Length of the linear warm-up, in `unit`; 0 for none."""
    unit: Unit = "steps"
    """Unit of warmup and milestones: fast steps or epochs."""

    def factor(self, length: RunLength) -> Scheduled:
        """Return the factor of the learning rate at each fast step, counted from 0."""
        warmup = length.steps(self.warmup, self.unit)
        after = self._after(warmup, length)
        return Warmup(steps=warmup, then=after) if warmup else after

    @abstractmethod
    def _after(self, warmup: int, length: RunLength) -> Scheduled:
        """Return the factor without its warm-up."""

    @model_validator(mode="after")
    def _whole_steps(self) -> "_WarmedUp":
        if self.unit == "steps" and self.warmup % 1:
            raise Faults([f"lr_schedule.warmup={self.warmup} must be a whole number of steps, or unit: epochs"])
        return self


class ConstantRate(_WarmedUp):
    """The rate as it is."""

    name: Literal["constant"] = "constant"
    """The rate as it is, after the warm-up."""

    def _after(self, warmup: int, length: RunLength) -> Scheduled:
        return 1.0

    @model_validator(mode="after")
    def _unit_has_effect(self) -> "ConstantRate":
        if self.unit != "steps" and self.warmup == 0:
            raise Faults([f"lr_schedule.unit={self.unit!r} has no effect without warmup; remove it"])
        return self


class MultistepRate(_WarmedUp):
    """The rate times gamma at each milestone."""

    name: Literal["multistep"]
    """A factor at each milestone."""
    milestones: Annotated[tuple[float, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    """When the rate is multiplied, increasing, counted from the start of the run, in `unit`."""
    gamma: float = Field(default=0.1, gt=0)
    """Factor at each milestone."""

    def _after(self, warmup: int, length: RunLength) -> Scheduled:
        milestones = tuple(length.steps(milestone, self.unit) for milestone in self.milestones)
        values = tuple(self.gamma**reached for reached in range(len(milestones) + 1))
        return Piecewise(values=values, boundaries=milestones)

    @model_validator(mode="after")
    def _in_order(self) -> "MultistepRate":
        faults, given = [], f"lr_schedule.milestones={list(self.milestones)}"
        if any(a >= b for a, b in pairwise((0, *self.milestones))):
            faults.append(f"{given} must be above 0 and increasing")
        if self.milestones[0] < self.warmup:
            faults.append(f"{given} must not begin before the end of lr_schedule.warmup={self.warmup:g}")
        if self.unit == "steps" and any(milestone % 1 for milestone in self.milestones):
            faults.append(f"{given} must be whole numbers of steps, or unit: epochs")
        if faults:
            raise Faults(faults)
        return self


class CosineRate(_WarmedUp):
    """Half a cosine from the end of the warm-up to the end of the run."""

    name: Literal["cosine"]
    """Half a cosine to the end of the run."""
    floor: float = Field(default=0.0, ge=0, lt=1)
    """Part of the rate that is left at the end."""

    def _after(self, warmup: int, length: RunLength) -> Scheduled:
        return Cosine(start=1.0, stop=self.floor, steps=length.total - warmup, begin=warmup)


class LinearRate(_WarmedUp):
    """A straight line from the end of the warm-up to the end of the run."""

    name: Literal["linear"]
    """A straight line to the end of the run."""
    floor: float = Field(default=0.0, ge=0, lt=1)
    """Part of the rate that is left at the end."""

    def _after(self, warmup: int, length: RunLength) -> Scheduled:
        return Linear(start=1.0, stop=self.floor, steps=length.total - warmup, begin=warmup)


class InverseSqrtRate(_WarmedUp):
    """The rate falls as one over the square root of the fast step, after a linear warm-up to its largest value."""

    name: Literal["inverse_sqrt"]
    """sqrt(n / step) from step n = warmup + hold on; with a warm-up alone the schedule of the first Transformer."""
    hold: float = Field(default=0, ge=0)
    """Length of the largest rate behind the warm-up, or in its place, in `unit`."""

    def _after(self, warmup: int, length: RunLength) -> Scheduled:
        return InverseSqrt(steps=warmup + length.steps(self.hold, self.unit))

    @model_validator(mode="after")
    def _falls_from_somewhere(self) -> "InverseSqrtRate":
        if self.warmup + self.hold == 0:
            fault = (
                "lr_schedule.warmup is missing: inverse_sqrt falls from its end on; 4000 steps are common, or a hold"
            )
            raise Faults([fault])
        if self.unit == "steps" and self.hold % 1:
            raise Faults([f"lr_schedule.hold={self.hold} must be a whole number of steps, or unit: epochs"])
        return self


LrSchedule = Annotated[
    ConstantRate | MultistepRate | CosineRate | LinearRate | InverseSqrtRate, Field(discriminator="name")
]
