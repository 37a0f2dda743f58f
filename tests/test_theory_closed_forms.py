"""Closed forms: the same as the general recursion to 1e-10, and as sampled noise within five sigma."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from linear_runs import assert_same, assert_sampled

from dist_lookahead import Exact, bmuf, diloco, distributed_lookahead, local_sgd, multilayer_lookahead
from dist_lookahead.theory import closed_forms
from dist_lookahead.theory.quadratic_oracle import noisy_quadratic, stationary

GAMMA_A = torch.tensor([0.001, 0.05, 0.3, 0.9, 1.0, 1.5, 1.9], dtype=torch.float64)
SIGMA = 1.7
REPETITIONS = 20_000


@pytest.mark.parametrize("agents", [1, 2, 8, 1000])
@pytest.mark.parametrize("tau", [1, 2, 5, 12, 50])
def test_slow_momentum_settles_where_its_closed_form_says(tau: int, agents: int) -> None:
    for alpha, beta in itertools.product((0.2, 0.5, 1.0), (0.0, 0.3, 0.9)):
        settled = stationary(bmuf(tau, alpha, beta), curvature=GAMMA_A / 0.5, noise=SIGMA, lr=0.5, agents=agents)
        variance = closed_forms.slow_momentum_variance(GAMMA_A, tau, alpha, beta, agents=agents, noise=SIGMA)
        stable = [closed_forms.slow_momentum_stable(float(g), tau, alpha, beta) for g in GAMMA_A]
        assert (settled.contraction < 1).tolist() == stable
        assert_same(settled.round.slow.variance[0][stable], variance[stable])
        factor = torch.tensor(
            [closed_forms.contraction(float(g), tau, alpha, beta) for g in GAMMA_A], dtype=torch.float64
        )
        # A double eigenvalue is known to the root of the rounding error only.
        torch.testing.assert_close(settled.contraction, factor, rtol=0, atol=1e-7)


@pytest.mark.parametrize("agents", [1, 8])
@pytest.mark.parametrize("make", [diloco, bmuf], ids=["nesterov", "heavy ball"])
@pytest.mark.parametrize(("tau", "alpha", "beta"), [(1, 0.7, 0.9), (5, 0.2, 0.3), (5, 0.7, 0.9), (12, 0.7, 0.3)])
def test_outer_momentum_of_both_kinds_has_its_own_closed_form(make, tau, alpha, beta, agents) -> None:
    """A Nesterov outer step taken for heavy ball would settle elsewhere."""
    form = closed_forms.nesterov_variance if make is diloco else closed_forms.slow_momentum_variance
    settled = stationary(make(tau, alpha, beta), curvature=GAMMA_A, noise=SIGMA, lr=1.0, agents=agents)
    stable = settled.contraction < 1
    assert stable.sum() >= 3
    expected = form(GAMMA_A, tau, alpha, beta, agents=agents, noise=SIGMA)
    assert_same(settled.round.slow.variance[0][stable], expected[stable])


@pytest.mark.parametrize(
    ("taus", "alphas"), [((4,), (0.5,)), ((5, 3), (0.5, 0.8)), ((2, 2, 3), (0.3, 0.6, 0.9)), ((3, 2), (1.0, 0.5))]
)
@pytest.mark.parametrize("agents", [1, 6])
def test_nested_pulls_multiply(taus: Sequence[int], alphas: Sequence[float], agents: int) -> None:
    levels = multilayer_lookahead(taus, alphas)
    if agents > 1:
        levels[-1] = replace(levels[-1], mix=Exact())  # the agents below are for themselves
    settled = stationary(levels, curvature=GAMMA_A, noise=SIGMA, lr=1.0, agents=agents)
    expected = closed_forms.nested_variance(GAMMA_A, taus, alphas, agents=agents, noise=SIGMA)
    assert_same(settled.round.slow.variance[0], expected)


def test_lookahead_against_sgd_and_within_a_round() -> None:
    """Variance of the fast weights grows from the slow weights' toward SGD's, and falls back at the sync."""
    tau, alpha, agents = 5, 0.5, 3
    settled = stationary(distributed_lookahead(tau, alpha), curvature=GAMMA_A, noise=SIGMA, lr=1.0, agents=agents)
    slow, fast = settled.round.slow.variance, settled.round.fast.variance
    sgd = closed_forms.sgd_variance(GAMMA_A, SIGMA)
    ratio = closed_forms.lookahead_ratio(GAMMA_A, tau, alpha)
    assert_same(slow, (ratio * sgd / agents).expand(tau + 1, -1))
    assert (ratio < 1).all()
    for steps in range(tau):
        within = closed_forms.variance_in_round(GAMMA_A, steps, slow[0], SIGMA)
        assert_same(fast[steps], within.expand(agents, -1))
        assert (fast[steps] >= slow[0] * (1 - 1e-12)).all()
    assert_same(fast[tau], slow[:1].expand(agents, -1))


def test_local_sgd_has_sgds_variance_over_n_for_every_tau() -> None:
    for tau in (1, 3, 20):
        settled = stationary(local_sgd(tau), curvature=GAMMA_A, noise=1.0, lr=1.0, agents=7)
        assert_same(settled.round.average.variance, (closed_forms.sgd_variance(GAMMA_A) / 7).expand(tau + 1, -1))


def test_means_and_variances_of_the_first_syncs() -> None:
    tau, alpha, agents, syncs = 4, 0.6, 5, 6
    run = noisy_quadratic(
        distributed_lookahead(tau, alpha), curvature=GAMMA_A, noise=SIGMA, lr=1.0, agents=agents, steps=syncs * tau
    )
    mean, variance = torch.ones_like(GAMMA_A), torch.zeros_like(GAMMA_A)
    for sync in range(syncs + 1):
        assert_same(run.slow.mean[sync * tau], mean)
        assert_same(run.slow.variance[sync * tau], variance)
        mean = mean * closed_forms.mean_factor(GAMMA_A, tau, alpha)
        variance = closed_forms.next_variance(variance, GAMMA_A, tau, alpha, agents=agents, noise=SIGMA)


@pytest.mark.parametrize(("agents", "tau", "alpha", "beta"), [(1, 5, 0.5, 0.0), (4, 3, 0.9, 0.5), (8, 4, 1.0, 0.6)])
def test_a_loop_from_the_paper_settles_where_the_closed_form_says(agents, tau, alpha, beta) -> None:
    """A few lines of plain torch, independent of the package; 25 rounds are enough to settle."""
    random = torch.Generator().manual_seed(7)
    gamma_a = torch.tensor([0.3, 0.6, 1.2], dtype=torch.float64)[:, None]
    z = torch.zeros(3, REPETITIONS, dtype=torch.float64)
    v = torch.zeros_like(z)
    for _ in range(25):
        mean = torch.zeros_like(z)
        for _ in range(agents):
            x = z
            for _ in range(tau):
                x = torch.randn(z.shape, generator=random, dtype=z.dtype).sub_(x).mul_(gamma_a).add_(x)
            mean += x / agents
        v = beta * v + mean - z
        z = z + alpha * v
    expected = closed_forms.slow_momentum_variance(gamma_a[:, 0], tau, alpha, beta, agents=agents)
    left = torch.tensor([closed_forms.contraction(float(g), tau, alpha, beta) for g in gamma_a[:, 0]]) ** 50
    assert (left < 1e-4).all()
    assert_sampled(z, torch.zeros(3), expected)
