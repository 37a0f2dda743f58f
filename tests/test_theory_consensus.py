"""Consensus of gossiping agents: predicted, in closed form, and measured with the real optimizer."""

import math

import pytest
import torch
from linear_runs import assert_same, measured
from torch import Tensor

from dist_lookahead import (
    BipartiteExponential,
    Complete,
    Copy,
    Every,
    Gossip,
    Graph,
    Level,
    OnePeerExponential,
    Pull,
    Ring,
    StaticExponential,
    dpsgd,
    slowmo_over,
    theory,
)
from dist_lookahead.theory import closed_forms
from dist_lookahead.theory.quadratic_oracle import noisy_quadratic, stationary

RATE, SIGMA = 0.4, 1.7
LOPSIDED = Graph([[0.7, 0.3, 0, 0], [0.0, 0.7, 0.3, 0], [0, 0, 0.7, 0.3], [0.3, 0, 0, 0.7]])
STACKS = {
    "ring": dpsgd(),
    "one peer": dpsgd(OnePeerExponential(), tau=2),
    "lopsided": dpsgd(LOPSIDED),
    "rounds under a pull": [Level(Every(2), Gossip(topology=StaticExponential(), rounds=2), Pull(0.6, 0.3))],
    "slowmo over one peer": slowmo_over(dpsgd(OnePeerExponential(), fast_buffers="reset"), tau=4),
}


def spread(x: Tensor) -> Tensor:
    """1/n sum_i (x_i - mean x)^2 of weights (T, n, R), (T, R)."""
    return (x - x.mean(dim=1, keepdim=True)).square().mean(dim=1)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("stack", STACKS)
def test_the_consensus_distance_of_the_real_optimizer_is_the_predicted_one(stack: str, momentum: float) -> None:
    """The optimizer is linear: what is expected is the sum of its responses to each single noise."""
    steps, agents = 11, 4
    single = torch.eye(steps * agents, dtype=torch.float64).view(steps, agents, -1) * SIGMA
    curvature = torch.full((agents,), 0.9, dtype=torch.float64)
    x, _ = measured(STACKS[stack], curvature, single, lr=RATE, momentum=momentum)
    run = noisy_quadratic(
        STACKS[stack], curvature=0.9, noise=SIGMA, lr=RATE, agents=agents, steps=steps, start=0.0, momentum=momentum
    )
    predicted = theory.consensus_distance(run)[:, 0]
    assert predicted[1:4].max() > 0.01
    torch.testing.assert_close(predicted, spread(x).sum(dim=-1), rtol=1e-12, atol=1e-12)
    assert_same(run.fast.variance[..., 0], (x**2).sum(dim=-1), 1e-12)


def test_agents_with_other_minima_settle_apart() -> None:
    """The distance has a part that is no noise."""
    offsets = torch.tensor([[0.0], [1.0], [-1.0], [2.0]], dtype=torch.float64)
    x, _ = measured(dpsgd(), torch.full((4,), 0.9), offsets.expand(200, 4, 1).contiguous(), lr=RATE)
    settled = stationary(dpsgd(), curvature=0.9, noise=0.0, lr=RATE, agents=4, offsets=offsets)
    torch.testing.assert_close(theory.consensus_distance(settled.round)[0], spread(x)[-1])
    assert spread(x)[-1] > 0.01


@pytest.mark.parametrize(("tau", "alpha"), [(1, 1.0), (3, 1.0), (3, 0.6), (1, 1.3)])
@pytest.mark.parametrize("topology", [Ring(), BipartiteExponential(), Complete()])
def test_the_closed_form_of_symmetric_weights(topology, tau: int, alpha: float) -> None:
    """For pairs of a single turn, that of two agents, the matrix is symmetric in each of them."""
    agents = 2 if isinstance(topology, BipartiteExponential) else 6
    levels = [Level(Every(tau), Gossip(topology=topology), Copy() if alpha == 1 else Pull(alpha))]
    settled = stationary(levels, curvature=0.9, noise=SIGMA, lr=RATE, agents=agents)
    eigenvalues = torch.linalg.eigvalsh(topology.weights(agents))
    expected = closed_forms.gossip_consensus(0.9 * RATE, eigenvalues, tau, alpha, SIGMA)
    torch.testing.assert_close(theory.consensus_distance(settled.round)[0, 0], expected, rtol=1e-10, atol=1e-12)


def test_the_mean_of_agents_that_gossip_has_the_law_of_an_exact_average() -> None:
    gossip = stationary(dpsgd(tau=3), curvature=0.9, noise=SIGMA, lr=RATE, agents=6).round.average.variance[0, 0]
    assert_same(gossip, torch.as_tensor(closed_forms.sgd_variance(0.9 * RATE, SIGMA) / 6, dtype=torch.float64))


def test_turns_are_all_in_the_round_that_repeats_itself() -> None:
    """Breaks if a graph that changes were taken at its first turn: one peer would never reach all of eight."""
    levels = dpsgd(OnePeerExponential(), tau=2)
    settled = stationary(levels, curvature=0.9, noise=SIGMA, lr=RATE, agents=8)
    run = noisy_quadratic(levels, curvature=0.9, noise=SIGMA, lr=RATE, agents=8, steps=120)
    assert len(settled.round.average.variance) == 1 + 2 * 3
    assert_same(run.fast.variance[-7:], settled.round.fast.variance)


def test_the_spectral_gap_is_what_gossip_leaves_of_the_disagreement() -> None:
    closed = 1 - (1 / 3 + 2 / 3 * math.cos(2 * math.pi / 12))
    assert theory.spectral_gap(Ring(), 12) == pytest.approx(closed)
    assert theory.spectral_gap(Complete(), 12) == pytest.approx(1.0)
    assert theory.spectral_gap(OnePeerExponential(), 16) == pytest.approx(1.0)
    assert theory.spectral_gap(Graph(torch.eye(3)), 3) == pytest.approx(0.0)
    assert theory.spectral_gap(Ring(), 1) == 1.0
    for agents in (6, 12):
        by_period = StaticExponential().weights(agents)
        apart = torch.linalg.eigvals(by_period).abs().sort().values[-2]
        assert theory.spectral_gap(StaticExponential(), agents) == pytest.approx(1 - float(apart))


def test_stability_of_gossip_looks_at_all_turns_and_at_all_modes() -> None:
    """An eigenvalue below 0 under alpha above 1: |1 - alpha (1 - lambda R)| is above 1 for the smallest rates."""
    ring, complete = ([Level(Every(2), Gossip(topology=graph), Pull(1.8))] for graph in (Ring(), Complete()))
    assert theory.stability_limit(complete, agents=5) == pytest.approx(2.0)
    assert theory.stability_limit(ring, agents=5) < 1e-3
    x, _ = measured(ring, torch.full((5,), 1e-3), torch.eye(5, dtype=torch.float64).expand(400, 5, 5), lr=1.0)
    assert spread(x)[-1].max() > 100 * spread(x)[40].max()
    assert theory.stability_limit(dpsgd(OnePeerExponential(), tau=2), agents=4) == pytest.approx(2.0)


@pytest.mark.parametrize(("momentum", "agents"), [(0.9, 8), (0.8, 4)])
def test_kept_momentum_and_a_negative_eigenvalue_are_unstable_together(momentum: float, agents: int) -> None:
    """As docs/theory.md has it: (1 - m) (1 + |lambda|) / |lambda|, with -1/3 the least eigenvalue of an even ring."""
    assert theory.stability_limit(dpsgd(), agents=agents, momentum=momentum) == pytest.approx(4 * (1 - momentum))
    assert theory.stability_limit(dpsgd(Complete()), agents=agents, momentum=momentum) == pytest.approx(
        2 * (1 + momentum)
    )
