"""Sweeps: every point is checked before the first runs, runs once, and goes on after an interruption."""

import fcntl
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from dist_lookahead.train.command import main
from dist_lookahead.train.config import ConfigError
from dist_lookahead.train.config_file import write_yaml
from dist_lookahead.train.sweep_file import load_sweep
from dist_lookahead.train.sweep_results import folder_of
from tests.launching import interrupt, run
from tests.training import differences, final_states, small_config, train
from tests.training import folder_of as folder_of_run

LIMIT = pytest.mark.timeout(240)


def written(folder: Path, **sections: Any) -> Path:
    """A sweep over a small run on the digits."""
    plain = {"name": "sweep", "dir": str(folder), "base": small_config(folder).resolved(), **sections}
    file = folder / "sweep.yaml"
    file.write_text(write_yaml(plain), encoding="utf-8")
    return file


def faults(file: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load_sweep(file)
    return "\n".join(error.value.faults)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "sweep" / "table.jsonl").read_text().splitlines()]


def test_a_grid_is_a_product_and_points_have_settings_of_their_own(tmp_path: Path) -> None:
    points = [
        {"name": "A", "grid": {"levels.tau": [2, 4]}},
        {"name": "B", "agents": 2, "levels": {"recipe": "local_sgd", "tau": 3}},
    ]
    _, found = load_sweep(written(tmp_path, grid={"run.seed": [0, 1], "inner.lr": [0.1]}, points=points))
    assert [point.label for point in found] == [
        "A, levels.tau=2, inner.lr=0.1, run.seed=0",
        "A, levels.tau=2, inner.lr=0.1, run.seed=1",
        "A, levels.tau=4, inner.lr=0.1, run.seed=0",
        "A, levels.tau=4, inner.lr=0.1, run.seed=1",
        "B, inner.lr=0.1, run.seed=0",
        "B, inner.lr=0.1, run.seed=1",
    ]
    last = found[-1].config
    assert (last.agents, last.run.seed, last.inner.options["lr"], last.levels.recipe) == (2, 1, 0.1, "local_sgd")


def test_the_base_is_looked_for_beside_the_sweep_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(small_config(tmp_path).to_yaml())
    _, (point,) = load_sweep(written(tmp_path, base="base.yaml", grid={"run.seed": [7]}))
    assert point.config.run.seed == 7


def test_settings_of_all_points_give_way_to_those_of_a_point(tmp_path: Path) -> None:
    points = [{"name": "A"}, {"name": "B", "run.steps": 7}]
    _, found = load_sweep(written(tmp_path, set={"run.steps": 5}, points=points))
    assert [point.config.run.steps for point in found] == [5, 7]


def test_a_point_has_the_name_of_its_training(tmp_path: Path) -> None:
    """Results must not be taken for those of another setting, whatever has changed in the file."""

    def names(**sections: Any) -> list[str]:
        return [point.config.run.name for point in load_sweep(written(tmp_path, **sections))[1]]

    both = names(grid={"levels.tau": [2, 4]})
    assert len(set(both)) == 2
    assert names(grid={"levels.tau": [4]}) == both[1:]
    assert names(grid={"levels.tau": [4]}, base=small_config(tmp_path, run={"steps": 14}).resolved()) != both[1:]


def test_all_faults_of_all_points_are_said_before_anything_runs(tmp_path: Path) -> None:
    points = [
        {"name": "A", "levels.tua": 3},
        {"name": "B", "run.seed": 2, "agents": 0},
        {"name": "C", "base": "gone.yaml"},
        {"name": "D", "run.name": "mine"},
        {"name": "E", "inner.lr.x": 1},
    ]
    file = written(tmp_path, grid={"run.seed": [0, 1]}, points=points)
    said = faults(file)
    assert "A, run.seed=0 and 1 more: levels.tua is unknown; did you mean 'tau'?" in said
    assert "B: run.seed is given twice" in said
    assert "agents=0 must be at least 1" in said
    assert "gone.yaml does not exist" in said
    assert "D, run.seed=0 and 1 more: run.name has no effect" in said
    assert "inner.lr=0.05 holds no x" in said
    assert main(["sweep", str(file)]) == 2
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"grid": {"run.seed": [1, 1]}}, "grid.run.seed: 1 is there twice"),
        ({"grid": {"run.seed": []}}, "at least 1 item"),
        ({"base": None}, "base is missing"),
        ({"set": {"agents": 1}, "grid": {"agents": [1, 2]}}, "agents is given twice"),
        ({"points": [{"name": "A"}, {"name": "B"}]}, "B: the same run as A"),
        ({"gird": {}}, "gird is unknown; did you mean 'grid'?"),
        ({"threads": 0}, "threads=0 must be at least 1"),
    ],
)
def test_a_fault_of_the_file_is_said(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in faults(written(tmp_path, **sections))


@LIMIT
def test_every_point_is_the_run_that_train_makes_and_the_table_says_mean_and_spread(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, grid={"run.seed": [0, 1]}, points=[{"name": "two", "agents": 2}])
    assert main(["sweep", str(file), "--jobs", "2"]) == 0
    shown = capfd.readouterr().out
    assert "[2/2] two" in shown
    assert (tmp_path / "sweep" / "table.md").read_text().strip() in shown
    _, points = load_sweep(file)
    alone = small_config(tmp_path / "alone", agents=2)
    outcome = train(alone)
    for a, b in zip(final_states(folder_of_run(alone), 2), final_states(folder_of(points[0]), 2), strict=True):
        assert list(differences(a, b)) == []
    first, second = lines(tmp_path)
    assert first["state"] == "finished"
    assert first["test_loss"] == outcome.metrics["slow"]["loss"]
    assert (first["steps"], first["syncs"]) == (13, 4)
    assert first["bytes_sent"] == pytest.approx(outcome.bytes_sent, rel=0.01), "the command agrees on a folder besides"
    mean = 50 * (first["test_accuracy"] + second["test_accuracy"])
    spread = abs(first["test_accuracy"] - second["test_accuracy"]) * 100 / 2**0.5
    assert "| two | 2 | " in shown
    assert f"{mean:.2f} ± {spread:.2f} %" in shown
    assert main(["compare", str(tmp_path / "sweep"), "--out", str(tmp_path / "comparison")]) == 0
    assert list(json.loads((tmp_path / "comparison" / "comparison.json").read_text())["loss"]) == ["two"]


@LIMIT
def test_an_interrupted_sweep_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    """Also a run that was stopped in its middle ends with the bits of one that was not."""
    sections = {
        "agents": 2,
        "run": {"steps": 800},
        "checkpoint": {"every": 50},
        "evaluation": {"every": 200},
        "logging": {"progress": "plain"},
    }
    long = small_config(tmp_path, **sections).resolved()
    points = [{"name": "short", "run.steps": 12}, {"name": "long"}]
    file = written(tmp_path, base=long, points=points)
    _, (short, middle) = load_sweep(file)

    def in_the_middle_of_the_second() -> bool:
        return bool(list(folder_of(middle).glob("checkpoints/step-*/agent-1-*.pt")))

    status, shown = interrupt(
        ["sweep", str(file), "--jobs", "1"], when=in_the_middle_of_the_second, signum=signal.SIGTERM
    )
    assert status == 128 + signal.SIGTERM, shown
    assert "1 of 2 points are finished. Go on with the same command" in shown
    before = {path: path.stat().st_mtime_ns for path in folder_of(short).rglob("*")}
    assert [line["state"] for line in lines(tmp_path)] == ["finished", "unfinished"]
    again = run(["sweep", str(file)])
    assert again.returncode == 0, again.stdout
    assert "2 points, 1 finished before" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder_of(short).rglob("*")} == before
    assert "going on after step" in (tmp_path / "sweep" / "points" / f"{middle.config.run.name}.log").read_text()
    whole = small_config(tmp_path / "whole", **{**sections, "run": {"steps": 800, "dir": str(tmp_path / "whole")}})
    train(whole)
    for a, b in zip(final_states(folder_of_run(whole), 2), final_states(folder_of(middle), 2), strict=True):
        assert list(differences(a, b)) == []
    third = run(["sweep", str(file)])
    assert "2 points, 2 finished before" in third.stdout


@LIMIT
def test_a_point_that_fails_is_shown_and_does_not_stop_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    imagefolder = {"name": "mnist", "path": str(tmp_path / "nowhere"), "batch_size": 8}
    points = [{"name": "no data", "data": imagefolder}, {"name": "diverges", "inner.lr": 1e30}, {"name": "fine"}]
    file = written(tmp_path, points=points)
    assert main(["sweep", str(file), "--jobs", "1"]) == 1
    shown = capfd.readouterr().out
    assert "no data failed with exit status 2; its last lines:\n" in shown
    assert "nowhere" in shown
    assert "diverges: diverged: the loss is" in shown
    assert "| diverges | 1 (1 diverged) |" in shown
    assert [line["state"] for line in lines(tmp_path)] == ["unfinished", "diverged", "finished"]
    assert main(["sweep", str(file)]) == 1, "what failed is tried again"
    assert "3 points, 2 finished before" in capfd.readouterr().out


def test_a_folder_with_another_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, grid={"run.seed": [0]})
    _, (point,) = load_sweep(file)
    other = small_config(folder_of(point).parent, run={"name": point.config.run.name, "steps": 9})
    train(other)
    assert main(["sweep", str(file)]) == 2
    assert "holds another run" in capsys.readouterr().err


def test_two_sweeps_do_not_work_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, grid={"run.seed": [0]})
    (tmp_path / "sweep").mkdir()
    with (tmp_path / "sweep" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["sweep", str(file)]) == 2
    assert "are at work in" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "message"), [(["--jobs", "0"], "--jobs=0 must be at least 1")])
def test_bad_options_are_refused(
    option: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(written(tmp_path, grid={"run.seed": [0]})), *option]) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_under_torchrun_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runs would join the agents of one another."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sweep", str(written(tmp_path))]) == 2
    assert "leave out torchrun" in capsys.readouterr().err
