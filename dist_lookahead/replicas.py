"""Who averages with whom where FSDP2 splits an agent's weights over processes: those with the same part of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from dist_lookahead.agreement import described_training, refused_together, require_same
from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.comm.process_group import ProcessGroupCommunicator, default_communicator
from dist_lookahead.level import Level
from dist_lookahead.sharded import shard_axis


def everybody_in(mesh: Any) -> Communicator:
    """Return this process's end of all; a mesh that one process alone refuses is an error on every one.

    Raises:
        ValueError: for a mesh of another size or order of ranks.
    """
    try:
        return default_communicator(mesh)
    except ValueError:
        with refused_together(default_communicator()):
            raise


def replicas(
    inner: Optimizer, levels: Sequence[Level], everybody: Communicator, data_parallel: str | None
) -> Communicator:
    """Return the world of the agents: all processes, or those that hold the same part of each agent's weights.

    Args:
        inner: the fast optimizer; its parameters are split or whole.
        levels: innermost first.
        everybody: this process's end of all processes.
        data_parallel: axis along which whole weights share their gradients.

    Raises:
        AgentsDiffer: where others have split them otherwise, or have other levels.
        ValueError: for split parameters over a mesh that does not have their axis, and for what does not go with them.
    """
    split = shard_axis(p for group in inner.param_groups for p in group["params"])
    if split is None:
        return everybody
    axis, ranks = split
    if not isinstance(everybody, ProcessGroupCommunicator):
        raise ValueError("parameters that fully_shard has split need processes: leave communicator out")
    if axis not in everybody.mesh.names or everybody.axis(axis).members != ranks:
        raise ValueError(
            f"the parameters are split over the ranks {list(ranks)} along {axis!r}, which is no axis of "
            f"{everybody.mesh}: give DistributedLookahead the mesh of which fully_shard has got an axis"
        )
    for fault in filter(None, (unfit(levels, axis), _without_effect(data_parallel, axis))):
        raise ValueError(fault)
    lines = described_training(everybody.mesh, levels, inner)  # first of those where weights are whole
    everybody.run(require_same(everybody, lines, torch.device(everybody.device)))
    return everybody.without(axis)


def _without_effect(data_parallel: str | None, axis: str) -> str | None:
    if data_parallel is None:
        return None
    return f"data_parallel={data_parallel!r} has no effect: fully_shard averages gradients along {axis!r}; leave it out"


def unfit(levels: Sequence[Level], axis: str) -> str | None:
    """Say which level does not go with weights that are split along an axis."""
    for index, level in enumerate(levels):
        where = f"levels[{index}]"
        if getattr(level.mix, "axis", None) == axis:
            return (
                f"{where}.mix={level.mix} averages along the axis over which the weights are split, where nobody has "
                "the same: average along the others, or 'world', which means all agents"
            )
        if level.mix.shard or getattr(level.mix, "codec", None):
            return (
                f"{where}.mix={level.mix} keeps state by process, which could not be loaded on another mesh: leave "
                "shard and codec out; slow weights are split as the parameters are"
            )
        if level.move.searches:
            return f"{where}: alpha=Optimal needs whole gradients, and each process has a part of them; give a number"
    return None
