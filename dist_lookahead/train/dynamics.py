"""How the agents move, measured at each sync of the outermost level.

With x_i the fast weights of agent i, m their mean, and z the slow weights before the sync and z' after it:

    distance      |m - z|                                          how far the round has come
    spread        sqrt(mean_i |x_i - m|^2)                         the consensus distance
                  = sqrt(mean_i |x_i - z|^2 - |m - z|^2)
    slow_step     |z' - z|
    cosine        of z' - z with that of the sync before           1: straight on, < 0: back and forth

It costs two copies of the weights (z and the last slow step), a few passes over memory, and no collective of its own.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.bucket import Bucket
from dist_lookahead.stack import LevelStack

CHUNK = 2**18  # elements per temporary


class Dynamics:
    """Watches the outermost level of a stack.

    Args:
        stack: the stack to watch, before its first fast step.
    """

    def __init__(self, stack: LevelStack) -> None:
        self._outer = stack.bound[-1]
        self._start: list[Tensor] = []
        self._last_step: list[Tensor] = []
        self._drift = self._distance = self._step = self._dot = self._last_norm = 0.0
        stack.observer = self

    def before(self, bound: BoundLevel, buckets: Sequence[Bucket]) -> None:
        """Measure this agent's own way since the last sync."""
        if bound is self._outer:
            assert self._start, "begin() comes before the first fast step"
            self._drift = _squared_distance((bucket.weights for bucket in buckets), self._start)

    def averaged(self, bound: BoundLevel, buckets: Sequence[Bucket]) -> None:
        """Measure the mean's way, of which this agent may own a part only."""
        if bound is self._outer:
            parts = [
                slice(bound.owned(b).start, max(min(bound.owned(b).stop, b.weights_end), bound.owned(b).start))
                for b in buckets
            ]
            means = (bucket.fast[part] for bucket, part in zip(buckets, parts, strict=True))
            starts = [start[part] for start, part in zip(self._start, parts, strict=False)]
            share = bound.mixer.shards / bound.mixer.agents  # agents that measure the same whole share it
            self._distance = share * _squared_distance(means, starts, divide=bound.mixer.agents)

    def after(self, bound: BoundLevel, buckets: Sequence[Bucket]) -> None:
        """Measure the slow step."""
        if bound is not self._outer:
            return
        steps = [bucket.weights - start for bucket, start in zip(buckets, self._start, strict=False)]
        self._last_norm = self._step
        self._step = math.sqrt(sum(_dot(step, step) for step in steps))
        self._dot = sum(_dot(step, last) for step, last in zip(steps, self._last_step, strict=False))
        self._last_step = steps
        self.begin(buckets)

    def begin(self, buckets: Sequence[Bucket]) -> None:
        """Start a round at the present weights."""
        self._start = [bucket.weights.clone() for bucket in buckets]

    def sums(self) -> list[float]:
        """Return what must be summed over the agents: squared drift and squared distance."""
        return [self._drift, self._distance]

    def report(self, sums: Sequence[float], agents: int) -> dict[str, float]:
        """Return the metrics from the sums over all agents.

        Args:
            sums: the total of `sums`.
            agents: number of agents.
        """
        drift, distance = sums
        norms = self._step * self._last_norm
        return {
            "distance": math.sqrt(distance),
            "spread": math.sqrt(max(drift / agents - distance, 0.0)),
            "slow_step": self._step,
            "cosine": self._dot / norms if norms else 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to report the same."""
        return {"start": self._start, "last_step": self._last_step, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._start, self._last_step, self._step = list(state["start"]), list(state["last_step"]), state["step"]


def _squared_distance(flats: Any, others: Sequence[Tensor], divide: int = 1) -> float:
    total = 0.0
    for flat, other in zip(flats, others, strict=False):
        for a, b in zip(flat.split(CHUNK), other.split(CHUNK), strict=True):
            difference = (a / divide).sub_(b)
            total += _dot(difference, difference)
    return total


def _dot(a: Tensor, b: Tensor) -> float:
    """In double precision: the square of a small difference of many large numbers."""
    return sum(float(torch.dot(x.double(), y.double())) for x, y in zip(a.split(CHUNK), b.split(CHUNK), strict=True))
