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

CONFIGS = Path(__file__).parents[1] / "configs"
LSTM = {"name": "lstm", "embedding": 8, "hidden": 8, "layers": 2, "dropout_between": 0.2, "dropout_weights": 0.3}

AVERAGED_FROM_4 = {"piecewise": {"values": [1.0, 0.2], "boundaries": [4]}}


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
        pytest.param({"levels": {"recipe": "polyak", "alpha": AVERAGED_FROM_4}}, id="averaged SGD"),
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


def test_too_many_streams_for_the_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size=30000 on 1 agents are 30000 streams"):
        train(language(tmp_path, corpus={"window": 6, "batch_size": 30_000}))


def translation(folder: Path, **sections: Any) -> Any:
    """A run of a few steps on numbers in words."""
    plain: dict[str, Any] = {
        "run": {"name": "text", "dir": str(folder), "steps": 7, "device": "cpu"},
        "task": "translation",
        "parallel_corpus": {"source": "de", "target": "en", "vocabulary_size": 300, "batch_size": 4},
        "translator": {"width": 16, "heads": 2, "layers": 1, "dropout": 0.1},
        "inner": {"name": "Adam", "lr": 1e-2, "clip_norm": 1.0},
        "lr_schedule": {"name": "inverse_sqrt", "warmup": 3},
        "levels": {"recipe": "slowmo", "tau": 3, "beta": 0.2},
        "evaluation": {"every": None, "batch_size": 300},
        "checkpoint": {"every": 1},
        "logging": {"progress": "off", "tensorboard": False, "plots": False},
    }
    return parse_config({**plain, **sections})


def test_a_resumed_translation_is_the_one_that_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = (translation(tmp_path / name, agents=2) for name in ("whole", "broken"))
    train(whole)
    with monkeypatch.context() as patch:
        crash_before(5, patch)
        with pytest.raises(Crash):
            train(broken)
    train(broken, resume=True)
    for a, b in zip(final_states(folder_of(whole), 2), final_states(folder_of(broken), 2), strict=True):
        assert list(differences(a, b)) == []
    assert records(folder_of(whole)) == records(folder_of(broken))
    (evaluation,) = (record for record in records(folder_of(whole)) if record["kind"] == "evaluation")
    assert evaluation["perplexity"] > 1
    assert 0 <= evaluation["bleu"] <= 100


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("parallel_corpus.name=number", "parallel_corpus.name='number' is unknown; did you mean 'numbers'?"),
        ("parallel_corpus.name=wmt14", "parallel_corpus.path is missing: the folder that holds train.de, of WMT 2014"),
        ("parallel_corpus.path=x", "parallel_corpus.path='x' has no effect: numbers are generated"),
        ("parallel_corpus.source=fr", "parallel_corpus.source='fr' is unknown; allowed: en, de"),
        ("parallel_corpus.target=de", "parallel_corpus.source and target are both 'de': give two languages"),
        ("parallel_corpus.vocabulary_size=9", "parallel_corpus.vocabulary_size=9 must be at least 259"),
        ("translator.heads=5", "translator.width=64 must be even, and a multiple of translator.heads=5"),
        ("translator.length_penalty=1.0", "translator.length_penalty=1.0 has no effect with beam=1"),
        ("corpus={batch_size: 3}", "corpus has no effect with task='translation'"),
        ("performance.channels_last=true", "performance.channels_last=true has no effect on sentences"),
    ],
)
def test_what_does_not_fit_a_translation_is_refused(setting: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(CONFIGS / "translation" / "numbers.yaml", [setting])
    (fault,) = error.value.faults
    assert fault.startswith(sentence)


@pytest.mark.parametrize("name", ["language/lstm", "language/transformer", "translation/numbers"])
def test_a_shipped_config_on_embedded_data_trains(name: str, tmp_path: Path) -> None:
    """As it is, but for its length: the loss of a few rounds is below that of the first."""
    settings = [
        "run.epochs=null",
        "run.steps=60",
        f"run.dir={tmp_path}",
        "evaluation.every=null",
        "lr_schedule={name: constant}",
    ]
    config = load_config(CONFIGS / f"{name}.yaml", [*settings, "logging.progress=off", "evaluation.batch_size=600"])
    train(config)
    losses = [record["loss"] for record in records(folder_of(config)) if record["kind"] == "sync"]
    assert losses[-1] < 0.95 * losses[0]


def test_ptb_and_multi30k_train_from_their_files(tmp_path: Path) -> None:
    """In their layouts, with the settings that are shipped for them."""
    for part, count in (("train", 300), ("valid", 30), ("test", 30)):
        (tmp_path / f"ptb.{part}.txt").write_text("".join(f" the {i % 7} n't <unk> \n" for i in range(count)))
    for part, count in (("train", 200), ("val", 5), ("test_2016_flickr", 5)):
        for language, word in (("en", "dog"), ("de", "Hund")):
            text = "".join(f"{word} {i % 10} .\n" for i in range(count))
            (tmp_path / f"{part}.{language}").write_text(text, encoding="utf-8")
    for name, settings in (
        ("language/ptb", ["corpus.path=", "lr_schedule={name: constant}"]),
        ("translation/multi30k", ["parallel_corpus.path=", "translator.width=16", "lr_schedule.warmup=2"]),
    ):
        path, *others = settings
        plain = ["run.epochs=null", "run.steps=6", f"run.dir={tmp_path}", "logging={progress: off, plots: false}"]
        config = load_config(CONFIGS / f"{name}.yaml", [*plain, f"{path}{tmp_path}", *others, "evaluation.every=null"])
        train(config)
        (evaluation,) = (record for record in records(folder_of(config)) if record["kind"] == "evaluation")
        assert evaluation["perplexity"] > 1
