"""The inventory: which weights a stack looks after, in which buckets, and the slow state that levels keep of them."""

import math
from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim import Optimizer

from dist_lookahead.agreement import require_same
from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.bucket import Bucket, Weight, make_buckets
from dist_lookahead.comm.communicator import Communicator, Pending
from dist_lookahead.roster import Roster, describe


class Inventory:
    """The trained weights of an agent, in buckets that its levels share.

    Args:
        inner: the fast optimizer, whose trainable parameters are looked after.
        model: gives names, and untrained weights that agents must have in common.
        communicator: this agent's end.
        bound: the levels, innermost first, without any slow state yet.
        tail: elements of the first bucket for mail.
    """

    def __init__(
        self,
        inner: Optimizer,
        model: nn.Module | None,
        communicator: Communicator,
        bound: Sequence[BoundLevel],
        tail: int,
    ) -> None:
        self.buckets: list[Bucket] = []
        self._roster = Roster(inner, model)
        self._communicator = communicator
        self._bound = bound
        self._tail = tail

    @property
    def names(self) -> list[list[str]]:
        """Names of the parameters in each bucket."""
        return [[slot.weight.name for slot in bucket.slots] for bucket in self.buckets]

    def open(self, settings: Sequence[str]) -> Pending:
        """Take in all trainable parameters: agents must agree on them, and start from the weights of agent 0.

        Args:
            settings: what else agents must agree on.

        Raises:
            ValueError: without parameters, and where agents differ.
        """
        weights = self._roster.joining([])
        if not weights:
            raise ValueError("the optimizer has no trainable parameters: nothing to average")
        lines = [*settings, *describe(weights), *describe(self._roster.untrained(), "untrained tensor")]
        yield from require_same(self._communicator, lines, weights[0].parameter.device)
        self._build([weights])
        yield from self._take_from_first()

    def gather(self) -> None:
        """Bring the present weights into the buckets."""
        for bucket in self.buckets:
            bucket.gather()

    def scatter(self) -> None:
        """Bring the weights in the buckets out to the model."""
        for bucket in self.buckets:
            bucket.scatter()

    def require_live(self) -> None:
        """Refuse to go on with parameters that the model has no longer."""
        self._roster.require_live(self.buckets)

    def refit(self) -> None:
        """Before the first fast step: make the buckets anew if weights have moved to another device or dtype."""
        if not all(bucket.fits() for bucket in self.buckets):
            self._build([[slot.weight for slot in bucket.slots] for bucket in self.buckets])
        self.gather()

    def restore(self, names: Sequence[Sequence[str]]) -> None:
        """Bring the saved parameters into the saved buckets; others join at the next sync, as they would have."""
        if names != self.names:
            self._build([self._roster.named(group) for group in names])

    def joining(self) -> list[Weight]:
        """Return the trainable parameters that are in no bucket yet."""
        return self._roster.joining(self.buckets)

    def join(self, weights: Sequence[Weight], due: Sequence[BoundLevel]) -> Pending:
        """New parameters start from their mean over all agents, at every level.

        They join with mail, which compares them, or with any average where there is none; else at a later sync.

        Args:
            weights: that join.
            due: the levels that have just fired.
        """
        if not weights or not self._may_join(due):
            return
        if not any(bound.hearing for bound in due):
            yield from require_same(self._communicator, describe(weights), weights[0].parameter.device)
        new = self._make_buckets(weights)
        if self._communicator.size > 1:
            yield from [self._communicator.all_reduce(bucket.fast) for bucket in new]
        for bucket in new:
            bucket.fast.div_(self._communicator.size)
            bucket.scatter()
        self._take_in(new)

    def _may_join(self, due: Sequence[BoundLevel]) -> bool:
        if any(bound.hearing for bound in self._bound):
            return any(bound.hearing for bound in due)
        return self._communicator.size == 1 or any(bound.mixer.communicates for bound in due)

    def _build(self, groups: Iterable[Sequence[Weight]]) -> None:
        """Put weights into buckets and start their slow state; groups that join later get buckets of their own."""
        self.buckets.clear()
        for bound in self._bound:
            bound.forget()
        for group in groups:
            self._take_in(self._make_buckets(group))

    def _take_in(self, buckets: Sequence[Bucket]) -> None:
        """Add buckets; their slow weights start from their present weights."""
        for bucket in buckets:
            for bound in self._bound:
                bound.adopt(bucket)
        self.buckets.extend(buckets)

    def _make_buckets(self, weights: Sequence[Weight]) -> list[Bucket]:
        parts = math.lcm(*(bound.mixer.parts for bound in self._bound))
        return make_buckets(weights, parts=parts, tail=0 if self.buckets else self._tail)

    def _take_from_first(self) -> Pending:
        if self._communicator.size == 1:
            return
        others = [weight.parameter.data for weight in self._roster.untrained()]
        weights = [bucket.fast for bucket in self.buckets]
        yield from [self._communicator.broadcast(tensor) for tensor in [*weights, *others]]
        self.scatter()
