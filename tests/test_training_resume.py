"""A run that was interrupted and resumed is, bit for bit, the run that never stopped."""

from pathlib import Path
from typing import Any

import pytest

from tests.training import Crash, crash_before, differences, final_states, folder_of, records, small_config, train


def compare(tmp_path: Path, crash_at: int, monkeypatch: pytest.MonkeyPatch, *but: str, **sections: Any) -> None:
    agents = sections.get("agents", 1)
    whole, broken = (small_config(tmp_path / name, **sections) for name in ("whole", "broken"))
    train(whole)
    with monkeypatch.context() as patch:
        crash_before(crash_at, patch)
        with pytest.raises(Crash):
            train(broken)
    outcome = train(broken, resume=True)
    assert outcome.steps_here < outcome.step, "the resumed run began from the start"
    for a, b in zip(final_states(folder_of(whole), agents), final_states(folder_of(broken), agents), strict=True):
        assert list(differences(a, b)) == []
    one, other = (records(folder_of(config)) for config in (whole, broken))
    for record in (*one, *other):
        for name in but:
            record.pop(name, None)
    assert one == other


@pytest.mark.parametrize("crash_at", range(4, 10))
def test_from_every_step_of_a_period(crash_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(tmp_path, crash_at, monkeypatch, checkpoint={"every": 1})


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param(
            {
                "inner": {"name": "AdamW", "lr": 0.003},
                "model": {"name": "cnn", "width": 4, "dropout": 0.3},
                "data": {"workers": 2},
                "lr_schedule": {"name": "cosine", "warmup": 3},
            },
            id="Adam, dropout, BatchNorm, loader workers, learning rate schedule",
        ),
        pytest.param({"agents": 3, "model": {"name": "cnn", "width": 4}}, id="three agents"),
        pytest.param({"agents": 2, "levels": {"recipe": "local_sgd", "tau": 4}}, id="without slow weights"),
        pytest.param({"agents": 2, "levels": {"recipe": "slowmo", "tau": 4, "beta": 0.2, "shard": True}}, id="sharded"),
        pytest.param(
            {
                "agents": 2,
                "levels": {
                    "recipe": "local_sgd",
                    "tau": 4,
                    "codec": {"quantised": {"bits": 4, "rounding": "stochastic"}},
                },
            },
            id="in four bits",
        ),
        pytest.param(
            {
                "agents": 2,
                "levels": {"recipe": "slowmo", "tau": {"qsr": {"base": 2, "coefficient": 0.05}}, "beta": 0.2},
                "lr_schedule": {"name": "cosine"},
            },
            id="rounds that grow as the rate decays",
        ),
        pytest.param(
            {"agents": 2, "levels": {"recipe": "local_sgd", "tau": {"ada_comm": {"start": 3, "interval": 2}}}},
            id="rounds that shrink with the loss",
        ),
        pytest.param({"levels": {"recipe": "multilayer_lookahead", "taus": [2, 2]}}, id="two layers"),
        pytest.param({"precision": "fp16"}, id="fp16 with loss scaling"),
        pytest.param({"precision": "bf16"}, id="bf16"),
        pytest.param(
            {"precision": "fp16", "inner": {"name": "SGD", "lr": 0.05, "clip_norm": 0.1}}, id="clipped, in fp16"
        ),
        pytest.param(
            {
                "agents": 2,
                "inner": {"name": "AdamW", "lr": 0.003},
                "levels": {"recipe": "diloco", "tau": 4, "fast_buffers": "average"},
            },
            id="DiLoCo, averaged Adam",
        ),
        pytest.param(
            {
                "agents": 4,
                "mesh": {"node": 2, "local": 2},
                "levels": {"recipe": "hierarchical_local_sgd", "taus": [2, 4]},
            },
            id="two nodes of two agents",
        ),
        pytest.param(
            {
                "agents": 4,
                "mesh": {"node": 2, "local": 2},
                "inner": {"name": "SGD", "lr": 0.05, "momentum": 0.9, "data_parallel": "ddp"},
            },
            id="gradients shared inside a node",
        ),
        pytest.param(
            {
                "agents": 2,
                "precision": "fp16",
                "model": {"name": "cnn", "width": 4, "dropout": 0.3},
                "levels": {
                    "recipe": "distributed_lookahead",
                    "tau": 4,
                    "alpha": {"optimal": {"low": 0.3, "high": 1.0}},
                },
            },
            id="alpha measured at each sync",
        ),
    ],
)
def test_from_the_middle_of_a_round(sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(tmp_path, 11, monkeypatch, **sections)  # the last checkpoint is of step 9, the last sync of step 8


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    outcome = train(small_config(tmp_path), resume=True)
    assert outcome.steps_here == outcome.step == 13


def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    train(config)
    before = records(folder_of(config))
    assert train(config, resume=True).steps_here == 0
    assert [r for r in records(folder_of(config)) if r["kind"] == "sync"] == [r for r in before if r["kind"] == "sync"]


def test_resume_with_another_training_is_refused_and_says_what_changed(tmp_path: Path) -> None:
    train(small_config(tmp_path))
    other = small_config(tmp_path, inner={"name": "SGD", "lr": 0.1, "momentum": 0.9})
    with pytest.raises(ValueError, match=r"inner\.lr: 0\.05 -> 0\.1"):
        train(other, resume=True)


def test_a_longer_run_goes_on(tmp_path: Path) -> None:
    train(small_config(tmp_path))
    outcome = train(small_config(tmp_path, run={"steps": 20}), resume=True)
    assert (outcome.step, outcome.steps_here) == (20, 7)


@pytest.mark.parametrize("crash_at", [8, 9, 10])
def test_while_an_average_is_under_way(crash_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was under way is sent again, and its bytes are counted again: they have crossed the link twice."""
    levels = {"recipe": "slowmo", "tau": 4, "beta": 0.2, "delay": 3}
    compare(tmp_path, crash_at, monkeypatch, "bytes_sent", agents=2, levels=levels, checkpoint={"every": 1})
