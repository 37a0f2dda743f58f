"""Agents that torchrun starts again after a fault go on in their folder by themselves."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from dist_lookahead.train import restart
from dist_lookahead.train.outcome import write_divergence
from dist_lookahead.train.restart import Launcher, run_to_go_on
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.start import own_folder
from dist_lookahead.train.world import World
from tests.launching import launched, run_module
from tests.processes import run_processes
from tests.training import differences, final_states, records, small_config, train

pytestmark = pytest.mark.timeout(240)


def test_a_run_whose_agent_is_killed_ends_with_the_same_bits_in_one_folder(tmp_path: Path) -> None:
    """Breaks if the agents that are started again begin a folder of their own, or begin anew."""
    config = small_config(tmp_path / "killed")
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    place = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    dying = ["2", "1", str(tmp_path / "died"), "1", "7"]
    done = run_module("tests.restarting", [*dying, "train", str(file)], places=[place])
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "died").exists()
    assert [folder.name for folder in (tmp_path / "killed").iterdir()] == ["small"]
    assert "torchrun has started this run again: it goes on in" in done.stdout
    train(small_config(tmp_path / "whole", agents=2))
    killed, whole = (final_states(tmp_path / name / "small", 2) for name in ("killed", "whole"))
    assert list(differences(killed, whole)) == []
    assert records(tmp_path / "killed" / "small") == records(tmp_path / "whole" / "small")


def enter(folders: list[Path], job: str | None, fails: bool) -> tuple[str, bool]:
    """Begin a run as torchrun's agents do; the process that has started this one starts those of other lives too."""
    if job is not None:
        os.environ["TORCHELASTIC_RUN_ID"] = job
    world = World([ProcessGroupCommunicator()], torch.device("cpu"))
    config = small_config(folders[dist.get_rank()])
    with own_folder(config, world, resume=False) as directory:
        if fails and world.leads:
            write_divergence(directory, "of this test")
        return directory.path.name, directory.goes_on


def life(*folders: Path, job: str | None = "a job", fails: bool = False) -> tuple[str, bool]:
    """Return the name of the folder that all agents enter, and whether a run goes on there."""
    (entered,) = set(run_processes(enter, len(folders), list(folders), job, fails))
    return entered


def test_only_a_job_that_is_started_again_goes_on(tmp_path: Path) -> None:
    """Before the first checkpoint too; breaks if another job, or one without torchrun, is taken for the same."""
    assert life(tmp_path, tmp_path) == ("small", False)
    assert life(tmp_path, tmp_path) == ("small", True)
    assert life(tmp_path, tmp_path, job="another") == ("small-2", False)
    assert life(tmp_path, tmp_path, job="another", fails=True) == ("small-2", True)
    assert life(tmp_path, tmp_path, job="another") == ("small-2", True), "a run that failed is tried again"
    assert life(tmp_path, tmp_path, job=None) == ("small-3", False)
    assert life(tmp_path, tmp_path) == ("small", True)
    outcome = RunDirectory(tmp_path / "small").outcome
    outcome.write_text('{"state": "finished"}', encoding="utf-8")
    assert life(tmp_path, tmp_path) == ("small-4", False), "a run that has ended is not begun again"


def test_one_agent_that_knows_is_enough(tmp_path: Path) -> None:
    """Nodes may be replaced, and the new one may be that of agent 0."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert life(first, second) == ("small", False)
    (third / "small").mkdir(parents=True)  # agent 0 would choose small-2
    assert life(third, second) == ("small", True)


def test_marks_of_processes_that_have_ended_go(tmp_path: Path) -> None:
    """Breaks if a folder that is resumed often fills with them, or if those of other machines are taken for ended."""
    here = Launcher("a job", "here", "boot", os.getpid(), restart._start_of(os.getpid()) or "")
    others = [
        Launcher("a job", "here", "an earlier boot", here.process, here.started),
        Launcher("a job", "here", "boot", os.getpid(), "0"),  # whose number was given to another process
        Launcher("a job", "there", "boot", os.getpid(), "0"),
        Launcher("another job", "here", "boot", here.process, here.started),
    ]
    for launcher in [*others, here]:
        launcher.leave_mark(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {others[2].mark, others[3].mark, here.mark}


@pytest.mark.parametrize("name", ["../small", "other", "small-2/x"])
def test_agents_cannot_send_others_to_a_folder_that_is_not_the_runs(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="those of this run are small, small-2"):
        run_to_go_on(small_config(tmp_path), ["", f"{name} unfinished"])


@pytest.mark.parametrize(
    ("told", "folder"),
    [
        (["", ""], ""),
        (["", "small unfinished"], "small"),
        (["small-2 unfinished", "small-10 diverged", "small-9 finished"], "small-10"),
        (["small-2 unfinished", "small-2 finished", ""], ""),
    ],
)
def test_the_newest_folder_that_any_agent_knows_is_taken(told: list[str], folder: str, tmp_path: Path) -> None:
    assert run_to_go_on(small_config(tmp_path), told) == folder


def test_the_start_of_a_process_is_found_behind_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program's name may hold what looks like the end of it."""
    fields: list[Any] = ["S", *range(4, 22), 424242, *range(23, 53)]
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(f"7 (a) S (b 1 2) {' '.join(map(str, fields))}\n")
    monkeypatch.setattr(restart, "PROC", tmp_path)
    assert restart._start_of(7) == "424242"
    assert restart._start_of(8) is None


@pytest.mark.parametrize(("given", "restarts"), [({}, "0"), ({"RESTARTS": "3"}, "3")])
def test_launchers_let_torchrun_start_agents_again(given: dict[str, str], restarts: str, tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "many"):
        folder.mkdir()
    many = {"RENDEZVOUS": "host:29400", "NODES": "2:4", "AGENTS": "1", **given}
    local = launched("local.sh", ["2", "run.yaml"], tmp_path / "one", **given)
    nodes = launched("multinode.sh", ["run.yaml"], tmp_path / "many", **many)
    for seen in (local, nodes):
        assert seen[seen.index("--max-restarts") + 1] == restarts
    assert nodes[nodes.index("--nnodes") + 1] == "2:4"
