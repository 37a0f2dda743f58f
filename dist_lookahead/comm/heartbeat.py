"""Signs of life: what agents say of themselves each second, through the store by which they have met."""

import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

BEAT_SECONDS = 1.0
SILENT_SECONDS = 4.0  # without a sign of life, of which there is one each second
# Bytes of a sign of life. A longer one has been received by the time it is dropped: torch's stores say nothing of a
# value's length. Torch's own, over TCP, takes no message of more than 8 MiB, which bounds what one of them costs.
LONGEST = 500

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heartbeat:
    """What an agent has said of itself.

    Attributes:
        count: signs of life before this one.
        host: its machine.
        process: its number there.
        step: fast steps done.
        doing: in a few words, such as "computing".
        waits: whether it waits for other agents.
        seconds: for how long it has done that, at the same fast step.
    """

    count: int
    host: str
    process: int
    step: int
    doing: str
    waits: bool
    seconds: float

    def encode(self) -> str:
        """Write it for the others.

        Example:
            >>> Heartbeat(3, "node1", 42, 17, "computing", False, 1.5).encode()
            '[3, "node1", 42, 17, "computing", false, 1.5]'
        """
        return json.dumps([self.count, self.host, self.process, self.step, self.doing, self.waits, self.seconds])

    @classmethod
    def read(cls, raw: bytes) -> "Heartbeat | None":
        """Read what another agent has written; None for anything else.

        Example:
            >>> Heartbeat.read(b'[3, "node1", 42, 17, "computing", false, 1.5]').host
            'node1'
            >>> Heartbeat.read(b'["many", "node1", 42, 17, "computing", false, 1.5]')
        """
        try:
            said = json.loads(raw) if len(raw) <= LONGEST else None
        except (ValueError, RecursionError):
            return None
        types = [int, str, int, int, str, bool, float]
        if not isinstance(said, list) or [type(part) for part in said] != types or not math.isfinite(said[-1]):
            return None
        if not all(text.isprintable() for text in (said[1], said[4])):  # it goes to a terminal
            return None
        return cls(*said)


@dataclass(frozen=True)
class Seen:
    """The last sign of life of an agent.

    Attributes:
        beat: what it said; None where it never gave one.
        age: seconds since it came; None where that is not known.
    """

    beat: Heartbeat | None
    age: float | None = None

    @property
    def waits(self) -> bool:
        """Whether the agent lives, and waits for others as well."""
        return self.beat is not None and self.beat.waits and (self.age or 0.0) < SILENT_SECONDS

    @property
    def seconds(self) -> float:
        """For how long the agent has done what it said."""
        return (self.beat.seconds if self.beat else 0.0) + (self.age or 0.0)


class Heartbeats(threading.Thread):
    """Gives a sign of life of this agent each second, and reads those of others when asked to.

    A thread of its own with a connection of its own, which no other waits for: a store whose host stands still does
    not answer for ever.

    Args:
        store: by which the agents have met.
        prefix: of this training in the store.
        rank: of this agent.
        size: number of agents.
        state: returns (step, doing, waits, seconds) of this agent.
    """

    def __init__(
        self, store: dist.Store, prefix: str, rank: int, size: int, state: Callable[[], tuple[int, str, bool, float]]
    ) -> None:
        super().__init__(name="signs of life", daemon=True)
        self._store = dist.PrefixStore(f"{prefix}/life", store.clone())
        self._rank, self._size, self._state = rank, size, state
        self._heard: dict[int, tuple[Heartbeat, float, bool]] = {}  # what, when, and whether it came after another
        self._wanted, self._asked, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._count = 0
        self._own = socket.gethostname(), os.getpid()
        self.answered = time.monotonic()  # when the store did last

    def listen(self) -> None:
        """Read the others' signs of life from now on: at scale it would be much to do for nothing."""
        self._wanted.set()

    def stop_listening(self) -> None:
        """Read no more."""
        self._wanted.clear()
        self._heard = {}

    def ask(self, patience: float) -> bool:
        """Read the others' signs of life now; return whether the store has answered within so many seconds."""
        begun = time.monotonic()
        self.listen()
        self._asked.set()
        while self.answered < begun and time.monotonic() < begun + patience:
            time.sleep(0.02)
        return self.answered >= begun

    def seen(self, rank: int) -> Seen:
        """Return what was seen of an agent; the age is not known where nobody has looked before."""
        if rank == self._rank:
            return Seen(self._now(), 0.0)
        if rank not in self._heard:
            return Seen(None)
        beat, since, followed = self._heard[rank]
        age = time.monotonic() - since
        return Seen(beat, age if followed or age > 2 * BEAT_SECONDS else None)

    def run(self) -> None:
        """Give and read, until it is ended or the store is."""
        while not self._ended.is_set():
            self._asked.clear()
            try:
                self._give()
                if self._wanted.is_set():
                    self._read()
                self.answered = time.monotonic()
            except RuntimeError as error:  # it does not answer, or is gone: the report says so
                _log.debug("the store does not answer: %s", error)
            self._asked.wait(BEAT_SECONDS)

    def end(self) -> None:
        """Give no more signs; a store that does not answer is not waited for."""
        self._ended.set()
        self._asked.set()
        self.join(BEAT_SECONDS)

    def _now(self) -> Heartbeat:
        step, doing, waits, seconds = self._state()
        return Heartbeat(self._count, *self._own, step, doing, waits, round(seconds, 1))

    def _give(self) -> None:
        self._store.set(str(self._rank), self._now().encode())
        self._count += 1

    def _read(self) -> None:
        for rank in (rank for rank in range(self._size) if rank != self._rank):
            beat, known = self._of(rank), self._heard.get(rank)
            if beat is not None and (known is None or known[0].count != beat.count):
                self._heard = {**self._heard, rank: (beat, time.monotonic(), known is not None)}

    def _of(self, rank: int) -> Heartbeat | None:
        return Heartbeat.read(self._store.get(str(rank))) if self._store.check([str(rank)]) else None
