"""Numbers, tables and paragraphs of `dist-lookahead theory`, for 100 columns of a terminal or a pipe."""

import textwrap
from collections.abc import Sequence

WIDTH = 100
INDENT = 4
LARGE = 1e6
EXACT = 12  # digits that are not rounding, which would decide whether 0.0078125 is shown as 0.007812 or 0.007813
ZERO = 1e-12


def number(value: float) -> str:
    """Write a whole number as it is, others with four digits.

    Example:
        >>> number(2.5), number(1 / 3), number(-1e-17), number(19532), number(15_000_000)
        ('2.5', '0.3333', '0', '19532', '1.5e+07')
    """
    value = float(f"{value:.{EXACT}g}")
    if abs(value) < ZERO:
        return "0"
    return f"{value:.4g}" if value % 1 or abs(value) >= LARGE else f"{value:.0f}"


def coefficient(value: float) -> str:
    """Write a factor before a symbol: nothing for 1.

    Example:
        >>> coefficient(2.5), coefficient(1.0)
        ('2.5 ', '')
    """
    return "" if number(value) == "1" else f"{number(value)} "


def paragraph(text: str, indent: int = INDENT) -> list[str]:
    """Break a text into indented lines.

    Example:
        >>> paragraph("one two")
        ['    one two']
    """
    return textwrap.wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align the columns of a table to the right.

    Example:
        >>> print(*table([["", "x0", "z0"], ["x0", "0.25", "1"]]), sep="|")
                  x0  z0|    x0  0.25   1
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [" " * INDENT + line.rstrip() for line in lines]


def names(indices: Sequence[int]) -> str:
    """Name levels by their indices.

    Example:
        >>> names([0]), names([0, 1, 2])
        ('levels[0]', 'levels[0], levels[1] and levels[2]')
    """
    *first, last = (f"levels[{index}]" for index in indices)
    return f"{', '.join(first)} and {last}" if first else last
