"""alpha* is the minimum it claims to be: of the bound's floor, and of the loss along a segment."""

import math

import pytest
import torch
from torch import Tensor

from dist_lookahead.theory.alpha import (
    beats_sgd,
    floor,
    line_alpha,
    optimal_alpha,
    proposition_1_alpha,
    secant_alpha,
)


@pytest.mark.parametrize("agents", [1, 2, 16])
@pytest.mark.parametrize(("lr", "tau"), [(0.5, 5), (0.1, 21), (0.3, 3), (0.05, 4), (0.2, 1)])
def test_optimal_alpha_has_the_least_floor(agents: int, lr: float, tau: int) -> None:
    grid = torch.linspace(0, 1.5, 1501, dtype=torch.float64).tolist()
    best = min(grid, key=lambda alpha: floor(alpha, lr=lr, smoothness=2.0, tau=tau, agents=agents))
    assert optimal_alpha(lr=lr, smoothness=2.0, tau=tau) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize(("agents", "relative"), [(1, 0.875), (4, 0.982), (16, 0.996)])
def test_the_benefit_of_alpha_decays_with_the_number_of_agents(agents: int, relative: float) -> None:
    alphas = optimal_alpha(lr=0.5, smoothness=1.0, tau=5), 1.0
    best, local_sgd_s = (floor(alpha, lr=0.5, smoothness=1.0, tau=5, agents=agents) for alpha in alphas)
    assert best / local_sgd_s == pytest.approx(relative, abs=5e-4)
    assert local_sgd_s - best == pytest.approx(1 / (4 * 2.0 * agents))


@pytest.mark.parametrize("agents", [1, 4])
@pytest.mark.parametrize("lr", [0.02, 0.26, 0.9])
@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.7, 1.0, 1.2])
def test_beats_sgd_says_which_floor_is_lower(alpha: float, lr: float, agents: int) -> None:
    mine, sgds = (floor(a, lr=lr, smoothness=1.0, tau=5, agents=agents) for a in (alpha, 1.0))
    assert beats_sgd(alpha, lr=lr, smoothness=1.0, tau=5) == (mine <= sgds)


def quadratic_segment() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(7)
    root, start, end, minimiser = torch.randn(9, 6, generator=random, dtype=torch.float64).split((6, 1, 1, 1))
    return start[0], end[0], minimiser[0], root @ root.T


def test_proposition_1_is_the_secant_form_and_the_least_loss() -> None:
    start, end, minimiser, matrix = quadratic_segment()
    alpha = proposition_1_alpha(start, end, minimiser, matrix)
    before, after = matrix @ (start - minimiser), matrix @ (end - minimiser)
    torch.testing.assert_close(secant_alpha(end - start, before, after), alpha, rtol=1e-12, atol=0)
    points = start + (alpha + torch.tensor([[-1e-3], [0.0], [1e-3]])) * (end - start) - minimiser
    losses = ((points @ matrix) * points).sum(1) / 2
    assert losses.argmin() == 1
    assert losses[0] == pytest.approx(float(losses[2]))  # symmetric around the minimum


def test_a_diagonal_curvature_may_be_a_vector() -> None:
    start, end, minimiser, _ = quadratic_segment()
    curvature = torch.linspace(0.1, 3, 6, dtype=torch.float64)
    by_vector, by_matrix = (proposition_1_alpha(start, end, minimiser, a) for a in (curvature, curvature.diag()))
    torch.testing.assert_close(by_vector, by_matrix)


def test_the_secant_form_adds_over_shards() -> None:
    start, end, minimiser, matrix = quadratic_segment()
    d, before, after = end - start, matrix @ (start - minimiser), matrix @ (end - minimiser)
    slope = sum((torch.dot(*part) for part in zip(d.split(2), before.split(2), strict=True)), torch.tensor(0.0))
    bend = sum(
        (torch.dot(*part) for part in zip(d.split(2), (after - before).split(2), strict=True)), torch.tensor(0.0)
    )
    torch.testing.assert_close(line_alpha(slope, bend), secant_alpha(d, before, after))


def test_the_secant_form_takes_any_shape_and_works_in_float64() -> None:
    d, before, after = torch.tensor([[[-2.0]], [[-2.0]]]), torch.full((2, 1, 1), 1.5), torch.full((2, 1, 1), -0.5)
    alpha = secant_alpha(d.half(), before.half(), after.half())
    assert alpha.dtype == torch.float64
    assert alpha == 0.75


@pytest.mark.parametrize(
    ("curvature", "distance", "clipped"),
    [
        (2.0, 4.0, 0.8),  # the minimum lies at alpha = 0.8
        (2.0, 40.0, 1.5),  # beyond the interval
        (2.0, 0.1, 0.3),
        (-2.0, -4.0, 1.5),  # a hill: downhill all the way
        (-2.0, 4.0, 0.3),  # a hill: uphill all the way
        (-2.0, 3.0, 0.3),  # over the hill's top, and the end is higher than the start
        (-2.0, 2.0, 1.5),  # over the hill's top, and the end is lower
    ],
)
def test_clipping_gives_the_lower_end_where_there_is_no_minimum(
    curvature: float, distance: float, clipped: float
) -> None:
    """Loss curvature (distance - 5 alpha)^2 / 2: the segment of length 5 ends before or after its stationary point."""
    start, end = torch.tensor([0.0]), torch.tensor([5.0])
    stationary = torch.tensor([distance])
    alpha = proposition_1_alpha(start, end, stationary, torch.tensor([curvature])).clamp(0.3, 1.5)
    assert float(alpha) == pytest.approx(clipped)


def test_a_level_segment_keeps_the_fast_weights() -> None:
    """No displacement, or none of the gradient: 0/0 must not become not-a-number in the weights."""
    nothing, something = torch.zeros(3), torch.ones(3)
    assert secant_alpha(nothing, something, -something) == 1
    assert secant_alpha(something, nothing, nothing) == 1
    assert secant_alpha(something, -something, -something) == math.inf  # a slope without end
    assert secant_alpha(something, something, something) == -math.inf
