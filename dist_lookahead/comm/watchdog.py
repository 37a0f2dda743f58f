"""Nothing waits without a message: a watchdog says where each agent is when this one has waited long.

    with Watchdog(optimizer.stack.communicator, step=lambda: optimizer.stack.clock, report_after=30):
        train()

What agents are late for, a sync or a sum over all of them, is the communicator's to know: it notes when it waits.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch.distributed as dist

from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.comm.heartbeat import Heartbeats
from dist_lookahead.comm.lateness import everybody, first_to_tell, one
from dist_lookahead.comm.process_group import ANSWER_SECONDS, ProcessGroupCommunicator

LOOK_SECONDS = 0.25
LISTEN_SECONDS = 1.0  # of waiting, after which the others' signs of life are read
LETTERS = 50  # of what an agent does: a sign of life has its limit
UNKNOWN = "doing something that it cannot say"

_log = logging.getLogger(__name__)


class Watchdog:
    """Tells who is late, in a training of several processes; entered as a context around it.

    Each agent says every second, by the store through which the processes have met, what it is doing. The agent of the
    lowest rank that has waited `report_after` seconds for others says where each agent is, and again after twice that
    time, and so on. When a collective fails, its error says where the agents are that are lost or late. A function that
    it is given and that fails is told of once, and the watch goes on without it.

    Args:
        communicator: of all agents; with simulated ones, or a single one, there is nothing to watch.
        step: returns the number of fast steps done.
        doing: returns what this process does when it does not wait for others, in a few words.
        report_after: seconds of waiting, above 0.
        say: takes each report; None for a warning of this module's logger.

    Raises:
        ValueError: for a time that is not above 0.

    Example:
        >>> from dist_lookahead import simulate
        >>> with Watchdog(simulate(2)[0], step=lambda: 0):
        ...     pass
    """

    def __init__(
        self,
        communicator: Communicator,
        *,
        step: Callable[[], int],
        doing: Callable[[], str] = lambda: "computing",
        report_after: float = 30.0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if not report_after > 0:
            raise ValueError(f"report_after={report_after} must be above 0, in seconds")
        self._communicator, self._step, self._doing = communicator, step, doing
        self._report_after, self._say = report_after, say or _log.warning
        self._watch: _Watch | None = None

    def __enter__(self) -> "Watchdog":
        end = self._communicator
        if isinstance(end, ProcessGroupCommunicator) and end.size > 1:
            self._watch = _Watch(end, self._step, self._doing, self._report_after, self._say)
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch:
            self._watch.end()
            self._watch = None

    def follow(self, communicator: Communicator) -> None:
        """Watch other agents from now on: those that are there after some were lost or have come."""
        self.__exit__(None, None, None)
        self._communicator = communicator
        self.__enter__()


class _Watch(threading.Thread):
    """Over the agents of one process group."""

    def __init__(
        self,
        end: ProcessGroupCommunicator,
        step: Callable[[], int],
        doing: Callable[[], str],
        report_after: float,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._end, self._step, self._doing, self._report_after, self._say = end, step, doing, report_after, say
        self._state, self._since = (0, "", False), time.monotonic()
        self._failed, self._lock = set[str](), threading.Lock()
        self._ended = threading.Event()
        store = dist.distributed_c10d._get_default_store()
        self._beats = Heartbeats(store, end.key, end.rank, end.size, self._own_state)

    def start(self) -> None:
        """Begin to give signs of life, and to look."""
        self._end.where = self._where
        self._beats.start()
        super().start()

    def end(self) -> None:
        """End both."""
        self._ended.set()
        self._end.where = None
        self.join()
        self._beats.end()

    def run(self) -> None:
        """Report when this agent has waited long, and again after twice that."""
        due, since = self._report_after, None
        while not self._ended.wait(min(LOOK_SECONDS, self._report_after / 4)):
            *_, waits, seconds = self._own_state()
            begun = self._end.waits_since
            if begun != since:
                due, since = self._report_after, begun
                self._beats.stop_listening()
            if waits and seconds >= min(LISTEN_SECONDS, self._report_after / 2):
                self._beats.listen()
            if waits and seconds >= due:
                due *= 2
                self._report(seconds)

    def _own_state(self) -> tuple[int, str, bool, float]:
        """Return what this agent does, and for how long; both threads ask."""
        since = self._end.waits_since
        waits = since is not None
        step = self._ask("step", lambda: int(self._step()), otherwise=self._state[0])
        doing = "waiting for others" if waits else self._ask("doing", lambda: _short(self._doing()), otherwise=UNKNOWN)
        state = step, doing, waits
        if state != self._state:
            self._state, self._since = state, time.monotonic()
        return *state, time.monotonic() - (since if waits else self._since)

    def _ask(self, what: str, ask: Callable[[], Any], otherwise: Any) -> Any:
        """Ask a function that the user has given, whatever it does: it must not end the threads that ask."""
        try:
            return ask()
        except Exception as error:
            with self._lock:
                first = what not in self._failed
                self._failed.add(what)
            if first:
                _log.warning("the watchdog's function %r has failed, and is told of no more: %r", what, error)
            return otherwise

    def _where(self, ranks: Sequence[int]) -> str:
        """Say where these agents are, or were last; "" where the store does not answer."""
        if not self._beats.ask(ANSWER_SECONDS):
            return ""
        return "; ".join(one(rank, self._beats.seen(rank)) for rank in ranks)

    def _report(self, seconds: float) -> None:
        rank = self._end.rank
        if not self._beats.ask(ANSWER_SECONDS):
            self._tell(
                f"agent {rank} has waited for others for {seconds:.0f} s after fast step {self._state[0]}; the store "
                "where it could ask for them does not answer: is its host there?"
            )
            return
        seen = [self._beats.seen(other) for other in range(self._end.size)]
        if first_to_tell(rank, seen, self._report_after):
            self._tell(f"agents have been waited for {seconds:.0f} s: {everybody(seen)}")

    def _tell(self, report: str) -> None:
        def say() -> bool:
            self._say(report)
            return True

        if not self._ask("say", say, otherwise=False):
            _log.warning("%s", report)


def _short(text: str) -> str:
    """Leave of a text what fits into a sign of life, and onto a terminal."""
    return "".join(letter for letter in str(text)[:LETTERS] if letter.isprintable())
