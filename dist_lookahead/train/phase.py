"""What a process of a run is doing, for whoever waits for it."""

from collections.abc import Iterator
from contextlib import contextmanager


class Phase:
    """The fast step that this process has reached, and what it does there.

    Attributes:
        step: fast steps done.
        usual: what it does when nothing else is said.

    Example:
        >>> phase = Phase()
        >>> with phase("saving a checkpoint"):
        ...     phase.doing()
        'saving a checkpoint'
        >>> phase.doing()
        'starting'
    """

    def __init__(self) -> None:
        self.step = 0
        self.usual = "starting"
        self._now: list[str] = []

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Enter a part of the run, such as "evaluating"."""
        self._now.append(what)
        try:
            yield
        finally:
            self._now.pop()

    def doing(self) -> str:
        """Return what the process does now."""
        return (self._now or [self.usual])[-1]
