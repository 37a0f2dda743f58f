"""Other weights in the model for a while: the slow ones, or the mean over the agents."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.bucket import Bucket
from dist_lookahead.comm.communicator import Pending
from dist_lookahead.mass import biased
from dist_lookahead.stack import LevelStack


@contextmanager
def slow_weights(stack: LevelStack) -> Iterator[None]:
    """Put the outermost slow weights and their buffers into the model; never communicates.

    Where the outermost level gossips they are this agent's own: the mean of all is in `averaged_weights`.
    """
    stack.refresh()
    for bucket in stack.buckets:
        _require_slow(stack, stack.inventory.outermost(bucket))
    saved = _save(stack)
    try:
        for bucket in stack.buckets:
            _take_slow(stack, bucket)
        if stack.bound[-1].last != stack.clock:
            stack.model_buffers.load(stack.model_buffers.slow)
        yield
    finally:
        _restore(stack, saved)


@contextmanager
def averaged_weights(stack: LevelStack) -> Iterator[None]:
    """Put the mean of the agents' fast weights and buffers into the model; a collective."""
    stack.refresh()
    saved = _save(stack)
    try:
        stack.communicator.run(_average(stack))
        yield
    finally:
        _restore(stack, saved)


def _require_slow(stack: LevelStack, outer: BoundLevel) -> None:
    if outer.rules(stack.clock) or (outer.slow and outer.mixer.shards == 1):
        return
    reason = "keeps no slow weights" if not outer.slow else "splits its slow weights over the agents"
    raise RuntimeError(
        f"slow_weights() after fast step {stack.clock}: the outermost level {reason}, and its last sync was after "
        f"step {outer.last}. Evaluate right after a sync, or use averaged_weights() on all agents"
    )


@torch.no_grad()
def _take_slow(stack: LevelStack, bucket: Bucket) -> None:
    """Put slow weights into the model; right after a sync the fast weights are the slow ones."""
    outer = stack.inventory.outermost(bucket)
    if not outer.rules(stack.clock):
        bucket.weights.copy_(outer.slow[outer.buckets.index(bucket)][: bucket.weights_end])
        stack.inventory.scatter([bucket])


Saved = tuple[list[Tensor], dict[str, Tensor]]


def _save(stack: LevelStack) -> Saved:
    stack.inventory.gather(stack.buckets)
    return [bucket.weights.clone() for bucket in stack.buckets], stack.model_buffers.values()


def _restore(stack: LevelStack, saved: Saved) -> None:
    flats, buffers = saved
    _write(stack, flats)
    stack.model_buffers.load(buffers)


@torch.no_grad()
def _write(stack: LevelStack, flats: list[Tensor]) -> None:
    for bucket, flat in zip(stack.buckets, flats, strict=True):
        bucket.weights.copy_(flat[: bucket.weights_end])
    stack.inventory.scatter(stack.buckets)


@torch.no_grad()
def _average(stack: LevelStack) -> Pending:
    if stack.everybody.size == 1:
        return
    sums = [biased(stack.masses.of(bucket), bucket.weights) for bucket in stack.buckets]
    yield from [stack.communicator.all_reduce(flat) for flat in sums if stack.communicator.size > 1]
    for flat in sums:
        flat.div_(stack.communicator.size)
    _write(stack, sums)
    yield from stack.model_buffers.average(stack.everybody)
