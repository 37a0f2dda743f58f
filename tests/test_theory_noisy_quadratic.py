"""The general recursion on noisy quadratics is the law of the real optimizer.

Its exact covariance comes from the optimizer's responses to single unit noises, and must be met to 1e-12 for every
kind of stack and fast momentum; sampled noise, for the whole chain once more, within five sigma.
"""

from typing import Literal

import pytest
import torch
from linear_runs import assert_same, assert_sampled, measured

from dist_lookahead import (
    Alone,
    Copy,
    Every,
    Exact,
    Level,
    Linear,
    Piecewise,
    Pull,
    bmuf,
    diloco,
    distributed_lookahead,
    local_sgd,
    lookahead,
    post_local_sgd,
    slowmo,
    snoo,
)
from dist_lookahead.mesh import Mesh
from dist_lookahead.theory import closed_forms
from dist_lookahead.theory.growth import stability_limit
from dist_lookahead.theory.quadratic_oracle import noisy_quadratic, stationary
from dist_lookahead.theory.trajectory import Weights

GAMMA_A = torch.tensor([0.001, 0.05, 0.3, 0.9, 1.0, 1.5, 1.9], dtype=torch.float64)
SIGMA = 1.7
REPETITIONS = 20_000


STACKS = {
    "lookahead": lookahead(3, 0.5),
    "local": local_sgd(4),
    "local average": local_sgd(4, fast_buffers="average"),
    "post-local": post_local_sgd(5, start=4),
    "distributed": distributed_lookahead(4, 0.7, fast_buffers="reset"),
    "slowmo keep": slowmo(6, 1.0, 0.3),
    "slowmo reset": slowmo(4, 0.9, 0.6, fast_buffers="reset"),
    "slowmo average": slowmo(6, 1.0, 0.3, fast_buffers="average"),
    "diloco": diloco(4, 0.7, 0.8, fast_buffers="reset"),
    "snoo": snoo(3, 0.7, 0.8, fast_buffers="reset"),
    "schedules": [Level(Every(Piecewise((2, 3), (4,))), Exact(), Pull(Linear(1.0, 0.5, 12), Linear(0.1, 0.3, 12)))],
    "nested": [
        Level(Every(2), Alone(), Pull(0.8, 0.3), "reset"),
        Level(Every(4), Exact(), Pull(1.0, 0.2, nesterov=True), "average"),
        Level(Every(8), Exact(), Pull(0.6), "reset"),
    ],
    "hierarchical": [Level(Every(2), Alone(), Pull(0.8)), Level(Every(6), Exact(), Copy(), "average")],
}
FAST = {"sgd": (0.0, False), "heavy ball": (0.5, False), "nesterov": (0.5, True)}
DECAY = Piecewise((0.4, 0.1), (7,))


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("stack", STACKS)
def test_covariance_is_that_of_the_real_optimizer(stack: str, fast: str) -> None:
    """The optimizer is linear: the variance is the sum of the squares of its responses to each single noise."""
    levels, (momentum, nesterov), steps, agents = STACKS[stack], FAST[fast], 17, 3
    curvature = torch.tensor([0.5, 0.9, 1.4], dtype=torch.float64)
    sigma = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    single = torch.eye(steps * agents, dtype=torch.float64).view(steps, agents, -1) * sigma[:, None]
    x, z = measured(levels, curvature, single, lr=DECAY, momentum=momentum, nesterov=nesterov)
    run = noisy_quadratic(
        levels,
        curvature=curvature[:, None],
        noise=sigma[:, None],
        lr=DECAY,
        agents=agents,
        steps=steps,
        momentum=momentum,
        nesterov=nesterov,
    )
    assert run.slow.variance[-1] > 0
    assert_same(run.fast.variance[..., 0], (x**2).sum(dim=-1), 1e-12)
    assert_same(run.average.variance[..., 0], (x.mean(dim=1) ** 2).sum(dim=-1), 1e-12)
    assert_same(run.slow.variance[..., 0], (z**2).sum(dim=-1), 1e-12)


@pytest.mark.parametrize("fast_buffers", ["keep", "average"])
def test_covariance_over_the_axes_of_a_mesh_is_that_of_the_real_optimizer(
    fast_buffers: Literal["keep", "average"],
) -> None:
    """Symmetry does not help here: agents of a node are closer to each other than to others."""
    levels = [
        Level(Every(2), Exact("local"), Copy(), fast_buffers),
        Level(Every(4), Exact("node"), Pull(0.8, 0.3), fast_buffers),
    ]
    mesh, steps = Mesh((2, 3), ("node", "local")), 11
    single = torch.eye(steps * 6, dtype=torch.float64).view(steps, 6, -1)
    x, z = measured(levels, torch.full((6,), 0.9, dtype=torch.float64), single, lr=0.4, momentum=0.5, mesh=mesh)
    run = noisy_quadratic(levels, curvature=0.9, noise=1.0, lr=0.4, agents=mesh, steps=steps, momentum=0.5)
    assert_same(run.fast.variance[..., 0], (x**2).sum(dim=-1), 1e-12)
    assert_same(run.average.variance[..., 0], (x.mean(dim=1) ** 2).sum(dim=-1), 1e-12)
    assert_same(run.slow.variance[..., 0], (z**2).sum(dim=-1), 1e-12)
    assert (x[6, 0] == x[6, 2]).all()
    assert (x[6, 0] != x[6, 3]).any()


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("stack", STACKS)
def test_mean_is_the_real_optimizer_without_noise(stack: str, fast: str) -> None:
    levels, (momentum, nesterov) = STACKS[stack], FAST[fast]
    curvature = torch.tensor([0.5, 0.9, 1.4], dtype=torch.float64)
    offsets = torch.tensor([0.0, -1.0, 2.0], dtype=torch.float64)
    draws = offsets[None, :, None].expand(17, 3, 1)
    x, z = measured(levels, curvature, draws, lr=DECAY, start=1.5, momentum=momentum, nesterov=nesterov)
    run = noisy_quadratic(
        levels,
        curvature=curvature[:, None],
        noise=1.0,
        offsets=offsets[:, None],
        start=1.5,
        lr=DECAY,
        agents=3,
        steps=17,
        momentum=momentum,
        nesterov=nesterov,
    )
    assert_same(run.fast.mean, x, 1e-12)
    assert_same(run.slow.mean, z, 1e-12)


@pytest.mark.parametrize("stack", ["slowmo keep", "slowmo reset", "slowmo average", "nested"])
def test_the_real_optimizer_under_sampled_noise(stack: str) -> None:
    levels, agents, steps = STACKS[stack], 4, 24
    draws = SIGMA * torch.randn(
        steps, agents, REPETITIONS, generator=torch.Generator().manual_seed(6), dtype=torch.float64
    )
    x, z = measured(levels, torch.full((agents,), 0.9), draws, lr=0.4, start=2.0, momentum=0.5)
    run = noisy_quadratic(
        levels, curvature=0.9, noise=SIGMA, lr=0.4, agents=agents, steps=steps, start=2.0, momentum=0.5
    )
    assert_sampled(z, run.slow.mean[..., 0], run.slow.variance[..., 0])
    assert_sampled(x.mean(dim=1), run.average.mean[..., 0], run.average.variance[..., 0])
    assert_sampled(x[:, 1], run.fast.mean[:, 1, 0], run.fast.variance[:, 1, 0])


def test_a_run_settles_in_the_stationary_round() -> None:
    levels = [Level(Every(3), Exact(), Pull(0.8, 0.3)), Level(Every(6), Exact(), Pull(0.7), "reset")]
    quadratic = {"curvature": GAMMA_A[2:], "noise": SIGMA, "lr": 0.3, "agents": 4, "momentum": 0.5, "offsets": 2.0}
    settled = stationary(levels, **quadratic)
    run = noisy_quadratic(levels, **quadratic, steps=1200)
    for name in ("slow", "average", "fast"):
        last, first = getattr(run, name), getattr(settled.round, name)
        assert_same(last.mean[-7:], first.mean)
        assert_same(last.variance[-7:], first.variance)
        assert_same(last.loss[-7:], first.loss)


def test_kept_and_averaged_buffers_have_the_same_slow_weights_but_not_the_same_agents() -> None:
    rounds = [
        stationary(
            slowmo(6, 1.0, 0.3, fast_buffers=choice), curvature=GAMMA_A[1:4], noise=1.0, lr=1.0, agents=4, momentum=0.5
        ).round
        for choice in ("keep", "average", "reset")
    ]
    keep, average, reset = rounds
    assert_same(keep.slow.variance, average.slow.variance)
    assert (keep.fast.variance[3] - average.fast.variance[3]).abs().min() > 1e-4
    assert ((keep.slow.variance[0] - reset.slow.variance[0]).abs() > 1e-4).all()


@pytest.mark.parametrize("fast_buffers", ["keep", "reset", "average"])
def test_two_agents_stand_for_all(fast_buffers) -> None:
    """Agents that are alike are two in the state; the same agents, given one by one, are all in it."""
    levels = [Level(Every(2), Alone(), Pull(0.6, 0.3)), Level(Every(4), Exact(), Pull(0.9, 0.4), fast_buffers)]
    alike = torch.tensor([0.4, 1.2], dtype=torch.float64)
    few = noisy_quadratic(levels, curvature=alike, noise=SIGMA, lr=0.5, agents=5, steps=11, momentum=0.5)
    all_five = noisy_quadratic(
        levels, curvature=alike.expand(5, 2), noise=SIGMA, lr=0.5, agents=5, steps=11, momentum=0.5
    )
    for name in ("slow", "average", "fast"):
        got, expected = getattr(few, name), getattr(all_five, name)
        assert got.mean.shape == expected.mean.shape
        for part in ("mean", "variance", "loss"):
            assert_same(getattr(got, part), getattr(expected, part), 1e-12)


def test_an_axis_with_all_agents_is_the_average_of_all() -> None:
    """And thousands of agents that are alike cost as much as two: nothing here is of their number squared."""
    quadratic = {"curvature": 0.8, "noise": SIGMA, "lr": 0.3, "steps": 8, "momentum": 0.5}
    world = noisy_quadratic(slowmo(4), **quadratic, agents=6)
    local = [Level(Every(4), Exact("local"), slowmo(4)[0].move)]
    for mesh in (Mesh((1, 6), ("node", "local")), Mesh((6,), ("local",))):
        assert_same(noisy_quadratic(local, **quadratic, agents=mesh).slow.variance, world.slow.variance)
    nodes = noisy_quadratic(slowmo(4), **quadratic, agents=Mesh((2, 3), ("node", "local")))
    assert_same(nodes.slow.variance, world.slow.variance)
    assert_same(nodes.fast.variance, world.fast.variance)
    many = noisy_quadratic(local_sgd(4), **quadratic, agents=1_000_000)
    assert_same(1_000_000 * many.slow.variance[-1], noisy_quadratic(local_sgd(4), **quadratic).slow.variance[-1])


def test_agents_that_never_average_are_as_one() -> None:
    one = noisy_quadratic(lookahead(3, 0.5), curvature=0.8, noise=SIGMA, lr=1.0, steps=10)
    many = noisy_quadratic(lookahead(3, 0.5), curvature=0.8, noise=SIGMA, lr=1.0, steps=10, agents=16)
    assert_same(many.slow.variance, one.slow.variance)
    assert_same(many.fast.variance[:, 9], one.fast.variance[:, 0])
    assert_same(many.average.variance, one.average.variance / 16)


def test_agents_that_disagree_settle_at_a_biased_point() -> None:
    """Whatever alpha and beta; with one fast step per round, or equal curvatures, there is no bias."""
    random = torch.Generator().manual_seed(4)
    offsets = torch.randn(5, 3, generator=random, dtype=torch.float64)
    curvature = 0.1 + torch.rand(5, 3, generator=random, dtype=torch.float64)
    unbiased = (curvature * offsets).sum(dim=0) / curvature.sum(dim=0)
    for tau, alpha, beta in ((1, 1.0, 0.0), (6, 0.5, 0.0), (6, 1.0, 0.4)):
        settled = stationary(bmuf(tau, alpha, beta), curvature=curvature, noise=1.0, lr=0.9, agents=5, offsets=offsets)
        expected = closed_forms.biased_fixed_point(0.9 * curvature, offsets, tau)
        assert_same(settled.round.slow.mean[0], expected)
        assert bool(((expected - unbiased).abs() < 1e-12).all()) == (tau == 1)
    alike = stationary(bmuf(6, 1.0, 0.4), curvature=0.5, noise=1.0, lr=0.9, agents=5, offsets=offsets)
    assert_same(alike.round.slow.mean[0], offsets.mean(dim=0))


def test_loss_is_that_of_its_definition() -> None:
    random = torch.Generator().manual_seed(5)
    a, sigma, mu = (torch.rand(3, 2, generator=random, dtype=torch.float64) for _ in range(3))
    run = noisy_quadratic(local_sgd(3), curvature=a, noise=sigma, offsets=mu, lr=0.7, agents=3, steps=4)
    for weights in (
        run.slow,
        run.average,
        Weights(mean=run.fast.mean[:, 1], variance=run.fast.variance[:, 1], loss=run.fast.loss[:, 1]),
    ):
        away = weights.mean[:, None] - mu
        each = a / 2 * (away**2 + weights.variance[:, None] + sigma**2)
        assert_same(weights.loss, each.mean(dim=1).sum(dim=-1))


def test_coordinates_that_do_not_settle_are_marked_and_do_not_spoil_others() -> None:
    curvature = torch.tensor([0.5, 0.0, 2.5, 1e6], dtype=torch.float64)
    settled = stationary(local_sgd(60), curvature=curvature, noise=1.0, lr=1.0, agents=2)
    assert settled.round.fast.variance[0, 1].isinf().tolist() == [False, True, True, True]
    assert (settled.contraction < 1).tolist() == [True, False, False, False]
    assert settled.round.slow.variance[0].isfinite().tolist() == [True, False, False, False]
    assert settled.round.slow.mean[0].isnan().tolist() == [False, True, True, True]
    assert_same(settled.round.slow.variance[0, :1], closed_forms.sgd_variance(curvature[:1]) / 2)
    assert settled.round.average.loss.isinf().all()


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"curvature has shape \(2, 3\).*\(4, 3\) for 4 agents"):
        noisy_quadratic(lookahead(), curvature=torch.ones(2, 3), noise=1.0, lr=0.1, agents=4, steps=1)
    with pytest.raises(ValueError, match=r"start has shape \(4, 3\)"):
        noisy_quadratic(lookahead(), curvature=1.0, noise=1.0, lr=0.1, agents=4, steps=1, start=torch.ones(4, 3))
    with pytest.raises(ValueError, match="nesterov=True has no effect with momentum=0"):
        stability_limit(lookahead(), nesterov=True)
    with pytest.raises(
        ValueError, match=r"levels\[0\]\.tau=Piecewise.*changes during the run.*give a number, such as 1"
    ):
        stationary(post_local_sgd(start=5), curvature=1.0, noise=1.0, lr=0.1)
