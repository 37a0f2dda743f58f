"""torch.distributed.checkpoint: its step with zero rates, to see an optimizer's state, is no training step."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from digits_training import Agent, make_agents, same, train
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from dist_lookahead import slowmo

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),  # torch's own use of it
]
FASTS = ["sgd", "momentum", "adam"]


def agent_with(fast: str, seed: int = 0, delay: int = 0) -> Agent:
    (agent,) = make_agents(1, slowmo(3, beta=0.6, delay=delay), fast=fast, seed=seed)
    return agent


def decayed(agent: Agent, steps: range) -> None:
    for step in steps:
        agent.optimizer.param_groups[0]["lr"] = 0.05 * 0.7**step
        train([agent], [step])


@pytest.mark.parametrize("fast", FASTS)
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_asking_for_the_state_advances_nothing(fast: str, steps: int) -> None:
    """A counted probe would move every later sync of this agent: the others would wait for ever."""
    agent, untouched = agent_with(fast), agent_with(fast)
    for one in (agent, untouched):
        decayed(one, range(steps))
        one.optimizer.zero_grad()
    get_optimizer_state_dict(agent.model, agent.optimizer)
    assert agent.optimizer.stack.clock == steps
    decayed(agent, range(steps, 8))
    decayed(untouched, range(steps, 8))
    if (fast, steps) != ("adam", 0):  # torch leaves any Adam one step older than new
        assert same(agent.model.state_dict(), untouched.model.state_dict())


@pytest.mark.parametrize("fast", FASTS)
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_state_goes_through_the_two_standard_keys_and_the_stack(fast: str, steps: int) -> None:
    agent = agent_with(fast)
    decayed(agent, range(steps))
    standard: dict[str, Any] = get_optimizer_state_dict(agent.model, agent.optimizer)
    weights, standard, levels = copy.deepcopy((agent.model.state_dict(), standard, agent.optimizer.stack.state_dict()))
    resumed = agent_with(fast, seed=5)
    resumed.model.load_state_dict(weights)
    set_optimizer_state_dict(resumed.model, resumed.optimizer, standard)
    resumed.optimizer.stack.load_state_dict(levels)
    decayed(agent, range(steps, 8))
    decayed(resumed, range(steps, 8))
    assert same(resumed.state(), agent.state())


@pytest.mark.parametrize("fast", FASTS)
@pytest.mark.parametrize(("steps", "delay"), [(2, 0), (4, 0), (4, 2), (5, 2)])
def test_saved_and_loaded_from_files_into_a_fresh_pair(tmp_path: Path, fast: str, steps: int, delay: int) -> None:
    """Breaks if something of the stack's state has no place in a fresh stack's: it is silently not restored."""
    agent = agent_with(fast, delay=delay)
    decayed(agent, range(steps))

    def parts(one: Agent) -> dict[str, Any]:
        return {
            "model": one.model.state_dict(),
            "optim": get_optimizer_state_dict(one.model, one.optimizer),
            "levels": one.optimizer.stack,
        }

    dcp.save(parts(agent), checkpoint_id=tmp_path, no_dist=True)
    resumed = agent_with(fast, seed=5, delay=delay)
    loading = parts(resumed)
    dcp.load(loading, checkpoint_id=tmp_path, no_dist=True)
    resumed.model.load_state_dict(loading["model"])
    set_optimizer_state_dict(resumed.model, resumed.optimizer, loading["optim"])
    assert resumed.optimizer.stack.clock == steps
    decayed(agent, range(steps, 8))
    decayed(resumed, range(steps, 8))
    assert same(resumed.state(), agent.state())


def test_a_probe_in_the_middle_of_a_training_leaves_no_trace() -> None:
    """As the library makes it: rates 0, gradients zero or none, step."""
    agent, untouched = agent_with("sgd"), agent_with("sgd")
    for one in (agent, untouched):
        decayed(one, range(2))
    for gradient in (0.0, None):
        for parameter in agent.model.parameters():
            parameter.grad = None if gradient is None else torch.zeros_like(parameter)
        (group,) = agent.optimizer.param_groups
        rate, group["lr"] = group["lr"], 0.0
        agent.optimizer.step()
        group["lr"] = rate
    decayed(agent, range(2, 8))
    decayed(untouched, range(2, 8))
    assert same(agent.state(), untouched.state())
