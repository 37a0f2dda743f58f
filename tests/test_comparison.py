"""Comparisons: who repeats whom, and means and spreads that are those of the records."""

import json
import math
import shutil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from dist_lookahead.train.command import main
from dist_lookahead.train.outcome import write_outcome
from dist_lookahead.train.recorder import read_metrics
from dist_lookahead.train.run_directory import RunDirectory
from tests.training import folder_of, small_config, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of each of two learning rates."""
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for lr in (0.05, 0.1):
        for seed in (0, 1):
            config = small_config(
                folder, run={"name": f"lr{lr}-{seed}", "seed": seed}, inner={"name": "SGD", "lr": lr}, agents=2
            )
            write_outcome(RunDirectory(folder_of(config)), train(config))
            made.append(folder_of(config))
    return made


def compare(runs: list[Path], out: Path, *options: str) -> dict[str, Any]:
    assert main(["compare", *map(str, runs), "--out", str(out), *options]) == 0
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((out / "comparison.json").read_text(encoding="utf-8"))


def recorded(run: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == kind]


def test_runs_that_differ_in_seed_only_are_one_curve_with_spread(runs: list[Path], tmp_path: Path) -> None:
    numbers = compare(runs, tmp_path)
    assert list(numbers) == ["x", "loss", "test_loss", "test_accuracy"]
    assert list(numbers["loss"]) == ["lr0.05-0, inner.lr=0.05", "lr0.1-0, inner.lr=0.1"]
    for name, kind, key in (("loss", "sync", "loss"), ("test_accuracy", "evaluation", "accuracy")):
        curve = numbers[name]["lr0.05-0, inner.lr=0.05"]
        pairs = list(zip(*(recorded(run, kind) for run in runs[:2]), strict=True))
        assert curve["x"] == [one["step"] for one, _ in pairs]
        assert curve["mean"] == pytest.approx([fmean(r[key] for r in pair) for pair in pairs], rel=1e-5)
        assert curve["spread"] == pytest.approx([stdev(r[key] for r in pair) for pair in pairs], rel=1e-5)


@pytest.mark.parametrize(("x", "key"), [("epochs", "epoch"), ("seconds", "seconds"), ("bytes", "bytes_sent")])
def test_curves_are_drawn_against_what_a_run_has_spent(x: str, key: str, runs: list[Path], tmp_path: Path) -> None:
    curve = compare(runs[:2], tmp_path, "--x", x, "--y", "test_loss")["test_loss"]["lr0.05-0"]
    pairs = zip(*(recorded(run, "evaluation") for run in runs[:2]), strict=True)
    assert curve["x"] == pytest.approx([fmean(r[key] for r in pair) for pair in pairs], rel=1e-5)
    assert curve["x"] == sorted(curve["x"])
    assert curve["x"][-1] > 0


def test_seconds_are_those_of_all_rounds(runs: list[Path]) -> None:
    spent = 0.0
    for record in recorded(runs[0], "sync"):
        spent += record["seconds_compute"] + record["seconds_sync"]
        # a checkpoint in mid-round begins the measurement of the round anew, that of the run goes on
        assert record["seconds"] >= spent * (1 - 1e-9)


def test_groups_may_be_chosen(runs: list[Path], tmp_path: Path) -> None:
    numbers = compare(runs, tmp_path, "--group-by", "run.seed", "--y", "loss")
    assert list(numbers["loss"]) == ["0", "1"]
    assert "| 0 | 2 |" in (tmp_path / "comparison.md").read_text()


def test_the_table_has_mean_and_spread_of_the_last_values(runs: list[Path], tmp_path: Path) -> None:
    compare(runs, tmp_path)
    row = next(line for line in (tmp_path / "comparison.md").read_text().splitlines() if "lr0.1-0" in line)
    last = [100 * recorded(run, "evaluation")[-1]["accuracy"] for run in runs[2:]]
    assert f"| {fmean(last):.2f} ± {stdev(last):.2f} % |" in row
    rounds = [[record["loss"] for record in recorded(run, "sync")[-2:]] for run in runs[2:]]
    losses = [(4 * last_but_one + last) / 5 for last_but_one, last in rounds]  # those of steps 9 to 12, and 13
    assert f"| {fmean(losses):.4g} ± {stdev(losses):.2g} |" in row


def test_an_unfinished_run_has_a_curve_and_no_final_values(runs: list[Path], tmp_path: Path) -> None:
    config = small_config(tmp_path, run={"name": "alone"})
    train(config)  # and nobody has written its outcome
    numbers = compare([folder_of(config)], tmp_path / "out")
    assert not any(math.isnan(value) for value in numbers["loss"]["alone"]["mean"])
    assert "| alone | 1 (1 unfinished) |" in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--y", "los"], "--y los is unknown; did you mean 'loss'?"),
        (["--group-by", "levels.tua"], "did you mean 'levels.tau'?"),
    ],
)
def test_unknown_names_are_refused(
    options: list[str], message: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, runs), "--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_run_and_a_run_given_twice_are_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert main(["compare", str(runs[0]), str(runs[0]), "--out", str(tmp_path)]) == 2
    assert "is given twice" in capsys.readouterr().err


def test_runs_may_be_picked_by_name(runs: list[Path], tmp_path: Path) -> None:
    numbers = compare(runs, tmp_path, "--only", "lr0.1-*", "--y", "loss")
    assert list(numbers["loss"]) == ["lr0.1-0"]


def test_each_method_may_be_shown_at_its_best_setting(runs: list[Path], tmp_path: Path) -> None:
    """Methods at one learning rate that suits one of them are no comparison."""
    finals = {lr: fmean(final_loss(run) for run in runs if f"lr{lr}-" in run.name) for lr in (0.05, 0.1)}
    best = min(finals, key=lambda lr: finals[lr])
    numbers = compare(runs, tmp_path, "--tuned", "inner.lr", "--y", "loss")
    assert list(numbers["loss"]) == [f"lr{best}-0, inner.lr={best}"]


def test_a_diverged_run_is_no_best_one(runs: list[Path], tmp_path: Path) -> None:
    """Its method would be shown by the seeds that were lucky."""
    finals = {run: final_loss(run) for run in runs}
    moved = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    lucky = moved[runs.index(min(finals, key=lambda run: finals[run]))]
    (lucky / "outcome.json").unlink()
    other = next(run for run in moved if run.name.split("-")[0] != lucky.name.split("-")[0])
    numbers = compare(moved, tmp_path / "out", "--tuned", "inner.lr", "--y", "loss")
    (label,) = numbers["loss"]
    assert label.startswith(other.name.split("-")[0])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--only", "lr0.2*"], "--only 'lr0.2*' fits no run; there are: lr0.05-0, lr0.05-1, lr0.1-0, lr0.1-1"),
        (["--tuned", "levels.tau"], "--tuned levels.tau: the runs do not differ in it; remove it"),
    ],
)
def test_a_choice_without_effect_is_refused(
    options: list[str], error: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out"), *options]) == 2
    assert error in capsys.readouterr().err


def final_loss(run: Path) -> float:
    return recorded(run, "evaluation")[-1]["loss"]
