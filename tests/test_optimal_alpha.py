"""alpha=Optimal: measured at the syncs of real optimizers, simulated or in processes, against Proposition 1."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import Tensor, nn

from dist_lookahead import (
    Alone,
    DistributedLookahead,
    Every,
    Exact,
    Level,
    Mesh,
    Optimal,
    Pull,
    distributed_lookahead,
    lookahead,
    simulate,
)
from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.notation import from_plain, to_plain
from dist_lookahead.theory import proposition_1_alpha

WIDE = Optimal(1e-3, 100.0)
# Limits this wide never bind, which is what most tests here want, and what users are warned of.
pytestmark = pytest.mark.filterwarnings("ignore:levels.*at the worse end of a measured alpha:UserWarning")
D, TAU = 6, 4


def curvature() -> Tensor:
    root = torch.randn(D, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return root @ root.T / D + 0.1 * torch.eye(D, dtype=torch.float64)


def offsets(agents: int) -> Tensor:
    return torch.randn(agents, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


class QuadraticAgent:
    """Trains on (w - mu_i)^T A (w - mu_i) / 2 without noise."""

    def __init__(self, rank: int, agents: int, levels: list[Level], communicator: Communicator | None) -> None:
        self.matrix, self.target = curvature(), offsets(agents)[rank]
        # Two tensors of different shapes, so that the sums go over slots with padding between them.
        self.first = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.rest = nn.Parameter(torch.ones(D - 1, dtype=torch.float64))
        self.probed: list[tuple[int, Tensor]] = []
        self.optimizer = DistributedLookahead(
            torch.optim.SGD([self.first, self.rest], lr=0.2), levels, communicator=communicator, probe=self.probe
        )

    @property
    def weights(self) -> Tensor:
        return torch.cat((self.first, self.rest)).detach().clone()

    def backward(self) -> None:
        away = torch.cat((self.first, self.rest)) - self.target
        (away @ self.matrix @ away / 2).backward()

    def probe(self, step: int) -> None:
        self.probed.append((step, self.weights))
        self.backward()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.backward()
        self.optimizer.step()

    @property
    def alpha(self) -> float:
        return self.optimizer.stack.bound[-1].coefficients[0]


def run(agents: list[QuadraticAgent], steps: int) -> None:
    for _ in range(steps):
        for agent in agents:
            agent.step()


def simulated(levels: list[Level], n: int) -> list[QuadraticAgent]:
    return [QuadraticAgent(rank, n, levels, end) for rank, end in enumerate(simulate(n))]


def end_of_round(start: Tensor, matrix: Tensor, target: Tensor) -> Tensor:
    x = start
    for _ in range(TAU):
        x = x - 0.2 * matrix @ (x - target)
    return x


@pytest.mark.parametrize("n", [1, 3])
def test_a_sync_takes_the_alpha_of_proposition_1(n: int) -> None:
    """Breaks if the gradients are taken at other points, or if the agents' sums do not make one mean gradient."""
    agents = simulated(distributed_lookahead(TAU, WIDE), n)
    z, matrix, targets = torch.ones(D, dtype=torch.float64), curvature(), offsets(n)
    for rounds in range(1, 4):
        run(agents, TAU)
        mean = torch.stack([end_of_round(z, matrix, target) for target in targets]).mean(dim=0)
        alpha = proposition_1_alpha(z, mean, targets.mean(dim=0), matrix)
        assert agents[0].alpha == pytest.approx(float(alpha), rel=1e-10)
        z = z + alpha * (mean - z)
        for agent in agents:
            torch.testing.assert_close(agent.weights, z, rtol=1e-10, atol=1e-12)
            assert [step for step, _ in agent.probed] == [TAU * r for r in range(1, rounds + 1) for _ in range(2)]


def test_agents_for_themselves_choose_for_themselves() -> None:
    agents = simulated([Level(Every(TAU), Alone(), Pull(WIDE))], 2)
    run(agents, TAU)
    start = torch.ones(D, dtype=torch.float64)
    for agent in agents:
        end = end_of_round(start, agent.matrix, agent.target)
        assert agent.alpha == pytest.approx(float(proposition_1_alpha(start, end, agent.target, agent.matrix)))


def test_groups_of_a_mesh_choose_for_themselves() -> None:
    ends = simulate(Mesh((2, 2), ("node", "local")))
    levels = [Level(Every(TAU), Exact("local"), Pull(WIDE))]
    agents = [QuadraticAgent(rank, 4, levels, end) for rank, end in enumerate(ends)]
    run(agents, TAU)
    alphas = [agent.alpha for agent in agents]
    assert alphas[0] == alphas[1] != alphas[2] == alphas[3]


@pytest.mark.parametrize(("limits", "alpha"), [(Optimal(0.1, 0.5), 0.5), (Optimal(50.0, 60.0), 50.0)])
def test_alpha_stays_within_its_limits(limits: Optimal, alpha: float) -> None:
    agents = simulated(lookahead(TAU, limits), 1)
    run(agents, TAU)
    assert agents[0].alpha == alpha


def test_a_loss_that_is_not_finite_takes_the_cautious_end() -> None:
    agents = simulated(lookahead(TAU, Optimal(0.25, 1.0)), 1)
    run(agents, TAU - 1)
    agents[0].matrix = agents[0].matrix * float("nan")
    agents[0].first.grad = agents[0].rest.grad = None
    agents[0].optimizer.step()
    assert agents[0].alpha == 0.25
    assert agents[0].weights.isfinite().all()


def test_a_level_below_sees_the_same_probe_and_is_overwritten() -> None:
    levels = [Level(Every(2), Alone(), Pull(Optimal(0.2, 1.0))), Level(Every(4), Exact(), Pull(Optimal(0.2, 1.0)))]
    agents = simulated(levels, 2)
    run(agents, 4)
    assert [step for step, _ in agents[0].probed] == [2, 2, 4, 4, 4, 4]
    assert torch.equal(agents[0].weights, agents[1].weights)


class Net(nn.Module):
    """BatchNorm's statistics and dropout's random numbers are what a probe could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_probe_leaves_gradients_buffers_and_random_numbers_as_they_were() -> None:
    torch.manual_seed(0)
    model, masks = Net(), []
    x = torch.randn(16, 3)

    def probe(step: int) -> None:
        masks.append(torch.rand(4))
        model(x).square().mean().backward()

    optimizer = DistributedLookahead(
        torch.optim.SGD(model.parameters(), lr=0.1), lookahead(1, Optimal(0.5, 0.5)), model=model, probe=probe
    )
    model(x).square().mean().backward()
    gradients = [p.grad for p in model.parameters()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before = torch.get_rng_state()
    optimizer.step()
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert int(buffers["layers.1.num_batches_tracked"]) == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*masks), "both points see the same random numbers"


def test_a_probe_that_fails_leaves_the_slow_weights_in_the_model() -> None:
    agents = simulated(lookahead(TAU, WIDE), 1)
    run(agents, TAU)
    slow = agents[0].weights

    def fail(_step: int) -> None:
        raise LookupError("no samples left")

    agents[0].probe = fail  # pyright: ignore[reportAttributeAccessIssue] - another probe for this one
    agents[0].optimizer.stack.line_search._probe = fail
    with pytest.raises(LookupError, match="no samples left"):
        run(agents, TAU)
    assert torch.equal(agents[0].weights, slow)


def in_a_process() -> list[Any]:
    agent = QuadraticAgent(dist.get_rank(), dist.get_world_size(), distributed_lookahead(TAU, WIDE), None)
    run([agent], 2 * TAU)
    return [agent.weights.tolist(), agent.alpha]


@pytest.mark.timeout(120)
def test_processes_choose_what_simulated_agents_choose() -> None:
    agents = simulated(distributed_lookahead(TAU, WIDE), 2)
    run(agents, 2 * TAU)
    assert run_processes(in_a_process, 2) == [[agent.weights.tolist(), agent.alpha] for agent in agents]


def test_it_is_written_and_read_like_other_descriptions() -> None:
    level = Level(Every(5), Alone(), Pull(Optimal(0.2, 1.0)))
    plain = to_plain(level)
    assert plain["level"]["move"] == {"pull": {"alpha": {"optimal": {"low": 0.2, "high": 1.0}}}}
    assert from_plain(plain) == level


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Optimal(0.0, 1.0), r"Optimal\(low=0.0, high=1.0\) needs two finite numbers, 0 < low <= high"),
        (lambda: Optimal(1.0, 0.5), "needs two finite numbers"),
        (lambda: Optimal(cast(Any, "a"), 0.5), "low='a', high=0.5"),
        (lambda: Pull(WIDE, beta=0.5), "with beta=0.5: the best alpha is known without slow momentum only"),
        (lambda: Level(Every(2), Exact(shard=True), Pull(WIDE)), "no agent has all of z"),
        (lambda: Pull(WIDE).coefficients(0), "is measured at each sync: give a number"),
        (
            lambda: DistributedLookahead(torch.optim.SGD([nn.Parameter(torch.ones(1))]), lookahead(2, WIDE)),
            r"levels\[0\]\.move\.alpha=Optimal.* needs two gradients at each sync: give DistributedLookahead a probe",
        ),
        (
            lambda: DistributedLookahead(torch.optim.SGD([nn.Parameter(torch.ones(1))]), lookahead(2), probe=print),
            "probe has no effect",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
