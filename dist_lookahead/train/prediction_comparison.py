"""Measured mean and variance of a run on noisy quadratics, beside those that theory predicts.

The weights of R repetitions are R independent Gaussian samples. With their mean m and variance s^2 the intervals are

    m +- z s / sqrt(R),    s^2 +- z s^2 sqrt(2 / (R - 1)),    z = 2.576 for 99 %,

each for one value: of many, about one in a hundred lies outside by chance.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from dist_lookahead.theory.trajectory import Trajectory

CONFIDENCE = 0.99
ROWS = 8  # of coordinates in the table


def normal_quantile(values: int = 1) -> float:
    """Return z such that all of so many Gaussian values lie within z standard errors with 99 %, dependent or not.

    Args:
        values: number of values; by Bonferroni each may fail with 1 % / values.

    Example:
        >>> round(normal_quantile(), 3), round(normal_quantile(100), 3)
        (2.576, 3.891)
    """
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * values))


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """Means, or variances, of all coordinates at one evaluation.

    Attributes:
        step: fast steps done.
        weights: "slow" or "averaged".
        quantity: "mean" or "variance".
        predicted: (d,).
        measured: (d,).
        half_width: (d,), of the 99 % interval around what is measured.
    """

    step: int
    weights: str
    quantity: str
    predicted: Tensor
    measured: Tensor
    half_width: Tensor

    @property
    def inside(self) -> Tensor:
        """Whether the interval holds the prediction, (d,)."""
        return (self.measured - self.predicted).abs() <= self.half_width

    @property
    def standard_errors(self) -> Tensor:
        """How far the prediction is from what is measured, in standard errors, (d,)."""
        return (self.measured - self.predicted).abs() / self.half_width * normal_quantile()


def compare(trajectory: Trajectory, records: Iterable[Mapping[str, Any]], repetitions: int) -> list[Compared]:
    """Put predictions beside the evaluations of a run.

    Args:
        trajectory: the prediction.
        records: the run's metrics; of evaluations of the same weights at the same step the last one counts.
        repetitions: R.
    """
    evaluations = {(r["step"], r["weights"]): r for r in records if r["kind"] == "evaluation"}
    return [
        one
        for (step, which), record in evaluations.items()
        for one in _both(trajectory, record, step=step, which=which, repetitions=repetitions)
    ]


def _both(
    trajectory: Trajectory, record: Mapping[str, Any], *, step: int, which: str, repetitions: int
) -> Iterator[Compared]:
    weights = trajectory.slow if which == "slow" else trajectory.average
    width = weights.mean.shape[1]
    mean, variance = (
        torch.tensor([record[f"{name}_{j}"] for j in range(width)], dtype=torch.float64)
        for name in ("mean", "variance")
    )
    z = normal_quantile()
    for quantity, predicted, measured, half in (
        ("mean", weights.mean[step], mean, z * (variance / repetitions).sqrt()),
        ("variance", weights.variance[step], variance, z * variance * (2 / (repetitions - 1)) ** 0.5),
    ):
        yield Compared(
            step=step, weights=which, quantity=quantity, predicted=predicted, measured=measured, half_width=half
        )


def verdict(compared: Sequence[Compared]) -> str:
    """Return how many of the measured values lie inside their intervals, in one sentence."""
    count = sum(one.inside.numel() for one in compared)
    inside = sum(int(one.inside.sum()) for one in compared)
    farthest = max(float(one.standard_errors.max()) for one in compared)
    return (
        f"{inside} of {count} measured values (mean and variance of each coordinate at each evaluation) have the "
        f"prediction inside their own 99 % interval. The farthest is {farthest:.1f} standard errors off; in 99 % of "
        f"runs none of them is further off than {normal_quantile(count):.1f} (Bonferroni)."
    )


def write(path: Path, compared: Sequence[Compared], repetitions: int) -> None:
    """Write all values as JSON, a line for each quantity of an evaluation."""
    about = {"repetitions": repetitions, "confidence": CONFIDENCE, "verdict": verdict(compared)}
    lines = [json.dumps({name: _plain(getattr(one, name)) for name in Compared.__slots__}) for one in compared]
    head = json.dumps(about)[1:-1]
    path.write_text("{" + head + ', "values": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def table(compared: Sequence[Compared]) -> Table:
    """Return the last evaluation of a run; of some coordinates, where there are many."""
    last = compared[-2:]
    width = len(last[0].predicted)
    shown = coordinates(width, ROWS)
    some = f"{len(shown)} of {width} " if len(shown) < width else ""
    title = f"{last[0].weights} weights after fast step {last[0].step}, {some}coordinates j, with 99 % intervals"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for heading in ("j", *(f"{what}\n{one.quantity}" for one in last for what in ("predicted", "measured"))):
        table.add_column(heading, justify="right", no_wrap=True)
    for j in shown:
        table.add_row(str(j), *(cell for one in last for cell in _cells(one, j)))
    return table


def _cells(one: Compared, j: int) -> tuple[str, str]:
    """Write to the second digit of the interval."""
    predicted, measured, half = (float(numbers[j]) for numbers in (one.predicted, one.measured, one.half_width))
    digits = max(1 - math.floor(math.log10(half)), 0)
    return f"{predicted:.{digits}f}", f"{measured:.{digits}f} ± {half:.{digits}f}"


def coordinates(width: int, most: int) -> list[int]:
    """Return at most so many coordinates, spread evenly from the first to the last.

    Example:
        >>> coordinates(3, 8), coordinates(100, 4)
        ([0, 1, 2], [0, 33, 66, 99])
    """
    if width <= most:
        return list(range(width))
    return [round(k * (width - 1) / (most - 1)) for k in range(most)]


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
