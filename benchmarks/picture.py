"""Pictures of a benchmark's table: columns of numbers as bars, one for each row, or as lines over another column."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from dist_lookahead.figures.style import BLUE, DPI, GREEN, GREY, ORANGE, PURPLE, RED, SMALL, label, new_figure

Cell = str | int | float
Rows = Sequence[Mapping[str, Cell]]  # each from column to cell
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)
STYLES = ("o-", "x--", "s:")  # of the columns that share a panel
THICKNESS = 0.8  # of all bars of a row together, where rows are 1 apart
INCHES = 0.24  # of a row of bars


@dataclass(frozen=True, kw_only=True, slots=True)
class Bars:
    """Horizontal bars, a row of them for each row of the table.

    Args:
        panels: the columns that are drawn beside each other in each panel.
        by: columns that name a row.
        log: whether the axis of numbers is logarithmic.
    """

    panels: Sequence[Sequence[str]]
    by: Sequence[str]
    log: bool = False

    def height(self, rows: Rows) -> float:
        """Return the height in inches."""
        return 1.6 + INCHES * len(rows) * max(len(columns) for columns in self.panels)

    def draw(self, axis: Axes, columns: Sequence[str], rows: Rows) -> None:
        """Draw one panel."""
        thickness = THICKNESS / len(columns)
        for index, column in enumerate(columns):
            places = [row + (index - (len(columns) - 1) / 2) * thickness for row in range(len(rows))]
            axis.barh(places, _numbers(rows, column), thickness, color=COLOURS[index % len(COLOURS)], label=column)
        axis.set_yticks(range(len(rows)), [_name(row, self.by) for row in rows], fontsize=8)
        axis.invert_yaxis()
        if self.log:
            axis.set_xscale("log")
        label(axis, x=columns[0] if len(columns) == 1 else "", y="")
        if len(columns) > 1:
            axis.legend(frameon=False, **SMALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lines:
    """Lines over a column of numbers, one for each combination of other columns.

    Args:
        x: column of the horizontal axis, which is logarithmic.
        panels: the columns that are drawn over it in each panel.
        by: columns that name a line.
        log: whether the vertical axis is logarithmic.
    """

    x: str
    panels: Sequence[Sequence[str]]
    by: Sequence[str]
    log: bool = False

    def height(self, _rows: Rows) -> float:
        """Return the height in inches."""
        return 4.5

    def draw(self, axis: Axes, columns: Sequence[str], rows: Rows) -> None:
        """Draw one panel."""
        names = dict.fromkeys(_name(row, self.by) for row in rows)
        for number, name in enumerate(names):
            own = [row for row in rows if _name(row, self.by) == name]
            for style, column in zip(STYLES, columns, strict=False):
                text = name if len(columns) == 1 else f"{name}: {column}"
                colour = COLOURS[number % len(COLOURS)]
                axis.plot(_numbers(own, self.x), _numbers(own, column), style, color=colour, label=text)
        axis.set_xscale("log")
        if self.log:
            axis.set_yscale("log")
        label(axis, x=self.x, y=columns[0])
        axis.legend(frameon=False, **SMALL)


Picture = Bars | Lines


def save(picture: Picture, title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], file: Path) -> None:
    """Write the picture of a table as PNG.

    Args:
        picture: which columns, and how.
        title: above it.
        columns: headings of the table.
        rows: one cell per column; cells that are no numbers leave a gap where a number is drawn.
        file: to write.

    Raises:
        ValueError: where the picture asks for columns that the table has not.
    """
    asked = [*(column for panel in picture.panels for column in panel), *picture.by]
    if unknown := [column for column in asked if column not in columns]:
        raise ValueError(f"the table has no columns {unknown}: draw some of {list(columns)}")
    table = [dict(zip(columns, row, strict=True)) for row in rows]
    size = (6.5 * len(picture.panels), picture.height(table))
    figure, axes = new_figure(title, size=size, columns=len(picture.panels))
    for axis, panel in zip(axes, picture.panels, strict=True):
        picture.draw(axis, panel, table)
    figure.savefig(file, format="png", dpi=DPI)


def _name(row: Mapping[str, Cell], by: Sequence[str]) -> str:
    return ", ".join(f"{row[column]:g}" if isinstance(row[column], float) else str(row[column]) for column in by)


def _numbers(rows: Rows, column: str) -> list[float]:
    return [_number(row[column]) for row in rows]


def _number(cell: Cell) -> float:
    try:
        return float(cell.replace(",", "")) if isinstance(cell, str) else cell
    except ValueError:
        return math.nan
