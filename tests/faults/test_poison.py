"""A run in which an agent's weights stop being finite: stopped by default, by choice gone on without that agent."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training import final_states, folder_of, records, small_config, train

from dist_lookahead import PoisonedError
from dist_lookahead.train.agent import Agent
from dist_lookahead.train.config import ConfigError
from dist_lookahead.train.trainer import DivergedError


def poison(monkeypatch: pytest.MonkeyPatch, *, ranks: tuple[int, ...], step: int) -> None:
    """Let some agents' weights become NaN after a fast step."""
    plain = Agent.update

    def update(agent: Agent) -> None:
        if agent.step == step and agent.communicator.rank in ranks:
            with torch.no_grad():
                for parameter in agent.model.parameters():
                    parameter.fill_(math.nan)
        plain(agent)

    monkeypatch.setattr(Agent, "update", update)


def config_of(folder: Path, **sections: Any) -> Any:
    return small_config(folder, **{"agents": 3, "faults": {"poison": "leave_out"}, **sections})


def test_the_run_goes_on_without_a_poisoned_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poison(monkeypatch, ranks=(1,), step=6)
    outcome = train(config_of(tmp_path))
    assert outcome.signal is None
    assert "agents [1] contribute nothing to the sync of levels[0] after fast step 8" in caplog.text
    losses = [record["loss"] for record in records(tmp_path / "small") if record["kind"] == "sync"]
    assert all(map(math.isfinite, losses))
    for state in final_states(tmp_path / "small", agents=3):
        assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())


def test_by_default_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, ranks=(1,), step=6)
    with pytest.raises(DivergedError, match="the loss is nan"):
        train(config_of(tmp_path, faults={}))


def test_where_all_are_poisoned_the_run_names_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, ranks=(0, 1, 2), step=8)
    config = config_of(tmp_path)
    with pytest.raises(PoisonedError, match="no agent has finite weights") as error:
        train(config)
    assert any("fast step 6" in note for note in error.value.__notes__)
    assert folder_of(config).exists()


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"faults": {"clip": 2.0}}, "faults.clip=2 has no effect"),
        ({"levels": {"recipe": "dpsgd", "tau": 4}}, "faults.poison='leave_out' needs exact averages"),
        ({"levels": {"recipe": "local_sgd", "tau": 4}, "faults": {"poison": "leave_out", "clip": 3.0}}, "needs slow"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path: Path, sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config_of(tmp_path, **sections)
