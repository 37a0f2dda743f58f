"""The coefficients of a sync: from the schedules, or alpha measured along the segment from z to the average.

Two gradients of the same samples are enough: with d = mean - z, the slope d^T g(z) and the bend d^T (g(mean) - g(z))
are summed over the agents, two numbers, and every agent finds the same alpha. The samples should not be those of the
round: d is made of their noise, which would then look like a slope.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.bucket import Bucket
from dist_lookahead.comm.communicator import Work
from dist_lookahead.level import Level
from dist_lookahead.optimal import Optimal
from dist_lookahead.theory.alpha import line_alpha

Probe = Callable[[int], object]


class LineSearch:
    """Chooses alpha and beta of a sync.

    Args:
        levels: of the stack.
        probe: computes gradients at the model's present weights, on samples that the number of the fast step decides;
            needed for levels with alpha=Optimal, and for no others.
        model: whose buffers are left as they were.

    Raises:
        ValueError: for a probe that is missing, or without effect.
    """

    def __init__(self, levels: Sequence[Level], probe: Probe | None, model: nn.Module | None) -> None:
        searching = [index for index, level in enumerate(levels) if level.move.searches]
        if searching and probe is None:
            raise ValueError(
                f"levels[{searching[0]}].move.alpha={getattr(levels[searching[0]].move, 'alpha', None)} needs two "
                "gradients at each sync: give DistributedLookahead a probe, a function of the fast step that computes "
                "a loss and calls backward()"
            )
        if probe is not None and not searching:
            raise ValueError("probe has no effect without a level with alpha=Optimal(low, high): leave it out")
        self._probe = probe
        self._model = model

    def coefficients(self, bound: BoundLevel, step: int) -> Generator[Work, None, tuple[float, float]]:
        """Return (alpha, beta) of the sync after `step` fast steps.

        Args:
            bound: the level that fires; its buckets hold the sum over the agents, and do so again afterwards.
            step: fast steps done.
        """
        move = bound.level.move
        limits = getattr(move, "alpha", None)
        if not isinstance(limits, Optimal):
            return move.coefficients(step)
        pair = self._slope_and_bend(bound, step)
        if bound.mixer.group:
            yield bound.mixer.group.all_reduce(pair)
        if not pair.isfinite().all():  # the loss overflows at one of the two points
            return limits.low, 0.0
        return float(line_alpha(*pair).clamp(limits.low, limits.high)), 0.0

    @torch.no_grad()
    def _slope_and_bend(self, bound: BoundLevel, step: int) -> Tensor:
        buckets = bound.buckets
        sums = [bucket.fast.clone() for bucket in buckets]
        ends = [total / bound.mixer.agents for total in sums]
        way = [end - start for end, start in zip(ends, bound.slow, strict=True)]
        with self._undisturbed(buckets):
            rise_end, rise_start = (self._rise(buckets, weights, way, step) for weights in (ends, bound.slow))
        for bucket, total in zip(buckets, sums, strict=True):
            bucket.fast.copy_(total)
        return torch.stack((rise_start, rise_end - rise_start))

    def _rise(self, buckets: Sequence[Bucket], weights: Sequence[Tensor], way: Sequence[Tensor], step: int) -> Tensor:
        """Return d^T g at the given weights."""
        for bucket, flat in zip(buckets, weights, strict=True):
            bucket.weights.copy_(flat[: bucket.weights_end])
            bucket.scatter()
        slots = [(slot, flat) for bucket, flat in zip(buckets, way, strict=True) for slot in bucket.slots]
        for slot, _ in slots:
            slot.weight.parameter.grad = None
        device = buckets[0].fast.device
        # Both points see the same random numbers, and the training's own are not used up.
        with torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            assert self._probe is not None
            self._probe(step)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for slot, flat in slots:
            gradient = slot.weight.parameter.grad
            if gradient is not None:
                total += (slot.of(flat) * gradient).sum(dtype=torch.float64)
        return total

    @contextmanager
    def _undisturbed(self, buckets: Sequence[Bucket]) -> Iterator[None]:
        """Put gradients and the model's buffers back afterwards."""
        parameters = [slot.weight.parameter for bucket in buckets for slot in bucket.slots]
        gradients = [parameter.grad for parameter in parameters]
        buffers = [(buffer, buffer.clone()) for buffer in (self._model.buffers() if self._model else ())]
        try:
            yield
        finally:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            for buffer, saved in buffers:
                buffer.copy_(saved)
