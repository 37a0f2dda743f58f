"""The metrics of a sync: the agents' squared distance from y = X a is its consensus part plus its Lookahead part."""

import math
from collections.abc import Sequence

import pytest
from noisy_quadratic import Problem
from states import Crowd, gradients_at
from torch import Tensor

from dist_lookahead import (
    Alone,
    Cast,
    Cosine,
    Every,
    Exact,
    Level,
    Pull,
    bmuf,
    diloco,
    distributed_lookahead,
    local_sgd,
    lookahead,
    slowmo,
    theory,
)
from dist_lookahead.train.dynamics import Dynamics

AGENTS, STEPS = 3, 12


def run(levels: Sequence[Level], agents: int = AGENTS) -> list[tuple[Tensor, dict[str, float]]]:
    """The state before each sync of the outermost level, and what was reported of the sync."""
    problem = Problem(agents, steps=STEPS)
    crowd = Crowd(levels, problem.start, agents)
    dynamics = [Dynamics(optimizer.stack) for optimizer in crowd.optimizers]
    for own, optimizer in zip(dynamics, crowd.optimizers, strict=True):
        own.begin(optimizer.stack.buckets)
    before: list[Tensor] = []
    crowd.optimizers[-1].inner.register_step_post_hook(lambda *_: before.append(crowd.read()))
    reports = []
    for k in range(STEPS):
        crowd.step(gradients_at(crowd.read(), problem, k), 0.05)
        if crowd.optimizers[0].stack.bound[-1].last == k + 1:
            sums = [sum(column) for column in zip(*(own.sums() for own in dynamics), strict=True)]
            reports.append((before[-1], dynamics[0].report(sums, agents)))
    assert len(reports) >= 2
    return reports


ONE_LEVEL = {
    "local SGD": local_sgd(3),
    "distributed Lookahead": distributed_lookahead(3, 0.4),
    "alpha above 1": distributed_lookahead(3, 1.4),
    "sharded": distributed_lookahead(3, 0.4, shard=True),
    "heavy ball": bmuf(3, 0.9, 0.6),
    "SlowMo": slowmo(3, 0.9, 0.6, shard=True),
    "Nesterov": diloco(3, 0.7, 0.8),
}


@pytest.mark.parametrize("method", ONE_LEVEL)
def test_squared_distance_from_y_is_consensus_plus_lookahead_part(method: str) -> None:
    """Breaks if one of the two parts is measured from other weights than the theory's."""
    levels = ONE_LEVEL[method]
    a = theory.fixed_vector(levels, AGENTS)
    for state, report in run(levels):
        x, y = state[:, :AGENTS], state @ a
        mean = x.mean(dim=1)
        distance = (x - y[:, None]).square().sum(dim=0).mean()
        assert report["spread"] ** 2 + report["lookahead"] ** 2 == pytest.approx(float(distance), rel=1e-9)
        assert report["lookahead"] == pytest.approx(float((mean - y).norm()), rel=1e-9, abs=1e-12)
        assert report["spread"] > 0.01
        assert (report["lookahead"] > 1e-3) == (method != "local SGD")


def test_nested_levels_have_the_same_y() -> None:
    """The level below has fired already when the outermost measures; y has not moved with it."""
    levels = [Level(Every(2), Exact(), Pull(0.8, 0.3)), Level(Every(4), Exact(), Pull(0.7, 0.2))]
    a = theory.fixed_vector(levels, AGENTS)
    for state, report in run(levels):
        y = state @ a
        below = state @ theory.level_matrix(levels, 0, AGENTS)
        assert report["lookahead"] == pytest.approx(float((below[:, :AGENTS].mean(dim=1) - y).norm()), rel=1e-9)


def test_schedules_count_with_the_values_of_the_sync() -> None:
    levels = bmuf(4, 0.9, Cosine(0.6, 0.2, STEPS))
    for index, (state, report) in enumerate(run(levels), start=1):
        alpha, beta = levels[0].move.coefficients(4 * index)
        y = state @ theory.fixed_vector(bmuf(4, alpha, beta), AGENTS)
        assert report["lookahead"] == pytest.approx(float((state[:, :AGENTS].mean(dim=1) - y).norm()), rel=1e-9)


def test_a_single_agent_has_a_lookahead_part_alone() -> None:
    for _, report in run(lookahead(3, 0.5), agents=1):
        assert report["spread"] == pytest.approx(0.0, abs=1e-7)
        assert report["lookahead"] == pytest.approx(0.5 * report["distance"], rel=1e-9)


@pytest.mark.parametrize(
    "levels",
    [
        [Level(Every(2), Alone(), Pull(0.8, 0.3)), Level(Every(4), Exact(), Pull(0.7))],
        [Level(Every(2), Alone(), Pull(0.8, 0.3)), Level(Every(4), Exact(codec=Cast()), Pull(0.7))],
        [Level(Every(2), Exact(), Pull(0.8, 0.3)), Level(Every(4), Exact(), Pull(0.7), "reset")],
    ],
    ids=["own slow momenta", "own slow momenta below a code", "slow momentum that is reset"],
)
def test_what_is_not_known_is_not_reported(levels: list[Level]) -> None:
    for _, report in run(levels):
        assert "lookahead" not in report
        assert math.isfinite(report["spread"])
