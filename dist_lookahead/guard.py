"""A guard before the mean: weights that are not finite are left out of it, and outlying ones are clipped.

    s_i = 1 where all of x_i is finite, else 0
    c_i = min(1, clip * u / |x_i - z|),        u the median of |x_j - z| in the round before, over agents with s_j = 1
    mean = sum_i s_i (z + c_i (x_i - z)) / sum_i s_i

What an agent says of itself travels in the mail of the same sync: no further message is needed. One that is left out
takes the slow weights as all others do, and its fast optimizer begins anew.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dist_lookahead.level import Level
from dist_lookahead.move import CHUNK

LOGGER = logging.getLogger(__name__)


class PoisonedError(RuntimeError):
    """No agent has finite weights."""


@dataclass(frozen=True)
class Guard:
    """Leave weights that are not finite out of the means of exact levels.

    Args:
        clip: at most this many times the median way |x_i - z| of the round before counts of an agent's way, > 0; None
            for any. For levels that keep whole slow weights.

    Raises:
        ValueError: for a clip that is not positive.

    Example:
        >>> Guard(clip=4.0)
        Guard(clip=4.0)
    """

    clip: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"Guard.clip={self.clip} must be above 0, or None for no clipping")

    def check(self, index: int, level: Level) -> None:
        """Refuse a level whose means it cannot guard.

        Raises:
            ValueError: for those.
        """
        if getattr(level.mix, "codec", None):
            raise ValueError(
                f"guard with levels[{index}].mix={level.mix}: what a code has lost would be sent with a mean of other "
                "agents; leave one of the two out"
            )
        if level.fast_buffers == "average":
            raise ValueError(
                f"guard with levels[{index}].fast_buffers='average': the buffers of an agent that is left out would be "
                "averaged; use 'keep' or 'reset'"
            )
        if level.move.searches:
            raise ValueError(f"guard with levels[{index}].move={level.move}, which measures with the plain mean")
        if self.clip is not None and not level.move.keeps_slow_weights:
            raise ValueError(f"Guard.clip={self.clip} needs slow weights to measure from, and levels[{index}] has none")
        if self.clip is not None and level.mix.shard:
            raise ValueError(f"Guard.clip={self.clip} with levels[{index}].mix={level.mix}: no agent has all of z")


class Watch:
    """What an agent sees of its own weights at a sync of a level, and has heard of those of others.

    Args:
        guard: the description.

    Attributes:
        sound: whether this agent's weights were finite at the last sync.
        left_out: ranks of agents whose weights were not.
        usual: median of the agents' ways in the last round; infinite before there was one.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.sound = True
        self.left_out: tuple[int, ...] = ()
        self.usual = math.inf
        self._way = 0.0

    @staticmethod
    def fields(guard: Guard | None) -> tuple[str, ...]:
        """Return the numbers that travel with the mail."""
        return ("unsound", "way") if guard else ()

    @torch.no_grad()
    def look(self, weights: Sequence[Tensor], slow: Sequence[Tensor]) -> None:
        """Look at the weights that are to be sent.

        Args:
            weights: flat, per bucket.
            slow: z per bucket, at least as long; for clipping.
        """
        if self._guard.clip is None:
            self._way = max(float(torch.linalg.vector_norm(x, math.inf)) for x in weights if x.numel())
        else:
            self._way = math.sqrt(sum(_squared_way(x, z) for x, z in zip(weights, slow, strict=True)))
        self.sound = math.isfinite(self._way)

    def says(self) -> dict[str, float]:
        """Return this agent's numbers for the mail."""
        return {"unsound": int(not self.sound), "way": self._way if self.sound else 0.0}

    @torch.no_grad()
    def apply(self, fast: Sequence[Tensor], slow: Sequence[Tensor]) -> None:
        """Clip or clear what is about to be summed.

        Args:
            fast: flat weights, per bucket.
            slow: z per bucket, at least as long; for clipping.
        """
        if not self.sound:
            for x in fast:
                x.zero_()
        elif self._guard.clip is not None and self._way > (longest := self._guard.clip * self.usual):
            for x, z in zip(fast, slow, strict=True):
                x.lerp_(z[: x.numel()], 1 - longest / self._way)

    def hear(self, table: Mapping[str, tuple[float, ...]], members: Sequence[int]) -> None:
        """Take what the members said.

        Args:
            table: of the mail.
            members: rows of it.
        """
        self.left_out = tuple(member for member in members if table["unsound"][member])
        ways = [table["way"][member] for member in members if not table["unsound"][member]]
        if ways and any(ways):
            self.usual = median(ways)

    def state(self) -> dict[str, Any]:
        """Return what decides the next clipping."""
        return {"usual": self.usual}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.usual = state["usual"]


def say_who_is_left_out(watch: Watch, index: int, clock: int, rank: int, members: Sequence[int]) -> None:
    """Log it, on the first agent that has heard of it and on those that it is about.

    Args:
        watch: after it has heard.
        index: of the level.
        clock: fast steps done.
        rank: of this agent.
        members: that took part.
    """
    if watch.left_out and (rank in watch.left_out or rank == members[0]):
        LOGGER.warning(
            "agents %s contribute nothing to the sync of levels[%d] after fast step %d: their weights are not finite; "
            "they go on from the slow weights",
            list(watch.left_out),
            index,
            clock,
        )


def _squared_way(x: Tensor, z: Tensor) -> float:
    pieces = zip(x.split(CHUNK), z[: x.numel()].split(CHUNK), strict=True)
    return float(sum(torch.linalg.vector_norm(a - b).double().square() for a, b in pieces))
