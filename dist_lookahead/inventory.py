"""The inventory: which weights a stack looks after, in which buckets, and the slow state that levels keep of them."""

import math
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from dist_lookahead.agreement import require_same
from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.bucket import Bucket, Weight, make_buckets
from dist_lookahead.comm.communicator import Communicator, Pending
from dist_lookahead.fragments import covering, require_parameters
from dist_lookahead.level import Level
from dist_lookahead.roster import Roster, describe
from dist_lookahead.sharded import reshard, sharding_modules

Cover = tuple[int, ...]  # the levels that act on a parameter


class Inventory:
    """The trained weights of an agent, in buckets that its levels share.

    Args:
        inner: the fast optimizer, whose trainable parameters are looked after.
        model: gives names, and untrained weights that agents must have in common.
        communicator: this agent's end.
        bound: the levels, innermost first, without any slow state yet.
        tail: elements of each level's first bucket for mail.
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
        self._sharding = sharding_modules(model)
        self._roster = Roster(inner, model)
        self._communicator = communicator
        self._bound = bound
        self._tail = tail

    @property
    def names(self) -> list[list[str]]:
        """Names of the parameters in each bucket."""
        return [[slot.weight.name for slot in bucket.slots] for bucket in self.buckets]

    def cells(self, levels: Sequence[Level]) -> list[Cover]:
        """Return which levels act together on some parameter, each of these sets of levels once.

        Raises:
            ValueError: without parameters, for one on which no level acts, and for a level that acts on none.
        """
        weights = self._roster.joining([])
        if not weights:
            raise ValueError("the optimizer has no trainable parameters: nothing to average")
        require_parameters([level.params for level in levels], [weight.name for weight in weights])
        return list(dict.fromkeys(_covers(levels, weights)))

    def open(self, settings: Sequence[str], *, take: bool = True) -> Pending:
        """Take in all trainable parameters: agents must agree on them, and start from the weights of agent 0.

        Args:
            settings: what else agents must agree on.
            take: whether weights are taken from agent 0, else each agent's own stay.

        Raises:
            ValueError: where agents differ.
        """
        weights = self._roster.joining([])
        lines = [*settings, *describe(weights), *describe(self._roster.untrained(), "untrained tensor")]
        yield from require_same(self._communicator, lines, weights[0].tensor.device)
        self._build([(weights, _covers([bound.level for bound in self._bound], weights))])
        if take:
            yield from self._take_from_first()

    @property
    def covers(self) -> list[list[int]]:
        """The levels that act on each bucket."""
        return [list(self._levels_of(bucket)) for bucket in self.buckets]

    def of(self, bounds: Sequence[BoundLevel]) -> list[Bucket]:
        """Return the buckets on which any of the levels acts."""
        return [bucket for bucket in self.buckets if any(bucket in bound.buckets for bound in bounds)]

    def outermost(self, bucket: Bucket) -> BoundLevel:
        """Return the last level that acts on a bucket."""
        return self._bound[self._levels_of(bucket)[-1]]

    def untrained(self) -> list[Tensor]:
        """Return what agents hold alike though it is not trained: frozen parameters, and the model's buffers."""
        return [weight.tensor.data for weight in self._roster.untrained()]

    def gather(self, buckets: Sequence[Bucket]) -> None:
        """Bring the present weights into the buckets."""
        reshard(self._sharding)
        for bucket in buckets:
            bucket.gather()

    def scatter(self, buckets: Sequence[Bucket]) -> None:
        """Bring the weights in the buckets out to the model."""
        reshard(self._sharding)
        for bucket in buckets:
            bucket.scatter()

    def require_live(self) -> None:
        """Refuse to go on with parameters that the model has no longer."""
        reshard(self._sharding)
        self._roster.require_live(self.buckets)

    def refit(self) -> None:
        """Before the first fast step: make the buckets anew if weights have moved to another device or dtype."""
        if not all(bucket.fits() for bucket in self.buckets):
            self._build(
                [([slot.weight for slot in b.slots], [self._levels_of(b)] * len(b.slots)) for b in self.buckets]
            )
        self.gather(self.buckets)

    def restore(self, names: Sequence[Sequence[str]], covers: Sequence[Sequence[int]]) -> None:
        """Bring the saved parameters into the saved buckets; others join at the next sync, as they would have.

        Args:
            names: of the parameters in each bucket.
            covers: the levels that act on each.
        """
        if names != self.names or covers != self.covers:
            groups = zip(names, covers, strict=True)
            self._build([(self._roster.named(group), [tuple(levels)] * len(group)) for group, levels in groups])

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
            yield from require_same(self._communicator, describe(weights), weights[0].tensor.device)
        new = list(self._make_buckets(weights, _covers([bound.level for bound in self._bound], weights)))
        if self._communicator.size > 1:
            yield from [self._communicator.all_reduce(bucket.fast) for bucket, _ in new]
        for bucket, _ in new:
            bucket.fast.div_(self._communicator.size)
            bucket.scatter()
        self._take_in(new)

    def _may_join(self, due: Sequence[BoundLevel]) -> bool:
        if any(bound.hearing for bound in self._bound):
            return any(bound.hearing for bound in due)
        return self._communicator.size == 1 or any(bound.mixer.communicates for bound in due)

    def _levels_of(self, bucket: Bucket) -> Cover:
        return tuple(bound.index for bound in self._bound if bucket in bound.buckets)

    def _build(self, groups: Iterable[tuple[Sequence[Weight], Sequence[Cover]]]) -> None:
        """Put weights into buckets and start their slow state; groups that join later get buckets of their own."""
        self.buckets.clear()
        for bound in self._bound:
            bound.forget()
        for weights, covers in groups:
            self._take_in(list(self._make_buckets(weights, covers)))

    def _take_in(self, buckets: Sequence[tuple[Bucket, Cover]]) -> None:
        """Add buckets; their slow weights start from their present weights."""
        for bucket, cover in buckets:
            for index in cover:
                self._bound[index].adopt(bucket)
            self.buckets.append(bucket)

    def _make_buckets(self, weights: Sequence[Weight], covers: Sequence[Cover]) -> Iterator[tuple[Bucket, Cover]]:
        """Make buckets for each cell: the mail of a level travels in its first one."""
        parts = math.lcm(*(bound.mixer.parts for bound in self._bound))
        for cell in dict.fromkeys(covers):
            own = [weight for weight, cover in zip(weights, covers, strict=True) if cover == cell]
            first = any(not self._bound[index].buckets for index in cell)
            for bucket in make_buckets(own, parts=parts, tail=self._tail if first else 0):
                yield bucket, cell

    def _take_from_first(self) -> Pending:
        if self._communicator.size == 1:
            return
        weights = [bucket.fast for bucket in self.buckets]
        yield from [self._communicator.broadcast(tensor) for tensor in [*weights, *self.untrained()]]
        self.scatter(self.buckets)


def _covers(levels: Sequence[Level], weights: Sequence[Weight]) -> list[Cover]:
    """Return which levels act on each weight."""
    sizes = [weight.parameter.numel() * weight.parameter.element_size() for weight in weights]
    return covering([level.params for level in levels], [weight.name for weight in weights], sizes)
