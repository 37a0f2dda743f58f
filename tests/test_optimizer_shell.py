"""The shell is a torch optimizer: everything that torch, its schedulers and its tools do with one works with it."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from digits_training import FAST, Agent, make_agents, make_model, same, train
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from dist_lookahead import DistributedLookahead, Level, lookahead, slowmo

# --- the interface


def public_methods(cls: type) -> dict[str, Callable[..., Any]]:
    return {
        name: value
        for name, value in inspect.getmembers(cls, inspect.isroutine)
        if not name.startswith("_") and name not in dir(object)
    }


def kinds(method: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]


OVERRIDDEN = [name for name in public_methods(Optimizer) if name in vars(DistributedLookahead)]


def test_discovery_finds_methods() -> None:
    """A guard: with an empty list the next test would pass without a look."""
    assert {"step", "zero_grad", "state_dict", "load_state_dict", "add_param_group"} <= set(OVERRIDDEN)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_methods_take_what_torchs_take(name: str) -> None:
    """Breaks when a parameter gets another name: torch.distributed.checkpoint passes keywords."""
    assert kinds(getattr(DistributedLookahead, name)) == kinds(getattr(Optimizer, name))


def one_agent(levels: Sequence[Level] | None = None, *, fast: str = "momentum") -> Agent:
    return make_agents(1, levels or lookahead(3), fast=fast)[0]


def test_groups_state_and_defaults_are_the_inner_optimizers_own_also_after_a_load() -> None:
    agent = one_agent()
    train([agent], range(2))
    agent.load(copy.deepcopy(agent.state()))
    inner = agent.optimizer.inner
    assert agent.optimizer.param_groups is inner.param_groups
    assert agent.optimizer.state is inner.state
    assert agent.optimizer.defaults is inner.defaults
    with pytest.raises(AttributeError):
        agent.optimizer.param_groups = []  # pyright: ignore[reportAttributeAccessIssue] - that it has no setter is the test


def test_nothing_of_the_levels_is_put_into_the_inner_state() -> None:
    """Adam initialises a parameter's state only where there is none at all."""
    agent = one_agent(slowmo(2, beta=0.6), fast="adam")
    assert not agent.optimizer.state
    train([agent], range(5))
    assert {key for state in agent.optimizer.state.values() for key in state} == {"step", "exp_avg", "exp_avg_sq"}


# --- learning rate schedulers


def plain_agent(fast: str = "momentum") -> tuple[nn.Module, Optimizer]:
    model = make_model()
    return model, FAST[fast](model.parameters())


SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda step: min(step / 4, 1.0)),  # begins at 0
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, max_lr=0.2, total_steps=20),  # moves momentum as well
    "ReduceLROnPlateau": lambda optimizer: ReduceLROnPlateau(optimizer, patience=0, threshold=0.5),
}


def advance(scheduler: LRScheduler) -> None:
    scheduler.step(1.0) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()  # pyright: ignore[reportArgumentType] - plateau takes a metric


def rates(optimizer: Optimizer) -> list[tuple[float, float]]:
    return [(group["lr"], group["momentum"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers_drive_the_inner_rates(make: Callable[[Optimizer], LRScheduler]) -> None:
    agent, (_, plain) = one_agent(), plain_agent()
    ours, theirs = make(agent.optimizer), make(plain)
    for step in range(8):
        agent.step(step)
        plain.step()
        advance(ours)
        advance(theirs)
        assert rates(agent.optimizer) == rates(agent.optimizer.inner) == rates(plain)


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_copy_under_a_scheduler_does_not_step_the_original(make: Callable[[Optimizer], LRScheduler]) -> None:
    """Schedulers store a bound `step` in the optimizer's __dict__; copied, it would step the original."""
    agent = one_agent()
    scheduler = make(agent.optimizer)
    train([agent], range(2))
    advance(scheduler)
    before = copy.deepcopy(agent.state())
    spare, spare_scheduler = copy.deepcopy((agent, scheduler))
    assert spare_scheduler.optimizer is spare.optimizer
    for step in range(2, 5):
        spare.step(step)
        advance(spare_scheduler)
    assert same(agent.state(), before)
    assert spare.optimizer.stack.clock == 5
    assert agent.optimizer.stack.clock == 2


def test_a_warm_up_from_zero_counts_its_first_step() -> None:
    """A rate of 0 with gradients is a training step; only without them it is a checkpoint's probe."""
    agent = one_agent()
    LambdaLR(agent.optimizer, lambda step: step / 10)
    agent.step(0)
    assert agent.optimizer.stack.clock == 1


# --- hooks and closures


def test_step_hooks_run_around_the_step_and_the_sync() -> None:
    agent, seen = one_agent(lookahead(1)), []
    agent.optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: seen.append(("pre", rounds(optimizer))))
    agent.optimizer.register_step_post_hook(lambda optimizer, args, kwargs: seen.append(("post", rounds(optimizer))))
    agent.step(0)
    assert seen == [("pre", 0), ("post", 1)]


def rounds(optimizer: Optimizer) -> int:
    assert isinstance(optimizer, DistributedLookahead)
    return optimizer.stack.bound[0].rounds


def test_state_dict_hooks_run_and_may_change_the_state() -> None:
    agent, seen = one_agent(), []
    agent.optimizer.register_state_dict_pre_hook(lambda optimizer: seen.append("save"))
    agent.optimizer.register_state_dict_post_hook(lambda optimizer, state: {**state, "mine": 1})
    agent.optimizer.register_load_state_dict_pre_hook(
        lambda optimizer, state: {key: value for key, value in state.items() if key != "mine"}
    )
    agent.optimizer.register_load_state_dict_post_hook(lambda optimizer: seen.append("loaded"))
    state = agent.optimizer.state_dict()
    assert state["mine"] == 1
    agent.optimizer.load_state_dict(state)
    assert seen == ["save", "loaded"]


def test_a_closure_is_evaluated_and_its_loss_returned() -> None:
    agent, other = one_agent(), one_agent()
    for step in range(5):
        loss = agent.optimizer.step(lambda step=step: agent.backward(step).item())
        assert loss == other.backward(step).item()
        other.optimizer.step()
    assert same(agent.state(), other.state())


def test_a_closure_at_learning_rate_zero_counts() -> None:
    """Its gradients do not exist before the step, so that it looks like a checkpoint's probe."""
    agent = one_agent()
    agent.optimizer.param_groups[0]["lr"] = 0.0
    agent.optimizer.step(lambda: agent.backward(0).item())
    assert agent.optimizer.stack.clock == 1


def test_lbfgs_is_lookahead_over_lbfgs() -> None:
    def closure(w: Tensor, optimizer: Optimizer) -> float:
        optimizer.zero_grad()
        loss = ((w**2 - torch.tensor([1.0, 2.0, 3.0])) ** 2).sum()
        loss.backward()
        return loss.item()

    ours, theirs = (nn.Parameter(torch.tensor([3.0, -1.0, 0.5])) for _ in range(2))
    shell, plain = DistributedLookahead(LBFGS([ours], max_iter=2), lookahead(2)), LBFGS([theirs], max_iter=2)
    z = theirs.detach().clone()
    for step in range(1, 5):
        shell.step(lambda: closure(ours, shell))
        plain.step(lambda: closure(theirs, plain))
        if step % 2 == 0:
            z = z + 0.5 * (theirs.detach() - z)
            with torch.no_grad():
                theirs.copy_(z)
        torch.testing.assert_close(ours, theirs)


def test_tau_counts_optimizer_steps_under_gradient_accumulation() -> None:
    agent = one_agent(lookahead(2))
    for micro in range(6):
        agent.backward(micro)
        if micro % 3 == 2:
            agent.optimizer.step()
            agent.optimizer.zero_grad()
    assert (agent.optimizer.stack.clock, rounds(agent.optimizer)) == (2, 1)
