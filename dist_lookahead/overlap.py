"""A level's average from where it begins to where it lands, at once or after a delay.

    q_i <- x_i                              where it begins, after step s
    z <- z + ..                             where it lands, after step s + d: the slow step with m = mean_i q_i
    x_i <- x_i + (z - q_i)                  and the slow weights of the levels below likewise

Without a delay, and where no fast step was taken since s, it is x_i <- z to the last bit. Where an agent keeps a share
of its own weights, it is x_i <- z + share (x_i - z) instead. A delay or a share costs one more copy of the weights: q,
which is kept, saved and loaded as slow weights are. A delay costs another: what travels, while it is under way.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.comm.communicator import Pending, Work
from dist_lookahead.flight import Flight
from dist_lookahead.move import CHUNK


def next_stop(bounds: Sequence[BoundLevel]) -> int:
    """Return the fast step after which agents communicate next."""
    return min(min(bound.due, bound.flight.next_stop) if bound.flight else bound.due for bound in bounds)


def is_awaited(bounds: Sequence[BoundLevel], clock: int) -> bool:
    """Return whether something under way is to be waited for after so many fast steps."""
    return any(bound.flight is not None and bound.flight.next_stop <= clock for bound in bounds)


def under_way(
    bounds: Sequence[BoundLevel], clock: int, everything: bool = False
) -> Iterator[tuple[BoundLevel, Flight, bool]]:
    """Yield each level in flight, innermost first, its flight, and whether that lands now.

    Args:
        bounds: all levels, innermost first.
        clock: fast steps done.
        everything: whether all land now, due or not. Below one that lands, all do that share weights with it.
    """
    landing: list[BoundLevel] = []
    for bound in reversed(bounds):
        if bound.flight and (everything or bound.flight.lands <= clock or any(map(bound.shares, landing))):
            landing.append(bound)
    for bound in bounds:
        if bound.flight:
            yield bound, bound.flight, bound in landing


def depart(bound: BoundLevel, step: int, rates: Sequence[float | None], at_once: bool) -> Flight:
    """Return a flight that has yet to begin; with a delay, keep what it begins from, and count the round from here.

    Args:
        bound: the level that fires.
        step: fast steps done.
        rates: fast learning rates of the last one, per parameter group.
        at_once: whether it cannot wait, whatever its delay.
    """
    delay = 0 if at_once else bound.level.when.delay
    bound.flight = Flight(step, step + delay, rates)
    if _apart(bound):
        for kept, bucket in zip(bound.snapshot, bound.buckets, strict=True):
            kept.copy_(bucket.fast)
    if delay:
        bound.schedule_next(step)
    return bound.flight


def begin(bound: BoundLevel, tail: Tensor, letter: Sequence[Work]) -> None:
    """Start the average: of the weights themselves where it lands at once, else of a copy of the snapshot.

    Args:
        bound: the level in flight.
        tail: where the mail will be.
        letter: what is under way of the mail besides the weights.
    """
    assert bound.flight
    fast = _travelling(bound) if _apart(bound) else bound.fast
    phases = bound.mixer.phases(len(fast)) if bound.flight.delayed else []
    bound.flight.begin(_travel(bound, fast, letter), fast, tail, phases)


def arrive(bound: BoundLevel) -> Pending:
    """Wait for the average: afterwards the buckets hold the sum, and the flight what they held before."""
    assert bound.flight
    yield from bound.flight.arrive()
    if _apart(bound):
        wanted = bound.level.local_share or bound.flight.delayed  # afterwards too
        for fast, total in zip(bound.fast, bound.flight.sums, strict=True):
            swap(fast, total) if wanted else fast.copy_(total)


@torch.no_grad()
def ways(bound: BoundLevel, clock: int) -> list[Tensor] | None:
    """Return z - q per bucket, in place of the snapshot; None where no fast step was taken since.

    Args:
        bound: the level that has moved; its buckets hold z.
        clock: fast steps done. An agent that was left out of the mean keeps nothing of its own.
    """
    assert bound.flight
    if bound.flight.step == clock or bound.left_out:
        return None
    for kept, bucket in zip(bound.snapshot, bound.buckets, strict=True):
        torch.sub(bucket.fast, kept, out=kept)
        kept[bucket.weights_end :] = 0  # mail is no weight
    return bound.snapshot


@torch.no_grad()
def settle(bound: BoundLevel, moved: Sequence[Tensor] | None) -> None:
    """End the flight: the fast weights are those from before it landed, moved as the level has, or toward it.

    Args:
        bound: the level that has landed; its buckets hold z.
        moved: z - q per bucket; None where the fast weights are z.
    """
    assert bound.flight
    if (share := bound.level.local_share) and not bound.left_out:
        for bucket, before in zip(bound.buckets, bound.flight.sums, strict=True):
            bucket.weights.lerp_(before[: bucket.weights_end], share)
    elif moved is not None:
        for bucket, way, before in zip(bound.buckets, moved, bound.flight.sums, strict=True):
            torch.add(before[: bucket.weights_end], way[: bucket.weights_end], out=bucket.weights)
    bound.flight = None


@torch.no_grad()
def swap(one: Tensor, other: Tensor) -> None:
    """Exchange the values of two flat tensors, piece by piece, without a third one of their length.

    Example:
        >>> one, other = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
        >>> swap(one, other)
        >>> one, other
        (tensor([3., 4.]), tensor([1., 2.]))
    """
    for a, b in zip(one.split(CHUNK), other.split(CHUNK), strict=True):
        kept = a.clone()
        a.copy_(b)
        b.copy_(kept)


def _apart(bound: BoundLevel) -> bool:
    """Whether the average works on copies, since what the buckets hold is wanted where it lands, or fails."""
    delayed = bound.flight is not None and bound.flight.delayed
    return delayed or bound.recoverable or bool(bound.level.local_share)


def _travelling(bound: BoundLevel) -> list[Tensor]:
    """Return what travels, with the mail that has been written since.

    It is a copy of the snapshot; or the snapshot itself where the average lands at once, and no way from it is wanted.
    """
    assert bound.flight
    sent = []
    for kept, bucket, whole in zip(bound.snapshot, bound.buckets, bound.fast, strict=True):
        flat = kept[: whole.numel()]
        sent.append(flat.clone() if bound.flight.delayed else flat)
        sent[-1][bucket.weights_end :] = whole[bucket.weights_end :]
    return sent


def _travel(bound: BoundLevel, fast: Sequence[Tensor], letter: Sequence[Work]) -> Pending:
    yield from bound.collect(fast)
    yield from letter
