"""The section `quadratic`: noisy quadratics, of which theory knows mean and variance."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PlainSerializer, PlainValidator, model_validator
from torch import Tensor

from dist_lookahead.train.config_faults import Faults, shown
from dist_lookahead.train.config_lr import LrSchedule
from dist_lookahead.train.config_sections import Evaluation, Performance, Precision, Run, Section

Rows = tuple[tuple[float, ...], ...]


def read_rows(value: Any) -> Rows:
    """Read a number, one for each coordinate, or lists of them, one for each kind of agent.

    Example:
        >>> read_rows(1), read_rows([1.0, 0.1]), read_rows([[1.0], [2.0]])
        (((1.0,),), ((1.0, 0.1),), ((1.0,), (2.0,)))
    """
    given = value if isinstance(value, list | tuple) else [value]
    nested = bool(given) and all(isinstance(row, list | tuple) for row in given)
    rows = given if nested else [given]
    if not all(row and all(_is_number(number) for number in row) for row in rows):
        raise ValueError("must be a number, a list with one for each coordinate, or such a list for each kind of agent")
    return tuple(tuple(float(number) for number in row) for row in rows)


def write_rows(rows: Rows) -> float | list[float] | list[list[float]]:
    """Write rows as briefly as `read_rows` takes them.

    Example:
        >>> write_rows(((1.0,),)), write_rows(((1.0, 0.1),)), write_rows(((1.0,), (2.0,)))
        (1.0, [1.0, 0.1], [[1.0], [2.0]])
    """
    lists = [list(row) for row in rows]
    if len(lists) > 1:
        return lists
    return lists[0] if len(lists[0]) > 1 else lists[0][0]


Numbers = Annotated[Rows, PlainValidator(read_rows), PlainSerializer(write_rows)]


class Spectrum(Section):
    """Curvatures that decay by a power law: a_j = largest / j^power for j = 1 .. coordinates."""

    coordinates: int = Field(ge=1)
    """Number of coordinates."""
    largest: float = Field(default=1.0, gt=0)
    """Curvature of the first coordinate."""
    power: float = Field(default=1.0, ge=0)
    """How fast curvatures decay; 0 for not at all."""


class Quadratic(Section):
    """Agent i has the loss sum_j a_ij / 2 (x_j - c_j)^2 with fresh c_j ~ N(mu_ij, sigma_ij^2) at each fast step.

    All numbers are one for all coordinates, a list with one for each coordinate, or a list of such lists, one for each
    kind of agent. Agent r is of kind r mod m.
    """

    curvature: Numbers | None = None
    """a, above 0. Give this or `spectrum`."""
    spectrum: Spectrum | None = None
    """Curvatures by a power law, a_j = largest / j^power. Give this or `curvature`."""
    noise: Numbers = ((1.0,),)
    """sigma, the standard deviation of c, above 0."""
    offsets: Numbers = ((0.0,),)
    """mu, the minima. Here, in curvature and in noise a list of m lists gives one to each kind of agent, r mod m."""
    start: Numbers = ((1.0,),)
    """Weights before the first fast step, the same on all agents."""
    repetitions: int = Field(default=10_000, ge=100)
    """Independent runs at once, over which mean and variance are taken."""

    @property
    def samples(self) -> int:
        """Training samples: one for each kind of agent."""
        return max(len(rows) for rows in self._rows().values())

    # How it is fed: each agent draws the sample of its kind, alone, in its own process.
    batch_size: ClassVar[int] = 1
    workers: ClassVar[int] = 0
    pin_memory: ClassVar[bool] = False
    download: ClassVar[bool] = False

    def numbers(self, name: str) -> Tensor:
        """Return "curvature", "noise", "offsets" or "start", (1, d) or (m, d) in float64."""
        rows = self._rows()
        width = max(len(row) for part in rows.values() for row in part)
        return torch.tensor([row if len(row) > 1 else row * width for row in rows[name]], dtype=torch.float64)

    def _rows(self) -> dict[str, Rows]:
        curvature = self.curvature or ()
        if law := self.spectrum:
            curvature = (tuple(law.largest / j**law.power for j in range(1, law.coordinates + 1)),)
        return {"curvature": curvature, "noise": self.noise, "offsets": self.offsets, "start": self.start}

    @model_validator(mode="after")
    def _fits(self) -> "Quadratic":
        if (self.curvature is None) == (self.spectrum is None):
            given = "neither curvature nor" if self.curvature is None else "both curvature and"
            raise Faults([f"quadratic has {given} spectrum: give one of them"])
        rows = self._rows()
        faults = [
            f"quadratic.{name}={shown(write_rows(rows[name]))} must be above 0"
            for name in ("curvature", "noise")
            if any(number <= 0 for row in rows[name] for number in row)
        ]
        faults += _shape_faults(rows)
        if faults:
            raise Faults(faults)
        return self


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shape_faults(rows: Mapping[str, Rows]) -> Iterator[str]:
    """Lists of one number, and lists for one kind of agent, fit all others."""
    if len(rows["start"]) > 1:
        yield f"quadratic.start={shown(write_rows(rows['start']))} must be one list for all kinds of agents"
    kinds = {name: {len(part)} - {1} for name, part in rows.items() if name != "start"}
    widths = {name: {len(row) for row in part} - {1} for name, part in rows.items()}
    for what, sizes in (("kinds of agents", kinds), ("coordinates", widths)):
        if len(set().union(*sizes.values())) > 1:
            given = ", ".join(f"{'/'.join(map(str, sorted(size)))} in {name}" for name, size in sizes.items() if size)
            yield f"quadratic has different numbers of {what}: {given}; give the same number, or one for all"


def kinds_faults(agents: int, quadratic: Quadratic) -> Iterator[str]:
    """Say whether agents would change their kind from step to step."""
    if agents % quadratic.samples:
        yield (
            f"quadratic has {quadratic.samples} kinds of agents, which must divide agents={agents}: "
            f"use {quadratic.samples} agents or a multiple of it"
        )


def _kinds(agents: int, quadratic: Quadratic) -> Iterator[str]:
    """Under torchrun the file says 1, and the number of agents is known later."""
    return kinds_faults(agents, quadratic) if agents > 1 else iter(())


def _steps(run: Run, quadratic: Quadratic, lr_schedule: LrSchedule, evaluation: Evaluation) -> Iterator[str]:
    instead = "has no meaning without a data set"
    if run.epochs is not None:
        yield f"run.epochs={run.epochs:g} {instead}: give run.steps"
    if lr_schedule.unit == "epochs":
        yield f"lr_schedule.unit='epochs' {instead}: use steps"
    if evaluation.unit == "epochs" and evaluation.every not in (None, 1):
        yield f"evaluation.every={evaluation.every:g} epochs {instead}: use unit: steps, or 1 to evaluate at every sync"


def _double(quadratic: Quadratic, precision: Precision, performance: Performance) -> Iterator[str]:
    if precision != "fp32":
        yield f"precision={precision!r} has no effect on noisy quadratics, which are computed in float64: remove it"
    if performance.channels_last:
        yield "performance.channels_last=true has no effect on noisy quadratics, which have no images: remove it"


QUADRATIC_PAIRS: tuple[Callable[..., Iterator[str]], ...] = (_kinds, _steps, _double)
