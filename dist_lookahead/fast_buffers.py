"""What becomes of the fast optimizer's own buffers when a level fires: keep, reset or average.

Works on whatever an inner optimizer stores per parameter: SGD's momentum, Adam's moments and step, and others.
"""

import copy
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dist_lookahead.bucket import Bucket
from dist_lookahead.comm.communicator import Communicator, Work
from dist_lookahead.sharded import local


class FastBuffers:
    """The state of the inner optimizer, seen from the levels.

    Args:
        inner: the fast optimizer, before its first step. Some optimizers (Adagrad) fill their state at construction
            and never again: for them the initial state is remembered, so that a reset can bring it back.
        remember: whether a level may reset.
    """

    def __init__(self, inner: Optimizer, *, remember: bool) -> None:
        self._inner = inner
        self._initial = copy.deepcopy(_by_index(inner)) if remember and inner.state and _unused(inner) else {}

    def reset(self, apart: Sequence[Bucket]) -> None:
        """Make the buffers those of a new optimizer.

        Args:
            apart: weights whose buffers stay as they are.
        """
        stay = {slot.weight.parameter for bucket in apart for slot in bucket.slots}
        parameters = [p for group in self._inner.param_groups for p in group["params"]]
        for parameter in [parameter for parameter in self._inner.state if parameter not in stay]:
            del self._inner.state[parameter]
        for index, state in self._initial.items():
            if parameters[index] not in stay:
                self._inner.state[parameters[index]] = copy.deepcopy(state)

    def signature(self, buckets: list[Bucket]) -> str:
        """Return which parameters have which buffers: agents must agree on it before they average."""
        return ";".join(f"{name}:{key}" for name, key, _ in self._tensors(buckets))

    def average(self, communicator: Communicator, buckets: list[Bucket]) -> Generator[Work, None, None]:
        """Average every floating point buffer over the agents; nothing changes before all have arrived."""
        parts: dict[tuple[str, torch.dtype, torch.device], list[Tensor]] = {}
        for _, key, tensor in self._tensors(buckets):
            parts.setdefault((key, tensor.dtype, tensor.device), []).append(tensor)
        sums = [_flatten(tensors) for tensors in parts.values()]
        yield from [communicator.all_reduce(flat) for flat in sums]
        for tensors, flat in zip(parts.values(), sums, strict=True):
            _unflatten(flat.div_(communicator.size), tensors)

    def _tensors(self, buckets: list[Bucket]) -> list[tuple[str, str, Tensor]]:
        """List (parameter name, buffer name, buffer) in an order that is the same on all agents."""
        found = []
        for weight in (slot.weight for bucket in buckets for slot in bucket.slots):
            state = self._inner.state.get(weight.parameter, {})
            for key in sorted(state):
                value = state[key]
                if isinstance(value, Tensor) and value.is_floating_point():
                    found.append((weight.name, key, local(value)))
        return found


def _by_index(inner: Optimizer) -> dict[int, dict[str, object]]:
    parameters = [p for group in inner.param_groups for p in group["params"]]
    return {index: inner.state[p] for index, p in enumerate(parameters) if p in inner.state}


def _unused(inner: Optimizer) -> bool:
    return not any(float(state.get("step", 1)) for state in inner.state.values())


@torch.no_grad()
def _flatten(tensors: list[Tensor]) -> Tensor:
    """Concatenate in at least float32, which sums half precision without loss of range."""
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors])


@torch.no_grad()
def _unflatten(flat: Tensor, tensors: list[Tensor]) -> None:
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def fast_rates(inner: Optimizer) -> list[Any]:
    """Return each group's learning rate as it is now; a tensor is copied, since schedulers change it in place."""
    rates = [group.get("lr") for group in inner.param_groups]
    return [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]
