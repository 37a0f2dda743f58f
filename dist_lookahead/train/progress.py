"""Progress for a person: a bar on a terminal, plain lines elsewhere."""

import re
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

LINES = 20  # plain lines of progress in a whole run


def headlines(metrics: Mapping[str, float]) -> dict[str, float]:
    """Leave out the coordinates of vectors, whose names end in a number: they may be hundreds.

    Example:
        >>> headlines({"loss": 0.5, "mean_0": 1.0, "mean_1": 2.0})
        {'loss': 0.5}
    """
    return {name: value for name, value in metrics.items() if not re.search(r"_\d+$", name)}


class ProgressDisplay:
    """Shows how far a run is.

    Args:
        name: of the run.
        total: fast steps of the run.
        start: fast steps done before this process.
        mode: "auto" (a bar on a terminal, else plain lines), "bar", "plain" or "off".
    """

    def __init__(self, name: str, *, total: int, start: int, mode: str) -> None:
        self.console = Console(file=sys.stderr)
        if mode == "auto":
            mode = "bar" if self.console.is_terminal else "plain"
        self._mode = mode
        self._name = name
        self._total = total
        self._latest: dict[str, float] = {}
        self._bar: Progress | None = None
        if mode == "bar":
            whole = Column(no_wrap=True)
            columns = (
                TextColumn("{task.description}", table_column=whole),
                BarColumn(bar_width=None),
                MofNCompleteColumn(table_column=whole),
                TimeRemainingColumn(compact=True, table_column=whole),
                TextColumn("{task.fields[values]}", table_column=whole),
            )
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task(name, total=total, completed=start, values="")
            self._bar.start()

    def step(self, step: int) -> None:
        """Show that `step` fast steps are done."""
        if self._bar:
            self._bar.update(self._task, completed=step, values=self._values())
        elif self._mode == "plain" and self._is_milestone(step):
            self.say(f"{self._name}: step {step} of {self._total}  {self._values()}")

    def values(self, values: Mapping[str, float]) -> None:
        """Remember values to show with the next step."""
        self._latest.update(values)

    def tested(self, metrics: Mapping[str, float]) -> None:
        """Remember what an evaluation has found; the loss is that of the training."""
        self.values({f"test {name}": value for name, value in headlines(metrics).items() if name != "loss"})

    def say(self, sentence: str) -> None:
        """Print a line."""
        if self._mode != "off":
            self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar where it is."""
        if self._bar:
            self._bar.stop()

    def _is_milestone(self, step: int) -> bool:
        return step * LINES // self._total > (step - 1) * LINES // self._total

    def _values(self) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in self._latest.items())
