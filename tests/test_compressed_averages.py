"""Averages in a code: the same bits on all agents, and nothing lost for good."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from digits_training import make_agents, same, train
from processes import run_processes
from test_codecs import EVERY, each_codec
from torch import Tensor, nn

from dist_lookahead import (
    Alone,
    Cast,
    Copy,
    DistributedLookahead,
    Every,
    Exact,
    Level,
    Mesh,
    Optimal,
    Pull,
    Quantised,
    TopK,
    diloco,
    distributed_lookahead,
    local_sgd,
    simulate,
    slowmo,
    theory,
)
from dist_lookahead.averaging.codec import Codec
from dist_lookahead.comm.communicator import ring_bytes

NAMES = ("node", "local")
D = 37  # fits no number of agents, and no block
FOUR = Quantised(4, block=8)


class Agent:
    """Descends along given gradients, so that it is known what each sync should bring."""

    def __init__(self, levels: Sequence[Level], dtype: torch.dtype = torch.float64, **options: Any) -> None:
        self.weight = nn.Parameter(torch.linspace(-1, 1, D, dtype=dtype))
        inner = torch.optim.SGD([self.weight], lr=0.1)
        self.optimizer = DistributedLookahead(inner, levels, check_every=1, **options)

    @property
    def bound(self) -> Any:
        return self.optimizer.stack.bound[-1]

    def step(self, gradient: Tensor) -> None:
        self.weight.grad = gradient.to(self.weight.dtype)
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight.detach(), "stack": self.optimizer.stack.state_dict()}


def gradients(agent: int, step: int) -> Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(1000 * agent + step), dtype=torch.float64)


def descend(agents: Sequence[Agent], steps: range, first: int = 0) -> None:
    for step in steps:
        for rank, agent in enumerate(agents, start=first):
            agent.step(gradients(rank, step))


def crowd(levels: Sequence[Level], agents: int | Mesh, **options: Any) -> list[Agent]:
    return [Agent(levels, communicator=end, **options) for end in simulate(agents)]


# --- error feedback


def should_have_come(agents: int, steps: int) -> Tensor:
    """The mean way of plain SGD, which never communicates anything but means."""
    ways = [-0.1 * gradients(agent, step) for agent in range(agents) for step in range(steps)]
    return torch.linspace(-1, 1, D, dtype=torch.float64) + torch.stack(ways).sum(dim=0) / agents


@each_codec
@pytest.mark.parametrize("agents", [2, 3])
def test_over_many_syncs_all_arrives_but_the_last_residuals(codec: Codec, agents: int) -> None:
    """z + mean_i e_i + f is exactly where it would be without a code: an identity, whatever the code does."""
    many, steps = crowd(local_sgd(1, codec=codec), agents), 40
    descend(many, range(steps))
    (flat,) = many[0].bound.slow
    own = torch.stack([agent.bound.residuals[0][0] for agent in many]).mean(dim=0)
    owners = torch.cat([agent.bound.residuals[0][1] for agent in many])
    expected = should_have_come(agents, steps)
    torch.testing.assert_close((flat + own + owners)[:D], expected, rtol=0, atol=1e-12)
    assert (flat[:D] - expected).abs().max() > 1e-7, "the code lost nothing, and the test shows nothing"


@each_codec
def test_without_feedback_what_a_code_has_lost_is_lost(codec: Codec) -> None:
    many, steps = crowd(local_sgd(1, codec=replace(codec, error_feedback=False)), 2), 40
    descend(many, range(steps))
    assert [agent.bound.residuals for agent in many] == [[()], [()]]
    astray = (many[0].bound.slow[0][:D] - should_have_come(2, steps)).abs().max()
    with_feedback = crowd(local_sgd(1, codec=codec), 2)
    descend(with_feedback, range(steps))
    assert astray > 1.2 * (with_feedback[0].bound.slow[0][:D] - should_have_come(2, steps)).abs().max()


def excess_loss(codec: Codec | None, rounds: int = 200) -> float:
    """Four agents with minima of their own on an ill-conditioned quadratic; without a codec it falls to 0.046."""
    random = torch.Generator().manual_seed(0)
    curvature, minima = torch.logspace(0, -2, 64), torch.randn(4, 64, generator=random)
    weights = [nn.Parameter(torch.zeros(64)) for _ in minima]
    optimizers = [
        DistributedLookahead(torch.optim.SGD([w], lr=0.02), local_sgd(4, codec=codec), communicator=end)
        for w, end in zip(weights, simulate(4), strict=True)
    ]
    for _ in range(4 * rounds):
        for weight, minimum, optimizer in zip(weights, minima, optimizers, strict=True):
            weight.grad = curvature * (weight.detach() - minimum)
            optimizer.step()
    return float((curvature * (weights[0].detach() - minima.mean(dim=0)).square()).sum() / 2)


def test_feedback_brings_a_coarse_code_to_the_loss_without_one() -> None:
    """Breaks if residuals are not added, added twice, or mixed up between agents or parts."""
    plain = excess_loss(None)
    for codec in (Cast("bf16"), Quantised(8), Quantised(4), Quantised(4, rounding="stochastic")):
        assert abs(excess_loss(codec) - plain) < 0.01 * plain, codec
    assert excess_loss(Quantised(4, error_feedback=False)) > 1.1 * plain
    assert excess_loss(TopK(0.1)) < 1.15 * plain
    assert excess_loss(TopK(0.1, error_feedback=False)) > 10 * plain


# --- the same bits


@each_codec
@pytest.mark.parametrize("recipe", [slowmo, local_sgd, diloco])
def test_all_agents_hold_the_same_bits_after_a_sync(codec: Codec, recipe: Any) -> None:
    many = crowd(recipe(3, codec=codec), 3, dtype=torch.float32)
    descend(many, range(9))
    assert all(torch.equal(agent.weight, many[0].weight) for agent in many)
    assert all(torch.equal(agent.bound.slow[0], many[0].bound.slow[0]) for agent in many)


STACKS: dict[str, list[Level]] = {
    **{name: slowmo(2, codec=codec) for name, codec in EVERY.items()},
    "copied": local_sgd(2, codec=FOUR),
    "over a level without a code": [
        Level(Every(2), Exact("local"), Pull(0.5)),
        Level(Every(4), Exact("node", codec=FOUR), Pull(1.0, 0.6, follow_lr=True)),
    ],
    "below one": [
        Level(Every(1), Exact("local", codec=Quantised(8)), Copy()),
        Level(Every(2), Exact("world", codec=TopK(0.3)), Pull(0.8)),
        Level(Every(4), Exact("world"), Pull(0.8)),
    ],
    "all at once": [Level(Every(1), Alone(), Pull(0.9)), Level(Every(3), Exact(codec=FOUR), Pull(0.5))],
}


def in_a_process(shape: tuple[int, int]) -> dict[str, Any]:
    states = {}
    for name, levels in STACKS.items():
        agent = Agent(levels, mesh=Mesh(shape, NAMES))
        descend([agent], range(7), first=dist.get_rank())
        agent.optimizer.sync()
        states[name] = agent.state()
    return states


@pytest.mark.timeout(120)
@pytest.mark.parametrize("shape", [(2, 1), (2, 2)])
def test_processes_give_the_bits_of_simulated_agents(shape: tuple[int, int]) -> None:
    """Residuals too: a code adds up in the order of ranks, wherever it runs."""
    results = run_processes(in_a_process, shape[0] * shape[1], shape)
    for name, levels in STACKS.items():
        many = crowd(levels, Mesh(shape, NAMES))
        descend(many, range(7))
        for agent in many:
            agent.optimizer.sync()
        for rank, agent in enumerate(many):
            assert same(results[rank][name], agent.state()), f"{name}, agent {rank}"


def test_on_a_mesh_the_far_part_alone_is_encoded() -> None:
    """Inside a node float32 as before; between nodes a quarter of it, once for all agents of a node."""
    sent = {}
    for codec in (None, Quantised(8, block=1024)):
        ends = simulate(Mesh((2, 2), NAMES))
        weights = [nn.Parameter(torch.zeros(4096)) for _ in ends]
        levels = [Level(Every(1), Exact(codec=codec), Copy())]
        many = [
            DistributedLookahead(torch.optim.SGD([w], lr=0.1), levels, communicator=end)
            for w, end in zip(weights, ends, strict=True)
        ]
        before = dict(ends[0].bytes_along)
        for weight, optimizer in zip(weights, many, strict=True):
            weight.grad = torch.ones(4096)
            optimizer.step()
        sent[codec] = {axis: ends[0].bytes_along[axis] - before.get(axis, 0) for axis in NAMES}
    plain, coded = sent.values()
    assert coded["local"] == plain["local"]
    assert 1 / 4 < coded["node"] / plain["node"] < 0.26


def test_on_a_mesh_the_mean_is_that_of_all_agents() -> None:
    """Breaks if sums over near agents are measured from a reference that counts once."""
    plain, coded = (crowd(local_sgd(2, codec=codec), Mesh((2, 3), NAMES)) for codec in (None, Quantised(8, block=8)))
    for many in (plain, coded):
        descend(many, range(2))
    difference = (plain[0].weight - coded[0].weight).abs().max()
    assert 0 < difference < 0.01 < (plain[0].weight - torch.linspace(-1, 1, D)).abs().max()


def test_mail_of_the_level_below_does_not_scale_the_code() -> None:
    """The tail of a bucket holds numbers up to 2^24, which would leave nothing of weights in the same block."""
    levels = [Level(Every(1), Exact("local"), Copy()), Level(Every(2), Exact("node", codec=Quantised(4)), Copy())]
    quiet, loud = (crowd(levels, Mesh((2, 2), NAMES)) for _ in range(2))
    for agent in loud:
        agent.optimizer.stack.raise_flag(2**24 - 1)
    for many in (quiet, loud):
        descend(many, range(4))
    assert torch.equal(quiet[0].weight, loud[0].weight)


def test_agents_and_syncs_draw_apart() -> None:
    """Breaks if errors of rounding at random were the same everywhere, and did not average out."""
    codec = Quantised(4, rounding="stochastic")
    many, weights = crowd(local_sgd(1, codec=replace(codec, error_feedback=False)), 2), []
    for _ in range(3):
        weights.append(many[0].weight.detach().clone())
        for agent in many:
            agent.step(gradients(0, 0))
    assert (weights[2] - 2 * weights[1] + weights[0]).abs().max() > 1e-3
    feeding = crowd(local_sgd(1, codec=codec), 2)
    for agent in feeding:
        agent.step(gradients(0, 0))
    assert not torch.equal(*(agent.bound.residuals[0][0] for agent in feeding))


# --- what is sent


@each_codec
def test_the_ledger_counts_the_bytes_of_the_code(codec: Codec) -> None:
    """Two passes of (n - 1) / n of it, and the mail as a letter of its own."""
    many = crowd(distributed_lookahead(2, codec=codec), 4, dtype=torch.float32)
    descend(many, range(2))
    stack = many[0].optimizer.stack
    for agent in many:
        agent.optimizer.stack.check_every = 0
    before = stack.communicator.bytes_sent
    descend(many, range(2, 4))
    code = 4 * codec.nbytes(stack.buckets[0].fast.numel() // 4)
    letter = ring_bytes("all_reduce", stack.buckets[0].tail.nbytes, 4)
    assert stack.communicator.bytes_sent - before == 2 * ring_bytes("all_to_all", code, 4) + letter


@pytest.mark.parametrize(
    ("codec", "ratio"), [(Cast(), 0.5), (Quantised(8), 0.2510), (Quantised(4), 0.1260), (TopK(0.01), 0.0200)]
)
def test_codes_save_what_they_promise(codec: Codec, ratio: float) -> None:
    assert codec.nbytes(2**20) / (4 * 2**20) == pytest.approx(ratio, abs=2e-4)


@each_codec
def test_an_agent_that_has_diverged_is_not_averaged_away(codec: Codec) -> None:
    many = crowd(local_sgd(1, codec=codec), 3)
    for rank, agent in enumerate(many):
        gradient = torch.ones(D)
        gradient[20] = torch.nan if rank == 1 else 1.0
        agent.step(gradient)
    assert all(agent.weight[20].isnan() for agent in many)
    assert all(agent.weight[:8].isfinite().all() for agent in many)


def test_a_sync_that_fails_leaves_the_residuals_as_they_were() -> None:
    many = crowd(local_sgd(1, codec=FOUR), 2)
    descend(many, range(3))
    before = copy.deepcopy(many[0].bound.residuals)
    stack = many[0].optimizer.stack
    stack.buckets[0].fast.add_(1.0)
    pending = many[0].bound.collect([bucket.fast for bucket in stack.buckets])
    next(pending)
    pending.close()
    assert same(many[0].bound.residuals, before)


# --- state


def test_another_agents_residuals_are_refused() -> None:
    first, second = make_agents(2, slowmo(3, codec=FOUR))
    with pytest.raises(ValueError, match=r"keeps what its codec has lost.* Load each agent's own state"):
        second.load(first.state())


def test_slow_weights_are_there_in_mid_round_with_copy_too() -> None:
    """A level with a codec keeps them to measure from; without one local SGD has none."""
    many = crowd(local_sgd(3, codec=FOUR), 2)
    descend(many, range(3))
    synced = many[0].weight.detach().clone()
    descend(many, range(3, 4))
    with many[0].optimizer.slow_weights():
        assert torch.equal(many[0].weight, synced)


def test_a_single_agent_sends_nothing_and_keeps_nothing_for_it() -> None:
    (agent,), (plain,) = crowd(local_sgd(2, codec=FOUR), 1), crowd(local_sgd(2), 1)
    descend([agent], range(5))
    descend([plain], range(5))
    assert torch.equal(agent.weight, plain.weight)
    assert agent.bound.slow == agent.bound.residuals == []


# --- beside the rest


def measured_alpha(codec: Codec | None) -> float:
    """Alpha of the first sync of two agents on a quadratic, each with a curvature of its own."""
    weights, agents = [nn.Parameter(torch.linspace(-1, 1, D)) for _ in range(2)], []
    for rank, (weight, end) in enumerate(zip(weights, simulate(2), strict=True)):

        def probe(_: int, weight: nn.Parameter = weight, rank: int = rank) -> None:
            (weight.square() * torch.linspace(0.5, 1 + rank, D)).sum().backward()

        inner = torch.optim.SGD([weight], lr=0.1)
        levels = distributed_lookahead(2, Optimal(0.1, 9.0), codec=codec)
        agents.append((probe, DistributedLookahead(inner, levels, communicator=end, probe=probe)))
    for step in range(2):
        for probe, optimizer in agents:
            optimizer.zero_grad()
            probe(step)
            optimizer.step()
    assert torch.equal(*weights)
    return agents[0][1].stack.bound[0].coefficients[0]


def test_alpha_is_measured_on_the_way_to_the_decoded_mean() -> None:
    plain, coded = measured_alpha(None), measured_alpha(Quantised(8, block=8))
    assert coded == pytest.approx(plain, rel=0.02)
    assert coded != plain


def test_averaged_fast_buffers_travel_as_they_are() -> None:
    many = make_agents(2, local_sgd(3, codec=FOUR, fast_buffers="average"))
    train(many, range(3))
    momenta = [[agent.optimizer.state[p]["momentum_buffer"] for p in agent.model.parameters()] for agent in many]
    assert same(momenta[0], momenta[1])


def test_a_code_changes_no_matrix() -> None:
    for step in range(1, 7):
        assert torch.equal(
            theory.mixing_matrix(slowmo(3), 4, step), theory.mixing_matrix(slowmo(3, codec=FOUR), 4, step)
        )
