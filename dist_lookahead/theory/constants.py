"""What holds only where tau, alpha and beta stay as they are."""

from collections.abc import Iterator, Sequence
from typing import Any

from dist_lookahead.adaptive import Adaptive
from dist_lookahead.level import Level
from dist_lookahead.optimal import Optimal


def require_constants(levels: Sequence[Level], names: Sequence[str], otherwise: str) -> None:
    """Refuse values that change during a run.

    Args:
        levels: innermost first.
        names: of the settings that must be numbers.
        otherwise: why.

    Example:
        >>> from dist_lookahead import lookahead
        >>> require_constants(lookahead(alpha=Optimal(0.5, 1.0)), ["alpha"], "no P is fixed")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: levels[0].alpha=Optimal(low=0.5, high=1.0) changes during the run, so that no P is fixed: give ...
    """
    for index, level in enumerate(levels):
        for name, value in _settings(level):
            if name in names and not isinstance(value, int | float):
                example = _example(value)
                raise ValueError(
                    f"levels[{index}].{name}={value} changes during the run, so that {otherwise}: give a number, such "
                    f"as {example}"
                )


def _example(value: Any) -> float:
    if isinstance(value, Optimal):
        return value.low
    return value.first if isinstance(value, Adaptive) else value(0)


def _settings(level: Level) -> Iterator[tuple[str, Any]]:
    yield "tau", level.when.tau
    yield "alpha", getattr(level.move, "alpha", 1.0)
    yield "beta", getattr(level.move, "beta", 0.0)
