"""Runs that go on without agents that are killed or stand still, in the same processes, from the same file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_lookahead.train.config_file import write_yaml
from dist_lookahead.train.outcome import read_outcome
from dist_lookahead.train.recorder import read_metrics
from dist_lookahead.train.run_directory import RunDirectory
from tests.launching import environment, run, wait_until
from tests.training import small_config

LIMIT = pytest.mark.timeout(100)
GOING_ON = {"agents": "elastic", "on_lost_agent": "continue", "timeout": 3.0}


def written(folder: Path, **faults: Any) -> Path:
    config = small_config(
        folder,
        agents=1,
        run={"epochs": 30, "steps": None},
        checkpoint={"every": 50},
        inner={"name": "SGD", "lr": 0.02, "momentum": 0.9},
        evaluation={"every": 5, "unit": "epochs"},
        faults={**GOING_ON, **faults},
    )
    file = folder / "run.yaml"
    file.write_text(write_yaml(config.resolved()), encoding="utf-8")
    return file


def directory(folder: Path) -> RunDirectory:
    return RunDirectory(folder / "small")


def members(launcher: int) -> list[int]:
    """Processes of the agents, in the order of their start."""
    return [int(number) for number in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def disturbed(folder: Path, disturb: Callable[[list[int]], None]) -> str:
    """Start three agents, disturb them after the first syncs, and wait for the end."""
    command = [sys.executable, "-m", "dist_lookahead", "launch", "--agents", "3", "-m", "dist_lookahead", "train"]
    metrics, output = directory(folder).metrics, folder / "output"
    with (
        output.open("w") as file,
        subprocess.Popen([*command, str(written(folder))], env=environment(), stdout=file, stderr=file) as launcher,
    ):
        try:
            wait_until(lambda: metrics.exists() and metrics.read_text().count('"sync"') > 4)
            disturb(members(launcher.pid))
            assert launcher.wait(60) == 0, output.read_text()
        finally:
            for process in members(launcher.pid) if launcher.poll() is None else []:
                os.kill(process, signal.SIGKILL)
            launcher.kill()
    return output.read_text()


def changes(folder: Path) -> list[tuple[int, int]]:
    records = [record for record in read_metrics(directory(folder).metrics) if record["kind"] == "agents"]
    return [(record["before"], record["agents"]) for record in records]


def require_a_whole_run(folder: Path, epochs: float) -> None:
    """It has come to its end, and recorded each step once, in order."""
    records = list(read_metrics(directory(folder).metrics))
    syncs = [record["step"] for record in records if record["kind"] == "sync"]
    assert syncs == sorted(set(syncs))
    assert records[-1]["kind"] == "evaluation"
    assert epochs <= records[-1]["epoch"] < epochs + 0.1
    assert records[-1]["accuracy"] > 0.9
    outcome = read_outcome(directory(folder))
    assert outcome is not None
    assert outcome["state"] == "finished"


@LIMIT
def test_a_run_goes_on_without_an_agent_that_stands_still_with_it_again_and_without_its_first(tmp_path: Path) -> None:
    def halt_then_kill(agents: list[int]) -> None:
        os.kill(agents[1], signal.SIGSTOP)
        wait_until(lambda: changes(tmp_path) == [(3, 2)])
        time.sleep(0.2)
        os.kill(agents[1], signal.SIGCONT)
        wait_until(lambda: len(changes(tmp_path)) == 2)
        os.kill(agents[0], signal.SIGKILL)  # which keeps the records

    output = disturbed(tmp_path, halt_then_kill)
    assert "with 2 agents; lost: agent-1; new: none" in output
    assert "with 3 agents; lost: none; new: agent-1" in output
    assert "with 2 agents; lost: agent-0; new: none" in output
    assert changes(tmp_path) == [(3, 2), (2, 3), (3, 2)]
    require_a_whole_run(tmp_path, epochs=30)
    steps = sorted((tmp_path / "small" / "checkpoints").iterdir())
    assert sorted(path.name.rpartition("-")[0] for path in steps[-1].iterdir()) == ["agent-0-of-2", "agent-1-of-2"]


def test_who_starts_it_otherwise_is_told_how(tmp_path: Path) -> None:
    file = written(tmp_path)
    alone = run(["train", str(file)])
    assert alone.returncode == 2
    assert "start them with `dist-lookahead launch --agents N -m dist_lookahead train FILE`" in alone.stdout
    fixed = run(["train", str(file), "--set", "faults.agents=fixed"])
    assert "faults.on_lost_agent='continue' with faults.agents='fixed'" in fixed.stdout
    restart = run(["train", str(file), "--set", "faults.on_lost_agent=restart"])
    assert "faults.on_lost_agent='restart' needs torchrun with --max-restarts of at least 1" in restart.stdout
    assert not directory(tmp_path).path.exists()
    assert restart.returncode == fixed.returncode == 2
