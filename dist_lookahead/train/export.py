"""The averaged model of a run as a plain state dict, which loads in plain torch."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_lookahead.notation import from_plain
from dist_lookahead.train.checkpoint import CheckpointStore, agents_in, newest_common
from dist_lookahead.train.config_inner import Inner
from dist_lookahead.train.config_mesh import agreeing, read_mesh
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.split_weights import joined


def export(run: Path, out: Path, *, step: int | None = None) -> str:
    """Write the slow weights of a checkpoint as a state dict, and return a sentence on what they are.

    In the middle of a round without slow weights on every agent (local SGD, sharded levels), and always where the
    outermost level gossips, it is the mean of all agents' weights.

    Args:
        run: folder of a run.
        out: file to write; `torch.load(out, weights_only=True)` reads it.
        step: fast step of the checkpoint; the newest by default.

    Raises:
        ValueError: without such a checkpoint.
    """
    directory = RunDirectory(run)
    stores = _stores(directory, step)
    common = newest_common([store.steps() for store in stores]) if step is None else step
    if common is None:
        raise ValueError(f"{directory.checkpoints} has no step of which all {len(stores)} agents have a whole file")
    states = (store.load(common) for store in stores)
    whole = next(states)
    agents = _put_together(itertools.chain([whole["agent"]], (state["agent"] for state in states)))
    first = next(agents)
    levels = [from_plain(saved["level"]) for saved in first["optimizer"]["levels"]["levels"]]
    mesh, inner = read_mesh(whole["config"]["mesh"]), Inner.read(whole["config"]["inner"])
    mean_only = len(stores) > 1 and not agreeing(levels, mesh, inner)
    weights, what = _mean_of(first, agents) if mean_only else _averaged(first, agents)
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.clone() for name, tensor in weights.items()}, out)
    return f"{out}: {what} after fast step {common} of {run}, {len(weights)} tensors"


def _stores(directory: RunDirectory, step: int | None) -> list[CheckpointStore]:
    agents = agents_in(directory.checkpoints, step)
    return [CheckpointStore(directory.checkpoints, agent, agents, elastic=True) for agent in range(agents)]


def _put_together(processes: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the state of each agent, of which several processes may have saved a part of the weights each."""
    for state in processes:
        if not state.get("split"):
            yield state
            continue
        size, names = state["split"]
        parts = [state, *itertools.islice(processes, size - 1)]
        state["model"] = joined([part["model"] for part in parts], set(names))
        for index, level in enumerate(state["optimizer"]["levels"]["levels"]):
            level["slow"] = joined([p["optimizer"]["levels"]["levels"][index]["slow"] for p in parts], set(names))
        yield state


def _averaged(first: Mapping[str, Any], others: Any) -> tuple[dict[str, Tensor], str]:
    """Take for each parameter the slow weights of the outermost level that acts on it."""
    model, stack = dict(first["model"]), first["optimizer"]["levels"]
    found: dict[str, Tensor] = {}
    steps: list[int] = []
    for names, levels in zip(stack["parameters"], _covers(stack), strict=True):
        outer = stack["levels"][levels[-1]]
        steps.append(outer["last"])
        if outer["last"] == stack["clock"] and not from_plain(outer["level"]).local_share:
            continue  # the fast weights are the slow ones
        if not outer["slow"] or outer["owned"]:
            return _mean_of(first, others)
        found.update({name: outer["slow"][name].to(model[name].dtype) for name in names})
    if not found:
        return model, "slow weights at a sync"
    return {**model, **found, **stack["buffers"]}, f"slow weights of fast step {max(steps)}"


def _covers(stack: Mapping[str, Any]) -> Sequence[Sequence[int]]:
    """Return the levels that act on each group of parameters: all, in files from before there were parts."""
    return stack.get("covers") or [range(len(stack["levels"]))] * len(stack["parameters"])


def _mean_of(first: Mapping[str, Any], others: Any) -> tuple[dict[str, Tensor], str]:
    return _mean([_with_mass(agent, number) for number, agent in enumerate((first, *others))]), (
        "mean of all agents' fast weights"
    )


def _with_mass(agent: Mapping[str, Any], number: int) -> dict[str, Tensor]:
    """Return an agent's weights, those of push-sum times their mass: their mean is what it keeps."""
    model, stack = dict(agent["model"]), agent["optimizer"]["levels"]
    for names, levels in zip(stack["parameters"], _covers(stack), strict=True):
        for masses in filter(None, (stack["levels"][index].get("mass") for index in levels)):
            model |= {name: model[name] * masses[number] for name in names}
    return model


def _mean(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    first = models[0]
    return {
        name: sum(model[name].double() for model in models).div(len(models)).to(tensor.dtype)  # pyright: ignore[reportAttributeAccessIssue] - a sum of tensors
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }
