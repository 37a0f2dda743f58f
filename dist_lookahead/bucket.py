"""Buckets: the weights of one dtype and device in one contiguous tensor.

One collective and one pass of the slow step serve a whole bucket. A bucket costs no memory where its parameters are
views of it, and a sync then copies nothing. Parameters that are not views (half precision, staged here in float32;
memory owned by somebody else; re-pointed later by `.to(memory_format=...)` and the like) are copied in before a sync
and out after it: that costs time, never correctness.
"""

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dist_lookahead.sharded import is_sharded, local

ALIGNMENT = 16  # bytes: the widest vector loads that kernels use on a parameter's first element


@dataclass(frozen=True)
class Weight:
    """A parameter to average: its name for messages and checkpoints, and its parameter group."""

    name: str
    parameter: Tensor
    group: int

    @property
    def tensor(self) -> Tensor:
        """What lies here of the parameter: all of it, or this process's shard."""
        return local(self.parameter)


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a weight lies in its bucket: elements start .. start + numel, with the parameter's own strides."""

    weight: Weight
    start: int
    shape: torch.Size
    stride: tuple[int, ...]

    @property
    def stop(self) -> int:
        """Element after the last."""
        return self.start + self.shape.numel()

    def of(self, flat: Tensor) -> Tensor:
        """Return this slot of a flat tensor, shaped like the parameter."""
        return flat.as_strided(self.shape, self.stride, flat.storage_offset() + self.start)

    def of_range(self, flat: Tensor) -> Tensor:
        """Return this slot of a flat tensor, flat: its elements in the order in which they lie there."""
        return flat[self.start : self.stop]


class Bucket:
    """The weights of one dtype and device.

    Args:
        weights: of one dtype and device.
        parts: the length is made a multiple of this (the number of shards).
        tail: extra elements after the weights, for the mail that travels with a sync.
    """

    def __init__(self, weights: Sequence[Weight], *, parts: int = 1, tail: int = 0) -> None:
        first = weights[0].parameter
        self.dtype = staging_dtype(first.dtype)
        self.slots = _lay_out(weights, self.dtype)
        self.weights_end = self.slots[-1].stop
        length = -(-(self.weights_end + tail) // parts) * parts
        self.fast = torch.zeros(length, dtype=self.dtype, device=first.device)
        self._tail_end = self.weights_end + tail
        self._places: dict[Slot, Tensor] = {}
        self._adopt()

    @property
    def weights(self) -> Tensor:
        """The bucket without its tail."""
        return self.fast[: self.weights_end]

    @property
    def tail(self) -> Tensor:
        """The elements after the weights; a view made anew, since a pickle would cut a stored one loose."""
        return self.fast[self.weights_end : self._tail_end]

    @torch.no_grad()
    def gather(self) -> None:
        """Copy the weights that are not views into the bucket."""
        strays = self._strays()
        if strays:
            torch._foreach_copy_(self._places_of(strays), [slot.weight.tensor for slot in strays])

    @torch.no_grad()
    def scatter(self) -> None:
        """Copy the bucket out to the weights that are not views of it."""
        strays = self._strays()
        if strays:
            torch._foreach_copy_([slot.weight.tensor for slot in strays], self._places_of(strays))

    @torch.no_grad()
    def release(self) -> None:
        """Give the parameters that are views of the bucket memory of their own, so that another can take them in."""
        strays = set(self._strays())
        for slot in self.slots:
            if slot not in strays:
                slot.weight.parameter.data = slot.weight.parameter.data.clone()

    def fits(self) -> bool:
        """Whether every parameter still has the bucket's device and dtype."""
        return all(
            slot.weight.tensor.device == self.fast.device and staging_dtype(slot.weight.tensor.dtype) == self.dtype
            for slot in self.slots
        )

    def segments(self, owned: slice) -> list[tuple[slice, int]]:
        """Return the owned part of the weights, cut where the parameter group changes: (elements, group)."""
        cuts: list[tuple[slice, int]] = []
        starts = [slot.start for slot in self.slots[1:]] + [self.weights_end]
        start = 0
        for slot, following, end in zip(self.slots, [*self.slots[1:], None], starts, strict=True):
            if following is None or following.weight.group != slot.weight.group:
                low, high = max(start, owned.start), min(end, owned.stop)
                if low < high:
                    cuts.append((slice(low, high), slot.weight.group))
                start = end
        return cuts

    def _strays(self) -> list[Slot]:
        base, size, dtype = self.fast.data_ptr(), self.fast.element_size(), self.dtype
        tensors = [slot.weight.tensor for slot in self.slots]
        return [
            slot
            for slot, tensor in zip(self.slots, tensors, strict=True)
            if tensor.dtype != dtype or tensor.data_ptr() != base + slot.start * size or tensor.stride() != slot.stride
        ]

    def _places_of(self, slots: Sequence[Slot]) -> list[Tensor]:
        """View the bucket where the parameters lie that are copied in and out; made once, which takes long for many."""
        if len(self._places) != len(slots) or any(map(operator.ne, self._places, slots)):
            self._places = {slot: slot.of(self.fast) for slot in slots}
        return list(self._places.values())

    def __getstate__(self) -> dict[str, Any]:
        # A pickle would cut views loose from the bucket.
        return {**self.__dict__, "_places": {}}

    @torch.no_grad()
    def _adopt(self) -> None:
        """Fill the bucket, and make the parameters views of it where nobody else can notice."""
        users = Counter(slot.weight.tensor.data_ptr() for slot in self.slots)
        for slot in self.slots:
            parameter = slot.weight.tensor
            tied = users[parameter.data_ptr()] > 1
            slot.of(self.fast).copy_(parameter)
            movable = not tied and not is_sharded(slot.weight.parameter) and _owns_its_memory(parameter)
            if parameter.dtype == self.dtype and movable:
                parameter.data = slot.of(self.fast)


def make_buckets(weights: Iterable[Weight], *, parts: int = 1, tail: int = 0) -> list[Bucket]:
    """Sort weights into buckets by dtype and device; the first bucket gets the tail.

    Raises:
        ValueError: for parameters that cannot be averaged: complex, integer, sparse or sharded ones.
    """
    kinds: dict[tuple[torch.dtype, torch.device], list[Weight]] = {}
    for weight in weights:
        _check_weight(weight)
        kinds.setdefault((weight.tensor.dtype, weight.tensor.device), []).append(weight)
    return [Bucket(group, parts=parts, tail=tail if index == 0 else 0) for index, group in enumerate(kinds.values())]


def staging_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which weights are averaged: at least float32.

    Example:
        >>> staging_dtype(torch.bfloat16), staging_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def _lay_out(weights: Sequence[Weight], dtype: torch.dtype) -> list[Slot]:
    align = ALIGNMENT // dtype.itemsize
    slots, start = [], 0
    for weight in weights:
        slots.append(Slot(weight, start, weight.tensor.shape, _dense_stride(weight.tensor)))
        start = -(-slots[-1].stop // align) * align
    return slots


def _dense_stride(parameter: Tensor) -> tuple[int, ...]:
    """The parameter's own strides if it fills its memory without gaps (channels_last, say), else contiguous."""
    return torch.empty_like(parameter, device="meta", memory_format=torch.preserve_format).stride()


def _owns_its_memory(parameter: Tensor) -> bool:
    """Whether the parameter is dense and alone in its storage; flattened or shared memory is not ours to move."""
    alone = parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()
    shared = parameter.device.type == "cpu" and parameter.is_shared()
    return alone and not shared and parameter.stride() == _dense_stride(parameter)


def _check_weight(weight: Weight) -> None:
    parameter = weight.tensor.detach()
    if not parameter.dtype.is_floating_point or parameter.dtype.itemsize < 2:
        raise ValueError(
            f"parameter {weight.name!r} has dtype {parameter.dtype}, which cannot be averaged: "
            "use float64, float32, bfloat16 or float16 (torch.view_as_real for complex numbers)"
        )
    if parameter.layout != torch.strided or type(parameter) is not Tensor:
        raise ValueError(
            f"parameter {weight.name!r} is a {type(weight.parameter).__name__} of layout {parameter.layout}; "
            "only plain dense parameters can be averaged"
        )
