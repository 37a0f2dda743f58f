"""The command line, called in this process: messages, exit status, export."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dist_lookahead.tasks.vision import VisionTask
from dist_lookahead.train.command import main
from dist_lookahead.train.config_quadratic import Quadratic, Spectrum
from dist_lookahead.train.config_sections import Checkpoint, Data, Evaluation, Logging, Probe, Run
from dist_lookahead.train.export import export
from dist_lookahead.train.sweep_file import Sweep, Variant
from tests.training import final_states, folder_of, small_config, train


def test_validate_prints_the_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(small_config(tmp_path).to_yaml(), encoding="utf-8")
    assert main(["validate", str(file), "--set", "levels.tau=6"]) == 0
    assert "Every(tau=6)" in capsys.readouterr().out


def test_settings_prints_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    printed = capsys.readouterr().out
    assert "  name: ...  # Name of the run" in printed
    assert "  grace: 20.0  # Seconds" in printed
    assert "  weights: [slow]" in printed
    assert "slowmo" in printed
    shown = {line.strip().split(":")[0] for line in printed.splitlines() if ": " in line and line[0] != "#"}
    sections = (Run, Data, Evaluation, Probe, Checkpoint, Logging, Quadratic, Spectrum)
    known = {option for section in sections for option in section.model_fields}
    assert known <= shown


def test_settings_of_a_sweep_are_printed_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "--sweep"]) == 0
    shown = {line.strip().split(":")[0] for line in capsys.readouterr().out.splitlines()}
    assert {*Sweep.model_fields, *Variant.model_fields} <= shown


def test_all_faults_are_reported_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(small_config(tmp_path).to_yaml(), encoding="utf-8")
    assert main(["train", str(file), "--set", "levels.betta=0.5", "--set", "inner.momentun=0.9"]) == 2
    message = capsys.readouterr().err
    assert "betta" in message
    assert "'beta'" in message
    assert "'momentum'" in message


def test_agents_that_never_average_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(small_config(tmp_path).to_yaml(), encoding="utf-8")
    assert main(["train", str(file), "--set", "agents=2", "--set", "levels={recipe: lookahead}"]) == 2
    assert "agents" in capsys.readouterr().err


def test_train_writes_all_its_files_and_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(tmp_path, agents=2, logging={"progress": "plain", "plots": True, "tensorboard": True})
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    for expected in ("small", "small-2"):  # a second run never writes over the first
        assert main(["train", str(file)]) == 0
        folder = tmp_path / expected
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert list((folder / "tensorboard").iterdir())
        assert (folder / "metrics.jsonl").exists()
        assert (folder / "config.yaml").exists()
    shown = capsys.readouterr()
    assert "where DDP sends" in shown.out
    assert "test accuracy" in shown.out
    assert "step 13 of 13" in shown.err


def build_model() -> nn.Module:
    return VisionTask(data="digits", model="mlp", width=16).model()


def test_export_at_the_end_is_the_trained_model_in_plain_torch(tmp_path: Path) -> None:
    config = small_config(tmp_path, agents=2)
    train(config)
    out = tmp_path / "exported" / "model.pt"
    assert main(["export", str(folder_of(config)), "--out", str(out)]) == 0
    state = torch.load(out, weights_only=True)
    build_model().load_state_dict(state)
    trained = final_states(folder_of(config), 2)[1]["model"]
    assert all(torch.equal(state[name], trained[name]) for name in trained)
    # Not the whole bucket that the parameters are views of, once per tensor.
    assert out.stat().st_size < 2 * sum(t.numel() * t.element_size() for t in state.values()) + 10_000


def test_export_in_mid_round_takes_the_slow_weights_or_the_mean(tmp_path: Path) -> None:
    # The checkpoint of step 9 lies between the syncs of steps 8 and 12.
    for name, levels in (
        ("pull", {"recipe": "slowmo", "tau": 4, "beta": 0.2}),
        ("copy", {"recipe": "local_sgd", "tau": 4}),
    ):
        config = small_config(tmp_path / name, agents=2, levels=levels, checkpoint={"every": 1, "keep": 20})
        train(config)
        store = folder_of(config) / "checkpoints"
        assert "step-00000009" in {path.name for path in store.iterdir()}
        at_9, at_8 = tmp_path / f"{name}9.pt", tmp_path / f"{name}8.pt"
        assert ("mean of all" if name == "copy" else "fast step 8") in export(folder_of(config), at_9, step=9)
        export(folder_of(config), at_8, step=8)
        nine, eight = (torch.load(path, weights_only=True) for path in (at_9, at_8))
        same = all(torch.equal(nine[key], eight[key]) for key in nine)
        assert same == (name == "pull"), "slow weights stand still between syncs, the mean of the fast ones moves"


def test_export_of_nothing_says_where_it_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "nowhere")]) == 2
    assert "holds no checkpoints" in capsys.readouterr().err


def test_a_diverged_run_stops_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(tmp_path, inner={"name": "SGD", "lr": 1e30})
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert main(["train", str(file)]) == 2
    message = capsys.readouterr().err
    assert "the loss is nan" in message or "the loss is inf" in message
    assert "lower inner.lr" in message
