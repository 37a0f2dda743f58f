"""All figures by name."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dist_lookahead.figures import (
    bilinear,
    equal_contraction,
    floor,
    inner_loop,
    stability,
    trajectory,
    variance,
)
from dist_lookahead.figures.style import Progress
from dist_lookahead.notation import is_unknown

FIGURES: dict[str, Callable[[Path, Progress], None]] = {
    "variance": variance.draw,
    "inner_loop": inner_loop.draw,
    "trajectory": trajectory.draw,
    "floor": floor.draw,
    "stability": stability.draw,
    "equal_contraction": equal_contraction.draw,
    "bilinear": bilinear.draw,
}


def chosen(names: Sequence[str]) -> list[str]:
    """Return the figures that are asked for, each once; "all" stands for all.

    Raises:
        ValueError: without names, and for unknown ones.

    Example:
        >>> chosen(["floor", "variance", "floor"])
        ['floor', 'variance']
    """
    if not names:
        raise ValueError(f"give names of figures, or all: {', '.join(FIGURES)}")
    for name in names:
        if name != "all" and name not in FIGURES:
            raise ValueError(f"{name} {is_unknown(name, ['all', *FIGURES])}")
    return list(FIGURES if "all" in names else dict.fromkeys(names))


def descriptions() -> list[str]:
    """Return a line for each figure: its name, and what it shows.

    Example:
        >>> descriptions()[2]
        'trajectory         Paths of fast and slow weights on a noisy quadratic: SGD, Lookahead, SlowMo with 4 agents.'
    """
    return [f"{name:18} {(draw.__doc__ or '').splitlines()[0]}" for name, draw in FIGURES.items()]
