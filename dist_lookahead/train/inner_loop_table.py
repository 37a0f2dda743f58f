"""What the fast steps of a round and the sync behind them do to the test metrics, as a table over seeds."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from dist_lookahead.train.inner_loop_picture import joined
from dist_lookahead.train.progress import headlines
from dist_lookahead.train.result_table import Group, cell, row, title
from dist_lookahead.train.run_result import RunResult, name_of_test

NOTE = (
    "Mean change over the rounds of the window that a probe has looked into, by the fast steps of a round together and "
    "by the sync behind them; ± standard deviation over the runs of a row."
)


def inside_rounds(groups: Sequence[Group]) -> Iterator[str]:
    """Yield the lines of a table in Markdown: a row for each group with a probe; nothing where there is none."""
    rows = [(group, own) for group in groups if (own := [c for run in group.runs if (c := _changes(run))])]
    if not rows:
        return
    names = list(dict.fromkeys(name for _, changes in rows for own in changes for name in own))
    shared = list(dict.fromkeys(column for group, _ in rows for column in group.columns))
    yield ""
    yield row([*shared, *(f"{title(name)} by {what}" for name in names for what in ("fast steps", "sync"))])
    yield row(["---"] * len(shared) + ["---:"] * 2 * len(names))
    for group, changes in rows:
        cells = [cell(name, [own[name][which] for own in changes if name in own]) for name in names for which in (0, 1)]
        yield row([*(group.columns.get(column, "") for column in shared), *cells])
    yield ""
    yield NOTE


def _changes(run: RunResult) -> dict[str, tuple[float, float]]:
    """Return for each metric its mean change by the fast steps of a round, and by a sync."""
    moments = joined(run.of_kind("probe"))
    syncs = [index for index, after in enumerate(moments.get("after", ())) if after == "sync"]
    # Where an inner level has fired, its sync lies between: a round goes from one moment after a sync to the next one.
    rounds = [(first, last) for first, last in pairwise(syncs) if last - first > 1]
    if not rounds:
        return {}
    names = headlines({name: 0 for name in moments if name not in ("fast_step", "after")})
    return {name_of_test(name): _means(moments, name, rounds) for name in names}


def _means(moments: Mapping[str, Sequence[Any]], name: str, rounds: Sequence[tuple[int, int]]) -> tuple[float, float]:
    values = moments[name]
    by_steps = statistics.fmean(values[last - 1] - values[first] for first, last in rounds)
    return by_steps, statistics.fmean(values[last] - values[last - 1] for _, last in rounds)
