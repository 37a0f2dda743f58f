"""The slow state of levels in checkpoints: tensors and plain containers, one tensor per parameter.

Per parameter, never per bucket, so that a checkpoint can be read without knowing buckets. A sharded level saves the
stretch of each parameter that this agent owns; it fits the same agent of as many agents only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.bucket import Bucket
from dist_lookahead.notation import to_plain


def save(bounds: Sequence[BoundLevel], buckets: Sequence[Bucket]) -> list[dict[str, Any]]:
    """Return the state of each level. Tensors are references, as in any state_dict."""
    return [
        {
            "level": to_plain(bound.level),
            "owned": _owned(bound, buckets),
            "due": bound.due,
            "last": bound.last,
            "rounds": bound.rounds,
            "gammas": _by_group(bound.gammas),
            "slow": _pieces(bound, buckets, bound.slow),
            "momentum": _pieces(bound, buckets, bound.momentum),
        }
        for bound in bounds
    ]


@torch.no_grad()
def load(bounds: Sequence[BoundLevel], buckets: Sequence[Bucket], saved: Sequence[dict[str, Any]]) -> None:
    """Load what `save` returned into levels over the same parameters.

    Raises:
        ValueError: where a sharded level was saved by another agent, or by one of another number of agents.
    """
    for bound, state in zip(bounds, saved, strict=True):
        if state["owned"] != _owned(bound, buckets):
            raise ValueError(
                f"levels[{bound.index}] is sharded: this agent keeps elements {_owned(bound, buckets)} of its buckets, "
                f"the saved state has {state['owned']}. Load each agent's own state, with as many agents"
            )
    for bound, state in zip(bounds, saved, strict=True):
        for name, flats in (("slow", bound.slow), ("momentum", bound.momentum)):
            for parameter, own in _pieces(bound, buckets, flats).items():
                own.copy_(state[name][parameter])
        bound.due, bound.last, bound.rounds = state["due"], state["last"], state["rounds"]
        bound.gammas = {group: gamma for group, gamma in enumerate(state["gammas"]) if gamma is not None}


def require_levels(bounds: Sequence[BoundLevel], saved: Sequence[dict[str, Any]]) -> None:
    """Refuse the state of other levels."""
    given, here = [state["level"] for state in saved], [to_plain(bound.level) for bound in bounds]
    if given != here:
        raise ValueError(
            f"the saved levels are {given}, those of this optimizer {here}: construct it with the saved levels, "
            "or load only 'state' and 'param_groups' to begin new slow weights from the model's"
        )


def _by_group(gammas: dict[int, float]) -> list[float | None]:
    """A list, since torch.distributed.checkpoint restores dictionaries with the keys that they had before only."""
    return [gammas.get(group) for group in range(max(gammas, default=-1) + 1)]


def _pieces(bound: BoundLevel, buckets: Sequence[Bucket], flats: Sequence[Tensor]) -> dict[str, Tensor]:
    """View flat slow state per parameter: shaped like it where the level is whole, else the owned stretch of it."""
    pieces = {}
    for bucket, flat in zip(buckets, flats, strict=False):
        owned = bound.owned(bucket)
        for slot in bucket.slots:
            if bound.mixer.shards == 1:
                pieces[slot.weight.name] = slot.of(flat)
            else:
                low, high = (min(max(edge, owned.start), owned.stop) - owned.start for edge in (slot.start, slot.stop))
                pieces[slot.weight.name] = flat[low:high]
    return pieces


def _owned(bound: BoundLevel, buckets: Sequence[Bucket]) -> list[list[int]]:
    """The stretches of the buckets that a sharded level keeps here; nothing to compare for a whole one."""
    if bound.mixer.shards == 1:
        return []
    return [[bound.owned(bucket).start, bound.owned(bucket).stop] for bucket in buckets]
