"""Adaptive tau: how long a round is depends on how the training goes, and not on the fast step alone.

Such a tau is a frozen description like a schedule. It is asked where a round begins, with facts that all agents know
alike, so that all find the same length, each for itself: nothing is sent for it but what the facts are made of, and
that travels with the sync before.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from dist_lookahead.schedule import Schedule, check_scheduled, is_description

Memory = tuple[float, ...]
Fact = Literal["lr", "loss", "speed"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What all agents know alike where a round begins.

    Attributes:
        step: fast steps done.
        lr: learning rate of the fast step to come, of the fast optimizer's first parameter group; None without one.
        loss: mean of the training losses of all agents in the level's last round; None before the first sync.
        steps: length of that round.
        speed: fast steps per second in it of the agent whose next round is asked for; None before the first sync.
    """

    step: int
    lr: float | None = None
    loss: float | None = None
    steps: int = 0
    speed: float | None = None


@runtime_checkable
class Adaptive(Protocol):
    """A tau that is asked with facts."""

    @property
    def hears(self) -> Fact:
        """Which fact it depends on: agents must agree on the learning rate, and tell each other loss or speed."""
        ...

    @property
    def first(self) -> int:
        """The length to be taken where no fact is known: by theory, of the first round."""
        ...

    def next_round(self, facts: Facts, memory: Memory) -> tuple[int, Memory]:
        """Return the length of the round that begins, and what to remember until the next one.

        Args:
            facts: the same on all agents.
            memory: what it returned the last time; () the first time.
        """
        ...


Tau = float | Schedule | Adaptive


@dataclass(frozen=True)
class QSR:
    """The quadratic synchronisation rule: the smaller the learning rate, the longer the rounds.

        tau = max(base, floor((coefficient / lr)^2)),    at most `longest`

    lr is that of the first fast step of the round, in the fast optimizer's first parameter group. It must be the same
    on all agents, and a difference is an error at the next sync.

    Args:
        base: shortest round, >= 1.
        coefficient: learning rate below which rounds grow longer than 1, > 0.
        longest: longest round, >= base; what a learning rate of 0 has. A last round that the end of a training cuts
            short is synchronised by `sync()`, as any other.

    Example:
        >>> tau = QSR(base=4, coefficient=0.2)
        >>> [tau.next_round(Facts(step=0, lr=lr), ())[0] for lr in (0.4, 0.05, 0.0)]
        [4, 16, 10000]

    Defaults: `longest` is a choice of ours. The paper tunes `coefficient`, over `base` 2, 4 and 8 as we remember it.

    Reference: arXiv 2310.14423, eq. 2.
    """

    base: int
    coefficient: float
    longest: int = 10_000

    def __post_init__(self) -> None:
        _check_whole("QSR.base", self.base)
        _check_whole("QSR.longest", self.longest)
        if self.longest < self.base:
            raise ValueError(f"QSR.longest={self.longest} must be at least base={self.base}")
        if not 0 < self.coefficient < math.inf:
            raise ValueError(f"QSR.coefficient={self.coefficient} must be a number above 0, in units of the rate")

    @property
    def hears(self) -> Fact:
        """The learning rate."""
        return "lr"

    @property
    def first(self) -> int:
        """The shortest round."""
        return self.base

    def next_round(self, facts: Facts, memory: Memory) -> tuple[int, Memory]:
        """Return the length of the round that begins; nothing is remembered."""
        if facts.lr is None:
            raise ValueError(f"tau={self} needs the learning rate of the fast optimizer, which has none: give a number")
        # Compared before it is squared: the square of a tiny rate's ratio overflows.
        ratio = self.coefficient / facts.lr if facts.lr else math.inf
        grown = self.longest if ratio >= math.sqrt(self.longest) else math.floor(ratio**2)
        return min(max(self.base, grown), self.longest), memory


@dataclass(frozen=True)
class AdaComm:
    """AdaComm: long rounds at first, for speed, and shorter ones as the loss falls, for precision.

        tau_l = ceil(sqrt(F_l / F_0) start)    if that is less than tau_{l-1},    else max(floor(decay tau_{l-1}), 1)

    F_0 is the mean training loss of all agents in the first round, F_l that since tau was last looked at, which it is
    at the first sync after `interval` fast steps. Every agent must tell its loss of each fast step:
    `optimizer.report(loss=loss)` before `step()`, or a closure for `step`. Run files need nothing of this.

    Args:
        start: first length, >= 1.
        interval: fast steps from one look at tau to the next, >= 1. Losses of few steps are noisy, and tau never grows.
        decay: factor where the loss has not fallen enough, 0 < decay <= 1; 1 leaves tau as it is.

    Example:
        >>> tau, memory = AdaComm(start=16, interval=16), ()
        >>> for step, loss in ((0, None), (16, 2.0), (32, 1.0), (44, 1.0)):
        ...     length, memory = tau.next_round(Facts(step, loss=loss, steps=16), memory)
        ...     print(length)
        16
        16
        12
        12

    Defaults: `decay` is 1/2 in the paper as we remember it. Its interval is one of time; it is one of steps here, so
    that agents agree on it and a resumed run repeats it. Its correction for a learning rate that decays is left out.

    Reference: arXiv 1810.08313, section 4.
    """

    start: int
    interval: int
    decay: float = 0.5

    def __post_init__(self) -> None:
        _check_whole("AdaComm.start", self.start)
        _check_whole("AdaComm.interval", self.interval)
        if not 0 < self.decay <= 1:
            raise ValueError(f"AdaComm.decay={self.decay} must be above 0 and at most 1: tau never grows")

    @property
    def hears(self) -> Fact:
        """The loss."""
        return "loss"

    @property
    def first(self) -> int:
        """The first round, which is the longest."""
        return self.start

    def next_round(self, facts: Facts, memory: Memory) -> tuple[int, Memory]:
        """Return the length of the round that begins, and (F_0, tau, step of the next look, sum of losses, steps)."""
        if facts.loss is None:
            return self.start, ()
        if not 0 < facts.loss < math.inf:
            raise ValueError(
                f"tau={self} needs losses above 0, and their mean before fast step {facts.step} is {facts.loss}: "
                "lower the learning rate where it diverges; else use a loss that is never below 0, or a number for tau"
            )
        if not memory:
            return self.start, (facts.loss, self.start, facts.step + self.interval, 0.0, 0)
        first, tau, look, total, steps = memory
        total, steps = total + facts.loss * facts.steps, steps + facts.steps
        if facts.step < look:
            return int(tau), (first, tau, look, total, steps)
        fallen = math.ceil(math.sqrt(total / steps / first) * self.start)
        tau = fallen if fallen < tau else max(int(self.decay * tau), 1)
        return tau, (first, tau, facts.step + self.interval, 0.0, 0)


@dataclass(frozen=True)
class Timed:
    """Rounds of so many seconds: each agent takes as many fast steps as it can, and none waits long for a slower one.

        tau_i = max(round(seconds speed_i), 1)

    speed_i are the fast steps per second of agent i in its last round, without what it waited and sent at the sync; all
    that it did between two syncs counts, evaluations too. Agents tell each other, so that each knows the steps of all,
    and none hangs for being slow. Fast steps are each agent's own number: what depends on the step, such as schedules
    of alpha, is refused, and so is all but one level with `Exact(weighted="steps")` or "samples" over all agents.

    All agents must end after the same round: count `optimizer.stack.bound[0].rounds`, or use `optimizer.join()`. What
    was measured is saved, but a resumed run measures anew: it does not repeat the other bit for bit.

    Args:
        seconds: length of a round, > 0.
        first: steps of the first round, in which all but the first step are measured, >= 2.

    Example:
        >>> tau = Timed(seconds=30, first=4)
        >>> [tau.next_round(Facts(step=0, speed=speed), ())[0] for speed in (None, 2.5, 0.01)]
        [4, 75, 1]
    """

    seconds: float
    first: int = 4

    def __post_init__(self) -> None:
        _check_whole("Timed.first", self.first)
        if self.first < 2:
            raise ValueError(f"Timed.first={self.first} must be at least 2: the first step of a run is not measured")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"Timed.seconds={self.seconds} must be a number above 0")

    @property
    def hears(self) -> Fact:
        """The speeds."""
        return "speed"

    def next_round(self, facts: Facts, memory: Memory) -> tuple[int, Memory]:
        """Return the length of the agent's next round; nothing is remembered."""
        if facts.speed is None:
            return self.first, memory
        return max(round(self.seconds * facts.speed), 1), memory


def check_tau(name: str, tau: object) -> None:
    """Refuse what is no number, frozen schedule or frozen adaptive tau."""
    if not (isinstance(tau, Adaptive) and is_description(tau)):
        check_scheduled(name, tau)


def _check_whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of fast steps, at least 1")
