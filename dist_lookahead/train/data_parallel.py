"""Large mini-batches as fast steps: gradients averaged over the agents of a node in every step (`inner.data_parallel`).

Processes use torch's DistributedDataParallel over their axis "local", which overlaps with backward. Simulated agents
average after backward, when all have come to it.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dist_lookahead.comm.communicator import Communicator, Pending
from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from dist_lookahead.mesh import NODES

AXIS = NODES[-1]
# Each agent keeps its own BatchNorm statistics between syncs, as without DDP; torch 2.15 has a new name for that.
NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if NEW_NAME else "broadcast_buffers": False}


def shared(module: nn.Module, communicator: Communicator) -> nn.Module:
    """Return the module that averages its gradients over the processes of the node; simulated agents' as it is.

    Args:
        module: of this agent.
        communicator: this agent's end of all agents.
    """
    near = communicator.axis(AXIS)
    if not isinstance(near, ProcessGroupCommunicator) or near.size == 1:
        return module
    return DistributedDataParallel(module, process_group=near.process_group, **OWN_BUFFERS)


def count_bytes(model: nn.Module, communicator: Communicator) -> None:
    """Count the gradients that DDP has sent in one step."""
    near = communicator.axis(AXIS)
    if isinstance(near, ProcessGroupCommunicator) and near.size > 1:
        near.count("all_reduce", sum(p.nbytes for p in model.parameters() if p.requires_grad))


def average_simulated(models: Sequence[nn.Module], communicators: Sequence[Communicator]) -> None:
    """Average the gradients of simulated agents over the agents of each node.

    Args:
        models: of all agents, after backward.
        communicators: their ends.
    """
    if isinstance(communicators[0], ProcessGroupCommunicator):
        return
    for model, communicator in zip(models, communicators, strict=True):
        communicator.run(_average(model, communicator.axis(AXIS)))


@torch.no_grad()
def _average(model: nn.Module, near: Communicator) -> Pending:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    yield near.all_reduce(flat)
    flat.div_(near.size)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))
