"""Runs that go on without agents that are killed or stand still, in the same processes, from the same file."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_lookahead.survivors.agents import TOKEN
from dist_lookahead.train.config_file import write_yaml
from dist_lookahead.train.recorder import read_metrics
from dist_lookahead.train.run_directory import RunDirectory
from tests.launching import environment, free_port, run, running, wait_until
from tests.processes import DEVICES
from tests.training import small_config

LIMIT = pytest.mark.timeout(150)
GOING_ON = {"agents": "elastic", "on_lost_agent": "continue", "timeout": 60.0}


def written(folder: Path, device: str = "cpu") -> Path:
    config = small_config(
        folder,
        agents=1,
        run={"epochs": 10_000, "steps": None, "device": device},
        checkpoint={"every": 1000},
        inner={"name": "SGD", "lr": 0.02, "momentum": 0.9},
        evaluation={"every": 5, "unit": "epochs"},
        faults=GOING_ON,
    )
    file = folder / "run.yaml"
    file.write_text(write_yaml(config.resolved()), encoding="utf-8")
    return file


def directory(folder: Path) -> RunDirectory:
    return RunDirectory(folder / "small")


def members(launcher: int) -> list[int]:
    """Processes of the agents, in the order of their start."""
    return [int(number) for number in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def disturbed(folder: Path, device: str, disturb: Callable[[list[int]], None]) -> str:
    """Start three agents, disturb them after the first syncs, and end them by a signal."""
    train = ["-m", "dist_lookahead", "train"]
    command = [sys.executable, "-m", "dist_lookahead", "launch", "--agents", "3", "--rejoin", "1", *train]
    metrics, output = directory(folder).metrics, folder / "output"
    command.append(str(written(folder, device)))
    own = {**environment(), "NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_SOCKET_IFNAME": "lo"}
    with (
        output.open("w") as file,
        subprocess.Popen(command, env=own, stdout=file, stderr=file) as launcher,
    ):
        try:
            wait_until(lambda: metrics.exists() and metrics.read_text().count('"sync"') > 4)
            disturb(members(launcher.pid))
            launcher.send_signal(signal.SIGTERM)
            assert launcher.wait(40) == 128 + signal.SIGTERM, output.read_text()
        finally:
            for process in members(launcher.pid) if launcher.poll() is None else []:
                os.kill(process, signal.SIGKILL)
            launcher.kill()
    return output.read_text()


def changes(folder: Path) -> list[tuple[int, int]]:
    records = [record for record in read_metrics(directory(folder).metrics) if record["kind"] == "agents"]
    return [(record["before"], record["agents"]) for record in records]


def recorded(folder: Path, kind: str) -> list[int]:
    return [record["step"] for record in read_metrics(directory(folder).metrics) if record["kind"] == kind]


@LIMIT
@DEVICES
def test_a_run_goes_on_with_those_that_are_there(tmp_path: Path, device: str) -> None:
    """Its first agent is killed, which keeps the records; another stands still for a while; a new one joins."""

    def kill_and_halt(agents: list[int]) -> None:
        os.kill(agents[0], signal.SIGKILL)
        wait_until(lambda: changes(tmp_path) == [(3, 2)])
        os.kill(agents[1], signal.SIGSTOP)
        wait_until(lambda: len(changes(tmp_path)) > 1)
        time.sleep(0.2)
        os.kill(agents[1], signal.SIGCONT)
        wait_until(lambda: changes(tmp_path)[-1][1] == 3)

    output = disturbed(tmp_path, device, kill_and_halt)
    assert "with 2 agents; lost: agent-0; new: none" in output
    assert re.search(r"with [12] agents; lost: agent-1; new: ", output)
    assert re.search(r"lost: none; new: .*agent-1", output)
    assert re.search(r"lost: none; new: .*agent-0\+1", output)
    stopped = re.search(r"Stopped by signal 15 at the sync after fast step (\d+), which is saved", output)
    assert stopped, output
    syncs = recorded(tmp_path, "sync")
    assert syncs == sorted(set(syncs))
    files = (tmp_path / "small" / "checkpoints" / f"step-{int(stopped[1]):08}").iterdir()
    assert sorted(path.name.rpartition("-")[0] for path in files) == [f"agent-{rank}-of-3" for rank in range(3)]


@LIMIT
def test_a_node_goes_on_without_the_other_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is left there to say that its agents have ended; breaks if those here, or their launcher, wait for it."""
    monkeypatch.setenv(TOKEN, "of this test")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    launch = ["launch", "--agents", "1", "--nodes", "2", "--store", f"127.0.0.1:{free_port()}", "--node"]
    module, train = "tests.impatient", ["-m", "tests.impatient", "train", str(written(tmp_path))]
    with (
        running(module, [*launch, "0", *train]) as ([first], output),
        running(module, [*launch, "1", *train]) as ([second], _),
    ):
        metrics = directory(tmp_path).metrics
        wait_until(lambda: metrics.exists() and metrics.read_text().count('"sync"') > 4)
        assert first.pid
        assert second.pid
        os.killpg(second.pid, signal.SIGKILL)
        wait_until(lambda: '"kind": "agents"' in metrics.read_text())
        wait_until(lambda: '"sync"' in metrics.read_text().partition('"kind": "agents"')[2])
        os.kill(first.pid, signal.SIGTERM)
        first.join(40)
        said = output.read_text()
        assert first.exitcode == 128 + signal.SIGTERM, said
    assert "with 1 agents; lost: agent-1; new: none" in said
    assert "Stopped by signal 15 at the sync after fast step" in said


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
