"""Bilinear games: the formula is what the real optimizer does, and has its known least value."""

import math

import pytest
import torch
from torch.optim import SGD

from dist_lookahead import DistributedLookahead, lookahead
from dist_lookahead.theory import bilinear_contraction


def play(lr: float, tau: int, alpha: float, rounds: int) -> torch.Tensor:
    """Return the distance of the slow weights from the solution before each round and after the last."""
    x, y = (torch.nn.Parameter(torch.tensor([value], dtype=torch.float64)) for value in (0.6, -0.8))
    optimizer = DistributedLookahead(SGD([x, y], lr=lr), lookahead(tau, alpha))
    distances = [1.0]
    for _ in range(rounds):
        for _ in range(tau):
            x.grad, y.grad = y.detach().clone(), -x.detach()
            optimizer.step()
        distances.append(math.hypot(x.item(), y.item()))
    return torch.tensor(distances, dtype=torch.float64)


@pytest.mark.parametrize(("lr", "tau", "alpha"), [(0.1, 31, 0.5), (0.5, 3, 0.7), (0.3, 1, 0.2), (0.1, 60, 0.9)])
def test_every_round_of_the_real_optimizer_contracts_by_the_formula(lr: float, tau: int, alpha: float) -> None:
    distances = play(lr, tau, alpha, rounds=4)
    factor = torch.full((4,), bilinear_contraction(lr, tau, alpha), dtype=torch.float64)
    torch.testing.assert_close(distances[1:] / distances[:-1], factor, rtol=1e-12, atol=0)


def test_without_a_pull_and_in_rounds_of_one_step_players_diverge() -> None:
    """A round of one step is gradient descent-ascent with the learning rate alpha gamma."""
    assert bilinear_contraction(0.1, 20, 1.0) == pytest.approx((1 + 0.1**2) ** 10, rel=1e-12)
    assert bilinear_contraction(0.1, 1, 0.5) == pytest.approx(math.sqrt(1 + 0.05**2), rel=1e-12)
    assert bilinear_contraction(0.1, 5, 0.5) < 1


def test_the_best_round_is_about_half_a_turn() -> None:
    best = min(range(1, 200), key=lambda tau: bilinear_contraction(0.1, tau, 0.5))
    assert best == 31
    assert abs(best - math.pi / math.atan(0.1)) < 1
    assert bilinear_contraction(0.1, best, 0.5) == pytest.approx(0.088, abs=5e-4)
