"""The code is the product of matrices: the real optimizer over simulated agents against P_k, in float64.

First whole trajectories and then each P_k by itself, for random stacks of levels; then the closed forms of P_k, its
spectrum and its fixed vector, and what follows from them along real runs.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noisy_quadratic import Problem
from states import Crowd, gradients_at, stacks, trajectory
from torch import Tensor

from dist_lookahead import (
    Alone,
    Copy,
    Cosine,
    Every,
    Exact,
    Level,
    Linear,
    Optimal,
    Piecewise,
    Pull,
    bmuf,
    diloco,
    distributed_lookahead,
    local_sgd,
    lookahead,
    multilayer_lookahead,
    post_local_sgd,
    slowmo,
    theory,
)

RATES = (0.0, 0.02, 0.05)


def assert_equal(actual: Tensor, expected: Any, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- the code is the product of matrices


@settings(deadline=None, max_examples=200)
@given(levels=stacks(), agents=st.integers(1, 4), rates=st.lists(st.sampled_from(RATES), min_size=18, max_size=18))
def test_a_real_run_is_the_product_of_gradient_steps_and_matrices(
    levels: list[Level], agents: int, rates: list[float]
) -> None:
    """Breaks if code and mathematics differ in who fires when, in a coefficient, or in what becomes of lower levels."""
    problem = Problem(agents, steps=len(rates))
    states, _ = trajectory(levels, problem, rates)
    X = states[0]
    for k, P in enumerate(theory.mixing_matrices(levels, agents, len(rates), rates=rates)):
        G = torch.zeros_like(X)
        G[:, :agents] = gradients_at(X, problem, k)
        X = (X - rates[k] * G) @ P
        assert_equal(states[k + 1], X)


@settings(deadline=None, max_examples=200)
@given(levels=stacks(), agents=st.integers(1, 4), rates=st.lists(st.sampled_from(RATES[1:]), min_size=8, max_size=8))
def test_unit_vectors_through_a_sync_give_its_matrix(levels: list[Level], agents: int, rates: list[float]) -> None:
    """Breaks as above, but says which entry of which P_k is wrong: no gradients and no history blur it."""
    size = len(theory.columns(levels, agents))
    crowd = Crowd(levels, torch.zeros(size, dtype=torch.float64), agents)
    # Between a fast step and the sync after it, since slow weights are captured when the first step begins.
    crowd.optimizers[-1].inner.register_step_post_hook(lambda *_: crowd.write(torch.eye(size, dtype=torch.float64)))
    for k, rate in enumerate(rates, start=1):
        crowd.step(None, rate)
        assert_equal(crowd.read(), theory.mixing_matrix(levels, agents, k, rates=rates), 1e-14)


@given(levels=stacks(), agents=st.integers(1, 4))
@settings(deadline=None)
def test_new_weights_are_weighted_means(levels: list[Level], agents: int) -> None:
    """Columns of x and z sum to 1, those of v to 0, over the rows of x and z: a common shift of all stays one."""
    shift = torch.tensor([not name.startswith("v") for name in theory.columns(levels, agents)], dtype=torch.float64)
    for index in range(len(levels)):
        assert_equal(shift @ theory.level_matrix(levels, index, agents, step=7, ratio=0.3), shift)


def test_sharding_and_fast_buffers_without_slow_momentum_below_change_no_matrix() -> None:
    for k in range(1, 7):
        P = theory.mixing_matrix(slowmo(3), 4, k)
        assert torch.equal(P, theory.mixing_matrix(slowmo(3, shard=True), 4, k))
        assert torch.equal(P, theory.mixing_matrix(slowmo(3, fast_buffers="reset"), 4, k))
        assert torch.equal(P, theory.mixing_matrix(slowmo(3, fast_buffers="average"), 4, k))


# --- the state and who fires when


def test_agents_that_never_average_are_the_same_method_side_by_side() -> None:
    levels, names = multilayer_lookahead((2, 2)), theory.columns(multilayer_lookahead((2, 2)), 3)
    assert names == ("x0", "x1", "x2", "z0@0", "z0@1", "z0@2", "z1@0", "z1@1", "z1@2")
    for index in range(2):
        P, alone = theory.level_matrix(levels, index, 3), theory.level_matrix(levels, index, 1)
        assert torch.equal(P, torch.kron(alone, torch.eye(3, dtype=torch.float64)))


def test_all_levels_from_the_first_average_on_have_one_column() -> None:
    levels = [
        Level(Every(1), Alone(), Pull(0.5, 0.5)),
        Level(Every(2), Exact(), Copy()),
        Level(Every(4), Alone(), Pull(0.5)),
    ]
    assert theory.columns(levels, 2) == ("x0", "x1", "z0@0", "z0@1", "v0@0", "v0@1", "z2")
    assert theory.columns(levels, 1) == ("x0", "z0", "v0", "z2")


def test_matrices_of_post_local_sgd_change_with_the_step() -> None:
    syncs = [k for k in range(1, 16) if theory.mixing_matrix(post_local_sgd(4, start=5), 2, k)[0, 1]]
    assert syncs == [1, 2, 3, 4, 5, 9, 13]


def test_a_level_waits_for_the_one_below() -> None:
    levels = [Level(Every(Piecewise((3, 2), (3,))), Alone(), Pull(0.5)), Level(Every(4), Alone(), Pull(0.5))]
    fired = [[firing.index for firing in at] for at in theory.firings(levels, 9)]
    assert fired == [[], [], [0], [], [0, 1], [], [0], [], [0, 1]]


def test_momentum_follows_the_last_rate_that_was_not_zero() -> None:
    fired = [at[0].ratio for at in theory.firings(slowmo(1), 5, rates=[0.0, 0.4, 0.1, 0.0, 0.2])]
    assert fired == [0.0, 1.0, 0.25, 0.0, 2.0]
    assert {at[0].ratio for at in theory.firings(bmuf(1), 5, rates=[0.0, 0.4, 0.1, 0.0, 0.2])} == {1.0}


# --- closed forms of the matrices


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 1.2])
def test_distributed_lookahead_is_a_projection_of_rank_one(n: int, alpha: float) -> None:
    levels = distributed_lookahead(4, alpha)
    P, a = theory.mixing_matrix(levels, n, 4), theory.fixed_vector(levels, n)
    assert_equal(a, [alpha / n] * n + [1 - alpha])
    assert_equal(P, torch.outer(a, torch.ones(n + 1, dtype=torch.float64)))
    assert_equal(P @ P, P)
    assert_equal(theory.spectrum(P).abs(), [1] + [0] * n)
    assert torch.equal(theory.mixing_matrix(levels, n, 3), torch.eye(n + 1, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("alpha", [0.5, 2 / 3, 5 / 6, 0.9])
def test_doubly_stochastic_only_for_alpha_of_n_over_n_plus_1(n: int, alpha: float) -> None:
    rows = theory.level_matrix(distributed_lookahead(4, alpha), 0, n).sum(dim=1)
    assert math.isclose(alpha, n / (n + 1)) == torch.allclose(rows, torch.ones_like(rows))


@pytest.mark.parametrize("n", [1, 4])
def test_heavy_ball_is_the_papers_matrix_over_two_slow_weights(n: int) -> None:
    """With z^- = z - alpha v for v: P = [b 1^T | e_{n+1}], spectrum {1, beta, 0 (n times)}, and its fixed vector."""
    alpha, beta = 0.8, 0.6
    P = theory.level_matrix(bmuf(4, alpha, beta), 0, n)
    T = torch.eye(n + 2, dtype=torch.float64)  # [x, z, v] T = [x, z, z^-]
    T[-2, -1], T[-1, -1] = 1.0, -alpha
    b = torch.tensor([alpha / n] * n + [1 - alpha + beta, -beta], dtype=torch.float64)
    last = torch.eye(n + 2, dtype=torch.float64)[n]
    assert_equal(T.inverse() @ P @ T, torch.stack([*[b] * (n + 1), last], dim=1))
    assert_equal(theory.spectrum(P).abs(), [1, beta] + [0] * n)
    expected = torch.tensor([alpha / n] * n + [1 - alpha, -beta], dtype=torch.float64) / (1 - beta)
    assert_equal(T.inverse() @ theory.fixed_vector(bmuf(4, alpha, beta), n), expected)


@pytest.mark.parametrize("n", [1, 4])
def test_nesterov_is_the_papers_matrix(n: int) -> None:
    """With w = eta v: columns [eta (1 + mu) / n, .., 1 - eta (1 + mu), mu^2] and [eta / n, .., -eta, mu]."""
    eta, mu = 0.7, 0.9
    levels = diloco(4, eta, mu)
    P, T = theory.level_matrix(levels, 0, n), torch.eye(n + 2, dtype=torch.float64)
    T[-1, -1] = eta
    moved = torch.tensor([eta * (1 + mu) / n] * n + [1 - eta * (1 + mu), mu**2], dtype=torch.float64)
    kept = torch.tensor([eta / n] * n + [-eta, mu], dtype=torch.float64)
    assert_equal(T.inverse() @ P @ T, torch.stack([*[moved] * (n + 1), kept], dim=1))
    assert_equal(theory.spectrum(P).abs(), [1, mu] + [0] * n)
    A = eta / (1 - mu)
    expected = torch.tensor([A / n] * n + [1 - A, mu**2 / (1 - mu)], dtype=torch.float64)
    assert_equal(T.inverse() @ theory.fixed_vector(levels, n), expected)


@pytest.mark.parametrize("n", [1, 3])
def test_nested_levels_share_their_fixed_vector(n: int) -> None:
    """A sync of all levels is a 1^T; one up to level m < M keeps an eigenvalue 1 for each of the M - m above."""
    alphas = (0.5, 0.8, 0.3)
    levels = [Level(Every(2**m), Exact(), Pull(alpha)) for m, alpha in enumerate(alphas)]
    A = torch.tensor(alphas, dtype=torch.float64).cumprod(dim=0)
    a = theory.fixed_vector(levels, n)
    assert_equal(a, [A[-1] / n] * n + [(1 - alpha) * A[-1] / product for alpha, product in zip(alphas, A, strict=True)])
    for m in range(3):
        P = theory.mixing_matrix(levels, n, 2**m)
        assert_equal(P @ a, a)
        assert_equal(P @ P, P)
        assert_equal(theory.spectrum(P).abs(), [1] * (3 - m) + [0] * (n + m))
    assert_equal(theory.mixing_matrix(levels, n, 4), torch.outer(a, torch.ones(n + 3, dtype=torch.float64)))


@pytest.mark.parametrize("n", [20, 64, 100])
def test_the_spectrum_of_many_agents_is_found(n: int) -> None:
    """LAPACK's solver for real matrices gives up on some matrices of rank one."""
    assert_equal(theory.spectrum(theory.level_matrix(slowmo(beta=0.6), 0, n)).abs(), [1, 0.6] + [0] * n)


def test_the_spectrum_is_sorted_by_modulus() -> None:
    turn = torch.block_diag(torch.tensor([[0.0, 2.0], [-2.0, 0.0]]), torch.tensor([[-3.0]]), torch.tensor([[0.5]]))
    assert_equal(theory.spectrum(turn.double()).abs(), [3, 2, 2, 0.5])


# --- y = X a along real runs


def keeps_its_mean(levels: Sequence[Level]) -> bool:
    """Whether no level resets slow momentum below it."""
    resets = [any(below.move.keeps_momentum for below in levels[:i]) for i in range(len(levels))]
    return not any(level.fast_buffers == "reset" and below for level, below in zip(levels, resets, strict=True))


@settings(deadline=None, max_examples=150)
@given(levels=stacks(schedules=False).filter(keeps_its_mean), agents=st.integers(1, 4))
def test_syncs_leave_y_alone_and_steps_move_it_at_the_effective_rate(levels: list[Level], agents: int) -> None:
    """y_{k+1} = y_k - factor gamma mean_i g_i exactly, with the factor prod alpha / (1 - beta) of all levels."""
    problem, gamma = Problem(agents, steps=18), 0.02
    states, gradients = trajectory(levels, problem, [gamma] * 18)
    factor = theory.effective_lr(levels, agents)
    coefficients = [level.move.coefficients(0) for level in levels]
    assert factor == pytest.approx(math.prod(alpha / (1 - beta) for alpha, beta in coefficients), rel=1e-10)
    y = states @ theory.fixed_vector(levels, agents)
    assert_equal(y[1:] - y[:-1], -factor * gamma * gradients.mean(dim=2), 1e-11)


def test_a_change_of_rate_moves_y_only_where_momentum_follows_it() -> None:
    problem, rates = Problem(2, steps=12), [0.05] * 6 + [0.02] * 6

    def jumps(levels: list[Level]) -> Tensor:
        states, gradients = trajectory(levels, problem, rates)
        y, factor = states @ theory.fixed_vector(levels, 2), theory.effective_lr(levels, 2)
        drift = factor * torch.tensor(rates, dtype=torch.float64)[:, None] * gradients.mean(dim=2)
        return (y[1:] - y[:-1] + drift).abs().amax(dim=1)

    assert_equal(jumps(bmuf(3, 0.9, 0.6)), torch.zeros(12))
    assert (jumps(slowmo(3, 0.9, 0.6)) > 1e-6).nonzero().flatten().tolist() == [8]  # the first sync at the new rate


@pytest.mark.parametrize("levels", [distributed_lookahead(4, 0.4), bmuf(4, 0.9, 0.6), bmuf(4, 0.4, 0.6)])
def test_distance_of_agents_from_y_is_consensus_plus_lookahead_part(levels: list[Level]) -> None:
    """1/n sum |y - x_i|^2 = 1/n sum |x_i - mean|^2 + |(1 - A) (mean - z) - A beta v|^2, A = alpha / (1 - beta)."""
    states, _ = trajectory(levels, Problem(3, steps=18), [0.05] * 18)
    alpha, beta = levels[0].move.coefficients(0)
    A, y = alpha / (1 - beta), states @ theory.fixed_vector(levels, 3)
    x, z = states[..., :3], states[..., 3]
    mean = x.mean(dim=2)
    v = states[..., 4] if beta else torch.zeros_like(z)
    distance = (y[..., None] - x).square().sum(dim=1).mean(dim=1)
    consensus = (x - mean[..., None]).square().sum(dim=1).mean(dim=1)
    slow = ((1 - A) * (mean - z) - A * beta * v).square().sum(dim=1)
    assert consensus.max() > 0.01
    assert slow.max() > 0.01
    assert_equal(distance, consensus + slow)


def test_distance_of_y_from_the_mean_over_nested_levels() -> None:
    """y - mean(x) = - sum_m (1 - A_M / A_{m-1}) (z_{m-1} - z_m) with z_0 = mean(x), A_0 = 1."""
    alphas = (0.5, 0.8, 0.3)
    levels = [Level(Every(2**m), Exact(), Pull(alpha)) for m, alpha in enumerate(alphas)]
    states, _ = trajectory(levels, Problem(3, steps=18), [0.05] * 18)
    z = [states[..., :3].mean(dim=2), *states[..., 3:].unbind(dim=2)]
    A = [math.prod(alphas[:m]) for m in range(4)]
    expected = -sum((1 - A[3] / A[m]) * (z[m] - z[m + 1]) for m in range(3))
    assert_equal(states @ theory.fixed_vector(levels, 3) - z[0], expected)


def test_agents_that_never_average_have_the_y_of_their_mean() -> None:
    assert_equal(theory.fixed_vector(lookahead(5, 0.8), 2), [0.4, 0.4, 0.1, 0.1])


def test_schedules_of_tau_and_resets_that_nothing_outlasts_leave_a_fixed_vector() -> None:
    assert theory.effective_lr(post_local_sgd(4, start=5), 3) == pytest.approx(1.0)
    inner, outer = bmuf(4, 0.9, 0.6)[0], replace(lookahead(4, 0.5)[0], fast_buffers="reset")
    assert_equal(theory.fixed_vector([inner, outer], 1), [0.45, 0.05, 0.27, 0.5])


# --- what cannot be answered


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("alpha", distributed_lookahead(4, Linear(0.4, 1.0, 10))),
        ("beta", bmuf(4, 1.0, Cosine(0.5, 0.1, 10))),
        ("alpha", distributed_lookahead(4, Optimal(0.4, 1.0))),
    ],
)
def test_schedules_have_no_fixed_vector(name: str, levels: list[Level]) -> None:
    for function in (theory.fixed_vector, theory.effective_lr):
        with pytest.raises(
            ValueError, match=rf"levels\[0\]\.{name}=.* changes during the run.*give a number, such as 0\."
        ):
            function(levels, 2)


@pytest.mark.parametrize("agents", [1, 3])
def test_a_reset_of_lower_slow_momentum_leaves_no_fixed_vector(agents: int) -> None:
    levels = [bmuf(2, 0.9, 0.6)[0], Level(Every(4), Exact(), Pull(0.5), "reset")]
    with pytest.raises(ValueError, match=r"levels\[1\] with fast_buffers='reset'.*Use fast_buffers='keep'"):
        theory.fixed_vector(levels, agents)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="agents=0: at least 1 agent"):
        theory.columns(local_sgd(), 0)
    with pytest.raises(ValueError, match="step=0 must be at least 1"):
        theory.mixing_matrix(local_sgd(), 2, 0)
    with pytest.raises(ValueError, match="index=1 must be that of one of 1 levels: 0 to 0"):
        theory.level_matrix(local_sgd(), 1, 2)
    with pytest.raises(ValueError, match="rates has 2 learning rates for 3 fast steps"):
        theory.mixing_matrix(slowmo(), 2, 3, rates=[0.1, 0.1])
    with pytest.raises(ValueError, match=r"levels\[0\]\.mix: axis 'island' does not exist; allowed: world"):
        theory.columns([Level(Every(2), Exact(axis="island"), Copy())], 2)
    with pytest.raises(ValueError, match="give at least one Level"):
        theory.columns([], 2)
