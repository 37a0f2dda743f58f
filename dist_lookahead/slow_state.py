"""The slow state of levels in checkpoints: tensors and plain containers, one tensor per parameter.

Per parameter, never per bucket, so that a checkpoint can be read without knowing buckets. A sharded level saves the
stretch of each parameter that this agent owns, and one with a codec what that has lost in this agent's part; they fit
the same agent of as many agents only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.bucket import Bucket
from dist_lookahead.flight import Flight
from dist_lookahead.notation import to_plain
from dist_lookahead.sharded import local, split_like


def save(bounds: Sequence[BoundLevel]) -> list[dict[str, Any]]:
    """Return the state of each level. Tensors are references, as in any state_dict."""
    return [
        {
            "level": to_plain(bound.level),
            "owned": _parts(bound),
            "due": bound.due,
            "last": bound.last,
            "rounds": bound.rounds,
            "gammas": _by_group(bound.gammas),
            "pace": bound.pace.state(),
            "watch": bound.watch.state() if bound.watch else {},
            "mass": bound.mass.all.tolist() if bound.mass else [],
            "slow": _pieces(bound.buckets, bound.slow, [bound.owned(bucket) for bucket in bound.buckets]),
            "momentum": _pieces(bound.buckets, bound.momentum, [bound.owned(bucket) for bucket in bound.buckets]),
            "residuals": _residuals(bound),
            "snapshot": _pieces(bound.buckets, kept, [slice(0, len(flat)) for flat in kept]),
            # A list, as rates are; what is under way cannot be saved, and begins again from the snapshot.
            "flight": [bound.flight.step, bound.flight.lands, *bound.flight.rates] if bound.flight else [],
        }
        for bound in bounds
        for kept in [bound.snapshot if bound.keeps_snapshot else []]  # else of use within a sync only
    ]


@torch.no_grad()
def load(bounds: Sequence[BoundLevel], saved: Sequence[dict[str, Any]]) -> None:
    """Load what `save` returned into levels over the same parameters.

    Raises:
        ValueError: where a level that is sharded, or has a codec, was saved by another agent, or by one of another
            number of agents.
    """
    for bound, state in zip(bounds, saved, strict=True):
        if state["owned"] != _parts(bound):
            reason = "is sharded" if bound.mixer.shards > 1 else "keeps what its codec has lost"
            raise ValueError(
                f"levels[{bound.index}] {reason}: this agent keeps elements {_parts(bound)} of its buckets, "
                f"the saved state has {state['owned']}. Load each agent's own state, with as many agents"
            )
    for bound, state, own in zip(bounds, saved, save(bounds), strict=True):
        kept = [(own[name], state[name]) for name in ("slow", "momentum")]
        # States from before there were codecs have none of these.
        kept += zip(own["residuals"], state.get("residuals", []), strict=True)
        kept.append((own["snapshot"], state.get("snapshot", {})))
        for pieces, loaded in kept:
            for parameter, piece in pieces.items():
                local(piece).copy_(local(loaded[parameter]))
        bound.due, bound.last, bound.rounds = state["due"], state["last"], state["rounds"]
        if "pace" in state:  # there was none once
            bound.pace.load(state["pace"])
        if bound.watch and state.get("watch"):
            bound.watch.load(state["watch"])
        if bound.mass:
            bound.mass.all.copy_(torch.tensor(state["mass"]))
        bound.gammas = {group: gamma for group, gamma in enumerate(state["gammas"]) if gamma is not None}
        bound.flight = _flight(state.get("flight", ()))


def for_other_agents(bounds: Sequence[BoundLevel], saved: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a state that was saved at a sync of all levels as `load` takes it among another number of agents.

    What codes have lost is dropped: its parts belong to as many agents as there were.

    Args:
        bounds: the levels here; none is sharded.
        saved: what `save` has returned there.
    """
    own = save(bounds)
    return [
        {**state, "owned": here["owned"], "residuals": here["residuals"]}
        for state, here in zip(saved, own, strict=True)
    ]


def require_levels(bounds: Sequence[BoundLevel], saved: Sequence[dict[str, Any]]) -> None:
    """Refuse the state of other levels."""
    given, here = [state["level"] for state in saved], [to_plain(bound.level) for bound in bounds]
    if given != here:
        raise ValueError(
            f"the saved levels are {given}, those of this optimizer {here}: construct it with the saved levels, "
            "or load only 'state' and 'param_groups' to begin new slow weights from the model's"
        )


def _flight(saved: Sequence[Any]) -> Flight | None:
    return Flight(saved[0], saved[1], saved[2:]) if saved else None


def _by_group(gammas: dict[int, float]) -> list[float | None]:
    """A list, since torch.distributed.checkpoint restores dictionaries with the keys that they had before only."""
    return [gammas.get(group) for group in range(max(gammas, default=-1) + 1)]


def _residuals(bound: BoundLevel) -> list[dict[str, Tensor]]:
    """View what codes have lost per parameter, one dictionary for each kind of it."""
    stretches = [bound.mixer.residuals(bucket.fast.numel()) for bucket in bound.buckets]
    kinds = zip(zip(*bound.residuals, strict=True), zip(*stretches, strict=True), strict=False)
    return [_pieces(bound.buckets, flats, kind) for flats, kind in kinds]


def _pieces(buckets: Sequence[Bucket], flats: Sequence[Tensor], stretches: Sequence[slice]) -> dict[str, Tensor]:
    """View flat state per parameter: shaped like it where a bucket's is whole, else its part in the stretch kept."""
    pieces = {}
    for bucket, flat, kept in zip(buckets, flats, stretches, strict=False):
        for slot in bucket.slots:
            if _is_whole(kept, bucket):
                pieces[slot.weight.name] = split_like(slot.weight.parameter, slot.of(flat))
            else:
                low, high = (min(max(edge, kept.start), kept.stop) - kept.start for edge in (slot.start, slot.stop))
                pieces[slot.weight.name] = flat[low:high]
    return pieces


def _parts(bound: BoundLevel) -> list[list[int]]:
    """The stretches of the buckets that are kept here in part; nothing to compare where all is whole."""
    return [
        [kept.start, kept.stop]
        for bucket in bound.buckets
        for kept in (bound.owned(bucket), *bound.mixer.residuals(bucket.fast.numel()))
        if not _is_whole(kept, bucket)
    ]


def _is_whole(kept: slice, bucket: Bucket) -> bool:
    return kept.stop - kept.start == bucket.fast.numel()
