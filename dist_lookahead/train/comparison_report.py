"""The files of a comparison: picture, numbers and table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from dist_lookahead.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SMALL, label, new_figure, save
from dist_lookahead.train.comparison import Curve, curve, grouped, named, names_of_curves, read_entries, tuned
from dist_lookahead.train.inner_loop_table import inside_rounds
from dist_lookahead.train.result_table import markdown, title

NAME, TABLE = "comparison", "comparison.md"
COLOURS, LINES = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY), ("-", "--", ":")
UNITS = {"steps": "fast steps", "epochs": "epochs", "seconds": "seconds of training", "bytes": "bytes sent per agent"}


def write_comparison(
    folders: Sequence[Path],
    out: Path,
    *,
    x: str = "steps",
    y: Sequence[str] = (),
    group_by: Sequence[str] = (),
    only: Sequence[str] = (),
    tuned_over: Sequence[str] = (),
) -> str:
    """Write curves as PNG and JSON, and the table of final values as Markdown; return the table.

    Args:
        folders: of runs and sweeps.
        out: folder to write, made where it does not exist.
        x: "steps", "epochs", "seconds" or "bytes".
        y: what to draw, a panel each; none for losses and accuracy.
        group_by: settings in which the runs of a group agree; none for all settings but the seed.
        only: patterns of names; none for all runs.
        tuned_over: settings of which each group is shown at its best value alone, by final test loss.

    Raises:
        ValueError: a folder holds no run, or a name is unknown.
    """
    entries = named(read_entries(folders), only)
    groups = tuned(grouped(entries, group_by), tuned_over)
    names = names_of_curves(entries, y)
    if not names:
        raise ValueError("nothing is recorded yet in these runs: there is nothing to compare")
    curves = {name: {group.label: curve(group, name, x) for group in groups} for name in names}
    _draw(curves, out, x)
    table = "\n".join([*markdown(groups), *inside_rounds(groups)])
    (out / TABLE).write_text(f"{table}\n", encoding="utf-8")
    return table


def _draw(curves: Mapping[str, Mapping[str, Curve]], out: Path, x: str) -> None:
    figure, axes = new_figure("", size=(5.5 * len(curves), 4.4), columns=len(curves))
    for axis, (name, own) in zip(axes, curves.items(), strict=True):
        for index, (who, line) in enumerate(own.items()):
            _draw_line(axis, line, who, index)
        if "loss" in name:
            axis.set_yscale("log")
        label(axis, x=UNITS[x], y=title(name))
    axes[-1].legend(frameon=False, title="mean ± standard deviation", **SMALL)
    numbers = {name: {who: vars(line) for who, line in own.items()} for name, own in curves.items()}
    save(figure, out, NAME, {"x": x, **numbers})


def _draw_line(axis: Axes, line: Curve, who: str, index: int) -> None:
    colour, style = COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS) % len(LINES)]
    axis.plot(line.x, line.mean, style, color=colour, label=who, linewidth=1.3)
    low, high = ([m + sign * s for m, s in zip(line.mean, line.spread, strict=True)] for sign in (-1, 1))
    axis.fill_between(line.x, low, high, color=colour, alpha=0.2, linewidth=0)
