"""A forecast: the tape of a rehearsal on given links, with the fast step of a real training.

Time goes on with fast steps and arithmetic. A collective begins when it is started, or when the one before it along its
axis is over, and an agent that comes to wait for it before it has ended is exposed to communication:

    exposed = sum over waits of max(0, end of the collective - time)

So an average that lands later costs nothing where its steps take longer than its way.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dist_lookahead.planner.link import Link, Transfer
from dist_lookahead.planner.rehearsal import COUNTED, Rehearsal
from dist_lookahead.planner.tape import Arithmetic, Start, Step, Wait

DAY = 24 * 60 * 60  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a stack of levels will cost, per fast step of one agent.

    Attributes:
        seconds: of wall time.
        exposed_seconds: of them, waiting for collectives.
        arithmetic_seconds: of them, in the arithmetic of syncs.
        bytes_sent: by the agent, as the ledger counts them.
        copies: what levels keep, in copies of the weights.
    """

    seconds: float
    exposed_seconds: float
    arithmetic_seconds: float
    bytes_sent: float
    copies: float

    @property
    def exposed(self) -> float:
        """Share of wall time that is waiting for collectives."""
        return self.exposed_seconds / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_day(self) -> float:
        """Bytes that one agent sends in a day of training."""
        return self.bytes_sent / self.seconds * DAY if self.seconds else 0.0


@dataclass
class _Clock:
    """What has passed since the beginning."""

    links: Mapping[str, Link]
    time: float = 0.0
    exposed: float = 0.0
    arithmetic: float = 0.0
    sent: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        self._free: dict[str, float] = {}
        self._ends: dict[int, float] = {}

    @property
    def reading(self) -> tuple[float, float, float, int]:
        return self.time, self.exposed, self.arithmetic, self.sent

    def work(self, seconds: float) -> None:
        self.time += seconds
        self.arithmetic += seconds

    def start(self, number: int, transfer: Transfer) -> None:
        begin = max(self.time, self._free.get(transfer.axis, 0.0))
        self._ends[number] = self._free[transfer.axis] = begin + self.links[transfer.axis].seconds(transfer)
        self.sent += transfer.sent

    def wait(self, number: int) -> None:
        late = max(0.0, self._ends.pop(number) - self.time)
        self.time += late
        self.exposed += late


def forecast(rehearsal: Rehearsal, step_seconds: float, links: Mapping[str, Link]) -> Forecast:
    """Return what the levels cost where a fast step takes so long, on these links.

    Args:
        rehearsal: of the levels.
        step_seconds: of a fast step alone, > 0.
        links: of an agent along each axis, and in the "world" of all agents.

    Example:
        >>> from torch import nn, optim
        >>> from dist_lookahead import Mesh, local_sgd
        >>> from dist_lookahead.planner.rehearsal import rehearse
        >>> noted = rehearse(local_sgd(tau=4), nn.Linear(1000, 1, bias=False), optim.SGD, Mesh((2,)))
        >>> told = forecast(noted, step_seconds=1.0, links={"world": Link(bandwidth=1000.0)})
        >>> round(told.bytes_sent), round(told.exposed_seconds, 3)  # 1000 x 4 bytes and 32 of mail, in 4 steps
        (1008, 1.008)
    """
    clock, readings = _Clock(links), []
    for event in rehearsal.events:
        match event:
            case Step():
                if clock.steps % rehearsal.period == 0:
                    readings.append(clock.reading)
                clock.time += step_seconds
                clock.steps += 1
            case Arithmetic(seconds):
                clock.work(seconds)
            case Start(number, transfer):
                clock.start(number, transfer)
            case Wait(number):
                clock.wait(number)
    steps = COUNTED * rehearsal.period
    passed = [(after - before) / steps for after, before in zip(clock.reading, readings[-COUNTED], strict=True)]
    seconds, exposed, arithmetic, sent = passed
    return Forecast(
        seconds=seconds,
        exposed_seconds=exposed,
        arithmetic_seconds=arithmetic,
        bytes_sent=sent,
        copies=rehearsal.kept / rehearsal.weights,
    )
