"""A run's curves as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dist_lookahead.train.recorder import read_metrics

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"  # told apart by colour-blind readers too


def draw_curves(metrics: Path, picture: Path, title: str) -> None:
    """Draw loss, test metrics, distances and time of a run against its fast steps.

    Args:
        metrics: the run's JSON lines.
        picture: the PNG to write.
        title: above all.
    """
    records = list(read_metrics(metrics))
    syncs = [r for r in records if r["kind"] == "sync"]
    evaluations = [r for r in records if r["kind"] == "evaluation"]
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(2, 2)
    _losses(axes[0, 0], syncs, evaluations)
    _accuracy(axes[0, 1], evaluations)
    _distances(axes[1, 0], syncs)
    _time(axes[1, 1], syncs)
    for axis in axes.flat:
        axis.set_xlabel("fast steps")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    figure.savefig(picture, dpi=120)


def _column(records: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [record.get(name, float("nan")) for record in records]


def _losses(axis: Axes, syncs: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> None:
    axis.plot(_column(syncs, "step"), _column(syncs, "loss"), color=BLUE, label="training, mean of a round")
    for which, colour in (("slow", ORANGE), ("averaged", GREEN)):
        own = [r for r in evaluations if r["weights"] == which]
        if own:
            axis.plot(_column(own, "step"), _column(own, "loss"), "o-", color=colour, label=f"test, {which} weights")
    axis.set_ylabel("loss")
    if not any((np.asarray(line.get_ydata()) <= 0).any() for line in axis.lines):  # a game's may be of any sign
        axis.set_yscale("log")


def _accuracy(axis: Axes, evaluations: Sequence[Mapping[str, Any]]) -> None:
    for which, colour in (("slow", ORANGE), ("averaged", GREEN)):
        own = [r for r in evaluations if r["weights"] == which and "accuracy" in r]
        if own:
            values = [100 * value for value in _column(own, "accuracy")]
            axis.plot(_column(own, "step"), values, "o-", color=colour, label=f"{which} weights")
    axis.set_ylabel("test accuracy, %")
    axis.set_visible(bool(axis.lines))  # not every task has one


def _distances(axis: Axes, syncs: Sequence[Mapping[str, Any]]) -> None:
    for name, label, colour in (
        ("slow_step", "slow step |z' - z|", BLUE),
        ("distance", "mean from z", ORANGE),
        ("spread", "agents from their mean", GREEN),
        ("lookahead", "mean from y = X a", PURPLE),
    ):
        if any(record.get(name) for record in syncs):
            axis.plot(_column(syncs, "step"), _column(syncs, name), color=colour, label=label)
    axis.set_ylabel("distance at a sync")


def _time(axis: Axes, syncs: Sequence[Mapping[str, Any]]) -> None:
    compute, waiting = _column(syncs, "seconds_compute"), _column(syncs, "seconds_sync")
    axis.stackplot(
        _column(syncs, "step"),
        [1000 * s for s in compute],
        [1000 * s for s in waiting],
        labels=("fast steps", "syncs"),
        colors=(BLUE, ORANGE),
        alpha=0.8,
    )
    axis.set_ylabel("milliseconds per round")
