"""FSDP2 in a run (`inner.data_parallel: fsdp2`): the weights of a node's agent split over its processes.

Simulated agents have whole weights and share gradients as with DDP: the same numbers up to the order of sums.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from dist_lookahead.mesh import NODES
from dist_lookahead.sharded import local, split_like

AXIS = NODES[-1]


def split(model: nn.Module, communicator: Communicator) -> bool:
    """Split a model's weights over the processes of the node, and return whether there are several.

    Args:
        model: of this agent; each of its modules is a unit that is gathered whole when it is used.
        communicator: this process's end of all.
    """
    near = communicator.axis(AXIS)
    if not isinstance(communicator, ProcessGroupCommunicator) or near.size == 1:
        return False
    mesh = communicator.torch_mesh[AXIS]
    for module in model.children():
        if any(True for _ in module.parameters()) and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return True


def count_bytes(model: nn.Module, communicator: Communicator) -> None:
    """Count what FSDP2 has sent in one step: weights gathered before and after the forward pass, gradients summed."""
    near = communicator.axis(AXIS)
    if isinstance(near, ProcessGroupCommunicator) and near.size > 1:
        nbytes = sum(p.nbytes for p in model.parameters())
        for collective in ("all_gather", "all_gather", "reduce_scatter"):
            near.count(collective, nbytes)


def parts_here(tree: Any) -> Any:
    """Return a state with this process's part of each split tensor, for a file of its own."""
    if isinstance(tree, Tensor):
        return local(tree)
    if isinstance(tree, Mapping):
        return {key: parts_here(value) for key, value in tree.items()}
    return [parts_here(value) for value in tree] if isinstance(tree, list) else tree


def model_state(model: nn.Module, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the model loads, from this process's part of each of its tensors."""
    here = model.state_dict()
    return {name: split_like(here[name], part) for name, part in parts.items()}


def optimizer_state(optimizer: Optimizer, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the optimizer loads, from this process's part of each of its tensors."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        index: {key: _like(parameters[index], value) for key, value in own.items()}
        for index, own in parts["state"].items()
    }
    return {**parts, "state": state}


def _like(parameter: Tensor, value: Any) -> Any:
    """Buffers of a parameter's shape are split as it is; others, such as a count of steps, are whole."""
    of_its_shape = isinstance(value, Tensor) and value.shape == local(parameter).shape and value.dim() > 0
    return split_like(parameter, value) if of_its_shape else value


def joined(agents: list[Mapping[str, Tensor]], names: set[str]) -> dict[str, Tensor]:
    """Put the parts of one agent's weights together.

    Args:
        agents: the parts of each process of a node, in order.
        names: of the split tensors; others are taken from the first.
    """
    return {
        name: torch.cat([parts[name] for parts in agents]) if name in names else tensor
        for name, tensor in agents[0].items()
    }
