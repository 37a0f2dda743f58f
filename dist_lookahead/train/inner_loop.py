"""Accuracy inside a block of fast steps: what the test metrics are after every fast step and after every sync.

The picture of the Lookahead paper (arXiv 1907.08610) that shows fast weights getting worse within a round, and the slow
step mending it. Each agent measures at its own weights, on the same samples; what is reported is the agents' mean.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dist_lookahead.level import Every

ROUNDS = 3  # of the outermost level, where no start of the window is given

Sums = dict[str, float]
Moment = tuple[int, str]
"""(fast step, "step" or "sync"): after the fast step itself, or after the sync that followed it."""


class InnerLoop:
    """One agent's measurements inside a window, kept until they are summed over the agents.

    Fast steps start + 1 to end are looked at, and the syncs after steps start to end.

    Args:
        measure: returns the sums of the task at the weights that the model has now; must change nothing.
        start: fast steps before the window.
        end: its last fast step.

    Example:
        >>> watch = InnerLoop(lambda: {"samples": 4.0, "loss": 2.0}, start=3, end=5)
        >>> for step in (3, 4):
        ...     watch.after_fast_step(step)
        >>> watch.after_sync(4)
        >>> watch.moments(4)
        [(3, 'sync'), (4, 'step'), (4, 'sync')]
        >>> watch.take(4, ["samples", "loss"])  # there was no sync after step 3
        [0.0, 0.0, 4.0, 2.0, 4.0, 2.0]
    """

    def __init__(self, measure: Callable[[], Sums], *, start: int, end: int) -> None:
        self._measure, self._start, self._end = measure, start, end
        self._taken: dict[Moment, Sums] = {}
        self._reported = start - 1
        self._seconds = 0.0

    def after_fast_step(self, step: int) -> None:
        """Measure, if the step is in the window, before a sync may follow."""
        if self._start < step <= self._end:
            self._look((step, "step"))

    def after_sync(self, step: int) -> None:
        """Measure after the sync that followed a fast step, if that is in the window."""
        if self._start <= step <= self._end:
            self._look((step, "sync"))

    def moments(self, step: int) -> list[Moment]:
        """Return all moments of the window up to a fast step that were not taken yet, measured or not.

        The same on all agents, also where one of them has left out a fast step after an overflow of its gradients.
        """
        steps = range(self._reported + 1, min(step, self._end) + 1)
        return [(k, after) for k in steps for after in ("step", "sync") if (k, after) != (self._start, "step")]

    def take(self, step: int, names: Sequence[str]) -> list[float]:
        """Return the sums of each of `moments`, one after the other, and forget them; zeros where none was measured."""
        row = [self._taken.get(moment, {}).get(name, 0.0) for moment in self.moments(step) for name in names]
        self._taken.clear()
        self._reported = max(self._reported, min(step, self._end))
        return row

    def take_seconds(self) -> float:
        """Return how long this has taken since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def state_dict(self) -> dict[str, Any]:
        """Return what is not reported yet."""
        return {"reported": self._reported, "taken": [[*moment, sums] for moment, sums in self._taken.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self._reported = max(self._reported, state["reported"])  # the window may be another one now
        self._taken = {(step, after): dict(sums) for step, after, sums in state["taken"]}

    def _look(self, moment: Moment) -> None:
        begun = time.perf_counter()
        self._taken[moment] = self._measure()
        self._seconds += time.perf_counter() - begun


def window(start: int | None, end: int | None, when: Every, total: int) -> tuple[int, int]:
    """Return the first and the last fast step of the window.

    Args:
        start: as configured; None for some rounds before the end.
        end: as configured; None for the end of the run.
        when: of the outermost level.
        total: fast steps of the run.

    Example:
        >>> from dist_lookahead import Every
        >>> window(None, None, Every(5), 32), window(None, 12, Every(5), 32), window(7, None, Every(5), 32)
        ((20, 32), (0, 12), (7, 32))
    """
    end = total if end is None else end
    return (list(_rounds(when, end))[-ROUNDS:][0] if start is None else start), end


def spread_evenly(count: int, *, of: int) -> list[int]:
    """Return indices of so many samples, evenly spread: data may be sorted by class.

    Example:
        >>> spread_evenly(3, of=9), spread_evenly(5, of=2)
        ([0, 3, 6], [0, 1])
    """
    count = min(count, of)
    return [index * of // count for index in range(count)]


def as_record(
    moments: Sequence[Moment], totals: Sequence[float], names: Sequence[str], report: Callable[[Sums], Sums]
) -> dict[str, list[Any]]:
    """Return columns: the fast step, "step" or "sync", and each metric; moments that nobody measured are left out.

    Args:
        moments: as `InnerLoop.moments` gives them.
        totals: of each moment the sums over all agents, one after the other.
        names: of the sums.
        report: turns sums into metrics.
    """
    columns: dict[str, list[Any]] = {"fast_step": [], "after": []}
    for index, (step, after) in enumerate(moments):
        sums = dict(zip(names, totals[index * len(names) :], strict=False))
        if not any(sums.values()):
            continue
        columns["fast_step"].append(step)
        columns["after"].append(after)
        for name, value in report(sums).items():
            columns.setdefault(name, []).append(value)
    return columns


def _rounds(when: Every, end: int) -> Iterator[int]:
    """The fast steps before `end` at which a round begins."""
    step = 0
    while step < end:
        yield step
        step = when.after(step)
