"""How the agents move, measured at each sync of the outermost level.

With x_i the fast weights of agent i, m their mean, and z the slow weights before the sync and z' after it:

    distance      |m - z|                                          how far the round has come
    spread        sqrt(mean_i |x_i - m|^2)                         the consensus distance
                  = sqrt(mean_i |x_i - z|^2 - |m - z|^2)
    lookahead     |m - y|, y = X a                                 how far the mean runs ahead of y
    slow_step     |z' - z|
    cosine        of z' - z with that of the sync before           1: straight on, < 0: back and forth

y is the weighted mean of all weights that moves as SGD does (`theory.fixed_vector`). The agents' squared distance from
it, which the convergence bounds are about, is spread^2 + lookahead^2. No sync moves y, and after one all x and z are
z', so that y = z' + sum_l a_l v_l over the levels' slow momenta: without slow momentum m - y = (1 - alpha)(m - z).

It costs three copies of the weights (z, m and the last slow step), a few passes over memory, and no collective.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.bucket import Bucket
from dist_lookahead.stack import LevelStack
from dist_lookahead.train.momentum_weights import momentum_weights

CHUNK = 2**18  # elements per temporary


class Dynamics:
    """Watches the outermost level of a stack.

    Args:
        stack: the stack to watch, before its first fast step.
    """

    def __init__(self, stack: LevelStack) -> None:
        self._bound, self._agents = stack.bound, stack.communicator.size
        self._outer = stack.bound[-1]
        self._start: list[Tensor] = []
        self._means: list[Tensor] = []
        self._last_step: list[Tensor] = []
        self._drift = self._distance = self._lookahead = self._step = self._dot = self._last_norm = 0.0
        stack.observer = self

    def before(self, bound: BoundLevel) -> None:
        """Measure this agent's own way since the last sync."""
        if bound is self._outer:
            assert self._start, "begin() comes before the first fast step"
            self._drift = _squared_distance((bucket.weights for bucket in bound.buckets), self._start)

    def averaged(self, bound: BoundLevel) -> None:
        """Measure the mean's way, of which this agent may own a part only."""
        if bound is self._outer:
            parts = [_owned(bound, bucket) for bucket in bound.buckets]
            means = [bucket.fast[part] / bound.mixer.agents for bucket, part in zip(bound.buckets, parts, strict=True)]
            starts = [start[part] for start, part in zip(self._start, parts, strict=False)]
            self._distance = self._share * _squared_distance(means, starts)
            self._means = means

    def after(self, bound: BoundLevel) -> None:
        """Measure the slow step."""
        if bound is not self._outer:
            return
        self._lookahead = self._share * self._squared_lookahead(bound.buckets)
        steps = [bucket.weights - start for bucket, start in zip(bound.buckets, self._start, strict=False)]
        self._last_norm = self._step
        self._step = math.sqrt(sum(_dot(step, step) for step in steps))
        self._dot = sum(_dot(step, last) for step, last in zip(steps, self._last_step, strict=False))
        self._last_step = steps
        self.begin(bound.buckets)

    def begin(self, buckets: Sequence[Bucket]) -> None:
        """Start a round at the present weights."""
        self._start = [bucket.weights.clone() for bucket in buckets]

    def sums(self) -> list[float]:
        """Return what must be summed over the agents: squares of drift, distance and lookahead."""
        return [self._drift, self._distance, self._lookahead]

    def report(self, sums: Sequence[float], agents: int) -> dict[str, float]:
        """Return the metrics from the sums over all agents.

        Args:
            sums: the total of `sums`.
            agents: number of agents.
        """
        drift, distance, lookahead = sums
        norms = self._step * self._last_norm
        return {
            "distance": math.sqrt(distance),
            "spread": math.sqrt(max(drift / agents - distance, 0.0)),
            **({} if math.isnan(lookahead) else {"lookahead": math.sqrt(lookahead)}),
            "slow_step": self._step,
            "cosine": self._dot / norms if norms else 0.0,
        }

    @property
    def _share(self) -> float:
        """Agents that measure the same whole share it."""
        return self._outer.mixer.shards / self._agents

    def _squared_lookahead(self, buckets: Sequence[Bucket]) -> float:
        """Return |m - y|^2 in the owned part; not a number where there is no y, or where it is not known here."""
        weights = momentum_weights(self._bound)
        if weights is None:
            return math.nan
        total = 0.0
        for index, (bucket, mean) in enumerate(zip(buckets, self._means, strict=False)):
            part = _owned(self._outer, bucket)
            y = bucket.fast[part].clone()
            for bound, weight in zip(self._bound, weights, strict=True):
                if weight:
                    start = bound.owned(bucket).start
                    momentum = bound.momentum[index][part.start - start : part.stop - start]
                    y.add_(momentum.to(y.device), alpha=weight)  # offloaded, it is on the host
            total += _squared_distance([mean], [y])
        return total

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to report the same."""
        return {"start": self._start, "last_step": self._last_step, "step": self._step, "drift": self._drift}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state, on whatever device it was saved."""
        self._start, self._last_step = self._brought(state["start"]), self._brought(state["last_step"])
        self._step = state["step"]
        self._drift = state.get("drift", 0.0)  # of an average that is under way; states from before had none

    def _brought(self, flats: Sequence[Tensor]) -> list[Tensor]:
        return [flat.to(bucket.weights.device) for flat, bucket in zip(flats, self._outer.buckets, strict=False)]


def _owned(bound: BoundLevel, bucket: Bucket) -> slice:
    """Return the weights of a bucket, without its tail, whose slow state is kept here."""
    own = bound.owned(bucket)
    return slice(own.start, max(min(own.stop, bucket.weights_end), own.start))


def _squared_distance(flats: Iterable[Tensor], others: Sequence[Tensor]) -> float:
    total = 0.0
    for flat, other in zip(flats, others, strict=False):
        for a, b in zip(flat.split(CHUNK), other.split(CHUNK), strict=True):
            difference = a - b
            total += _dot(difference, difference)
    return total


def _dot(a: Tensor, b: Tensor) -> float:
    """In double precision: the square of a small difference of many large numbers."""
    return sum(float(torch.dot(x.double(), y.double())) for x, y in zip(a.split(CHUNK), b.split(CHUNK), strict=True))
