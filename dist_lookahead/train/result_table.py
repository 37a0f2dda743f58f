"""Runs in groups of repetitions, and the table of their final values with mean and spread."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dist_lookahead.train.run_result import RunResult
from dist_lookahead.train.summary import size

COST = ("steps", "syncs", "bytes_sent", "seconds")
TITLES = {"loss": "training loss", "bytes_sent": "sent per agent"}
NOTE = (
    "Mean ± standard deviation over the finished runs of a row (n - 1 in the denominator); the training loss is that "
    "of the rounds that end in the last tenth of a run."
)


@dataclass(frozen=True)
class Group:
    """Runs that repeat each other.

    Args:
        columns: what they have in common, by the title of the column.
        runs: at least one.
    """

    columns: Mapping[str, str]
    runs: Sequence[RunResult]

    @property
    def label(self) -> str:
        """The group in a legend."""
        first, *others = self.columns.items()
        return ", ".join([first[1], *(f"{name}={value}" for name, value in others if value)])

    def states(self) -> str:
        """Return how many runs there are, and what has not become of all of them.

        Example:
            >>> Group({"run": "a"}, []).states()
            '0'
        """
        states = [run.state for run in self.runs]
        bad = [f"{states.count(state)} {state}" for state in ("diverged", "unfinished") if state in states]
        return f"{len(states)}" + (f" ({', '.join(bad)})" if bad else "")

    def values(self) -> dict[str, list[float]]:
        """Return the final values of the finished runs."""
        finals = [final for run in self.runs if (final := run.final())]
        names = dict.fromkeys(name for final in finals for name in final)
        return {name: [final[name] for final in finals if name in final] for name in names}


def markdown(groups: Sequence[Group]) -> Iterator[str]:
    """Yield the lines of a table in Markdown: a row for each group."""
    values = [group.values() for group in groups]
    shared = list(dict.fromkeys(name for group in groups for name in group.columns))
    names = list(dict.fromkeys(name for own in values for name in own if name not in COST))
    names += [name for name in COST if any(name in own for own in values)]
    titles = [*shared, "runs", *map(title, names)]
    yield row(titles)
    yield row(["---"] * (len(shared) + 1) + ["---:"] * len(names))
    for group, own in zip(groups, values, strict=True):
        cells = [group.columns.get(name, "") for name in shared]
        yield row([*cells, group.states(), *(cell(name, own.get(name, [])) for name in names)])
    yield ""
    yield NOTE


def title(name: str) -> str:
    """Return what a value is called in tables and pictures.

    Example:
        >>> title("loss"), title("test_loss")
        ('training loss', 'test loss')
    """
    return TITLES.get(name, name.replace("_", " "))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation; the latter is 0 for a single value, and unknown where one is not finite.

    Example:
        >>> mean_and_spread([1.0, 3.0]), mean_and_spread([2.0]), mean_and_spread([2.0, float("inf")])
        ((2.0, 1.4142135623730951), (2.0, 0.0), (inf, nan))
    """
    mean = statistics.fmean(values)
    if not math.isfinite(mean):  # a perplexity may be beyond all numbers, in a run that has not diverged
        return mean, math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else 0.0


def row(cells: Sequence[str]) -> str:
    """Return a line of a table in Markdown."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def cell(name: str, values: Sequence[float]) -> str:
    """Write mean ± spread, to the digits that make sense."""
    if not values:
        return ""
    mean, spread = mean_and_spread(values)
    if name == "bytes_sent":
        return size(mean)
    if name in COST:
        return f"{mean:.4g}"
    percent = "accuracy" in name
    factor, form, unit = (100, ".2f", " %") if percent else (1, ".4g", "")
    around = f" ± {factor * spread:{'.2f' if percent else '.2g'}}" if len(values) > 1 else ""
    return f"{factor * mean:{form}}{around}{unit}"
