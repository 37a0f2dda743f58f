"""The pace of a level: what this agent did in a round, what all agents say of theirs, and how long the next one is.

All of it travels with the level's sync, as numbers in its mail, and only where a level needs it:

    weight          fast steps, or samples, of this agent in the round: its weight in a weighted mean
    done            whether this agent takes no more fast steps (`join`)
    lr              with which it found the length of the round: agents must agree
    loss, losses    mean of the losses that it was told, and their number
    speed           fast steps per second in the round
    unsound, way    what a guard has seen of this agent's weights
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from dist_lookahead.adaptive import Adaptive, Facts, Memory
from dist_lookahead.bucket import Bucket
from dist_lookahead.guard import Guard, Watch
from dist_lookahead.level import Level

LARGEST = 2**24 - 1  # number that arrives exactly
Table = Mapping[str, tuple[float, ...]]


def mail_fields(levels: Sequence[Level], guard: Guard | None = None) -> tuple[str, ...]:
    """Return the numbers that travel with the mail of these levels.

    Args:
        levels: of a stack.
        guard: before their means.

    Example:
        >>> from dist_lookahead import QSR, local_sgd
        >>> mail_fields(local_sgd(tau=4)), mail_fields(local_sgd(tau=QSR(4, 0.2)))
        ((), ('lr',))
    """
    taus = [level.when.tau for level in levels]
    hears = {tau.hears for tau in taus if isinstance(tau, Adaptive)}
    weights = ("weight", "done") if guard or any(level.mix.weighted for level in levels) else ()
    numbers = {"lr": ("lr",), "loss": ("loss", "losses"), "speed": ("speed",)}
    facts = (name for fact, names in numbers.items() if fact in hears for name in names)
    return (*weights, *Watch.fields(guard), *facts)


@dataclass
class Pace:
    """What an agent counts in a round, and what it has heard of the last one.

    Attributes:
        level: the description.
        rank: of this agent among all.
        weighs: whether weights of several agents are weighted: by their work, or by 0 and 1 where a guard looks.
        sound: whether this agent takes part in the mean.
        steps: fast steps that this agent has taken since the last sync.
        samples: that it was told of since then.
        losses: number of losses that it was told since then.
        loss_sum: their sum.
        done: whether it takes no more fast steps.
        lr: learning rate with which the length of the round was found.
        heard: mean loss of all agents in the last round, and its length; None before the first sync.
        speeds: of all agents in the last round, where tau depends on them.
        began: when the round began, by this process's clock, and how many of its steps were before.
        stepped: when its last step ended.
        memory: of an adaptive tau.
        adaptive: tau, if it is asked for each round; else None.
        needs: what the level must be told of each fast step.
        unit: of weights, the same on all agents: what an ordinary round weighs, so that its share is 1 exactly.
        share: w_i / unit, this agent's weight.
        total: sum of all agents' shares.
    """

    level: Level
    rank: int = 0
    weighs: bool = False
    sound: bool = True
    steps: int = 0
    samples: int = 0
    losses: int = 0
    loss_sum: Tensor | float = 0.0
    done: bool = False
    lr: float | None = None
    heard: tuple[float, int] | None = None
    speeds: tuple[float, ...] = ()
    began: tuple[float, int] | None = None
    stepped: float = 0.0
    memory: Memory = ()
    unit: int = 1
    share: float = 1.0
    total: float = 1.0
    adaptive: Adaptive | None = field(init=False)
    needs: tuple[str, ...] = field(init=False)
    _untold: set[str] = field(default_factory=set)
    _kept: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        tau = self.level.when.tau
        self.adaptive = tau if isinstance(tau, Adaptive) else None
        loss = ("loss",) if self.adaptive and self.adaptive.hears == "loss" else ()
        samples = ("samples",) if self.weighs and self.level.mix.weighted == "samples" else ()
        self.needs = (*loss, *samples)
        self._ask()

    @property
    def timed(self) -> bool:
        """Whether agents take different numbers of fast steps."""
        return self.adaptive is not None and self.adaptive.hears == "speed"

    def report(self, *, loss: Tensor | float | None, samples: int | None) -> None:
        """Take note of the fast step to come, or that has just been; several times where gradients add up."""
        if loss is not None and "loss" in self.needs:
            # Summed on the loss's device: nobody waits for it before the sync.
            self.loss_sum = self.loss_sum + (loss.detach().double() if isinstance(loss, Tensor) else loss)
            self.losses += 1
            self._untold.discard("loss")
        if samples is not None:
            self.samples += samples
            self._untold.discard("samples")

    def step(self) -> None:
        """Count a fast step.

        Raises:
            ValueError: where it was not told what it must be.
        """
        self.steps += 1
        if self.timed:
            self.stepped = perf_counter()  # not later: a simulated agent's sync waits for the others first
        if not self.needs:
            return
        for what in self._untold:
            raise ValueError(
                f"levels need to know the {what} of each fast step: call optimizer.report({what}=...) before step()"
                + (", or step(closure)" if what == "loss" else "")
            )
        self._ask()

    def begin_round(self, step: int, lr: Tensor | float | None) -> int:
        """Return the length of the round that begins with the fast step to come, of an adaptive tau.

        Args:
            step: fast steps done.
            lr: learning rate of the first parameter group now.
        """
        assert self.adaptive
        self.lr = None if lr is None else float(lr)
        loss, steps = self.heard or (None, 0)
        if self.timed:
            self.began = self.began or (perf_counter(), 1)  # the first step of a run has been computed already
            speeds = self.speeds or (None,) * (self.rank + 1)
            lengths = [self.adaptive.next_round(Facts(step, speed=speed), ())[0] for speed in speeds]
            if self.level.mix.weighted == "steps":
                self.unit = max(lengths)
            return lengths[self.rank]
        length, self.memory = self.adaptive.next_round(Facts(step, self.lr, loss, steps), self.memory)
        return length

    def says(self, length: int, *, sound: bool = True) -> dict[str, float]:
        """Return this agent's numbers for the mail, and find its share.

        Args:
            length: of the round, in fast steps that agents have agreed on.
            sound: whether this agent takes part in the mean.
        """
        self.sound = sound
        weight = {"samples": self.samples, "steps": self.steps, None: 1}[self.level.mix.weighted] * sound
        if self.weighs and weight > LARGEST:
            raise ValueError(f"{weight} samples in a round are more than {LARGEST}: report them in larger units")
        if self.level.mix.weighted == "steps" and not self.timed:
            self.unit = length
        self.share = weight / self.unit
        losses = self.losses * sound
        loss = float(self.loss_sum) / losses if losses else 0.0
        return {
            "weight": weight,
            "done": int(self.done),
            "lr": self.lr or 0.0,
            "loss": loss,
            "losses": losses,
            "speed": self._speed() if self.timed else 0.0,
        }

    def hear(self, table: Table, members: Sequence[int], length: int) -> None:
        """Take what the members said, and begin to count anew.

        Args:
            table: of the mail.
            members: rows of it.
            length: of the round that has ended.
        """
        if "loss" in self.needs:
            said = [(table["loss"][member], table["losses"][member]) for member in members]
            told = sum(count for _, count in said)
            if told:
                self.heard = math.fsum(loss * count for loss, count in said) / told, length
        if self.timed:
            self.speeds = tuple(table["speed"][member] for member in members)
        if self.weighs:
            weights = [int(table["weight"][member]) for member in members]
            self.total = sum(weights) / self.unit
            if self.level.mix.weighted == "samples":
                self.unit = max(*weights, 1)
        self.steps = self.samples = self.losses = 0
        self.loss_sum = 0.0

    @torch.no_grad()
    def scale(self, fast: Sequence[Tensor]) -> None:
        """Multiply flat weights with this agent's share, before they are summed."""
        if not self.weighs or not self.sound or self.share == 1:
            return
        # Where no agent has moved the sum is of no use, and all still hold the same weights.
        self._kept = [x.clone() for x in fast] if self.share == 0 else []
        for x in fast:
            x.mul_(self.share)

    @torch.no_grad()
    def restore(self, buckets: Sequence[Bucket]) -> None:
        """Bring back the weights of an agent that has not moved."""
        for bucket, kept in zip(buckets, self._kept, strict=True):
            bucket.weights.copy_(kept)

    def end_round(self) -> None:
        """The sync is over: let go of what was kept in case that nobody has moved, and start the watch."""
        self._kept = []
        self.began = (perf_counter(), 0)

    def state(self) -> dict[str, Any]:
        """Return all that decides what happens next, in plain containers."""
        return {
            "counts": [self.steps, self.samples, self.losses, self.unit],
            "loss_sum": float(self.loss_sum),
            "lr": self.lr,
            "heard": list(self.heard or ()),
            "memory": list(self.memory),
            "speeds": list(self.speeds),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.steps, self.samples, self.losses, self.unit = state["counts"]
        self.loss_sum, self.lr, self.memory = state["loss_sum"], state["lr"], tuple(state["memory"])
        self.speeds, self.began = tuple(state["speeds"]), (perf_counter(), self.steps)
        self.heard = (state["heard"][0], state["heard"][1]) if state["heard"] else None
        self._ask()

    def _speed(self) -> float:
        """Steps per second since the watch was started; those of the round before where there was no step since."""
        began, before = self.began or (0.0, self.steps)
        if self.steps <= before:
            return self.speeds[self.rank] if self.speeds else 0.0
        return (self.steps - before) / max(self.stepped - began, 1e-9)

    def _ask(self) -> None:
        self._untold = set(self.needs)
