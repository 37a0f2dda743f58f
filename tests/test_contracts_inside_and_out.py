"""Contracts of every recipe under what changes no number: where slow state lies, in what code values travel without
loss, and what is inside an agent.

One row per recipe, as in `test_contracts.py`; a combination that cannot be is refused.
"""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from digits_training import batch, make_agents, same, train
from test_contracts import ALL, TAU, Row
from torch import Tensor, nn

from dist_lookahead import Cast, DistributedLookahead, Exact, Level, Mesh, simulate
from dist_lookahead.adaptive import Adaptive
from dist_lookahead.averaging.gossip import OnGraph

LAST = 2 * TAU + 1
each_row = pytest.mark.parametrize("row", ALL.values(), ids=ALL)


def with_mix(levels: Sequence[Level], **changes: object) -> list[Level]:
    """The levels with changes to every exact average that moves slow weights."""
    return [
        dataclasses.replace(level, mix=dataclasses.replace(level.mix, **changes))
        if isinstance(level.mix, Exact) and level.move.keeps_slow_weights
        else level
        for level in levels
    ]


def ends(levels: Sequence[Level], agents: int = 2) -> list[dict[str, Tensor]]:
    crowd = make_agents(agents, levels, dtype=torch.float64)
    train(crowd, range(LAST))
    for agent in crowd:
        agent.optimizer.sync()
    return [agent.model.state_dict() for agent in crowd]


SHARDABLE = {
    name: row
    for name, row in ALL.items()
    if with_mix(row.levels, axis="local") != list(row.levels) and not any(level.local_share for level in row.levels)
}
CODABLE = {name: row for name, row in SHARDABLE.items() if not any(level.mix.weighted for level in row.levels)}


@pytest.mark.parametrize("row", SHARDABLE.values(), ids=SHARDABLE)
def test_sharded_slow_state_changes_no_bit(row: Row) -> None:
    split = with_mix(row.levels, codec=None, shard=True)
    whole = with_mix(row.levels, codec=None, shard=False)
    assert same(ends(split), ends(whole))


@pytest.mark.parametrize("row", CODABLE.values(), ids=CODABLE)
def test_a_code_that_loses_nothing_changes_nothing_but_rounding(row: Row) -> None:
    """Differences from the slow weights travel in place of the weights, and by other collectives."""
    coded = with_mix(row.levels, codec=Cast("fp32"), shard=False)
    plain = with_mix(row.levels, codec=None, shard=False)
    assert same(ends(coded), ends(plain), tolerance=1e-6), "values travel in float32"


def gradients_of(models: Sequence[nn.Module], ranks: Sequence[int], step: int) -> None:
    """Leave in each model the mean of the gradients at all the agents' samples, as DDP does."""
    losses = []
    for model, rank in zip(models, ranks, strict=True):
        images, labels = batch(rank, step, torch.float64)
        losses.append(nn.functional.cross_entropy(model(images), labels) / len(ranks))
    for loss in losses:
        loss.backward()


def train_with_ddp(levels: Sequence[Level], nodes: int, local: int) -> list[list[Tensor]]:
    """Simulated agents on a mesh that share their gradients inside each node."""
    models = [plain_model() for _ in range(nodes * local)]
    optimizers = [
        DistributedLookahead(
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5),
            levels,
            model=model,
            communicator=end,
            data_parallel="local",
        )
        for model, end in zip(models, simulate(Mesh((nodes, local), ("node", "local"))), strict=True)
    ]
    for step in range(LAST):
        for node in range(nodes):
            mine = range(node * local, (node + 1) * local)
            gradients_of([models[rank] for rank in mine], mine, step)
            for parameters in zip(*(models[rank].parameters() for rank in mine), strict=True):
                total = torch.stack([p.grad for p in parameters if p.grad is not None]).sum(dim=0)
                for parameter in parameters:
                    parameter.grad = total.clone()
        finish_step(optimizers, last=step == LAST - 1)
    return [[p.detach() for p in model.parameters()] for model in models]


def train_with_large_batches(levels: Sequence[Level], nodes: int, local: int) -> list[list[Tensor]]:
    """One agent for each node, whose batch is that of all its agents."""
    models = [plain_model() for _ in range(nodes)]
    optimizers = [
        DistributedLookahead(
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5), levels, model=model, communicator=end
        )
        for model, end in zip(models, simulate(Mesh((nodes, 1), ("node", "local"))), strict=True)
    ]
    for step in range(LAST):
        for node, model in enumerate(models):
            gradients_of([model] * local, range(node * local, (node + 1) * local), step)
        finish_step(optimizers, last=step == LAST - 1)
    return [[p.detach() for p in model.parameters()] for model in models]


def plain_model() -> nn.Module:
    """Without BatchNorm, whose statistics are those of a batch and not of its parts."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 9), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 10)).double()


def across_nodes(levels: Sequence[Level]) -> list[Level]:
    """The levels with each gossip across nodes: inside one, agents that share their gradients stay alike."""
    return [
        dataclasses.replace(level, mix=dataclasses.replace(level.mix, axis="node"))
        if isinstance(level.mix, OnGraph)
        else level
        for level in levels
    ]


def finish_step(optimizers: Sequence[DistributedLookahead], *, last: bool) -> None:
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    if last:
        for optimizer in optimizers:
            optimizer.sync()


GOSSIPS = {name: row for name, row in ALL.items() if across_nodes(row.levels) != list(row.levels)}


@pytest.mark.parametrize("row", GOSSIPS.values(), ids=GOSSIPS)
def test_a_gossip_that_would_part_agents_which_share_their_gradients_is_refused(row: Row) -> None:
    with pytest.raises(ValueError, match="agents that share their gradients along local: gossip along another axis"):
        train_with_ddp(row.levels, 2, 2)


def told_nothing(level: Level) -> bool:
    """Whether a level asks for nothing but fast steps, and loses nothing of float64."""
    losses = isinstance(level.when.tau, Adaptive) and level.when.tau.hears == "loss"
    return not losses and not level.mix.weighted and not getattr(level.mix, "codec", None)


EXACT_IN_FLOAT64 = {name: row for name, row in ALL.items() if all(map(told_nothing, row.levels))}


@pytest.mark.parametrize("row", EXACT_IN_FLOAT64.values(), ids=EXACT_IN_FLOAT64)
def test_gradients_shared_inside_a_node_make_it_one_agent_with_a_larger_batch(row: Row) -> None:
    levels = across_nodes(row.levels)
    many, few = train_with_ddp(levels, 2, 2), train_with_large_batches(levels, 2, 2)
    for rank, weights in enumerate(many):
        for own, expected in zip(weights, few[rank // 2], strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)
