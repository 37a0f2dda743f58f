"""A flight: an average that has begun on a snapshot of the weights, and lands some fast steps later.

It goes on in the background while the agents train. An average of several phases, each of which starts from what the
one before has brought (a sum near, then far; parts to their owners, and their means to all), is waited for as it goes:

    phase p of P has arrived by step + ceil(p delay / P)

All agents wait and start at the same fast steps, so that what they start comes in the same order everywhere.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dist_lookahead.comm.communicator import Pending, Work


class Flight:
    """An average under way; a copy of it, or one read from a checkpoint, is to begin again from the snapshot.

    Args:
        step: fast step after which the weights were taken.
        lands: fast step after which the level moves, `step` where it does so at once.
        rates: fast learning rates of that step, per parameter group.
    """

    def __init__(self, step: int, lands: int, rates: Sequence[float | None]) -> None:
        self.step, self.lands, self.rates = step, lands, list(rates)
        self.sums: list[Tensor] = []
        self._tail: Tensor | None = None
        self._pending: Pending | None = None
        self._work: Work | None = None
        self._stops: list[int] = []

    @property
    def begun(self) -> bool:
        """Whether it is under way."""
        return self._pending is not None

    @property
    def arrived(self) -> bool:
        """Whether all of it is here, and the weights may be mixed with it."""
        return self.begun and self._work is None

    @property
    def delayed(self) -> bool:
        """Whether fast steps were to be taken before it lands."""
        return self.lands > self.step

    @property
    def tail(self) -> Tensor:
        """Where the mail is when all has arrived."""
        assert self._tail is not None
        return self._tail

    @property
    def next_stop(self) -> int:
        """Fast step after which something is to be waited for, or to be begun."""
        if not self.begun:
            return self.step
        return self._stops[0] if self._stops else self.lands

    def begin(self, pending: Pending, sums: Sequence[Tensor], tail: Tensor, phases: Sequence[int]) -> None:
        """Start the first phase.

        Args:
            pending: the average.
            sums: tensors that it works on.
            tail: where the mail will be.
            phases: number of works that each phase waits for.
        """
        self.sums, self._tail, self._pending = list(sums), tail, pending
        delay = self.lands - self.step
        self._stops = [
            self.step - (-delay * phase // len(phases)) for phase, works in enumerate(phases, 1) for _ in range(works)
        ]
        self._work = next(pending, None)

    def go_on(self, clock: int) -> Pending:
        """Wait for the phases that must have arrived by a fast step, and start those after them."""
        while self._work is not None and self._stops and self._stops[0] <= clock:
            yield from self._wait()

    def arrive(self) -> Pending:
        """Wait for all that is left."""
        while self._work is not None:
            yield from self._wait()

    def _wait(self) -> Pending:
        assert self._work is not None
        assert self._pending is not None
        yield self._work
        self._stops = self._stops[1:]
        self._work = next(self._pending, None)

    def __reduce__(self) -> tuple[Any, ...]:
        # What is under way belongs to this process and this moment.
        return Flight, (self.step, self.lands, self.rates)
