"""The tape: what one agent does in a training, in order, as a rehearsal has noted it."""

from dataclasses import dataclass, field
from time import perf_counter

import torch

from dist_lookahead.planner.link import Transfer


@dataclass(frozen=True, slots=True)
class Step:
    """A fast step."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What a sync computes: staging, codes, slow steps.

    Args:
        seconds: that it took here.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Start:
    """A collective is started.

    Args:
        number: of the collective, counted from 0.
        transfer: what is sent.
    """

    number: int
    transfer: Transfer


@dataclass(frozen=True, slots=True)
class Wait:
    """A collective is waited for.

    Args:
        number: of the collective.
    """

    number: int


Event = Step | Arithmetic | Start | Wait


@dataclass
class Tape:
    """Notes events, and how long the arithmetic between them takes.

    Args:
        device: where the arithmetic happens; an accelerator is waited for before the clock is read.
    """

    device: torch.device
    events: list[Event] = field(default_factory=list)
    _since: float = 0.0
    _started: int = 0

    def resume(self) -> None:
        """Start the watch."""
        self._since = seconds_on(self.device)

    def pause(self) -> None:
        """Note the arithmetic since the watch was started or read."""
        now = seconds_on(self.device)
        self.events.append(Arithmetic(now - self._since))
        self._since = now

    def start(self, transfer: Transfer) -> int:
        """Note a collective, and return its number."""
        self.pause()
        number, self._started = self._started, self._started + 1
        self.events.append(Start(number, transfer))
        return number

    def wait(self, number: int) -> None:
        """Note that a collective is waited for."""
        self.pause()
        self.events.append(Wait(number))

    def step(self) -> None:
        """Note a fast step."""
        self.events.append(Step())


def seconds_on(device: torch.device) -> float:
    """Return what the clock says when all that was started on a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
