"""Runs never exceed the bounds: simulated ones on convex and non-convex losses, and exact moments of linear ones.

How loose the bounds are is logged:
`pytest tests/test_theory_bounds_runs.py -o log_cli=true --log-cli-level=INFO`.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dist_lookahead import Copy, Every, Exact, Level, Pull
from dist_lookahead.recipes import (
    bmuf,
    distributed_lookahead,
    local_sgd,
    lookahead,
    multilayer_lookahead,
    slowmo,
)
from dist_lookahead.theory.bounds import Bound, admissible_lr, bound

log = logging.getLogger(__name__)
Levels = Sequence[Level]


def exact(*layers: tuple[int, float]) -> list[Level]:
    """Nested levels over all agents, (tau in fast steps, alpha)."""
    return [Level(Every(tau), Exact(), Copy() if alpha == 1 else Pull(alpha)) for tau, alpha in layers]


@dataclass
class Loss:
    """A loss with known constants, over weights (.., D); agent i adds its own tilt b_i x, sum_i b_i = 0."""

    name: str
    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    smoothness: float
    start: Tensor

    @property
    def gap(self) -> float:
        return float(self.value(self.start))  # both losses have the infimum 0


CURVATURE = torch.tensor([0.05, 0.3, 1.0, 2.0], dtype=torch.float64)
QUADRATIC = Loss(
    "quadratic",
    value=lambda x: (CURVATURE * x**2).sum(-1) / 2,
    gradient=lambda x: CURVATURE * x,
    smoothness=2.0,
    start=torch.ones(4, dtype=torch.float64),
)
WELLS = Loss(  # x^2 / (1 + x^2): curvature 2 at 0, negative beyond 0.58, flat far out
    "non-convex",
    value=lambda x: (x**2 / (1 + x**2)).sum(-1),
    gradient=lambda x: 2 * x / (1 + x**2) ** 2,
    smoothness=2.0,
    start=torch.tensor([0.1, 0.6, 1.0, 2.0], dtype=torch.float64),
)
REPETITIONS = 500


def common_sequence(levels: Levels, mean: Tensor, z: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
    """y by its weights on X: a = [A_M, (1 - alpha_1) A_M / A_1, .., 1 - alpha_M], or with slow momentum."""
    alphas, betas = zip(*(level.move.coefficients(0) for level in levels), strict=True)
    if len(levels) == 1:
        previous = z[0] - alphas[0] * v[0]
        return (alphas[0] * mean + (1 - alphas[0]) * z[0] - betas[0] * previous) / (1 - betas[0])
    y = math.prod(alphas) * mean
    for m, (alpha, slow) in enumerate(zip(alphas, z, strict=True)):
        y = y + (1 - alpha) * math.prod(alphas[m + 1 :]) * slow
    return y


def measured(
    levels: Levels, loss: Loss, *, agents: int, lr: Sequence[float], sigma: float, tilt: Tensor | None = None
) -> tuple[float, float]:
    """Run SGD under the levels; return the weighted mean of |grad f(y_k)|^2 and its standard error.

    Noise is a coin per coordinate: bounded, E|noise|^2 = sigma^2. y moves with the mean gradient.
    """
    random = torch.Generator().manual_seed(3)
    x = loss.start.expand(REPETITIONS, agents, -1).clone()
    y = x[:, :1].clone()
    z, v = [y.clone() for _ in levels], [torch.zeros_like(y) for _ in levels]
    alphas, betas = zip(*(level.move.coefficients(0) for level in levels), strict=True)
    effective = math.prod(alphas) / (1 - betas[0])
    squares = torch.zeros(REPETITIONS, dtype=torch.float64)
    for k, gamma in enumerate(lr, start=1):
        squares += gamma * loss.gradient(y).square().sum((1, 2))
        coins = torch.randint(2, x.shape, generator=random, dtype=torch.float64) * 2 - 1
        g = loss.gradient(x) + sigma / math.sqrt(x.shape[-1]) * coins
        g = g if tilt is None else g + tilt
        x = x - gamma * g
        y = y - effective * gamma * g.mean(1, keepdim=True)
        for m, level in enumerate(levels):
            if k % level.when.after(0):
                break
            delta = x.mean(1, keepdim=True) - z[m]
            v[m] = betas[m] * v[m] + delta
            z[m] = z[m] + alphas[m] * v[m]
            z[:m] = [z[m]] * m
            x = z[m].expand_as(x)
    torch.testing.assert_close(y, common_sequence(levels, x.mean(1, keepdim=True), z, v), rtol=0, atol=1e-12)
    mean = squares / sum(lr)
    return float(mean.mean()), float(mean.std()) / math.sqrt(REPETITIONS)


def assert_not_exceeded(name: str, promised: Bound, run: tuple[float, float]) -> None:
    mean, error = run
    log.info("%-46s measured / bound = %.4f (floor %.4f)", name, mean / promised.total, promised.floor)
    assert promised.holds
    assert mean - 4 * error <= promised.total


RUNS = {
    "lookahead n=1": (lookahead(5, 0.5), 1),
    "lookahead n=1 alpha=0.2": (lookahead(20, 0.2), 1),
    "lookahead n=1 alpha=1.4": (lookahead(5, 1.4), 1),
    "lookahead n=2": (distributed_lookahead(5, 0.5), 2),
    "lookahead n=4": (distributed_lookahead(7, 0.3), 4),
    "local SGD n=4": (local_sgd(8), 4),
    "slow momentum n=1": (slowmo(6, 1.0, 0.5), 1),
    "slow momentum n=2 alpha=1-beta": (bmuf(6, 0.4, 0.6), 2),
    "slow momentum n=4": (slowmo(4, 0.7, 0.8), 4),
    "nested n=1": (multilayer_lookahead((3, 4), (0.5, 0.7)), 1),
    "nested n=1, three layers": (multilayer_lookahead((2, 3, 2), (0.5, 0.7, 0.8)), 1),
    "nested n=1, alphas 2 and 1/2": (multilayer_lookahead((3, 4), (2.0, 0.5)), 1),
    "nested n=4": (exact((3, 0.5), (12, 0.6)), 4),
    "local SGD in lookahead n=2": (exact((3, 1.0), (9, 0.5)), 2),
}


@pytest.mark.parametrize("loss", [QUADRATIC, WELLS], ids=lambda loss: loss.name)
@pytest.mark.parametrize("part", [1.0, 0.3])
@pytest.mark.parametrize("method", RUNS)
def test_no_run_exceeds_its_bound(method: str, part: float, loss: Loss) -> None:
    """At the largest admissible learning rate and below; 145 steps end in the middle of a round."""
    levels, agents = RUNS[method]
    lr, steps, sigma = part * admissible_lr(levels, agents=agents, smoothness=loss.smoothness), 145, 0.8
    promised = bound(levels, agents=agents, lr=lr, smoothness=loss.smoothness, noise=sigma, gap=loss.gap, steps=steps)
    run = measured(levels, loss, agents=agents, lr=[lr] * steps, sigma=sigma)
    assert_not_exceeded(f"{method}, {loss.name}, {part} of admissible", promised, run)


@pytest.mark.parametrize("loss", [QUADRATIC, WELLS], ids=lambda loss: loss.name)
@pytest.mark.parametrize("sigma", [0.0, 0.8])
@pytest.mark.parametrize("method", ["lookahead n=4", "local SGD n=4", "slow momentum n=4", "nested n=4"])
def test_no_run_of_unlike_agents_exceeds_its_bound(method: str, sigma: float, loss: Loss) -> None:
    levels, agents = RUNS[method]
    tilt = torch.randn(agents, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tilt = tilt - tilt.mean(0)
    zeta = float(tilt.square().sum(1).mean().sqrt())
    lr, steps = admissible_lr(levels, agents=agents, smoothness=loss.smoothness, heterogeneous=True), 145
    promised = bound(
        levels,
        agents=agents,
        lr=lr,
        smoothness=loss.smoothness,
        noise=sigma,
        gap=loss.gap,
        steps=steps,
        heterogeneity=zeta,
    )
    run = measured(levels, loss, agents=agents, lr=[lr] * steps, sigma=sigma, tilt=tilt)
    assert_not_exceeded(f"{method}, {loss.name}, unlike agents", promised, run)


@pytest.mark.parametrize("loss", [QUADRATIC, WELLS], ids=lambda loss: loss.name)
@pytest.mark.parametrize("method", ["lookahead n=1", "lookahead n=4", "local SGD n=4"])
def test_no_run_with_diminishing_steps_exceeds_its_bound(method: str, loss: Loss) -> None:
    levels, agents = RUNS[method]
    largest = admissible_lr(levels, agents=agents, smoothness=loss.smoothness)
    lr = [largest / math.sqrt(1 + k / 10) for k in range(145)]
    promised = bound(levels, agents=agents, lr=lr, smoothness=loss.smoothness, noise=0.8, gap=loss.gap, steps=145)
    run = measured(levels, loss, agents=agents, lr=lr, sigma=0.8)
    assert_not_exceeded(f"{method}, {loss.name}, diminishing", promised, run)


@pytest.mark.parametrize("agents", [1, 2, 4])
def test_the_noise_term_is_attained(agents: int) -> None:
    """At gamma L = 1 from the minimum every step is pure noise: a bound with any less of it would be wrong."""
    loss = replace(QUADRATIC, gradient=lambda x: 2 * x, start=torch.zeros(4, dtype=torch.float64))
    levels = local_sgd(1)
    promised = bound(levels, agents=agents, lr=0.5, smoothness=2.0, noise=0.8, gap=0.0, steps=145)
    mean, error = measured(levels, loss, agents=agents, lr=[0.5] * 145, sigma=0.8)
    assert promised.total == pytest.approx(0.8**2 / agents)
    assert mean == pytest.approx(promised.total * 144 / 145, abs=4 * error + 1e-12)  # y_0 is the minimum itself


# ------------------------------------------------------------------------------------- exact moments, no sampling


def sync_matrix(levels: Levels, firing: int) -> Tensor:
    """What the innermost `firing` levels do to the state (y, mean x, z_1 .., v_1 ..), (S, S)."""
    size, eye = 2 + 2 * len(levels), torch.eye(2 + 2 * len(levels), dtype=torch.float64)
    total = eye
    for m, level in enumerate(levels[:firing]):
        (alpha, beta), z, v = level.move.coefficients(0), 2 + m, 2 + len(levels) + m
        sync = eye.clone()
        sync[v] = beta * eye[v] + eye[1] - eye[z]
        sync[z] = eye[z] + alpha * sync[v]
        sync[1:z] = sync[z]  # the mean of x and all lower slow weights
        total = sync @ total
    assert total.shape == (size, size)
    return total


def exact_mean_square(
    levels: Levels, *, agents: int, lr: float, curvature: float, start: float, sigma: float, steps: int
) -> float:
    """The mean over steps of E f'(y_k)^2 on f = curvature x^2 / 2, where only the mean of the agents matters."""
    alphas, betas = zip(*(level.move.coefficients(0) for level in levels), strict=True)
    taus = [level.when.after(0) for level in levels]
    syncs = [sync_matrix(levels, firing) for firing in range(len(levels) + 1)]
    moves = torch.zeros(len(syncs[0]), dtype=torch.float64)
    moves[0], moves[1] = -math.prod(alphas) / (1 - betas[0]) * lr, -lr  # y and the mean of x, per unit of gradient
    step = syncs[0].clone()
    step[:, 1] += moves * curvature
    mean = start * torch.cat((torch.ones(2 + len(levels)), torch.zeros(len(levels)))).double()
    covariance = torch.zeros_like(step)
    total = 0.0
    for k in range(1, steps + 1):
        total += curvature**2 * float(mean[0] ** 2 + covariance[0, 0])
        fast_and_sync = syncs[sum(k % tau == 0 for tau in taus)]
        transition, noise = fast_and_sync @ step, fast_and_sync @ moves
        mean = transition @ mean
        covariance = transition @ covariance @ transition.T + noise.outer(noise) * sigma**2 / agents
    return total / steps


ALPHA = st.floats(0.05, 3.0)
PULLED = st.builds(lambda tau, alpha: exact((tau, alpha)), st.integers(1, 20), ALPHA)
WITH_MOMENTUM = st.builds(bmuf, st.integers(1, 20), ALPHA, st.floats(0.01, 0.95))
NESTED = st.builds(
    lambda below, k, alphas: exact((below, alphas[0]), (below * k, alphas[1])),
    st.integers(1, 6),
    st.integers(1, 6),
    st.tuples(ALPHA, ALPHA),
)


@settings(max_examples=150, deadline=None)
@given(
    levels=PULLED | WITH_MOMENTUM | NESTED,
    agents=st.sampled_from([1, 2, 4]),
    part=st.floats(0.05, 1.0),
    curvature=st.floats(0.01, 1.0),
    start=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    steps=st.integers(1, 80),
)
def test_no_linear_recursion_exceeds_its_bound(
    levels: Levels, agents: int, part: float, curvature: float, start: float, steps: int
) -> None:
    lr = part * admissible_lr(levels, agents=agents, smoothness=1.0)
    promised = bound(levels, agents=agents, lr=lr, smoothness=1.0, noise=0.5, gap=curvature * start**2 / 2, steps=steps)
    mean = exact_mean_square(levels, agents=agents, lr=lr, curvature=curvature, start=start, sigma=0.5, steps=steps)
    assert mean <= promised.total * (1 + 1e-9)


def test_the_condition_on_nested_levels_needs_the_largest_lead() -> None:
    """With 1 - A_M, here 0, in place of it gamma L = 1 would be allowed, where gradient descent breaks the bound."""
    levels = exact((3, 2.0), (12, 0.5))
    promised = bound(levels, agents=1, lr=1.0, smoothness=1.0, noise=0.0, gap=0.5, steps=400)
    mean = exact_mean_square(levels, agents=1, lr=1.0, curvature=1.0, start=1.0, sigma=0.0, steps=400)
    assert mean > 100 * promised.total
    assert not promised.holds


@pytest.mark.parametrize("heterogeneous", [False, True])
@pytest.mark.parametrize("method", RUNS)
def test_the_admissible_rate_is_the_boundary(method: str, heterogeneous: bool) -> None:
    levels, agents = RUNS[method]
    zeta = 0.4 * (heterogeneous and agents > 1)
    largest = admissible_lr(levels, agents=agents, smoothness=2.0, heterogeneous=heterogeneous)
    holds = [
        bound(levels, agents=agents, lr=lr, smoothness=2.0, noise=1.0, gap=1.0, steps=9, heterogeneity=zeta).holds
        for lr in (largest * (1 - 1e-6), largest, largest * (1 + 1e-6))
    ]
    assert holds == [True, True, False]
