"""A probe of the inner loop sees what it should see, and changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dist_lookahead import simulate
from dist_lookahead.train.agent import Agent
from dist_lookahead.train.command import main
from dist_lookahead.train.config import ConfigError
from dist_lookahead.train.eras import Eras
from dist_lookahead.train.outcome import write_outcome
from dist_lookahead.train.recorder import read_metrics
from dist_lookahead.train.run_directory import RunDirectory
from tests.launching import train_in_processes
from tests.training import (
    Crash,
    crash_before,
    differences,
    final_states,
    folder_of,
    records,
    small_config,
    train,
)

CNN = {"model": {"name": "cnn", "width": 4, "dropout": 0.3}}  # with BatchNorm and random numbers
WINDOW = {"probe": {"start": 4, "samples": 50}}


def probed(folder: Path) -> list[dict[str, Any]]:
    return [record for record in records(folder) if record["kind"] == "probe"]


def moments(folder: Path) -> list[tuple[int, str]]:
    return [m for record in probed(folder) for m in zip(record["fast_step"], record["after"], strict=True)]


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({**CNN, "agents": 2}, id="two agents"),
        pytest.param({**CNN, "precision": "fp16"}, id="fp16 with loss scaling"),
        pytest.param({**CNN, "levels": {"recipe": "multilayer_lookahead", "taus": [2, 2]}}, id="two layers"),
        pytest.param({**CNN, "agents": 2, "levels": {"recipe": "local_sgd", "tau": 4}}, id="without slow weights"),
    ],
)
def test_the_training_ends_with_the_same_bits(sections: dict[str, Any], tmp_path: Path) -> None:
    plain, watched = (
        small_config(tmp_path / "plain", **sections),
        small_config(tmp_path / "probe", **sections, **WINDOW),
    )
    train(plain)
    train(watched)
    agents = sections.get("agents", 1)
    for a, b in zip(*(final_states(folder_of(c), agents) for c in (plain, watched)), strict=True):
        assert [d for d in differences(a, b) if not d.startswith("/inner_loop")] == []
    rest = [record for record in records(folder_of(watched)) if record["kind"] != "probe"]
    assert len(rest) == len(records(folder_of(plain)))
    for a, b in zip(records(folder_of(plain)), rest, strict=True):
        assert {**a, "bytes_sent": 0} == {**b, "bytes_sent": 0}
    assert probed(folder_of(watched))


def test_every_fast_step_and_every_sync_of_the_window_is_there_once(tmp_path: Path) -> None:
    config = small_config(tmp_path, agents=2, probe={"start": 4, "end": 11})
    train(config)
    expected = [(4, "sync")]
    for step in range(5, 12):
        expected += [(step, "step")] + [(step, "sync")] * (step == 8)
    assert moments(folder_of(config)) == expected


def test_another_window_takes_the_place_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run plans anew when its agents change; each measurement is an evaluation, and one of a window is enough."""
    measured: list[int] = []
    monkeypatch.setattr(Agent, "_aside", lambda self, split: measured.append(self.step) or {"samples": 1.0})
    agent = Agent(config := small_config(tmp_path, **WINDOW), config.build_task(), simulate(1)[0], torch.device("cpu"))
    for start in (0, 2):
        agent.watch_inner_loop(start=start, end=5)
    agent.begin(0, Eras(((0, 1),)))
    for _ in range(5):
        agent.train_step(1.0)
    assert measured == [3, 4, 5]


def test_after_a_sync_it_sees_what_the_evaluation_sees_and_before_it_something_else(tmp_path: Path) -> None:
    """A probe that measured after the pull in place of before it would show no difference."""
    config = small_config(tmp_path, agents=2, probe={"samples": 360}, evaluation={"every": 4})
    train(config)
    evaluated = {r["step"]: r for r in read_metrics(folder_of(config) / "metrics.jsonl") if r["kind"] == "evaluation"}
    seen = {
        moment: (loss, accuracy)
        for record in probed(folder_of(config))
        for *moment, loss, accuracy in zip(
            *(record[name] for name in ("fast_step", "after", "loss", "accuracy")), strict=True
        )
        for moment in [tuple(moment)]
    }
    for step in (8, 12, 13):
        assert seen[step, "sync"] == pytest.approx((evaluated[step]["loss"], evaluated[step]["accuracy"]), rel=1e-6)
        assert seen[step, "step"][0] != pytest.approx(seen[step, "sync"][0], rel=1e-6)


def test_inner_pulls_are_seen_too(tmp_path: Path) -> None:
    config = small_config(tmp_path, levels={"recipe": "multilayer_lookahead", "taus": [2, 2]}, probe={"start": 0})
    train(config)
    assert [step for step, after in moments(folder_of(config)) if after == "sync"] == [2, 4, 6, 8, 10, 12, 13]


@pytest.mark.parametrize("crash_at", [7, 10, 11])
def test_a_resumed_probe_is_the_one_that_never_stopped(
    crash_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured in a round that a checkpoint cuts through is neither lost nor written twice."""
    whole, broken = (small_config(tmp_path / name, **CNN, agents=2, **WINDOW) for name in ("whole", "broken"))
    train(whole)
    with monkeypatch.context() as patch:
        crash_before(crash_at, patch)
        with pytest.raises(Crash):
            train(broken)
    train(broken, resume=True)
    assert records(folder_of(whole)) == records(folder_of(broken))


def test_the_flag_draws_the_last_rounds(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(small_config(tmp_path, logging={"plots": True}).to_yaml(), encoding="utf-8")
    assert main(["train", str(file), "--probe", "inner_loop", "--set", "probe.samples=20"]) == 0
    assert (tmp_path / "small" / "inner_loop.png").read_bytes().startswith(b"\x89PNG")
    assert [m for m in moments(tmp_path / "small") if m[1] == "sync"] == [
        (4, "sync"),
        (8, "sync"),
        (12, "sync"),
        (13, "sync"),
    ]


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"start": 13}, r"probe\.start=13 must be at most 12: the run has 13 fast steps"),
        ({"end": 14}, r"probe\.end=14 must be at most 13"),
        ({"start": 5, "end": 5}, "must end after its start"),
        ({"name": "outer_loop"}, "inner_loop"),
    ],
)
def test_a_window_outside_the_run_is_refused(probe: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config(tmp_path, probe=probe)


@pytest.mark.timeout(240)
def test_processes_see_what_simulated_agents_see(tmp_path: Path) -> None:
    """The agents of a process report together: each one's rows must be for the same moments."""
    simulated, real = (small_config(tmp_path / name, **WINDOW) for name in ("simulated", "real"))
    train(small_config(tmp_path / "simulated", **WINDOW, agents=2))
    train_in_processes(real, processes=2)
    assert probed(folder_of(simulated)) == probed(folder_of(real))


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"inner": {"name": "SGD", "lr": 0.1, "data_parallel": "fsdp2"}}, "probe with inner.data_parallel='fsdp2'"),
        (
            {"agents": 2, "levels": {"recipe": "sgp"}, "evaluation": {"weights": ["averaged"]}},
            "weights have a mass between a fast step and its sync",
        ),
    ],
)
def test_weights_that_are_not_whole_before_a_sync_are_not_measured(
    tmp_path: Path, sections: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        small_config(tmp_path, probe={"name": "inner_loop"}, **sections)


def test_a_comparison_says_what_fast_steps_and_syncs_change(tmp_path: Path) -> None:
    """Over all rounds of the window and all seeds; beside the picture of one run that is what holds."""
    folders, changes = [], []
    for seed in (0, 1):
        run = {"name": f"seed{seed}", "seed": seed}
        config = small_config(tmp_path, run=run, probe={"start": 4}, agents=2, evaluation={"every": None})
        write_outcome(RunDirectory(folder_of(config)), train(config))
        folders.append(str(folder_of(config)))
        losses = [value for record in probed(folder_of(config)) for value in record["loss"]]
        # After the syncs of 4, 8, 12 and 13, with 4, 4 and 1 fast steps between.
        by_steps = [losses[4] - losses[0], losses[9] - losses[5], losses[11] - losses[10]]
        by_sync = [losses[5] - losses[4], losses[10] - losses[9], losses[12] - losses[11]]
        changes.append((sum(by_steps) / 3, sum(by_sync) / 3))
    assert main(["compare", *folders, "--out", str(tmp_path / "out")]) == 0
    table = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8").split("\n\n")[2]
    titles, _, cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    shown = dict(zip(titles, cells, strict=True))
    for which, title in enumerate(("test loss by fast steps", "test loss by sync")):
        mean = (changes[0][which] + changes[1][which]) / 2
        assert float(shown[title].split(" ± ")[0]) == pytest.approx(mean, rel=1e-3)
