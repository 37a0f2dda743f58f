"""The cheapest rung: the real optimizer over simulated agents does what each paper's own loop does.

Float64, so that a wrong rule, order or phase stands out from rounding by ten orders of magnitude. What follows from
talking to real processes is not seen here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pytest
import reference
import torch
from digits_training import mesh_for
from hypothesis import given, settings
from hypothesis import strategies as st
from noisy_quadratic import FAST, MakeFast, Problem
from torch import Tensor, nn

from dist_lookahead import (
    QSR,
    AdaComm,
    Alone,
    Copy,
    Cosine,
    DistributedLookahead,
    Every,
    Exact,
    Graph,
    Level,
    Linear,
    Piecewise,
    Pull,
    PushSum,
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
    simulate,
    slowmo,
    slowmo_over,
    snoo,
    streaming_diloco,
)
from dist_lookahead.comm.communicator import Communicator

SHAPES = [(2, 3), (), (4,)]  # the 11 weights as parameters of different shapes, a scalar among them

# The trajectories are short and are compared with loops that are just as unstable.
pytestmark = pytest.mark.filterwarnings("ignore:levels.* is unstable on quadratics:UserWarning")


class Agent:
    """One simulated agent on a `Problem`, trained by the package."""

    def __init__(self, problem: Problem, levels: Sequence[Level], rank: int, communicator: Communicator) -> None:
        self._problem = problem
        self._rank = rank
        pieces = problem.start.split([torch.Size(shape).numel() for shape in SHAPES])
        self.parameters = [nn.Parameter(p.reshape(s).clone()) for p, s in zip(pieces, SHAPES, strict=True)]
        self.optimizer = DistributedLookahead(problem.fast([*self.parameters]), levels, communicator=communicator)

    def step(self, k: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._problem.rate(k)
        gradient = self._problem.gradient(self.weights(), self._rank, k)
        for parameter, piece in zip(self.parameters, gradient.split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = piece.reshape(parameter.shape)
        self.optimizer.report(loss=self._problem.loss(self.weights(), self._rank))
        self.optimizer.step()

    def weights(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])


def crowd(problem: Problem, levels: Sequence[Level]) -> list[Agent]:
    ends = simulate(mesh_for(levels, problem.agents))
    return [Agent(problem, levels, rank, end) for rank, end in enumerate(ends)]


def ours(problem: Problem, levels: Sequence[Level]) -> Tensor:
    """The fast weights after each step, (steps, n, D)."""
    agents, history = crowd(problem, levels), []
    for k in range(problem.steps):
        for agent in agents:
            agent.step(k)
        history.append(torch.stack([agent.weights() for agent in agents]))
    return torch.stack(history)


def assert_follows(problem: Problem, levels: Sequence[Level], paper: Iterable[Tensor]) -> None:
    torch.testing.assert_close(ours(problem, levels), torch.stack(list(paper)), rtol=1e-12, atol=1e-12)


def decaying(step: int) -> float:
    """A step decay at the rounds' boundaries (tau = 4), as in SlowMo's gamma_t."""
    return 0.05 * 0.3 ** (step // 8)


@dataclass(frozen=True)
class Method:
    """A recipe, its paper's loop, and the numbers of agents for which the paper defines it."""

    levels: list[Level]
    paper: Callable[[Problem], Iterable[Tensor]]
    agents: tuple[int, ...] = (1, 2, 3)
    rate: Callable[[int], float] = decaying


HALVES = torch.full((2, 2), 0.5, dtype=torch.float64)
METHODS = {
    "lookahead": Method(lookahead(4, 0.5), partial(reference.lookahead, k=4, alpha=0.5)),
    "multilayer_lookahead": Method(
        multilayer_lookahead((2, 3), (0.5, 0.8)),
        partial(reference.multilayer_lookahead, k=(2, 3), alpha=(0.5, 0.8)),
        agents=(1,),
    ),
    "local_sgd": Method(local_sgd(4), partial(reference.local_sgd, tau=4)),
    "overlapped_local_sgd": Method(overlapped_local_sgd(4, 3), partial(reference.overlapped_local_sgd, tau=4, delay=3)),
    "post_local_sgd": Method(post_local_sgd(4, start=6), partial(reference.post_local_sgd, tau=4, start=6)),
    "hierarchical_local_sgd": Method(
        hierarchical_local_sgd((2, 4)),
        partial(reference.hierarchical_local_sgd, groups=[[0, 1], [2, 3]], near=2, far=4),
        agents=(4,),
    ),
    "distributed_lookahead": Method(
        distributed_lookahead(4, 0.5), partial(reference.distributed_lookahead, tau=4, alpha=0.5)
    ),
    "slowmo": Method(slowmo(4, 0.9, 0.6), partial(reference.slowmo, tau=4, alpha=0.9, beta=0.6)),
    "bmuf": Method(bmuf(4, 1.1, 0.5), partial(reference.bmuf, tau=4, zeta=1.1, eta=0.5)),
    "diloco": Method(diloco(4, 0.7, 0.9), partial(reference.diloco, h=4, alpha=0.7, beta=0.9)),
    "snoo": Method(snoo(4, 0.7, 0.9), partial(reference.snoo, k=4, eta=0.7, mu=0.9), agents=(1,)),
    "streaming_diloco": Method(
        streaming_diloco(4, 2, 0.4, 0.9),
        partial(reference.streaming_diloco, h=4, fragments=(slice(0, 6), slice(6, 11)), alpha=0.4, beta=0.9),
    ),
    "polyak": Method(polyak(0.1), partial(reference.polyak, alpha=0.1)),
    "osgp": Method(osgp(tau=3, delay=2), partial(reference.osgp, shares=HALVES, tau=3, delay=2), agents=(2,)),
    "dpsgd": Method(dpsgd(tau=2), partial(reference.dpsgd, tau=2), agents=(1, 2, 3, 5)),
    # With two agents its graph has the weights 1/2, with one there is nobody to hear.
    "sgp": Method(sgp(tau=2), partial(reference.sgp, shares=HALVES, tau=2), agents=(2,)),
    "slowmo_over": Method(
        slowmo_over(dpsgd(), 4, 0.9, 0.6),
        partial(reference.slowmo_over_dpsgd, tau=4, alpha=0.9, beta=0.6),
        agents=(1, 2, 5),
    ),
}
CASES = [(name, agents) for name, method in METHODS.items() for agents in method.agents]


@pytest.mark.parametrize("fast", FAST.values(), ids=FAST)
@pytest.mark.parametrize(("name", "agents"), CASES)
def test_recipe_is_the_papers_loop(name: str, agents: int, fast: MakeFast) -> None:
    method = METHODS[name]
    problem = Problem(agents, fast, method.rate)
    assert_follows(problem, method.levels, method.paper(problem))


def test_all_recipes_have_a_loop_to_be_compared_with() -> None:
    """Breaks when a recipe is added without its paper's loop."""
    public = set(recipes.__all__)
    assert public == set(METHODS)


@pytest.mark.parametrize("share", [None, 0.5, 0.25])
@pytest.mark.parametrize("delay", [0, 1, 3])
def test_streaming_diloco_with_a_delay_and_a_share(delay: int, share: float | None) -> None:
    """Breaks if the share is taken of the wrong weights, or if a part that lands moves another one."""
    problem = Problem(3, FAST["momentum"], decaying)
    levels = streaming_diloco(4, 2, 0.4, 0.9, delay=delay, local_share=share or 0.0)
    fragments = (slice(0, 6), slice(6, 11))
    paper = reference.streaming_diloco(problem, 4, fragments, 0.4, 0.9, delay, share)
    assert_follows(problem, levels, paper)


def test_polyak_averages_follow_the_fast_weights() -> None:
    problem = Problem(2, FAST["momentum"], decaying)
    agents, mean = crowd(problem, polyak(0.1)), torch.stack([problem.start] * 2)
    for k in range(9):
        for agent in agents:
            agent.step(k)
        for rank, agent in enumerate(agents):
            mean[rank] += 0.1 * (agent.weights() - mean[rank])
            with agent.optimizer.slow_weights():
                torch.testing.assert_close(agent.weights(), mean[rank], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("delay", [1, 2])
def test_overlapped_push_sum_where_masses_differ(delay: int) -> None:
    problem = Problem(3, FAST["momentum"], decaying)
    assert_follows(problem, osgp(Graph(UNEVEN), 3, delay), reference.osgp(problem, UNEVEN, 3, delay))


# --- push-sum in a graph where agents do not hear as many as hear them

UNEVEN = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64)
LATER = torch.tensor([[0.2, 0.8, 0.0], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("fast", FAST.values(), ids=FAST)
@pytest.mark.parametrize("tau", [1, 2])
def test_push_sum_is_the_papers_loop_where_masses_differ(tau: int, fast: MakeFast) -> None:
    problem = Problem(3, fast, decaying)
    assert_follows(problem, sgp(Graph(UNEVEN), tau), reference.sgp(problem, UNEVEN, tau))


def test_slowmo_over_push_sum_averages_what_has_mass() -> None:
    """Breaks if the exact average took the mean of x / w, which is not the mean that push-sum keeps."""
    problem = Problem(3, FAST["momentum"], decaying)
    levels = slowmo_over(sgp(Graph(UNEVEN)), 4, 0.9, 0.6)
    assert_follows(problem, levels, reference.sgp(problem, UNEVEN, slow=(4, 0.9, 0.6)))


def test_push_sum_in_rounds_is_the_product_of_its_turns() -> None:
    problem = Problem(3, FAST["momentum"], decaying)
    levels = [Level(Every(2), PushSum(topology=Graph([UNEVEN.tolist(), LATER.tolist()]), rounds=2), Copy())]
    assert_follows(problem, levels, reference.sgp(problem, UNEVEN @ LATER, tau=2))


# --- any stack


@st.composite
def layers(draw: st.DrawFn) -> list[reference.Layer]:
    chosen, tau = [], 1
    for _ in range(draw(st.integers(1, 3))):
        tau *= draw(st.integers(1, 3))
        averages = draw(st.booleans())
        alpha = draw(st.sampled_from([0.3, 0.5, 1.0, 1.2] + [None] * averages))
        beta = draw(st.sampled_from([0.0, 0.4, 0.7])) if alpha else 0.0
        nesterov = beta > 0 and draw(st.booleans())
        choices: list[reference.Buffers] = ["keep", "reset", "average"]
        buffers = draw(st.sampled_from(choices if averages else choices[:2]))
        chosen.append(reference.Layer(tau, averages, alpha, beta, nesterov, buffers))
    return chosen


def as_level(layer: reference.Layer, *, shard: bool = False) -> Level:
    mix = Exact(shard=shard and layer.alpha is not None) if layer.averages else Alone()
    move = Copy() if layer.alpha is None else Pull(layer.alpha, layer.beta, layer.nesterov)
    return Level(Every(layer.tau), mix, move, layer.buffers)


@settings(deadline=None, max_examples=60)
@given(layers=layers(), agents=st.integers(1, 3), fast=st.sampled_from(sorted(FAST)))
def test_any_stack_is_the_plain_loop_over_its_layers(layers: list[reference.Layer], agents: int, fast: str) -> None:
    """Breaks if a level does not overwrite all below it, fires out of order, or resets too much or too little."""
    problem = Problem(agents, FAST[fast], steps=18)
    assert_follows(problem, [as_level(layer) for layer in layers], reference.stack(problem, layers))


@settings(deadline=None, max_examples=60)
@given(layers=layers(), agents=st.integers(2, 5), fast=st.sampled_from(sorted(FAST)))
def test_sharding_changes_no_bit(layers: list[reference.Layer], agents: int, fast: str) -> None:
    """Breaks if a shard's boundary, padding or mail is moved like a weight; 11 weights fit no number of agents."""
    problem = Problem(agents, FAST[fast], steps=18)
    whole, split = (ours(problem, [as_level(layer, shard=shard) for layer in layers]) for shard in (False, True))
    assert torch.equal(whole, split)


# --- the mean, bit for bit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shard", [False, True])
def test_alpha_1_beta_0_is_the_mean_bit_for_bit(dtype: torch.dtype, shard: bool) -> None:
    """z + (mean - z) and sum * (1/n) both differ from the mean in many of these weights."""
    gradients = torch.randn(3, 4001, generator=torch.Generator().manual_seed(0), dtype=dtype)
    weights = [nn.Parameter(torch.ones(4001, dtype=dtype)) for _ in gradients]
    level = Level(Every(1), Exact(shard=shard), Pull(1.0))
    agents = [
        DistributedLookahead(torch.optim.SGD([w], lr=1.0), [level], communicator=end)
        for w, end in zip(weights, simulate(3), strict=True)
    ]
    for agent, weight, gradient in zip(agents, weights, gradients, strict=True):
        weight.grad = gradient.clone()
        agent.step()
    moved = 1 - gradients
    expected = (moved[0] + moved[1] + moved[2]) / 3
    assert all(torch.equal(weight, expected) for weight in weights)


@pytest.mark.parametrize("fast", FAST.values(), ids=FAST)
def test_alpha_1_beta_0_is_local_sgd_bit_for_bit(fast: MakeFast) -> None:
    problem = Problem(3, fast)
    averaged = ours(problem, local_sgd(4))
    assert torch.equal(ours(problem, distributed_lookahead(4, 1.0)), averaged)
    assert torch.equal(ours(problem, slowmo(4, 1.0, 0.0)), averaged)
    assert torch.equal(ours(problem, distributed_lookahead(4, 1.0, shard=True)), averaged)


# --- when, and with which coefficients


def sync_steps(problem: Problem, levels: Sequence[Level]) -> list[int]:
    """The steps after which the agents' weights are the same."""
    history = ours(problem, levels)
    agree = (history == history[:, :1]).all(dim=2).all(dim=1)
    return (agree.nonzero().flatten() + 1).tolist()


@pytest.mark.parametrize("tau", [1, 3, 7])
def test_syncs_fall_after_exactly_tau_steps(tau: int) -> None:
    problem = Problem(2)
    assert sync_steps(problem, local_sgd(tau)) == list(range(tau, problem.steps + 1, tau))


def test_tau_schedule_is_asked_at_each_sync() -> None:
    problem = Problem(2, steps=24)
    assert sync_steps(problem, local_sgd(Piecewise((1, 4, 6), (3, 10)))) == [1, 2, 3, 7, 11, 17, 23]


@pytest.mark.parametrize("agents", [1, 2, 3])
def test_qsr_is_the_papers_loop(agents: int) -> None:
    """Breaks if tau is asked with the rate of the round before, or of another step."""
    problem = Problem(agents, rate=decaying)
    assert_follows(problem, local_sgd(QSR(3, 0.04)), reference.qsr(problem, 3, 0.04))
    if agents > 1:
        assert sync_steps(problem, local_sgd(QSR(3, 0.04))) == [3, 6, 9, 16]


@pytest.mark.parametrize("agents", [1, 2, 3])
@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_adacomm_is_the_papers_loop(agents: int, decay: float) -> None:
    """Breaks if losses are lost or counted twice, or agents average them otherwise."""
    problem = Problem(agents, steps=48)
    levels = local_sgd(AdaComm(start=5, interval=7, decay=decay))
    assert_follows(problem, levels, reference.adacomm(problem, 5, 7, decay))
    if agents > 1:
        rounds = [b - a for a, b in pairwise(sync_steps(problem, levels))]
        assert rounds == sorted(rounds, reverse=True)
        assert rounds[-1] < 5, "tau never moved"


def test_alpha_and_beta_schedules_are_taken_at_the_step_of_the_sync() -> None:
    """Breaks if a schedule is asked at the round's first step, or by the number of the round."""
    problem, tau = Problem(2), 4
    alpha, beta = Linear(0.4, 1.0, 20), Cosine(0.5, 0.1, 20)

    def paper() -> Iterable[Tensor]:
        agents = reference.crowd(problem)
        z, v = problem.start.clone(), torch.zeros_like(problem.start)
        for k in range(1, problem.steps + 1):
            for agent in agents:
                agent.step(k - 1)
            if k % tau == 0:
                v = beta(k) * v + reference.mean(agents) - z
                z = z + alpha(k) * v
                for agent in agents:
                    agent.become(z)
            yield reference.now(agents)

    assert_follows(problem, bmuf(tau, alpha, beta), paper())


def test_a_sync_on_demand_leaves_the_schedule_as_it_was() -> None:
    agents = crowd(Problem(2), local_sgd(4))
    alike = []
    for k in range(8):
        for agent in agents:
            agent.step(k)
        if k == 5:
            for agent in agents:
                agent.optimizer.sync()
        if torch.equal(*(agent.weights() for agent in agents)):
            alike.append(k + 1)
    assert alike == [4, 6, 8]


def test_a_partial_last_round_is_one_pull_of_the_steps_made() -> None:
    """Breaks if the flush fires levels twice, or waits for whole rounds."""
    problem = Problem(2, steps=6)
    agents = crowd(problem, distributed_lookahead(4, 0.5))
    for k in range(problem.steps):
        for agent in agents:
            agent.step(k)
    mean = torch.stack([agent.weights() for agent in agents]).mean(dim=0)
    z = list(reference.distributed_lookahead(problem, 4, 0.5))[3][0]
    for _ in range(2):  # the second sync has nothing to do
        for agent in agents:
            agent.optimizer.sync()
    for agent in agents:
        torch.testing.assert_close(agent.weights(), z + 0.5 * (mean - z), rtol=1e-12, atol=1e-12)


# --- SlowMo and the fast learning rate


@pytest.mark.parametrize("agents", [1, 2, 3])
def test_slowmo_through_a_warm_up_from_zero_is_slowmo_from_the_first_real_step(agents: int) -> None:
    """Breaks on a division by gamma_t = 0: everything would be NaN."""
    warm = Problem(agents, rate=lambda k: 0.0 if k < 4 else decaying(k))

    def paper() -> Iterable[Tensor]:
        yield from [warm.start.expand(agents, -1)] * 4
        late = Problem(agents, rate=lambda k: decaying(k + 4), steps=warm.steps - 4)
        late.start, late.targets, late.noise = warm.start, warm.targets, warm.noise[4:]
        yield from reference.slowmo(late, 4, 0.9, 0.6)

    assert_follows(warm, slowmo(4, 0.9, 0.6), paper())


def test_slow_momentum_follows_the_rate_that_the_rounds_last_step_used() -> None:
    """A scheduler that steps right after the sync's step must not be seen by that sync."""
    problem = Problem(2, rate=decaying)
    agents = crowd(problem, slowmo(4, 0.9, 0.6))
    history = []
    for k in range(problem.steps):
        for agent in agents:
            agent.step(k)
            for group in agent.optimizer.param_groups:
                group["lr"] = problem.rate(k + 1)
        history.append(torch.stack([agent.weights() for agent in agents]))
    expected = torch.stack(list(reference.slowmo(problem, 4, 0.9, 0.6)))
    torch.testing.assert_close(torch.stack(history), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shard", [False, True])
def test_each_group_follows_its_own_learning_rate(shard: bool) -> None:
    """Two groups with their own decays are two SlowMos side by side."""
    rates = (lambda k: 0.05 * 0.5 ** (k // 4), lambda k: 0.02 if k < 8 else 0.06)
    problem = Problem(2, steps=16)
    halves = [slice(0, 5), slice(5, 11)]
    parameters = [[nn.Parameter(problem.start[half].clone()) for half in halves] for _ in range(2)]
    agents = [
        DistributedLookahead(
            torch.optim.SGD([{"params": [p]} for p in pair], lr=0.05),
            slowmo(4, 0.9, 0.6, shard=shard),
            communicator=end,
        )
        for pair, end in zip(parameters, simulate(2), strict=True)
    ]
    history = []
    for k in range(problem.steps):
        for rank, (agent, pair) in enumerate(zip(agents, parameters, strict=True)):
            gradient = problem.gradient(torch.cat([p.detach() for p in pair]), rank, k)
            for parameter, half, group, rate in zip(pair, halves, agent.param_groups, rates, strict=True):
                parameter.grad, group["lr"] = gradient[half].clone(), rate(k)
            agent.step()
        history.append(torch.stack([torch.cat([p.detach() for p in pair]) for pair in parameters]))
    for half, rate in zip(halves, rates, strict=True):
        alone = Problem(2, rate=rate, steps=16)  # the gradients act on each weight alone, so all 11 run at each rate
        expected = torch.stack(list(reference.slowmo(alone, 4, 0.9, 0.6)))[..., half]
        torch.testing.assert_close(torch.stack(history)[..., half], expected, rtol=1e-12, atol=1e-12)
