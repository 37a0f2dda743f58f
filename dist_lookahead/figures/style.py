"""One look for all figures: colours, sizes, labels, and the two files of each."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"  # Okabe and Ito: told apart by colour-blind readers too
RED, PURPLE, GREY = "#D55E00", "#CC79A7", "#666666"
SMALL = {"fontsize": 9, "title_fontsize": 9}  # of legends
DPI, COLOURS = 150, 128

Progress = Callable[[float], None]  # is told which part of a figure is done, 0 to 1


def silent(_done: float) -> None:
    """Tell nobody how far a figure is."""


def new_figure(title: str, *, size: tuple[float, float], rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row.

    Args:
        title: the figure's message.
        size: width and height in inches.
        rows: of panels.
        columns: of panels.
    """
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    panels = figure.subplots(rows, columns, squeeze=False)
    return figure, list(panels.flat)


def label(axis: Axes, *, x: str, y: str, title: str = "") -> None:
    """Name both axes of a panel, and draw its grid behind everything."""
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=10.5)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, folder: Path, name: str, numbers: Mapping[str, Any]) -> None:
    """Write NAME.png, and NAME.json with the numbers drawn, a line for each part of the figure.

    Args:
        figure: the picture.
        folder: made where it does not exist.
        name: of both files.
        numbers: names to numbers, tensors, and containers of them; what is not finite becomes null.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = BytesIO()
    figure.savefig(whole, format="png", dpi=DPI)
    Image.open(whole).convert("RGB").quantize(COLOURS).save(folder / f"{name}.png", optimize=True)  # a third as large
    lines = [f"{json.dumps(key)}: {json.dumps(_plain(value))}" for key, value in numbers.items()]
    (folder / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
