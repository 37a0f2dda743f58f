"""Agents that are killed while all evaluate: the evaluation is made up for, and the run goes on, also by --resume."""

import itertools
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dist_lookahead.survivors.agents import NAME
from dist_lookahead.train.agent import Agent
from dist_lookahead.train.checkpoint import CheckpointStore
from dist_lookahead.train.command import main
from tests.surviving import started
from tests.training import differences, records, small_config

pytestmark = pytest.mark.timeout(90)


LAST = 24  # fast step
AGENTS = {"agents": "elastic", "on_lost_agent": "continue", "timeout": 20}


def train(arguments: Sequence[str], victim: str, evaluation: int | None, step: int | None) -> None:
    """Be one agent of a run file; the victim kills itself in an evaluation of that number, or before a fast step."""
    evaluate, backward, evaluations = Agent.evaluate, Agent.backward, itertools.count(1)

    def die_if(due: bool) -> None:
        if due and os.environ[NAME] == victim:
            os.kill(os.getpid(), signal.SIGKILL)

    def evaluate_or_die(self: Agent) -> dict[str, float]:
        sums = evaluate(self)
        die_if(next(evaluations) == evaluation)  # the others wait for its sums
        return sums

    def backward_or_die(self: Agent, factor: float) -> None:
        die_if(self.step + 1 == step)
        backward(self, factor)

    Agent.evaluate, Agent.backward = evaluate_or_die, backward_or_die
    if status := main(["train", *arguments]):
        raise SystemExit(status)


def run(
    folder: Path, *arguments: str, agents: int, victim: str = "", evaluation: int | None = None, step: int | None = None
) -> None:
    """Run to the end, which all but the victim come to."""
    config = small_config(
        folder,
        agents=1,
        run={"steps": LAST},
        evaluation={"every": 8, "unit": "steps", "weights": ["slow", "averaged"]},
        checkpoint={"every": 8},
        faults=AGENTS,
    )
    folder.mkdir(exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    with started(train, agents, [str(file), *arguments], victim, evaluation, step) as there:
        ends = there.end()
    assert ends.pop(victim, -signal.SIGKILL) == -signal.SIGKILL
    assert set(ends.values()) == {0}, ends


def evaluated(folder: Path) -> list[tuple[int, str]]:
    found = [record for record in records(folder / "small") if record["kind"] == "evaluation"]
    return [(record["step"], record["weights"]) for record in found]


def at(*steps: int) -> list[tuple[int, str]]:
    return [(step, weights) for step in steps for weights in ("slow", "averaged")]


def saved(folder: Path, agents: int) -> list[dict[str, Any]]:
    """The newest checkpoint of each agent, beside which there may be older ones of more agents."""
    stores = [CheckpointStore(folder / "small" / "checkpoints", rank, agents, elastic=True) for rank in range(agents)]
    return [store.load(store.steps()[-1]) for store in stores]


def test_an_agent_that_is_killed_in_an_evaluation_is_as_if_killed_after_it(tmp_path: Path) -> None:
    """Agent 0, which keeps the records, in the first one, between slow and averaged weights; resumed with three."""
    in_it, after = tmp_path / "in it", tmp_path / "after"
    run(in_it, agents=3, victim="agent-0", evaluation=2)
    run(after, agents=3, victim="agent-0", step=9)
    assert evaluated(in_it) == at(12, 16, LAST), "given up at 8, made up for at the next sync"
    assert evaluated(after) == at(8, 16, LAST)
    for one, other in zip(saved(in_it, 2), saved(after, 2), strict=True):
        assert list(differences(one["agent"], other["agent"])) == []
    run(in_it, "--resume", "--set", "run.steps=32", agents=3)
    assert evaluated(in_it) == at(12, 16, LAST, 32)
    assert saved(in_it, 3)[0]["eras"] == [[0, 3], [12, 2], [LAST, 3]]


def test_the_last_evaluation_is_made_by_those_that_are_left(tmp_path: Path) -> None:
    """Another one than agent 0 is killed between slow and averaged weights; what is left is resumed with two."""
    run(tmp_path, agents=3, victim="agent-1", evaluation=6)
    assert evaluated(tmp_path) == at(8, 16, LAST), "not recorded by half, and then once more"
    run(tmp_path, "--resume", "--set", "run.steps=32", agents=2)
    assert evaluated(tmp_path)[-2:] == at(32)
    assert saved(tmp_path, 2)[0]["eras"] == [[0, 3], [LAST, 2]]
