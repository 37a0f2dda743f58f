"""Parameters that FSDP2 has split over the processes of an agent: what of them lies here.

Such a parameter is a DTensor. A process looks after its own shard of each, and averages it with the processes that hold
the same shard of other agents' weights, so that everything else in this package sees plain tensors. A shard is read and
written through `to_local`, and never moved: FSDP2 reads it where it is.
"""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that lies here: a DTensor's shard itself, a plain tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is split over processes."""
    if type(tensor) is nn.Parameter:  # asked of every parameter at every sync
        return False
    # Who has such a tensor has imported its type; to import it here would take everybody's time.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def split_like(pattern: Tensor, piece: Tensor) -> Tensor:
    """Return a piece that has the shape of a parameter's part here as the same part of a tensor split like it."""
    if not is_sharded(pattern):
        return piece
    return type(pattern).from_local(
        piece, pattern.device_mesh, pattern.placements, run_check=False, shape=pattern.shape, stride=pattern.stride()
    )


def count_nonzero(tensor: Tensor) -> int:
    """Count elements that are not zero in the whole tensor; of a split one, a collective of its processes."""
    whole = tensor.full_tensor() if is_sharded(tensor) else tensor
    return int(whole.count_nonzero())


def sharding_modules(model: nn.Module | None) -> "list[FSDPModule]":
    """Return the modules that `fully_shard` was applied to."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if model is None or fsdp is None:
        return []
    found: list[Any] = [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]
    return found


def reshard(modules: "Iterable[FSDPModule]") -> None:
    """Let go of whole weights that a forward pass without gradients has left, which would hide what is written."""
    for module in modules:
        module.reshard()


def shard_axis(parameters: Iterable[Tensor]) -> tuple[str, tuple[int, ...]] | None:
    """Return the name of the axis along which parameters are split, and the ranks along it; None for whole ones.

    Raises:
        ValueError: for parameters that are split in another way than `fully_shard` over one named axis does.
    """
    parameters = list(parameters)
    split = [p for p in parameters if is_sharded(p)]
    if not split:
        return None
    if len(split) < len(parameters):
        raise ValueError(
            f"{len(split)} of {len(parameters)} parameters are DTensors: apply fully_shard to the whole model, so that "
            "every process holds a part of each parameter"
        )
    mesh = split[0].device_mesh
    for parameter in split:
        if parameter.device_mesh != mesh or len(parameter.placements) != 1 or not parameter.placements[0].is_shard(0):
            raise ValueError(
                f"a parameter has the placements {parameter.placements} on {parameter.device_mesh}: use fully_shard "
                "over one axis, fully_shard(model, mesh=mesh['local']); levels average along the other axes"
            )
    if not mesh.mesh_dim_names:
        raise ValueError(
            f"{mesh} has no names: take it from a mesh of all processes, fully_shard(m, mesh=mesh['local'])"
        )
    return mesh.mesh_dim_names[0], tuple(mesh.mesh.flatten().tolist())
