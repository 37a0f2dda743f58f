"""A level bound to a stack: the mixer it averages with, its slow state and its counters."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dist_lookahead.averaging.mixer import Memory, Mixer
from dist_lookahead.bucket import Bucket
from dist_lookahead.comm.communicator import Communicator, Pending
from dist_lookahead.flight import Flight
from dist_lookahead.guard import PoisonedError, Watch, say_who_is_left_out
from dist_lookahead.level import Level
from dist_lookahead.mass import Mass
from dist_lookahead.move import slow_step
from dist_lookahead.offload import on_host, through_device
from dist_lookahead.pace import Pace, Table


@dataclass(eq=False)
class BoundLevel:
    """A level with its state.

    Attributes:
        index: place in the stack, 0 innermost.
        level: the description.
        mixer: the level's way to average.
        hearing: the agents whose mail comes with its sync; None where no mail travels with it.
        alike: the agents that average, where they hold the same weights after its sync: a checksum compares them.
        pace: what this agent has done in the round, and how long rounds are where that is not known beforehand.
        due: fast step of the next sync; not after `last` where it is found with the first fast step of the round.
        mass: of push-sum, where it is not always 1.
        offload: whether the slow state is kept in host memory.
        watch: of a guard, where agents may be left out of the mean.
        recoverable: whether its averages leave the fast weights as they are until they have landed.
        buckets: the weights of the level.
        slow: z per bucket, the part that this agent owns; empty without slow weights.
        momentum: v per bucket, likewise.
        residuals: what codes have lost per bucket, one tensor for each stretch that the mixer names; empty where it
            sends weights as they are.
        gammas: the last non-zero fast learning rate per parameter group, where the momentum follows it.
        snapshot: q per bucket, the weights that the last average has begun from; empty where nobody wants them back.
        flight: the average that is under way.
        last: fast step of the last sync that has landed: the one after which its average began.
        landed: fast step after which it landed, the same one without a delay.
        rounds: number of syncs so far.
        coefficients: (alpha, beta) of the last sync, or of the one that is under way.
    """

    index: int
    level: Level
    mixer: Mixer
    hearing: Communicator | None
    alike: Communicator | None
    pace: Pace
    due: int
    mass: Mass | None = None
    offload: bool = False
    watch: Watch | None = None
    recoverable: bool = False
    buckets: list[Bucket] = field(default_factory=list)
    slow: list[Tensor] = field(default_factory=list)
    momentum: list[Tensor] = field(default_factory=list)
    residuals: list[tuple[Tensor, ...]] = field(default_factory=list)
    gammas: dict[int, float] = field(default_factory=dict)
    snapshot: list[Tensor] = field(default_factory=list)
    flight: Flight | None = None
    last: int = 0
    landed: int = 0
    rounds: int = 0
    coefficients: tuple[float, float] = (1.0, 0.0)

    @property
    def reads_first(self) -> bool:
        """Whether its mail is there before the slow step, where slow state is split too: not with the other parts."""
        return self.mixer.shards == 1 or self.pace.weighs

    @property
    def sums_mail(self) -> bool:
        """Whether mail travels in the sum of the weights: not where it is split and yet needed before the slow step."""
        return self.mixer.sums_tails and (self.mixer.shards == 1 or not self.pace.weighs)

    def owned(self, bucket: Bucket) -> slice:
        """Return the elements of a bucket whose slow state is kept here."""
        return self.mixer.owned(bucket.fast.numel())

    def shares(self, other: "BoundLevel") -> bool:
        """Return whether both levels act on some weight."""
        return any(bucket in other.buckets for bucket in self.buckets)

    def rules(self, clock: int) -> bool:
        """Return whether the fast weights are those of the level after so many fast steps."""
        return self.last == clock and not self.level.local_share

    @property
    def keeps_snapshot(self) -> bool:
        """Whether an agent goes on from more than the level's weights: averages then work on copies."""
        return bool(self.level.when.delay or self.level.local_share)

    @property
    def left_out(self) -> bool:
        """Whether this agent's weights were not finite, and are not in the last mean."""
        return self.watch is not None and not self.watch.sound

    @property
    def fast(self) -> list[Tensor]:
        """The fast weights per bucket, with the tail where mail travels: its table grows with the number of agents."""
        return [bucket.fast if self.hearing else bucket.weights for bucket in self.buckets]

    @property
    def fired(self) -> int:
        """Fast step after which the last average began, landed or not."""
        return self.flight.step if self.flight else self.last

    def says(self, length: int) -> dict[str, float]:
        """Return what this agent says in the mail of a sync, before the weights of `taken` are sent.

        Args:
            length: of the round, in fast steps that agents have agreed on.
        """
        if not self.watch:
            return self.pace.says(length)
        apart = self.snapshot or [bucket.fast for bucket in self.buckets]
        weights = [x[: bucket.weights_end] for x, bucket in zip(apart, self.buckets, strict=True)]
        self.watch.look(weights, self.slow)
        return {**self.pace.says(length, sound=self.watch.sound), **self.watch.says()}

    def hear(self, table: Table, members: Sequence[int], clock: int) -> None:
        """Take what agents have said.

        Args:
            table: of the mail.
            members: rows of it.
            clock: fast steps done.
        """
        self.pace.hear(table, members, clock - self.last)
        if self.watch:
            self.watch.hear(table, members)
            say_who_is_left_out(self.watch, self.index, clock, self.pace.rank, members)

    def adopt(self, bucket: Bucket) -> None:
        """Take in a bucket; its slow state starts from its present weights."""
        self.buckets.append(bucket)
        own = bucket.fast[self.owned(bucket)]
        if self.level.move.keeps_slow_weights or self.mixer.compares:
            self.slow.append(self._copy(own))
        if self.level.move.keeps_momentum:
            self.momentum.append(self._copy(own).zero_())
        if self.keeps_snapshot or self.recoverable:
            self.snapshot.append(bucket.fast.clone())
        if self.mixer.compares:
            stretches = self.mixer.residuals(bucket.fast.numel())
            self.residuals.append(tuple(torch.zeros_like(bucket.fast[stretch]) for stretch in stretches))

    def forget(self) -> None:
        """Let go of all buckets and their slow state."""
        self.flight = None
        for kept in (self.buckets, self.slow, self.momentum, self.residuals, self.snapshot):
            kept.clear()

    def follow(self, buckets: Sequence[Bucket], ways: Sequence[Tensor] | None = None) -> None:
        """Take the present weights of some buckets as slow weights, where they belong to the level.

        Args:
            buckets: that a level above has moved.
            ways: how far each of them has, where fast steps were taken meanwhile: the slow weights go as far.
        """
        found = {id(bucket): place for place, bucket in enumerate(buckets)}
        for slow, bucket in zip(self.slow, self.buckets, strict=False):
            place, own = found.get(id(bucket)), self.owned(bucket)
            if place is not None and ways is not None:
                slow.add_(ways[place][own])
            elif place is not None:
                slow.copy_(bucket.fast[own])

    def lead(
        self, below: Sequence["BoundLevel"], ways: Sequence[Tensor] | None = None, *, reset_momentum: bool = False
    ) -> None:
        """Make the levels below follow this one, which has moved: their slow weights are its own, or move as it has."""
        for lower in below:
            lower.follow(self.buckets, ways)
            if lower.mass and lower.shares(self):
                lower.mass.reset()
            if reset_momentum:
                lower.reset_momentum(self.buckets)

    def reset_momentum(self, buckets: Sequence[Bucket]) -> None:
        """Forget the slow momentum of some buckets, where they belong to the level."""
        for momentum, bucket in zip(self.momentum, self.buckets, strict=False):
            if bucket in buckets:
                momentum.zero_()

    def begin_round(self, step: int, lr: Tensor | float | None) -> None:
        """Find the length of the round that begins with the fast step to come, where it was not known before.

        Args:
            step: fast steps done.
            lr: learning rate of the first parameter group now.
        """
        if self.pace.adaptive and self.last >= self.due:
            self.due = step + self.pace.begin_round(step, lr)

    def collect(self, fast: Sequence[Tensor]) -> Pending:
        """Sum the fast weights over the agents.

        Args:
            fast: tensors of the buckets, with or without the tail.
        """
        memory = []
        kept = zip(self.buckets, fast, self.slow, self.residuals, strict=False)
        for place, (bucket, x, slow, residuals) in enumerate(kept):
            for flat in (x, slow):  # old mail in the tail is no weight, and must not scale a code
                flat[bucket.weights_end :] = 0
            memory.append(Memory(slow, residuals, draw=(self.index, self.rounds, place)))
        weights = [x[: bucket.weights_end] for x, bucket in zip(fast, self.buckets, strict=True)]
        if self.watch:
            self.watch.apply(weights, self.slow)
        self.pace.scale(weights)
        yield from self.mixer.collect(fast, self.rounds, memory)

    def move(self, rates: Sequence[float | None]) -> None:
        """Take the slow step with `coefficients`.

        Before, the owned part of each bucket holds the sum over the agents, afterwards the level's new weights.

        Args:
            rates: the fast learning rates of the round's last fast step, per parameter group.
        """
        if self.pace.weighs and not self.pace.total:
            self._without_mean()
            return
        gammas = dict(enumerate(rates)) if self.level.move.follow_lr else {}
        ratios = {
            group: gamma / self.gammas.get(group, gamma or 1.0) for group, gamma in gammas.items() if gamma is not None
        }
        for index, bucket in enumerate(self.buckets):
            for part, ratio in self._parts(bucket, ratios):
                self._slow_step(index, bucket, part, ratio)
        self.gammas.update({group: gamma for group, gamma in gammas.items() if gamma})

    def _without_mean(self) -> None:
        """Nobody has moved, or nobody has finite weights."""
        if not self.watch or not self.watch.left_out:
            self.pace.restore(self.buckets)
            return
        for bucket in self.buckets:
            bucket.weights.fill_(torch.nan)  # as they were; the sum of nobody must not pass for weights
        raise PoisonedError(
            f"no agent has finite weights at the sync of levels[{self.index}] after fast step {self.fired}: lower the "
            "learning rate, and go on from a checkpoint"
        )

    def commit(self, clock: int) -> None:
        """Count the sync.

        Args:
            clock: fast steps done.
        """
        assert self.flight
        if self.mass:
            self.mass.mix(self.rounds)
        self.last, self.landed, self.rounds = self.flight.step, clock, self.rounds + 1
        self.pace.end_round()
        self.schedule_next(self.last)

    def schedule_next(self, step: int) -> None:
        """Ask when the next sync is due; one in the middle of a round leaves that as it was."""
        if step >= self.due:
            self.due = step if self.pace.adaptive else self.level.when.after(step)

    def _copy(self, own: Tensor) -> Tensor:
        return on_host(own) if self.offload else own.clone()

    def _slow_step(self, index: int, bucket: Bucket, part: slice, ratio: float) -> None:
        start = self.owned(bucket).start
        own = slice(part.start - start, part.stop - start)
        alpha, beta = self.coefficients
        step = functools.partial(
            slow_step,
            self.level.move,
            agents=self.pace.total if self.pace.weighs else self.mixer.agents,
            alpha=alpha,
            beta=beta,
            ratio=ratio,
        )
        through_device(
            step,
            bucket.fast[part],
            self.slow[index][own] if self.slow else None,
            self.momentum[index][own] if self.momentum else None,
        )

    def _parts(self, bucket: Bucket, ratios: dict[int, float]) -> list[tuple[slice, float]]:
        """Cut the owned weights by the factor of their slow momentum: one part where it is the same for all."""
        owned = self.owned(bucket)
        if len(set(ratios.values())) > 1:
            return [(part, ratios.get(group, 1.0)) for part, group in bucket.segments(owned)]
        end = min(owned.stop, bucket.weights_end)
        return [(slice(owned.start, end), next(iter(ratios.values()), 1.0))] if owned.start < end else []
