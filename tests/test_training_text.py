"""Runs on texts: streams and memory under the trainer, resumed and evaluated; and translation."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dist_lookahead.tasks.task import Remembering
from dist_lookahead.train.agent import Agent
from dist_lookahead.train.config import ConfigError, load_config, parse_config
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.trainer import Trainer
from dist_lookahead.train.world import join_world
from tests.training import Crash, crash_before, differences, final_states, folder_of, records, train

LSTM = {"name": "lstm", "embedding": 8, "hidden": 8, "layers": 2, "dropout_between": 0.2, "dropout_weights": 0.3}


def language(folder: Path, **sections: Any) -> Any:
    """A run of a few steps on the text that every installation has."""
    plain: dict[str, Any] = {
        "run": {"name": "text", "dir": str(folder), "steps": 7, "device": "cpu"},
        "task": "language",
        "corpus": {"vocabulary_size": 50, "window": 6, "batch_size": 3, "test_streams": 50},
        "language_model": LSTM,
        "inner": {"name": "SGD", "lr": 2.0, "clip_norm": 0.25},
        "levels": {"recipe": "slowmo", "tau": 3, "beta": 0.2},
        "evaluation": {"every": 3, "unit": "steps"},
        "checkpoint": {"every": 1},
        "logging": {"progress": "off", "tensorboard": False, "plots": False},
    }
    return parse_config({**plain, **sections})


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({}, id="one agent"),
        pytest.param({"agents": 2}, id="two agents"),
        pytest.param({"precision": "bf16"}, id="bf16"),
        pytest.param({"inner": {"name": "ASGD", "lr": 2.0, "lambd": 0.0, "t0": 2.0}}, id="averaged SGD"),
        pytest.param({"language_model": {"name": "transformer", "width": 8, "layers": 1}}, id="Transformer"),
    ],
)
def test_a_resumed_run_remembers(sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = (language(tmp_path / name, **sections) for name in ("whole", "broken"))
    train(whole)
    with monkeypatch.context() as patch:
        crash_before(5, patch)
        with pytest.raises(Crash):
            train(broken)
    assert train(broken, resume=True).steps_here < 7
    agents = whole.agents
    for a, b in zip(final_states(folder_of(whole), agents), final_states(folder_of(broken), agents), strict=True):
        assert list(differences(a, b)) == []
        assert len(a["memory"]) == (0 if "language_model" in sections else 4)
    assert records(folder_of(whole)) == records(folder_of(broken))


def test_evaluations_leave_no_trace_in_the_memory(tmp_path: Path) -> None:
    """What was read of the test would otherwise go on into the next window of the training."""
    often, never = (
        language(tmp_path / name, evaluation={"every": every, "unit": "steps", "batch_size": 7})
        for name, every in (("often", 1), ("never", None))
    )
    for config in (often, never):
        train(config)
    (a,), (b,) = (final_states(folder_of(config)) for config in (often, never))
    assert list(differences(a, b)) == []
    assert len([r for r in records(folder_of(often)) if r["kind"] == "evaluation"]) > 1


def test_measuring_alpha_leaves_no_trace_in_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two gradients are of the window to come, which the model has not read yet."""
    probe, seen = Agent._probe, []

    def watched(agent: Agent, step: int) -> None:
        assert isinstance(agent.model, Remembering)
        before = agent.model.memory
        probe(agent, step)
        seen.append(all(map(torch.equal, agent.model.memory, before)) and len(before) == 4)

    monkeypatch.setattr(Agent, "_probe", watched)
    levels = {"recipe": "lookahead", "tau": 3, "alpha": {"optimal": {"low": 0.2, "high": 1.0}}}
    train(language(tmp_path, levels=levels))
    assert seen
    assert all(seen)


def test_perplexity_does_not_depend_on_how_the_evaluation_is_cut(tmp_path: Path) -> None:
    """Neither on the batch, nor on the agents that share it."""
    rows = []
    for name, size in (("a", 7), ("b", 50), ("c", 50)):
        agents = 2 if name == "c" else 1
        config = language(tmp_path / name, evaluation={"batch_size": size}, run={**RUN, "dir": str(tmp_path / name)})
        rows.append(_first_perplexity(config, agents))
    assert rows[1:] == pytest.approx(rows[:1] * 2, rel=1e-5)


RUN = {"name": "text", "steps": 7, "device": "cpu"}


def _first_perplexity(config: Any, agents: int) -> float:
    """Before any training, where all agents have the same weights."""
    config = config.model_copy(update={"agents": agents})
    with join_world(agents=agents, device="cpu", timeout=60, mesh=None) as world:
        task = config.build_task()
        trainer = Trainer(config, task, world, RunDirectory(folder_of(config)))
        sums = [agent.evaluate() for agent in trainer.agents]
        if trainer.recorder:
            trainer.recorder.close()
    return task.report({name: sum(own[name] for own in sums) for name in task.measures})["perplexity"]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("corpus.name=pyhton", "corpus.name='pyhton' is unknown; did you mean 'python'? allowed: python, ptb"),
        ("corpus.name=ptb", "corpus.path is missing: the folder that holds ptb.train.txt, of the Penn Treebank"),
        ("corpus.path=x", "corpus.path='x' has no effect: python ships with Python"),
        ("corpus.window=1", "corpus.window=1 must be at least 2"),
        ("data={name: digits, batch_size: 3}", "data has no effect with task='language'"),
        ("language_model.name=gru", "language_model.name='gru' is unknown; allowed: lstm, transformer"),
        ("language_model.dropout_between=0.1", "language_model.dropout_between=0.1 has no effect with layers=1"),
        ("language_model.width=8", "language_model.width is unknown; allowed: name, embedding, hidden"),
        ("language_model={name: transformer, width: 9, heads: 3}", "language_model.width=9 must be even, and a"),
        ("performance.channels_last=true", "performance.channels_last=true has no effect on a text"),
    ],
)
def test_what_does_not_fit_a_language_is_refused(setting: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(CONFIGS / "language" / "lstm.yaml", [setting])
    (fault,) = error.value.faults
    assert fault.startswith(sentence)


CONFIGS = Path(__file__).parents[1] / "configs"


def test_too_many_streams_for_the_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size=30000 on 1 agents are 30000 streams"):
        train(language(tmp_path, corpus={"window": 6, "batch_size": 30_000}))
