"""The bounds' formulas: each as written in its source, special cases that reduce to each other, and refusals."""

import math
from collections.abc import Sequence

import pytest

from dist_lookahead import Alone, Copy, Every, Exact, Level, Linear, Pull
from dist_lookahead.recipes import (
    bmuf,
    diloco,
    distributed_lookahead,
    local_sgd,
    lookahead,
    multilayer_lookahead,
    post_local_sgd,
    slowmo,
)
from dist_lookahead.theory.alpha import floor
from dist_lookahead.theory.bounds import Bound, admissible_lr, bound

Levels = Sequence[Level]


def exact(*layers: tuple[int, float]) -> list[Level]:
    """Nested levels over all agents, (tau in fast steps, alpha)."""
    return [Level(Every(tau), Exact(), Copy() if alpha == 1 else Pull(alpha)) for tau, alpha in layers]


def a_bound(levels: Levels, agents: int = 1, lr: float | Sequence[float] = 0.05, **changes: float) -> Bound:
    settings = {"smoothness": 2.0, "noise": 0.7, "gap": 3.0, "heterogeneity": 0.0} | changes
    steps = len(lr) if isinstance(lr, Sequence) else 60
    return bound(levels, agents=agents, lr=lr, steps=steps, **settings)


def b(n: int, alpha: float, tau: int, gamma: float) -> tuple[float, float, float]:
    """(B) as written in the docstring, for `a_bound`'s settings."""
    optimisation, noise = 2 * 3.0 / (alpha * gamma * 60), alpha * gamma * 2 * 0.7**2 / n
    return optimisation, noise, gamma**2 * 2**2 * 0.7**2 * (tau - 1) * (1 - alpha * (2 - alpha) / n)


def terms(result: Bound) -> tuple[float, float, float]:
    return result.optimisation, result.noise, result.drift


@pytest.mark.parametrize("agents", [1, 2, 4])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 1.5])
def test_one_pull_is_b(agents: int, alpha: float) -> None:
    result = a_bound(distributed_lookahead(6, alpha), agents)
    assert terms(result) == pytest.approx(b(agents, alpha, 6, 0.05))
    assert result.equation == ("(14)" if agents == 1 else "(B)")
    assert result.total == pytest.approx(sum(terms(result)))
    assert result.alpha == alpha


def test_one_agent_is_14_verbatim() -> None:
    result = a_bound(lookahead(6, 0.3))
    assert result.drift == pytest.approx(
        0.7**2 * 0.05**2 * 0.7**2 * 2**2 * 5
    )  # (1 - alpha)^2 gamma^2 sigma^2 L^2 (tau-1)


def test_alpha_1_is_local_sgd() -> None:
    assert a_bound(distributed_lookahead(6, 1.0), 4) == a_bound(local_sgd(6), 4)
    assert a_bound(local_sgd(6), 4).drift == pytest.approx(0.05**2 * 2**2 * 0.7**2 * 5 * 3 / 4)


def test_beta_0_is_b_and_a_tiny_beta_doubles_the_pull() -> None:
    assert a_bound(slowmo(6, 0.3, 0.0), 2) == a_bound(distributed_lookahead(6, 0.3), 2)
    twice = 0.05**2 * 2**2 * 0.7**2 * 5 * 0.7**2 / 2
    assert a_bound(bmuf(6, 0.3, 1e-9), 2).drift == pytest.approx(b(2, 0.3, 6, 0.05)[2] + twice)


def test_slow_momentum_is_b_prime() -> None:
    n, alpha, beta, tau, g = 4, 0.6, 0.5, 6, 0.05 * 2
    effective = alpha / (1 - beta)
    result = a_bound(slowmo(tau, alpha, beta), n)
    momentum = 4 * effective**2 * beta**2 * tau / (n * (1 - beta**2))
    drift = (tau - 1) * (1 - 1 / n) + 2 * (1 - effective) ** 2 * (tau - 1) / n + momentum
    assert terms(result) == pytest.approx((*b(n, effective, tau, 0.05)[:2], g**2 * 0.7**2 * drift))
    quadratic = 2 * (1 - effective) ** 2 * tau * (tau - 1) + 4 * effective**2 * beta**2 * tau**2 / (1 - beta) ** 2
    assert [c.value for c in result.conditions] == pytest.approx([effective * g + g**2 * quadratic, g**2 * 30])


def test_alpha_1_minus_beta_has_no_pull_in_its_drift() -> None:
    assert a_bound(bmuf(6, 0.5, 0.5)).drift == pytest.approx(0.1**2 * 0.7**2 * 4 * 0.5**2 * 6 / 0.75)


def test_nested_is_its_formula() -> None:
    n, g, product = 4, 0.05 * 2, 0.5 * 0.6
    result = a_bound(exact((3, 0.5), (12, 0.6)), n)
    drift = 2 * (1 - 1 / n) + ((1 - product) ** 2 * 2 + (0.5 - product) ** 2 * 3 * 3) / n
    assert terms(result) == pytest.approx((*b(n, product, 0, 0.05)[:2], g**2 * 0.7**2 * drift))
    assert result.conditions[0].value == pytest.approx(product * g + (1 - product) ** 2 * g**2 * 12 * 11)
    assert result.conditions[1].value == pytest.approx(g**2 * 3 * 2)


def test_an_alpha_of_1_collapses_layers() -> None:
    collapsed = a_bound(lookahead(12, 0.3))
    for levels in (multilayer_lookahead((3, 4), (1.0, 0.3)), multilayer_lookahead((1, 12), (1.0, 0.3))):
        assert terms(a_bound(levels)) == pytest.approx(terms(collapsed))
        assert admissible_lr(levels, agents=1, smoothness=2.0) == pytest.approx(
            admissible_lr(lookahead(12, 0.3), agents=1, smoothness=2.0)
        )


def test_a_layer_that_extrapolates_counts_in_the_condition() -> None:
    """alphas 2 and 1/2 have A_M = 1, yet the lower slow weights run ahead: (1 - A_M)^2 alone would allow any tau."""
    levels = multilayer_lookahead((3, 4), (2.0, 0.5))
    assert a_bound(levels).conditions[0].value == pytest.approx(0.1 + 0.1**2 * 12 * 11)


@pytest.mark.parametrize("agents", [1, 4])
@pytest.mark.parametrize("tau", [1, 6])
def test_constant_rates_in_a_sequence_are_b(agents: int, tau: int) -> None:
    levels = distributed_lookahead(tau, 0.3)
    zeta = 0.4 * (agents > 1)
    one, many = (a_bound(levels, agents, lr, heterogeneity=zeta) for lr in (0.05, [0.05] * 60))
    assert terms(many) == pytest.approx(terms(one))
    assert [c.value for c in many.conditions] == pytest.approx([c.value for c in one.conditions])


def test_rates_that_change_from_round_to_round_are_43() -> None:
    alpha, tau, n, rounds = 0.3, 3, 2, [0.05, 0.04, 0.02, 0.01]
    result = a_bound(distributed_lookahead(tau, alpha), n, [rate for rate in rounds for _ in range(tau)])
    total, squares, cubes = (sum(rate**power for rate in rounds) for power in (1, 2, 3))
    assert result.optimisation == pytest.approx(2 * 3.0 / (alpha * tau * total))
    assert result.noise == pytest.approx(alpha * 2 * 0.7**2 / n * squares / total)
    drift = 2**2 * 0.7**2 * (tau - 1) * (1 - alpha * (2 - alpha) / n) * cubes / total
    assert result.drift == pytest.approx(drift)


def test_the_largest_rate_and_round_decide_wherever_they_stand() -> None:
    """A warm-up begins small: judging a run by its first rate would pass any."""
    result = a_bound(distributed_lookahead(2, 0.3), 2, [0.01, 0.02, 0.01, 0.09, 0.08, 0.03])
    pair = 2 * 0.08 * 0.03  # (gamma_1 + gamma_2)^2 - gamma_1^2 - gamma_2^2 of the last round
    assert [c.value for c in result.conditions] == pytest.approx([0.3 * 0.09 * 2 + 0.7**2 * pair * 2**2, pair * 2**2])


def test_unlike_agents_add_their_terms() -> None:
    alike, unlike = (a_bound(distributed_lookahead(6, 0.3), 4, heterogeneity=zeta) for zeta in (0.0, 0.4))
    g = 0.05 * 2
    added = g**2 * (0.7**2 * 5 * 3 / 4 + 4 / 3 * 11 * 5 * 0.4**2)
    assert terms(unlike) == pytest.approx((alike.optimisation, alike.noise, alike.drift + added))
    assert unlike.conditions[1].value == pytest.approx(4 * alike.conditions[1].value)


def test_alone_and_exact_are_the_same_for_one_agent() -> None:
    alone, together = ([Level(Every(4), mix, Pull(0.5))] for mix in (Alone(), Exact()))
    assert a_bound(alone) == a_bound(together)


@pytest.mark.parametrize("agents", [1, 4])
def test_the_floor_is_that_of_the_bound(agents: int) -> None:
    unit = 0.05 * 2 * 0.7**2  # gamma L sigma^2
    levels = distributed_lookahead(6, 0.3)
    here = floor(0.3, lr=0.05, smoothness=2.0, tau=6, agents=agents)
    assert here == pytest.approx(a_bound(levels, agents).floor / unit)


def test_the_admissible_rate_of_lookahead_and_sgd() -> None:
    assert admissible_lr(lookahead(5, 0.5), agents=1, smoothness=1.0) == pytest.approx(0.4)
    assert admissible_lr(local_sgd(1), agents=4, smoothness=2.0) == pytest.approx(1 / 2.0)
    assert admissible_lr(local_sgd(5), agents=4, smoothness=2.0) == pytest.approx(1 / (2 * math.sqrt(20)))


@pytest.mark.parametrize(
    ("levels", "agents", "reason"),
    [
        (diloco(), 2, r"levels\[0\].*Nesterov"),
        (post_local_sgd(16, start=100), 2, r"levels\[0\].*tau=Piecewise.*changes during the run"),
        (lookahead(5, Linear(start=1.0, stop=0.5, steps=10)), 1, "alpha=Linear.*changes"),
        (slowmo(5, 1.0, Linear(start=0.1, stop=0.5, steps=10)), 1, "beta=Linear.*changes"),
        (lookahead(5, 0.5), 2, r"mix=Alone\(\) with agents=2"),
        ([Level(Every(5), Exact("node"), Copy())], 2, "axis='node'"),
        ([*exact((3, 1.0)), *slowmo(6, 1.0, 0.5)], 2, r"levels\[1\].*beta=0.5 in a stack of several"),
        (exact((3, 1.0)), 0, "agents=0"),
    ],
)
def test_stacks_without_a_bound_are_refused(levels: Levels, agents: int, reason: str) -> None:
    """A number that nobody proved would be worse than none; the message says what has a bound."""
    with pytest.raises(ValueError, match=reason) as error:
        admissible_lr(levels, agents=agents, smoothness=1.0)
    assert agents == 0 or "Bounds are known for one level" in str(error.value)
    with pytest.raises(ValueError, match=reason):
        a_bound(levels, agents)


@pytest.mark.parametrize("levels", [slowmo(5, 1.0, 0.5), multilayer_lookahead((2, 2))])
def test_changing_rates_are_refused_where_the_bound_is_for_a_constant_one(levels: Levels) -> None:
    with pytest.raises(ValueError, match="constant one"):
        a_bound(levels, 1, [0.1, 0.2])


@pytest.mark.parametrize("wrong", [{"smoothness": 0.0}, {"noise": -1.0}, {"gap": math.inf}, {"heterogeneity": 0.1}])
def test_values_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        a_bound(lookahead(), 1, 0.05, **wrong)


@pytest.mark.parametrize("lr", [0.0, [0.0, 0.0], [0.1, -0.1]])
def test_rates_out_of_range_are_named(lr: float | list[float]) -> None:
    with pytest.raises(ValueError, match="lr"):
        a_bound(lookahead(), 1, lr)


def test_there_is_one_rate_for_each_step() -> None:
    with pytest.raises(ValueError, match="2 rates for steps=3"):
        bound(lookahead(), agents=1, lr=[0.1, 0.1], smoothness=1.0, noise=1.0, gap=1.0, steps=3)
