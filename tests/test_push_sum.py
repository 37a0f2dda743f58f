"""Push-sum: masses, and the mean that it keeps, in graphs where agents do not hear as many as hear them."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from descending import Agent, crowd, descend, descend_and_sync
from digits_training import same
from processes import run_processes
from torch import Tensor, nn

from dist_lookahead import (
    Alone,
    Copy,
    DistributedLookahead,
    Every,
    Exact,
    Gossip,
    Graph,
    Level,
    Mesh,
    OnePeerExponential,
    Pull,
    PushSum,
    dpsgd,
    sgp,
    simulate,
    slowmo_over,
    theory,
)

UNEVEN = Graph([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0]])  # agent 1 hears all, agent 0 only itself
STEADY = Graph([[0.5, 0.25, 0.25], [0.2, 0.4, 0.4], [0.3, 0.7, 0.0]])  # everybody hears of everybody in the end


def mean_of_masses(agents: list[Agent]) -> Tensor:
    """What push-sum keeps: the mean of x = w z."""
    mass = agents[0].optimizer.stack.bound[0].mass
    assert mass
    return torch.stack([own * agent.weights().double() for own, agent in zip(mass.all, agents, strict=True)]).mean(0)


def freeze(agents: list[Agent]) -> None:
    for agent in agents:
        agent.optimizer.param_groups[0]["lr"] = 0.0


def test_agents_come_to_the_true_mean_where_gossip_is_refused() -> None:
    with pytest.raises(ValueError, match="PushSum divides by what does not sum to 1"):
        Gossip(topology=STEADY)
    agents = crowd(sgp(STEADY), 3)
    descend(agents, 4)
    mean = mean_of_masses(agents)
    freeze(agents)
    for _ in range(80):
        for agent in agents:
            agent.weight.grad = torch.ones_like(agent.weight)
            agent.optimizer.step()
    for agent in agents:
        torch.testing.assert_close(agent.weights().double(), mean, rtol=1e-5, atol=1e-6)


def test_the_mean_stays_where_it_is() -> None:
    agents = crowd(sgp(UNEVEN), 3)
    descend(agents, 2)
    mean = mean_of_masses(agents)
    freeze(agents)
    descend(agents, 1)
    torch.testing.assert_close(mean_of_masses(agents), mean, rtol=1e-5, atol=1e-6)


def test_averaged_weights_are_the_mean_that_is_kept() -> None:
    agents = crowd(sgp(UNEVEN), 3)
    descend(agents, 3)
    expected = mean_of_masses(agents)
    contexts = [agent.optimizer.averaged_weights() for agent in agents]
    for context in contexts:
        context.__enter__()
    inside = [agent.weights() for agent in agents]
    for context in contexts:
        context.__exit__(None, None, None)
    for weights in inside:
        torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("topology", [OnePeerExponential(), Graph([[0.75, 0.25], [0.25, 0.75]])])
def test_where_masses_stay_1_push_sum_is_gossip_to_the_last_bit(topology: Any) -> None:
    push, gossip = crowd(sgp(topology), 2), crowd(dpsgd(topology), 2)
    for agents in (push, gossip):
        descend_and_sync(agents, 5)
    assert push[0].optimizer.stack.bound[0].mass is None
    assert all(torch.equal(one.weights(), other.weights()) for one, other in zip(push, gossip, strict=True))


def test_an_exact_average_above_sets_all_masses_to_1() -> None:
    agents = crowd(slowmo_over(sgp(UNEVEN), tau=3), 3)
    descend(agents, 2)
    assert len({agent.optimizer.stack.bound[0].mass.own for agent in agents}) == 3  # pyright: ignore[reportOptionalMemberAccess] - the graph is uneven
    descend(agents, 1)
    assert {agent.optimizer.stack.bound[0].mass.own for agent in agents} == {1.0}  # pyright: ignore[reportOptionalMemberAccess] - see above
    assert torch.equal(agents[0].weights(), agents[1].weights())


@pytest.mark.parametrize("levels", [sgp(UNEVEN, tau=2), slowmo_over(sgp(UNEVEN), tau=3)], ids=["sgp", "SlowMo"])
def test_resume_at_any_step_goes_on_bit_for_bit(levels: list[Level]) -> None:
    agents, checkpoints = crowd(levels, 3), []
    for _ in range(7):
        file = io.BytesIO()
        torch.save([(agent.weights(), agent.optimizer.state_dict()) for agent in agents], file)
        checkpoints.append(file.getvalue())
        descend(agents, 1)
    expected = copy.deepcopy([agent.optimizer.state_dict() for agent in agents])
    for step, checkpoint in enumerate(checkpoints):
        resumed = crowd(levels, 3)
        states = torch.load(io.BytesIO(checkpoint), weights_only=True)
        for agent, (weights, state) in zip(resumed, states, strict=True):
            with torch.no_grad():
                agent.weight.copy_(weights)
            agent.optimizer.load_state_dict(state)
        descend(resumed, 7 - step)
        for one, other in zip(resumed, agents, strict=True):
            assert torch.equal(one.weights(), other.weights()), f"differs when resumed after step {step}"
        assert same([agent.optimizer.state_dict() for agent in resumed], expected)


def in_a_process() -> Tensor:
    agent = Agent(dist.get_rank(), sgp(UNEVEN, tau=2))
    descend_and_sync([agent], 5)
    return agent.weights()


@pytest.mark.timeout(60)
def test_processes_give_the_bits_of_simulated_agents() -> None:
    agents = crowd(sgp(UNEVEN, tau=2), 3)
    descend_and_sync(agents, 5)
    for one, other in zip(run_processes(in_a_process, 3), agents, strict=True):
        assert torch.equal(one, other.weights())


@pytest.mark.parametrize("agents", [16, 256])
def test_an_agents_bytes_do_not_grow_with_the_number_of_agents(agents: int) -> None:
    """Masses are found, not sent: a letter has the weights and nothing else."""
    ends = simulate(agents)
    weights = [nn.Parameter(torch.zeros(8)) for _ in ends]
    optimizers = [
        DistributedLookahead(torch.optim.SGD([w], lr=0.1), sgp(), communicator=end)
        for w, end in zip(weights, ends, strict=True)
    ]
    before = ends[0].bytes_sent
    for weight, optimizer in zip(weights, optimizers, strict=True):
        weight.grad = torch.ones(8)
        optimizer.step()
    assert ends[0].bytes_sent - before == 32


def test_half_precision_weights_keep_their_dtype() -> None:
    weights = [nn.Parameter(torch.ones(8, dtype=torch.bfloat16)) for _ in range(3)]
    optimizers = [
        DistributedLookahead(torch.optim.SGD([w], lr=0.0), sgp(UNEVEN), communicator=end)
        for w, end in zip(weights, simulate(3), strict=True)
    ]
    for _ in range(5):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
    for weight in weights:
        assert weight.dtype == torch.bfloat16
        torch.testing.assert_close(weight.float(), torch.ones(8), rtol=0.02, atol=0)


def test_a_fast_step_that_fails_leaves_the_weights_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    agents = crowd(sgp(UNEVEN), 3)
    descend(agents, 2)
    before = agents[1].weights()

    def fail(closure: object) -> None:
        raise RuntimeError("no step")

    monkeypatch.setattr(agents[1].optimizer.inner, "step", fail)
    with pytest.raises(RuntimeError, match="no step"):
        agents[1].step()
    torch.testing.assert_close(agents[1].weights(), before)


REFUSED = [
    (lambda: PushSum(topology=Graph([[1.0, 0.5], [0.0, 0.5]])), "rows of the weights sum to"),
    (lambda: Level(Every(1), PushSum(), Pull(0.5)), "multiples of means, and slow weights are not; use move=Copy"),
    (lambda: Level(Every(1), PushSum(), Copy(), "average"), "fast_buffers='average' needs a mean of all"),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSED)
def test_what_does_not_fit_is_refused(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("above", [Level(Every(2), Alone(), Pull(0.5)), *dpsgd(OnePeerExponential())])
def test_only_an_exact_average_goes_above(above: Level) -> None:
    with pytest.raises(ValueError, match="above it only Exact along its axis, or 'world', finds the mean again"):
        crowd([*sgp(UNEVEN), above], 3)


def test_an_exact_average_along_another_axis_does_not_go_above() -> None:
    levels = [*sgp(UNEVEN, axis="node"), Level(Every(2), Exact("local"), Copy())]
    with pytest.raises(ValueError, match="above it only Exact along its axis"):
        crowd(levels, Mesh((3, 2), ("node", "local")))


def test_a_closure_is_refused() -> None:
    agent = crowd(sgp(UNEVEN), 3)[0]
    with pytest.raises(ValueError, match="the closure would see weights times their mass"):
        agent.optimizer.step(lambda: 0.0)


# --- theory


def test_the_matrices_are_those_of_the_graph_and_keep_the_mean() -> None:
    P = theory.mixing_matrix(sgp(UNEVEN), 3, 1)
    assert torch.equal(P, UNEVEN.weights(3))
    assert torch.allclose(theory.fixed_vector(sgp(UNEVEN), 3), torch.full((3,), 1 / 3, dtype=torch.float64))


def test_the_distance_from_the_mean_shrinks_by_the_spectral_gap() -> None:
    agents = crowd(sgp(STEADY), 3)
    descend(agents, 2)
    freeze(agents)
    left = 1 - theory.spectral_gap(STEADY, 3)
    mean = mean_of_masses(agents)
    for _ in range(3):
        descend(agents, 1)
    before = torch.stack([agent.weights().double() - mean for agent in agents]).norm()
    for _ in range(4):
        descend(agents, 1)
    after = torch.stack([agent.weights().double() - mean for agent in agents]).norm()
    assert float(after / before) == pytest.approx(left**4, rel=0.35)


def test_no_prediction_is_made_where_gradients_are_taken_at_x_over_w() -> None:
    with pytest.raises(ValueError, match="gradients at x / w make another recursion"):
        theory.noisy_quadratic(sgp(UNEVEN), curvature=1.0, noise=1.0, lr=0.1, steps=3, agents=3, start=1.0)
