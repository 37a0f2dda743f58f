"""Bugs of published Lookahead, local SGD and SlowMo packages, each as a test that those packages fail.

Found by running or reading them; each test names the package and what goes wrong there.
"""

import copy
import io
from collections.abc import Sequence

import pytest
import torch
from digits_training import Agent, make_agents, same, train
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import SGD, Adagrad, Adam, Optimizer

from dist_lookahead import (
    DistributedLookahead,
    Level,
    bmuf,
    diloco,
    local_sgd,
    lookahead,
    multilayer_lookahead,
    post_local_sgd,
    simulate,
    slowmo,
)


class Walk:
    """One weight that walks down by its learning rate times 1 in each step."""

    def __init__(self, levels: Sequence[Level], start: float = 0.0, lr: float = 1.0) -> None:
        self.w = nn.Parameter(torch.tensor([start], dtype=torch.float64))
        self.optimizer = DistributedLookahead(SGD([self.w], lr=lr), levels)

    def steps(self, number: int) -> list[float]:
        """Return the weight after each step."""
        places = []
        for _ in range(number):
            self.w.grad = torch.ones_like(self.w)
            self.optimizer.step()
            places.append(self.w.item())
        return places


def one_agent(levels: Sequence[Level], fast: str = "momentum") -> Agent:
    return make_agents(1, levels, fast=fast)[0]


# --- the interface of an optimizer


def test_rates_set_after_a_load_are_used() -> None:
    """torch PostLocalSGDOptimizer, torchdistx, lonePatient, pytorch_optimizer: `param_groups` is an alias.

    The inner optimizer's load replaces the list, and from then on a scheduler changes a dead copy.
    """
    walk = Walk(lookahead(9))
    walk.steps(1)
    walk.optimizer.load_state_dict(copy.deepcopy(walk.optimizer.state_dict()))
    walk.optimizer.param_groups[0]["lr"] = 0.25
    assert walk.steps(1) == [-1.25]


def test_it_is_an_optimizer_with_everything_that_one_has() -> None:
    """Official PyTorch code: no `defaults`, so that add_param_group and Lightning raise AttributeError.

    jettify: no `_optimizer_state_dict_pre_hooks`; PostLocalSGDOptimizer: no step hooks, and no closure in `step`.
    """
    walk = Walk(lookahead(9))
    assert isinstance(walk.optimizer, Optimizer)
    assert walk.optimizer.defaults["lr"] == 1.0
    walk.optimizer.register_step_post_hook(lambda optimizer, args, kwargs: None)
    walk.optimizer.register_state_dict_pre_hook(lambda optimizer: None)
    walk.w.grad = torch.zeros_like(walk.w)
    assert walk.optimizer.step(lambda: 2.5) == 2.5


def test_a_group_added_late_is_pulled_like_the_others() -> None:
    """Official code: AttributeError; jettify: KeyError 'counter'; Ranger: a step counter is missing."""
    walk = Walk(lookahead(2, 0.5))
    late = nn.Parameter(torch.zeros(1))
    walk.steps(1)
    walk.optimizer.add_param_group({"params": [late]})
    for _ in range(3):
        late.grad = torch.ones(1)
        walk.steps(1)
    assert late.item() == -1.0 + 0.5 * -2.0  # it joins at -1, and is pulled half of the next two steps


# --- when slow weights are captured, and when they are pulled


def test_the_first_pull_comes_after_tau_steps_from_the_initial_weights() -> None:
    """Official TensorFlow code: after 6 steps for k = 5; alphadl, jettify: after 1, from the weights after step 1.

    torchdistx and PeriodicModelAverager: after 1, 1 + tau, ..., so that the first block has tau + 1 steps.
    """
    assert Walk(lookahead(5, 0.5)).steps(11) == [-1, -2, -3, -4, -2.5, -3.5, -4.5, -5.5, -6.5, -5, -6]


def test_slow_weights_do_not_start_at_zero() -> None:
    """Official TensorFlow code: the slot starts as zeros, and the first pull multiplies the weights by alpha."""
    assert Walk(lookahead(2, 0.5), start=10.0).steps(2) == [9, 9]


def test_slow_weights_are_not_captured_at_the_first_pull() -> None:
    """timm, LAGAN: slow weights are made when first needed, so that the first pull does nothing."""
    assert Walk(lookahead(2, 0.25)).steps(2)[-1] == -0.5


def test_local_averaging_does_not_begin_with_the_first_step() -> None:
    """torch PeriodicModelAverager, torchdistx, Overlap_Local_SGD: an average after step 1."""
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    agents = [
        DistributedLookahead(SGD([w], lr=1.0), local_sgd(3), communicator=end)
        for w, end in zip(weights, simulate(2), strict=True)
    ]
    averaged = []
    for step in range(1, 8):
        for gradient, (agent, w) in enumerate(zip(agents, weights, strict=True)):
            w.grad = torch.full((1,), float(gradient))
            agent.step()
        if torch.equal(*weights):
            averaged.append(step)
    assert averaged == [3, 6]


def test_a_parameter_without_gradient_at_the_pull_is_pulled() -> None:
    """timm: parameters whose grad is None are left out of the pull."""
    walk = Walk(lookahead(2, 0.5))
    walk.steps(1)
    walk.w.grad = None
    walk.optimizer.step()
    assert walk.w.item() == -0.5


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
def test_a_checkpoint_library_that_probes_the_optimizer_does_not_advance_the_clock() -> None:
    """timm: the probe's step counts, so that all later pulls move; official code: Adam's state is never made."""
    agent = one_agent(lookahead(3), fast="adam")
    get_optimizer_state_dict(agent.model, agent.optimizer)
    assert agent.optimizer.stack.clock == 0
    assert {key for state in agent.optimizer.state.values() for key in state} == {"step", "exp_avg", "exp_avg_sq"}


# --- what a resume restores


def resumed_in_mid_round(levels: Sequence[Level], steps: int) -> tuple[list[Agent], list[Agent]]:
    agents = make_agents(2, levels)
    train(agents, range(steps))
    file = io.BytesIO()
    torch.save([agent.state() for agent in agents], file)
    file.seek(0)
    others = make_agents(2, levels, seed=3)
    for agent, state in zip(others, torch.load(file, weights_only=True), strict=True):
        agent.load(state)
    return agents, others


def test_slow_weights_and_their_counter_survive_a_resume() -> None:
    """Official code, lonePatient: neither is saved; alphadl, LAGAN: keyed by id(); pytorch_optimizer 7a076d2f: keyed
    by tensors, and a resume raises KeyError 'slow_params'.
    """
    agents, others = resumed_in_mid_round(lookahead(5), 7)
    train(agents, range(7, 12))
    train(others, range(7, 12))
    assert same([agent.state() for agent in agents], [agent.state() for agent in others])


def test_slow_momentum_and_the_rounds_first_weights_survive_a_resume() -> None:
    """fairscale: the state dict has neither; torchdistx: it has not the weights at the round's start."""
    agents, others = resumed_in_mid_round(slowmo(3, beta=0.6), 7)
    train(agents, range(7, 12))
    train(others, range(7, 12))
    assert same([agent.state() for agent in agents], [agent.state() for agent in others])


def test_a_warm_up_of_averaging_is_not_repeated_after_a_resume() -> None:
    """torch PostLocalSGDOptimizer before 1.12 (pytorch #74556): the averager's step was not saved."""
    agents, others = resumed_in_mid_round(post_local_sgd(4, start=3), 5)
    train(others, range(5, 6))
    assert not torch.equal(*(agent.model.get_parameter("0.weight") for agent in others))
    train(others, range(6, 7))
    assert torch.equal(*(agent.model.get_parameter("0.weight") for agent in others))
    assert others[0].optimizer.stack.clock == agents[0].optimizer.stack.clock + 2


# --- the fast optimizer's buffers


def test_a_second_reset_is_as_good_as_the_first() -> None:
    """Official code, pytorch_optimizer 7a076d2f: a cached buffer is stored without a copy, and the steps after the
    first sync change the cache (21 % error from the second sync on).
    """
    w = nn.Parameter(torch.ones(1))
    optimizer = DistributedLookahead(
        Adagrad([w], lr=0.1, initial_accumulator_value=0.5), lookahead(2, fast_buffers="reset")
    )
    for _ in range(3):
        for _ in range(2):
            w.grad = torch.ones(1)
            optimizer.step()
        assert optimizer.state[w]["sum"].item() == 0.5


def test_averaged_buffers_belong_to_their_own_agents() -> None:
    """The same mistake in an average: agents that share a buffer add their gradients to each other's momentum."""
    agents = make_agents(2, local_sgd(2, fast_buffers="average"))
    train(agents, range(2))
    first, second = (next(iter(agent.optimizer.state.values()))["momentum_buffer"] for agent in agents)
    assert torch.equal(first, second)
    first.add_(1.0)
    assert not torch.equal(first, second)


def test_a_reset_with_adam_resets_adams_moments() -> None:
    """Official code: adds an unused buffer and resets nothing; pytorch_optimizer: knows `momentum_buffer` only."""
    agent = one_agent(lookahead(3, fast_buffers="reset"), fast="adam")
    train([agent], range(3))
    assert not agent.optimizer.state
    train([agent], range(3, 4))
    assert {state["step"].item() for state in agent.optimizer.state.values()} == {1.0}


def test_adam_initialises_its_own_state() -> None:
    """schedule_free's wrapper: slow weights in the inner state make Adam skip it: KeyError 'exp_avg'."""
    w = nn.Parameter(torch.ones(1))
    optimizer = DistributedLookahead(Adam([w]), lookahead(1))
    w.grad = torch.ones(1)
    optimizer.step()
    assert "exp_avg" in optimizer.state[w]


# --- nesting


def test_wrapping_a_wrapper_is_refused() -> None:
    """Official code, pytorch_optimizer: accepted, and wrong (next test) by 0.079 and 0.232 after a few steps."""
    walk = Walk(lookahead(2))
    with pytest.raises(ValueError, match="give a plain torch optimizer, and all levels in one list"):
        DistributedLookahead(walk.optimizer, lookahead(3))


def test_an_outer_pull_moves_the_inner_slow_weights() -> None:
    """A wrapped wrapper, nested_lookahead: the inner slow weights, or the fast ones, stay where they were."""
    walk = Walk(multilayer_lookahead((2, 2), (0.5, 0.5)))
    assert walk.steps(6) == [-1, -1, -2, -1, -2, -2]  # -1 at step 4: half of the two inner pulls to -2


# --- SlowMo, BMUF, DiLoCo


def test_a_warm_up_from_learning_rate_zero_is_finite() -> None:
    """torchdistx, fairscale: 1 / lr in the slow momentum."""
    walk = Walk(slowmo(2, beta=0.5), lr=0.0)
    walk.steps(4)
    walk.optimizer.param_groups[0]["lr"] = 1.0
    assert walk.steps(4) == [-1, -2, -3, -5]  # the momentum of -2 is added to the second real round


def test_slowmos_momentum_shrinks_with_the_learning_rate_and_bmufs_does_not() -> None:
    """A single implementation for both is wrong for one of them after the first decay."""
    expected = {"slowmo": -2 + -0.2 - 0.5 * 0.2, "bmuf": -2 + -0.2 - 0.5 * 2}
    for name, levels in {"slowmo": slowmo(2, beta=0.5), "bmuf": bmuf(2, eta=0.5)}.items():
        walk = Walk(levels)
        walk.steps(2)
        walk.optimizer.param_groups[0]["lr"] = 0.1
        assert walk.steps(2)[-1] == pytest.approx(expected[name], abs=1e-12)


def test_nesterovs_steady_step_is_that_of_plain_momentum() -> None:
    """fairseq's BMUF: the round starts from the look-ahead point, whose steady step is (1 + eta) times too long."""
    places = Walk(diloco(1, alpha=0.5, beta=0.5)).steps(60)
    assert places[-2] - places[-1] == pytest.approx(0.5 * 1 / (1 - 0.5), abs=1e-12)


# --- evaluation


def test_evaluation_between_pulls_can_use_the_slow_weights() -> None:
    """Ranger (issue 24): 1 - 1/k of all evaluations use the fast weights, for want of a way to the slow ones."""
    walk = Walk(lookahead(5, 0.5))
    walk.steps(8)
    with walk.optimizer.slow_weights():
        assert walk.w.item() == -2.5
    assert walk.w.item() == -5.5


def test_batchnorm_statistics_at_the_slow_weights_are_averaged_with_them() -> None:
    """schedule_free (issue 11), fairscale: statistics of some agent's own fast weights, or rank 0's."""
    agents = make_agents(2, local_sgd(2))
    train(agents, range(2))
    lone = make_agents(2, local_sgd(9))
    train(lone, range(2))
    name = "1.running_mean"
    means: list[Tensor] = [agent.model.get_buffer(name) for agent in lone]
    for agent in agents:
        assert torch.equal(agent.model.get_buffer(name), (means[0] + means[1]) / 2)
