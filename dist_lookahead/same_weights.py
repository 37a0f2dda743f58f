"""Weights that must be the same on all agents: compared after a sync, and by choice repaired where they are not.

A flipped bit in a slow weight stays on its agent for good, and is averaged into everybody's weights at each sync. A
checksum of each parameter, one number, finds it.
"""

import logging
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.bucket import Bucket, Slot
from dist_lookahead.comm.communicator import Communicator, Pending, Work
from dist_lookahead.mail import who_says_what
from dist_lookahead.move import CHUNK

_log = logging.getLogger(__name__)

Differing = Literal["stop", "majority", "lowest"]
DIFFERING: tuple[Differing, ...] = ("stop", "majority", "lowest")
STOP_ADVICE = (
    "They must start equal and do the same arithmetic: load weights on all agents, use the same learning rates, "
    "PyTorch and hardware"
)
NO_MAJORITY = (
    "No more than half of the agents hold the same, so that nobody knows what is right: go on from a checkpoint, or "
    "choose 'lowest' to take the lowest rank's"
)


class WeightsDifferError(RuntimeError):
    """Agents hold different weights where they must hold the same; raised on every one of them."""


def require_same_weights(communicator: Communicator, buckets: Iterable[Bucket], where: str) -> Pending:
    """Raise on every agent unless all hold the same weights, by a checksum of the bits of each parameter.

    Raises:
        WeightsDifferError: with the first parameter that differs, and on which agents.
    """
    slots = [(bucket, slot) for bucket in buckets for slot in bucket.slots]
    if communicator.size == 1:
        return
    table = yield from _checksums(communicator, slots)
    if wrong := _differing(table):
        name = slots[wrong[0]][1].weight.name
        raise WeightsDifferError(f"{_what_differs(where, name, table, wrong, communicator)}. {STOP_ADVICE}")


def settle_weights(bound: BoundLevel, where: str, choice: Differing) -> Pending:
    """Compare the weights of a level that has just moved, and make them the same where they are not.

    Each parameter that differs, with its slow weights and slow momentum, is taken from an agent of the majority, bit
    for bit. Agents vote on each parameter alone: two of three may each have another one wrong.

    Args:
        bound: the level; its buckets hold z.
        where: for messages.
        choice: "stop" raises, "majority" repairs where more than half of the agents hold the same, "lowest" takes the
            lowest rank's where they do not.

    Raises:
        WeightsDifferError: on every agent, with the first parameter that differs and is not repaired.
    """
    agents = bound.alike
    assert agents
    if choice == "stop":
        yield from require_same_weights(agents, bound.buckets, where)
        return
    slots = [(place, slot) for place, bucket in enumerate(bound.buckets) for slot in bucket.slots]
    if agents.size == 1:
        return
    table = yield from _checksums(agents, [(bound.buckets[place], slot) for place, slot in slots])
    for parameter in _differing(table):
        place, slot = slots[parameter]
        said = table[:, parameter].tolist()
        found = f"{_what_differs(where, slot.weight.name, table, [parameter], agents)}"
        source = trusted(said, choice)
        if source is None:
            raise WeightsDifferError(f"{found}. {NO_MAJORITY}")
        if agents.rank == 0 or said[agents.rank] != said[source]:
            _log.warning("%s. Repaired: all agents have it from agent %d now", found, agents.members[source])
        yield from _take(agents, source, [slot.of_range(flat) for flat in _kept(bound, place)])


def trusted(checksums: Sequence[int], choice: Differing) -> int | None:
    """Return the lowest rank of those that hold what most do; None where nobody is to be trusted.

    Example:
        >>> trusted([7, 5, 5], "majority"), trusted([7, 5], "majority"), trusted([7, 5], "lowest")
        (1, None, 0)
    """
    value, holders = Counter(checksums).most_common(1)[0]
    if 2 * holders > len(checksums):
        return checksums.index(value)
    return 0 if choice == "lowest" else None


@torch.no_grad()
def _take(agents: Communicator, source: int, pieces: Sequence[Tensor]) -> Pending:
    """Overwrite pieces with those of one agent: a sum of whole numbers in which all others have 0 keeps every bit."""
    bits = torch.cat([piece.view(torch.int32) for piece in pieces])
    if agents.rank != source:
        bits.zero_()
    yield agents.all_reduce(bits)
    for piece, taken in zip(pieces, bits.split([piece.view(torch.int32).numel() for piece in pieces]), strict=True):
        piece.view(torch.int32).copy_(taken)


def _kept(bound: BoundLevel, place: int) -> list[Tensor]:
    """Return what an agent has of a bucket alike with others: not what each keeps a part of."""
    whole = bound.mixer.shards == 1
    slow_state = [state[place] for state in (bound.slow, bound.momentum) if state and whole]
    return [bound.buckets[place].fast, *slow_state]


@torch.no_grad()
def _checksums(communicator: Communicator, slots: Sequence[tuple[Bucket, Slot]]) -> Generator[Work, None, Tensor]:
    """Return what each agent has of each parameter: (agents, parameters)."""
    sums = torch.stack([_checksum(slot.of_range(bucket.fast)) for bucket, slot in slots])
    table = sums.new_zeros(communicator.size * len(slots))
    yield communicator.all_gather(table, sums)
    return table.view(communicator.size, len(slots))


def _differing(table: Tensor) -> list[int]:
    return (table != table[0]).any(dim=0).nonzero().flatten().tolist()


def _what_differs(where: str, name: str, table: Tensor, wrong: Sequence[int], communicator: Communicator) -> str:
    said = who_says_what([f"{value:x}" for value in table[:, wrong[0]].tolist()], communicator.members)
    return (
        f"{where}: agents hold different weights in {len(wrong)} of {table.shape[1]} parameters, first {name!r} "
        f"(checksums: {said})"
    )


def _checksum(flat: Tensor) -> Tensor:
    # Piece by piece: on a CPU a sum of 64 bits first makes a copy of all that it adds, twice as large as the weights.
    pieces = flat.view(torch.int32).split(CHUNK)
    return torch.stack([piece.sum(dtype=torch.int64) for piece in pieces]).sum()
