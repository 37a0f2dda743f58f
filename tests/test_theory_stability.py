"""Where the linear recursion of a stack grows: exact frontiers, known failures, and growth seen in a run."""

import pytest
import torch
from linear_runs import measured

from dist_lookahead import lookahead, slowmo
from dist_lookahead.theory import closed_forms
from dist_lookahead.theory.growth import stability_limit
from dist_lookahead.theory.quadratic_oracle import stationary


@pytest.mark.parametrize("alpha", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("tau", [2, 3, 5, 6, 11])
def test_the_frontier_of_lookahead_is_exact_for_even_and_odd_tau(tau: int, alpha: float) -> None:
    assert stability_limit(lookahead(tau, alpha)) == pytest.approx(
        closed_forms.lookahead_frontier(tau, alpha), rel=1e-7
    )
    for part in (0.99, 1.01):
        r, z = 1 - part * closed_forms.lookahead_frontier(tau, alpha), 1.0
        for _ in range(600):
            z += alpha * (r**tau * z - z)
        assert (abs(z) < 1) == (part < 1)


# Inner heavy ball 0.9, alpha 1: least unstable gamma a with kept and with reset buffers.
LIMITS = {
    (6, 0.4): (1.26, 2.42),
    (6, 0.6): (0.0128, 2.42),
    (6, 0.8): (0.00355, 2.42),
    (12, 0.6): (2.06, 3.36),
    (12, 0.8): (0.00400, 3.36),
}


@pytest.mark.parametrize(("tau", "beta"), LIMITS)
def test_kept_momentum_under_slow_momentum_fails_early_in_short_rounds(tau: int, beta: float) -> None:
    kept, reset = LIMITS[tau, beta]
    assert stability_limit(slowmo(tau, 1.0, beta), momentum=0.9) == pytest.approx(kept, rel=5e-3)
    assert stability_limit(slowmo(tau, 1.0, beta, fast_buffers="reset"), momentum=0.9) == pytest.approx(reset, rel=5e-3)


def test_kept_nesterov_momentum_fails_early_too() -> None:
    limits = [
        stability_limit(slowmo(12, 1.0, 0.8, fast_buffers=choice), momentum=0.9, nesterov=True)
        for choice in ("keep", "reset")
    ]
    assert limits == pytest.approx([0.0051, 1.343], rel=5e-3)


def test_predicted_growth_is_seen_in_a_run_of_the_real_optimizer() -> None:
    levels, rounds = slowmo(6, 1.0, 0.6), 300
    curvature = torch.tensor([0.013, 0.02], dtype=torch.float64)
    predicted = stationary(levels, curvature=curvature, noise=1.0, lr=1.0, momentum=0.9).contraction
    assert predicted.tolist() == pytest.approx([1.0010, 1.0323], abs=5e-5)
    with pytest.warns(UserWarning, match="unstable on quadratics"):
        _, z = measured(levels, curvature[1:], torch.zeros(6 * rounds, 1, 1), lr=1.0, start=1.0, momentum=0.9)
    peaks = z[::6, 0].abs().unfold(0, 100, 100).amax(dim=-1)  # it swings as it grows
    assert ((peaks[-1] / peaks[0]) ** (1 / 200)).item() == pytest.approx(predicted[1].item(), abs=1e-3)


def test_agents_that_disagree_in_kept_momentum_can_fail_before_their_mean() -> None:
    levels = slowmo(12, 1.0, 0.4)
    assert stability_limit(levels, agents=2, momentum=0.9) < stability_limit(levels, momentum=0.9) - 0.05
    averaged = slowmo(12, 1.0, 0.4, fast_buffers="average")
    assert stability_limit(averaged, agents=2, momentum=0.9) == stability_limit(averaged, momentum=0.9)
