"""A stopwatch for rounds: wall time, and what of it the agents of this process spent in syncs and in waiting."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dist_lookahead.comm.communicator import Communicator


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Seconds since the watch was started.

    Attributes:
        seconds: of wall time.
        syncing: of them, in syncs.
        exposed: of these, blocked by collectives; on CUDA the host only.
    """

    seconds: float
    syncing: float
    exposed: float


class Stopwatch:
    """Runs from its construction, or from the last `start`.

    Args:
        communicators: of the agents in this process.
    """

    def __init__(self, communicators: Sequence[Communicator]) -> None:
        self._communicators = communicators
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self._begun = time.perf_counter()
        self._before = self._counted()

    def leave_out(self, seconds: float) -> None:
        """Forget so many of the seconds since the start."""
        self._begun += seconds

    @property
    def spent(self) -> Spent:
        """What has passed since the start."""
        syncing, exposed = (now - before for now, before in zip(self._counted(), self._before, strict=True))
        return Spent(seconds=time.perf_counter() - self._begun, syncing=syncing, exposed=exposed)

    def _counted(self) -> tuple[float, float]:
        ends = self._communicators
        return sum(end.seconds_syncing for end in ends), sum(end.seconds_waiting for end in ends)
