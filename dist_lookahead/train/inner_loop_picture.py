"""The test metrics inside rounds as a picture: fast steps as lines, syncs as dots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from dist_lookahead.figures.style import BLUE, ORANGE, SMALL, label, new_figure, save
from dist_lookahead.train.progress import headlines

SHOWN = 3  # metrics in the picture, at most


def draw_inner_loop(picture: Path, title: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw each metric against the fast steps of the window, and write the numbers beside the picture as JSON.

    Args:
        picture: the PNG to write.
        title: above all.
        records: a run's metrics; those of kind "probe" are drawn, and without any nothing is written.
    """
    columns = joined([record for record in records if record["kind"] == "probe"])
    names = list(headlines({name: 0 for name in columns if name not in ("fast_step", "after")}))[:SHOWN]
    if not names:
        return
    figure, axes = new_figure(f"{title}: inside rounds", size=(5.5 * len(names), 4.2), columns=len(names))
    for axis, name in zip(axes, names, strict=True):
        _draw(axis, columns, name)
    save(figure, picture.parent, picture.stem, columns)


def joined(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return what records of probes hold as lists over all moments of the window."""
    names = dict.fromkeys(name for record in records for name in record if name not in ("kind", "step"))
    return {name: [value for record in records for value in record[name]] for name in names}


def _draw(axis: Axes, columns: Mapping[str, Sequence[Any]], name: str) -> None:
    moments = list(zip(columns["fast_step"], columns["after"], columns[name], strict=True))
    axis.plot([step for step, _, _ in moments], [value for _, _, value in moments], color=BLUE, alpha=0.5)
    for after, colour, what in (("step", BLUE, "after a fast step"), ("sync", ORANGE, "after a sync")):
        own = [(step, value) for step, kind, value in moments if kind == after]
        axis.plot(*zip(*own, strict=True), "o", color=colour, markersize=4, label=what) if own else None
    axis.legend(frameon=False, **SMALL)
    label(axis, x="fast steps", y=f"test {name}, mean of the agents' own weights")
