"""Agents that differ, drift, or are lost: refused or reported on every agent, with whole weights left behind."""

import copy
import os
import pickle
import re
import signal
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from digits_training import FAST, make_agent, make_agents, make_model, same, train
from processes import run_processes
from torch import Tensor, nn
from torch.optim import SGD

from dist_lookahead import (
    DistributedLookahead,
    Every,
    Exact,
    Level,
    Pull,
    SyncError,
    distributed_lookahead,
    local_sgd,
    simulate,
    slowmo,
)
from dist_lookahead.comm.communicator import CollectiveError, Communicator, Pending
from dist_lookahead.comm.process_group import ProcessGroupCommunicator, default_communicator

# --- agents that differ


def plain_model(outputs: int = 3, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, outputs)).to(dtype)


def backwards(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())[::-1]


def frozen(outputs: int) -> nn.Module:
    model = plain_model(outputs)
    model.get_submodule("2").requires_grad_(False)
    return model


Built = tuple[nn.Module, list[nn.Parameter], list[Level]]


def built(model: nn.Module, levels: list[Level] | None = None) -> Built:
    return model, list(model.parameters()), levels or local_sgd(3)


DIFFERENT: dict[str, tuple[Callable[[int], Built], str]] = {
    "shape": (
        lambda rank: built(plain_model(3 + rank)),
        r"parameter 2.weight has shape \(3, 5\) .* on agents \[0\]; parameter 2.weight has shape \(4, 5\)",
    ),
    "dtype": (
        lambda rank: built(plain_model(dtype=(torch.float32, torch.float64)[rank])),
        r"parameter 0.weight has .* dtype torch.float32 on agents \[0\]; .* dtype torch.float64 on agents \[1\]",
    ),
    "order": (
        lambda rank: (m := plain_model(), backwards(m) if rank else list(m.parameters()), local_sgd(3)),
        r"0.weight has shape .* on agents \[0\]; parameter 2.bias has shape \(3,\) .* on agents \[1\]",
    ),
    "fewer": (
        lambda rank: (m := plain_model(), list(m.parameters())[: 6 - rank], local_sgd(3)),
        r"parameter 2.bias has .* on agents \[0\]; untrained tensor 2.bias",
    ),
    "tau": (
        lambda rank: built(plain_model(), local_sgd(3 + rank)),
        r"tau=3.* on agents \[0\]; .*tau=4.* on agents \[1\]",
    ),
    "frozen shape": (lambda rank: built(frozen(3 + rank)), r"untrained tensor 2.weight has shape \(3, 5\)"),
}


def build_different() -> dict[str, str]:
    end, said = default_communicator(), {}
    for name, (build, _) in DIFFERENT.items():
        model, parameters, levels = build(end.rank)
        try:
            DistributedLookahead(SGD(parameters, lr=0.1), levels, model=model, communicator=end)
        except ValueError as error:
            said[name] = str(error)
    return said


def test_agents_that_differ_are_refused_on_every_agent() -> None:
    """Over gloo their sums would be wrong, silently, or abort the process."""
    first, second = run_processes(build_different, 2)
    assert first == second
    assert set(first) == set(DIFFERENT)
    for name, (_, message) in DIFFERENT.items():
        assert re.search(f"^agents differ: .*{message}.*Build the same model", first[name])


def test_a_simulated_agent_that_runs_ahead_gets_an_error() -> None:
    agents = make_agents(2, local_sgd(1))
    agents[0].step(0)
    with pytest.raises(RuntimeError, match=r"agent 0 communicates again before agents \[1\] have come"):
        agents[0].step(1)


def test_agents_at_different_steps_are_told_so_and_keep_whole_weights() -> None:
    agents = make_agents(2, distributed_lookahead(3))
    start = copy.deepcopy(dict(agents[0].model.named_parameters()))
    agents[0].step(0)
    agents[0].optimizer.sync()
    with pytest.raises(RuntimeError, match=r"different fast steps: 1 on agents \[0\]; 3 on agents \[1\]"):
        train(agents[1:], range(3))
    for agent in agents:
        assert same(dict(agent.model.named_parameters()), start)


@pytest.mark.parametrize("check_every", [0, 2])
def test_a_corrupted_agent_is_found_and_the_parameter_named(check_every: int) -> None:
    agents = make_agents(2, distributed_lookahead(2), check_every=check_every)
    train(agents, range(2))
    stack = agents[1].optimizer.stack
    (slot,) = (slot for slot in stack.buckets[0].slots if slot.weight.name == "3.weight")
    slot.of(stack.bound[0].slow[0])[2, 3] += 1e-3
    if check_every == 0:
        train(agents, range(2, 4))
        return
    message = r"levels\[0\] after fast step 4: agents hold different weights in 1 of 5 parameters, first '3.weight'"
    with pytest.raises(RuntimeError, match=message):
        train(agents, range(2, 4))


# --- agents that are lost


def lose_the_last(how: str) -> dict[str, Any]:
    end = default_communicator()
    agent = make_agent(end.rank, end, slowmo(2, beta=0.6))
    train([agent], range(2))
    at_sync = copy.deepcopy(dict(agent.model.named_parameters()))
    train([agent], range(2, 3))
    if end.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(6)
    try:
        train([agent], range(3, 4))
    except SyncError as error:
        whole = same(dict(agent.model.named_parameters()), at_sync)
        return {"message": str(error), "absent": list(error.absent), "whole": whole}
    return {"message": "no error"}


@pytest.mark.parametrize("how", ["killed", "late"])
def test_a_lost_agent_is_named_and_the_model_is_back_at_its_slow_weights(how: str) -> None:
    first = run_processes(lose_the_last, 2, how, silence=2.0, may_die=[1])[0]
    assert first["message"].startswith(
        "the sync of levels[0] over axis 'world' after fast step 4 failed on agent 0 of 2: agents [1] did not report; "
        "the model is back at the slow weights of fast step 2. Cause: "
    )
    assert first["absent"] == [1]
    assert first["whole"]


class Cut:
    """A simulated agent's end that breaks at the collective number `at`, when the ones before have done their sums."""

    def __init__(self, end: Any) -> None:
        self.end, self.at, self.done = end, -1, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.end, name)

    def axis(self, name: str) -> "Cut":
        return self

    def run(self, pending: Pending) -> None:
        self.end.run(self._cut(pending))

    def _cut(self, pending: Pending) -> Pending:
        for work in pending:
            self.done += 1
            if self.done == self.at:
                pending.throw(CollectiveError("cut", (1,)))
            yield work


class TwoDtypes(nn.Module):
    """Two buckets, and statistics to average."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = make_model()
        self.extra = nn.Parameter(torch.randn(7, dtype=torch.float64))


def trained_until(fails_at: int) -> tuple[TwoDtypes, DistributedLookahead, SyncError | None]:
    """One of two agents that were cut at a collective of their second sync."""
    levels = [Level(Every(2), Exact(), Pull(0.5, 0.4), "average")]
    ends, models = [Cut(end) for end in simulate(2)], [TwoDtypes(), TwoDtypes()]
    shells = [
        DistributedLookahead(
            FAST["momentum"](model.parameters()), levels, model=model, communicator=cast(Communicator, end)
        )
        for model, end in zip(models, ends, strict=True)
    ]
    for step in range(1, 5):
        for rank, (model, shell) in enumerate(zip(models, shells, strict=True)):
            if step == 4:
                ends[rank].done, ends[rank].at = 0, fails_at
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.1 * (step + rank))
            try:
                shell.step()
            except SyncError as error:
                return model, shell, error
    return models[1], shells[1], None


def slow_state(shell: DistributedLookahead) -> list[dict[str, Any]]:
    return [{key: level[key] for key in ("slow", "momentum", "last", "rounds", "due")} for level in _levels(shell)]


def _levels(shell: DistributedLookahead) -> list[dict[str, Any]]:
    return shell.state_dict()["levels"]["levels"]


def test_a_sync_is_all_or_nothing_wherever_it_is_cut() -> None:
    """Breaks if some bucket, the momentum or a counter moves before all buckets have arrived, or after the count."""
    _, whole, none = trained_until(fails_at=0)
    assert none is None
    moved = slow_state(whole)
    before: list[dict[str, Any]] | None = None
    lasts = []
    for fails_at in range(1, 50):
        model, shell, error = trained_until(fails_at)
        if error is None:
            break
        state = slow_state(shell)
        before = before or state
        assert same(state, before) or same(state, moved)
        lasts.append(state[0]["last"])
        assert f"the model is back at the slow weights of fast step {lasts[-1]}" in str(error)
        for parameter, slow in zip(model.parameters(), ordered(shell, model), strict=True):
            assert torch.equal(parameter, slow)
    assert lasts == sorted(lasts)
    assert set(lasts) == {2, 4}


def ordered(shell: DistributedLookahead, model: nn.Module) -> list[Tensor]:
    return [_levels(shell)[0]["slow"][name] for name, _ in model.named_parameters()]


def test_the_error_of_a_lost_agent_can_be_sent_to_another_process() -> None:
    again = pickle.loads(pickle.dumps(SyncError("lost", (3,))))
    assert (str(again), again.absent) == ("lost", (3,))


def test_processes_without_a_group_are_told_to_make_one() -> None:
    assert not dist.is_initialized()
    with pytest.raises(ValueError, match=r"no process group: call torch.distributed.init_process_group first"):
        ProcessGroupCommunicator()
