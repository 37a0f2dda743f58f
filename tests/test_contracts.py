"""Contracts that every recipe keeps: one row per recipe, one test per contract. A new recipe is one more row."""

import copy
import io
import pickle
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from digits_training import Agent, make_agents, mesh_for, same, train

from dist_lookahead import (
    QSR,
    AdaComm,
    Alone,
    Cast,
    Copy,
    Cosine,
    Every,
    Exact,
    Gossip,
    Level,
    Linear,
    Named,
    OnePeerExponential,
    Piecewise,
    Pull,
    Quantised,
    TopK,
    bmuf,
    diloco,
    distributed_lookahead,
    dpsgd,
    hierarchical_local_sgd,
    local_sgd,
    lookahead,
    multilayer_lookahead,
    osgp,
    overlapped_local_sgd,
    polyak,
    post_local_sgd,
    recipes,
    sgp,
    slowmo,
    slowmo_over,
    snoo,
    streaming_diloco,
)
from dist_lookahead.alike import agree
from dist_lookahead.notation import from_plain, to_plain
from dist_lookahead.overlap import next_stop

TAU = 3


@dataclass(frozen=True)
class Row:
    """A recipe: its levels, and those that it degenerates to for a single agent."""

    levels: Sequence[Level]
    alone: Sequence[Level] | None = None


ROWS = {
    "lookahead": Row(lookahead(TAU)),
    "multilayer_lookahead": Row(multilayer_lookahead((1, TAU), (0.5, 0.8))),
    "local_sgd": Row(local_sgd(TAU), alone=[]),
    "overlapped_local_sgd": Row(overlapped_local_sgd(TAU, 2), alone=[]),
    "post_local_sgd": Row(post_local_sgd(TAU, start=2), alone=[]),
    "hierarchical_local_sgd": Row(hierarchical_local_sgd((1, TAU)), alone=[]),
    "distributed_lookahead": Row(distributed_lookahead(TAU), alone=lookahead(TAU)),
    "slowmo": Row(slowmo(TAU, beta=0.6), alone=[Level(Every(TAU), Alone(), Pull(1.0, 0.6, follow_lr=True))]),
    "bmuf": Row(bmuf(TAU, eta=0.6), alone=[Level(Every(TAU), Alone(), Pull(1.0, 0.6))]),
    "diloco": Row(diloco(TAU, 0.7, 0.6), alone=snoo(TAU, 0.7, 0.6)),
    "snoo": Row(snoo(TAU, 0.7, 0.6)),
    "streaming_diloco": Row(
        streaming_diloco(TAU, 2, 0.7, 0.6),
        alone=[replace(level, mix=Alone()) for level in streaming_diloco(TAU, 2, 0.7, 0.6)],
    ),
    "dpsgd": Row(dpsgd(tau=TAU), alone=[]),
    "polyak": Row(polyak(0.1)),
    "osgp": Row(osgp(tau=TAU, delay=1), alone=[]),
    "sgp": Row(sgp(tau=TAU), alone=[]),
    "slowmo_over": Row(
        slowmo_over(dpsgd(), TAU, beta=0.6), alone=[Level(Every(TAU), Alone(), Pull(1.0, 0.6, follow_lr=True))]
    ),
}
VARIANTS = {
    "slowmo, sharded": Row(slowmo(TAU, beta=0.6, shard=True), alone=ROWS["slowmo"].alone),
    "diloco, reset": Row(diloco(TAU, 0.7, 0.6, fast_buffers="reset"), alone=snoo(TAU, 0.7, 0.6, fast_buffers="reset")),
    "local_sgd, average": Row(local_sgd(TAU, fast_buffers="average"), alone=[]),
    "slowmo, 4 bit": Row(slowmo(TAU, beta=0.6, codec=Quantised(4, block=64)), alone=ROWS["slowmo"].alone),
    "diloco, 8 bit at random": Row(diloco(TAU, 0.7, 0.6, codec=Quantised(rounding="stochastic")), ROWS["diloco"].alone),
    "local_sgd, top k": Row(local_sgd(TAU, codec=TopK(0.1)), alone=[]),
    "slowmo, bf16, forgetful": Row(slowmo(TAU, beta=0.6, codec=Cast(error_feedback=False)), ROWS["slowmo"].alone),
    "scheduled": Row(slowmo(Piecewise((2, TAU), (4,)), Linear(0.5, 1.0, 6), Cosine(0.6, 0.1, 6))),
    "Lookahead in a node, SlowMo across": Row(
        [
            Level(Every(1), Exact("local"), Pull(0.5)),
            Level(Every(TAU), Exact("node", shard=True), Pull(1.0, 0.6, follow_lr=True)),
        ]
    ),
    "quadratic synchronisation rule": Row(slowmo(QSR(2, 0.06, longest=4), beta=0.6)),
    "AdaComm": Row(local_sgd(AdaComm(start=3, interval=2)), alone=[]),
    "weighted by steps": Row([Level(Every(TAU), Exact(weighted="steps"), Copy())], alone=[]),
    "weighted by samples, sharded": Row(
        [Level(Every(TAU), Exact(shard=True, weighted="samples"), Pull(1.0, 0.6, follow_lr=True))],
        alone=ROWS["slowmo"].alone,
    ),
    "gossip, pulled": Row([Level(Every(TAU), Gossip(topology=OnePeerExponential(), rounds=2), Pull(0.5, 0.4))]),
    "streaming DiLoCo, delayed, with a share": Row(streaming_diloco(TAU, 2, 0.7, 0.6, delay=1, local_share=0.5)),
    "elastic": Row([Level(Every(TAU), Exact(codec=Cast()), Pull(0.5), local_share=0.75)]),
    "parts by name, reset, under SlowMo": Row(
        [
            Level(Every(1), Exact(), Copy(), "reset", params=Named(("1.*", "*.bias"))),
            *slowmo(TAU, beta=0.6, shard=True),
        ]
    ),
    "nested": Row([Level(Every(1), Alone(), Pull(0.5)), *slowmo(TAU, beta=0.6)]),
    "slowmo, late, sharded": Row(slowmo(TAU, beta=0.6, delay=1, shard=True)),
    "diloco, late, reset": Row(diloco(TAU, 0.7, 0.6, delay=2, fast_buffers="reset")),
    "slowmo, late, 4 bit": Row(slowmo(TAU, beta=0.6, delay=2, codec=Quantised(4, block=64))),
    "gossip, late": Row([Level(Every(TAU, 2), Gossip(topology=OnePeerExponential(), rounds=2), Pull(0.5, 0.4))]),
    "late over late, in a node and across": Row(
        [
            Level(Every(2, 1), Exact("local"), Pull(0.5)),
            Level(Every(4, 3), Exact("node"), Pull(1.0, 0.6, follow_lr=True)),
        ]
    ),
    "late across all": Row(
        [Level(Every(1), Exact("local"), Copy()), Level(Every(TAU, 2), Exact("world", codec=Cast()), Pull(0.8, 0.5))]
    ),
}
ALL = ROWS | VARIANTS
LAST = 3 * TAU
each_row = pytest.mark.parametrize("row", ALL.values(), ids=ALL)


def test_every_recipe_has_a_row() -> None:
    public = set(recipes.__all__)
    assert public == set(ROWS)


# --- resume


def decay(agents: Sequence[Agent], step: int) -> None:
    """A learning rate that moves, so that SlowMo's ratios count."""
    for agent in agents:
        for group in agent.optimizer.param_groups:
            group["lr"] = 0.05 * 0.8**step


def train_decaying(agents: Sequence[Agent], steps: range) -> None:
    for step in steps:
        decay(agents, step)
        train(agents, [step])


def written(agents: Sequence[Agent]) -> bytes:
    file = io.BytesIO()
    torch.save([agent.state() for agent in agents], file)
    return file.getvalue()


def read(agents: Sequence[Agent], checkpoint: bytes) -> None:
    for agent, state in zip(agents, torch.load(io.BytesIO(checkpoint), weights_only=True), strict=True):
        agent.load(state)


def finished(agents: Sequence[Agent]) -> list[dict[str, Any]]:
    """The end of a training whose last round is a partial one."""
    for agent in agents:
        agent.optimizer.sync()
    return copy.deepcopy([agent.state() for agent in agents])


@pytest.mark.parametrize("fast", ["momentum", "adam"])
@each_row
def test_resume_at_any_step_goes_on_bit_for_bit(row: Row, fast: str) -> None:
    """Breaks if any number of the slow state, a counter or a schedule's place is not saved."""
    agents, checkpoints = make_agents(2, row.levels, fast=fast), []
    for step in range(LAST - 1):
        checkpoints.append(written(agents))
        train_decaying(agents, range(step, step + 1))
    checkpoints.append(written(agents))  # after this one comes only the flush of the partial round
    expected = finished(agents)
    for step, checkpoint in enumerate(checkpoints):
        resumed = make_agents(2, row.levels, fast=fast, seed=5)
        read(resumed, checkpoint)
        train_decaying(resumed, range(step, LAST - 1))
        assert same(finished(resumed), expected), f"differs when resumed after step {step}"


@each_row
def test_state_before_the_first_step_begins_the_same_training(row: Row) -> None:
    agents = make_agents(2, row.levels)
    checkpoint = written(agents)
    train(agents, range(LAST))
    resumed = make_agents(2, row.levels, seed=5)
    read(resumed, checkpoint)
    train(resumed, range(LAST))
    assert same(finished(resumed), finished(agents))


# --- copies


@pytest.mark.parametrize("middle", [0, TAU, TAU + 1])
@each_row
def test_a_deepcopy_goes_on_identically_and_leaves_the_original_alone(row: Row, middle: int) -> None:
    agents = make_agents(2, row.levels)
    train(agents, range(middle))
    before = copy.deepcopy([agent.state() for agent in agents])
    copies = copy.deepcopy(agents)
    train(copies, range(middle, LAST))
    assert same([agent.state() for agent in agents], before)
    train(agents, range(middle, LAST))
    assert same(finished(copies), finished(agents))


@each_row
def test_a_pickle_goes_on_identically(row: Row) -> None:
    agents = make_agents(2, row.levels)
    train(agents, range(TAU + 1))
    copies = pickle.loads(pickle.dumps(agents))
    train(agents, range(TAU + 1, LAST))
    train(copies, range(TAU + 1, LAST))
    assert same(finished(copies), finished(agents))


# --- numbers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@each_row
def test_dtypes_are_kept(row: Row, dtype: torch.dtype) -> None:
    """Weights keep theirs; slow weights have at least float32."""
    agents = make_agents(2, row.levels, dtype=dtype)
    train(agents, range(TAU + 1))
    for agent in agents:
        assert {p.dtype for p in agent.model.parameters()} == {dtype}
        assert all(torch.isfinite(p).all() for p in agent.model.parameters())
        slow = [t for level in agent.state()["optimizer"]["levels"]["levels"] for t in level["slow"].values()]
        assert {t.dtype for t in slow} <= {torch.float64 if dtype == torch.float64 else torch.float32}


@pytest.mark.parametrize("name", [name for name, row in ALL.items() if row.alone is not None])
def test_one_agent_degenerates_to_the_serial_method(name: str) -> None:
    row = ALL[name]
    (agent,) = make_agents(1, row.levels)
    train([agent], range(LAST))
    if row.alone:
        (serial,) = make_agents(1, row.alone)
        train([serial], range(LAST))
        assert same(agent.model.state_dict(), serial.model.state_dict())
    else:  # averaging alone does nothing
        (plain,) = make_agents(1, lookahead(LAST + 1))
        train([plain], range(LAST))
        assert same(agent.model.state_dict(), plain.model.state_dict())


@each_row
def test_agents_agree_after_every_sync_of_all(row: Row) -> None:
    agents = make_agents(4, row.levels)
    train(agents, range(LAST))
    for agent in agents:
        agent.optimizer.sync()
    with ExitStack() as slow:
        if any(level.local_share for level in row.levels):  # agents keep some weights of their own
            for agent in agents:
                slow.enter_context(agent.optimizer.slow_weights())
        first, *others = copy.deepcopy([agent.model.state_dict() for agent in agents])
    for name in ("0.weight", "1.running_mean"):
        assert all(same(first[name], other[name]) for other in others) == agree(row.levels, mesh_for(row.levels, 4))


# --- communication


@each_row
def test_nothing_is_sent_between_syncs(row: Row) -> None:
    agents = make_agents(2, row.levels)
    stack = agents[0].optimizer.stack
    for step in range(LAST):
        sent, stop = stack.communicator.bytes_sent, next_stop(stack.bound)
        fired = [bound.fired for bound in stack.bound]
        train(agents, [step])
        begun = [b for b, f in zip(stack.bound, fired, strict=True) if b.fired > f and b.mixer.communicates]
        # A phase of an average, and the buffers' where it lands, are sent later.
        late = any(level.when.delay for level in row.levels) and step + 1 == stop and not begun
        assert (stack.communicator.bytes_sent > sent) == bool(begun) or late


@pytest.mark.parametrize("levels", [local_sgd(TAU), slowmo(TAU, beta=0.6), slowmo(TAU, beta=0.6, shard=True)])
def test_a_sync_sends_the_weights_once(levels: list[Level]) -> None:
    """All-reduce and reduce-scatter with all-gather send 2 (n-1)/n of the weights; the rest is a few numbers."""
    agents = make_agents(4, levels)
    train(agents, range(TAU))
    end = agents[0].optimizer.stack.communicator
    before = end.bytes_sent
    train(agents, range(TAU, 2 * TAU))
    model = agents[0].model
    weights = sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers() if b.dim())
    needed = 2 * 3 / 4 * 4 * weights
    assert needed <= end.bytes_sent - before <= needed + 2 * 3 / 4 * 4 * 64


@pytest.mark.parametrize("options", [{}, {"shard": True}, {"codec": TopK(0.1)}], ids=["whole", "sharded", "in a code"])
def test_a_flag_of_one_agent_reaches_all_with_the_next_sync_and_no_further(options: dict[str, Any]) -> None:
    """A signal to stop must be seen by all agents at the same sync."""
    agents = make_agents(3, slowmo(TAU, beta=0.6, **options))
    train(agents, range(1))
    agents[1].optimizer.stack.raise_flag(7)
    train(agents, range(1, TAU))
    assert [agent.optimizer.stack.flags for agent in agents] == [(0, 7, 0)] * 3
    train(agents, range(TAU, 2 * TAU))
    assert [agent.optimizer.stack.flags for agent in agents] == [(0, 0, 0)] * 3


# --- descriptions


@each_row
def test_levels_are_written_and_read_back(row: Row) -> None:
    assert list(from_plain(to_plain(row.levels))) == list(row.levels)


@each_row
def test_levels_are_equal_when_they_say_the_same(row: Row) -> None:
    again = copy.deepcopy(row.levels)
    assert again == row.levels
    assert [hash(level) for level in again] == [hash(level) for level in row.levels]


@each_row
def test_a_repr_names_the_levels(row: Row) -> None:
    (agent,) = make_agents(1, row.levels)
    shown = repr(agent.optimizer)
    assert all(repr(level) in shown for level in row.levels)
