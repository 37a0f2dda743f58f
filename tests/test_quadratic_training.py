"""Training on noisy quadratics by the command line: the real optimizer does what theory predicts."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_lookahead.theory import closed_forms
from dist_lookahead.train.command import main
from dist_lookahead.train.config import Config, ConfigError, load_config, parse_config
from dist_lookahead.train.prediction import predict
from dist_lookahead.train.prediction_comparison import compare, normal_quantile
from dist_lookahead.train.recorder import read_metrics
from tests.launching import run
from tests.training import Crash, crash_before, differences, final_states, folder_of, records, train

FIVE_SIGMA = 5.0  # of some hundred Gaussian comparisons; the seeds are fixed besides
REPETITIONS = 2000


def quadratic(folder: Path, **sections: Any) -> Config:
    """A short SlowMo on two coordinates; sections replace those here, but are merged into run and quadratic."""
    plain: dict[str, Any] = {
        "run": {"name": "small", "dir": str(folder), "steps": 48, "device": "cpu"},
        "agents": 3,
        "task": "quadratic",
        "quadratic": {"curvature": [1.0, 0.3], "noise": [1.0, 2.0], "repetitions": REPETITIONS},
        "inner": {"name": "SGD", "lr": 0.2},
        "levels": {"recipe": "slowmo", "tau": 6, "beta": 0.4},
        "logging": {"progress": "off", "tensorboard": False, "plots": False},
    }
    for name, value in sections.items():
        plain[name] = {**plain[name], **value} if name in ("run", "quadratic") else value
    return parse_config(plain)


def written(config: Config) -> str:
    file = Path(config.run.dir) / "run.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(config.to_yaml(), encoding="utf-8")
    return str(file)


def values(config: Config) -> list[dict[str, Any]]:
    return json.loads((folder_of(config) / "prediction.json").read_text())["values"]


def farthest(config: Config) -> float:
    """The largest distance of a measured value from its prediction, in standard errors."""
    return max(
        abs(measured - predicted) / half * normal_quantile()
        for one in values(config)
        for predicted, measured, half in zip(one["predicted"], one["measured"], one["half_width"], strict=True)
    )


LOOKAHEAD = {"when": {"every": {"tau": 3}}, "mix": "alone", "move": {"pull": {"alpha": 0.6}}}
OUTER = {"when": {"every": {"tau": 6}}, "mix": "exact", "move": {"pull": {"alpha": 0.9, "beta": 0.3}}}
KINDS = {"curvature": [[1.0, 0.3], [0.2, 0.9], [0.5, 0.1]], "offsets": [[1.0, 0.0], [-1.0, 2.0], [0.0, 1.0]]}
MOMENTUM = {"name": "SGD", "lr": 0.1, "momentum": 0.8}
RUNS: dict[str, dict[str, Any]] = {
    "slowmo": {},
    "momentum kept": {"inner": MOMENTUM},
    "momentum reset": {
        "inner": MOMENTUM,
        "levels": {"recipe": "slowmo", "tau": 6, "beta": 0.4, "fast_buffers": "reset"},
    },
    "momentum averaged": {"inner": MOMENTUM, "levels": {"recipe": "local_sgd", "tau": 6, "fast_buffers": "average"}},
    "Nesterov": {"inner": {**MOMENTUM, "nesterov": True}, "levels": {"recipe": "local_sgd", "tau": 6}},
    "lookahead": {"agents": 1, "levels": {"recipe": "lookahead", "tau": 6}},
    "nested": {"levels": [LOOKAHEAD, OUTER]},
    "diloco": {"levels": {"recipe": "diloco", "tau": 6, "alpha": 0.7, "beta": 0.6}},
    "follows the learning rate": {
        "lr_schedule": {"name": "multistep", "milestones": [20], "gamma": 0.3, "warmup": 4},
    },
    "agents that differ": {"quadratic": KINDS},
    "a last round cut short": {"run": {"steps": 45}, "levels": [LOOKAHEAD, OUTER]},
    "averaged weights": {"evaluation": {"every": 12, "unit": "steps", "weights": ["slow", "averaged"]}},
    "tau grows": {"levels": {"recipe": "post_local_sgd", "tau": 8, "start": 4}},
    "sharded": {"levels": {"recipe": "slowmo", "tau": 6, "beta": 0.4, "shard": True}},
    "a power law": {
        "quadratic": {"curvature": None, "spectrum": {"coordinates": 12, "power": 0.5}, "noise": 1.0, "start": -1.0}
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_mean_and_variance_are_as_predicted(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = quadratic(tmp_path, **RUNS[name])
    assert main(["train", written(config)]) == 0
    compared = values(config)
    evaluated = [r for r in records(folder_of(config)) if r["kind"] == "evaluation"]
    assert len(compared) == 2 * len(evaluated) > 0
    assert [one["measured"][1] for one in compared if one["quantity"] == "mean"] == [r["mean_1"] for r in evaluated]
    assert evaluated[-1]["step"] == config.run.steps
    assert farthest(config) < FIVE_SIGMA
    count = sum(len(one["predicted"]) for one in compared)
    assert f"of {count} measured values" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "other",
    [
        {"levels": {"recipe": "slowmo", "tau": 6, "beta": 0.4, "alpha": 0.8}},
        {"levels": {"recipe": "slowmo", "tau": 6, "beta": 0.3}},
        {"levels": {"recipe": "slowmo", "tau": 5, "beta": 0.4}},
        {"inner": {"name": "SGD", "lr": 0.24}},
        {"quadratic": {"noise": [1.3, 2.0]}},
        {"quadratic": {"offsets": [0.05, 0.0]}},
    ],
    ids=str,
)
def test_a_prediction_of_another_run_is_far_off(other: dict[str, Any], tmp_path: Path) -> None:
    """Otherwise the intervals would be too wide to say anything."""
    config = quadratic(tmp_path)
    train(config)
    measured = list(read_metrics(folder_of(config) / "metrics.jsonl"))
    errors = [
        max(float(one.standard_errors.max()) for one in compare(predict(c, agents=3, steps=48), measured, REPETITIONS))
        for c in (config, quadratic(tmp_path, **other))
    ]
    assert errors[0] < FIVE_SIGMA < 2 * FIVE_SIGMA < errors[1]


def test_agents_that_differ_settle_at_the_biased_point(tmp_path: Path) -> None:
    config = quadratic(tmp_path, quadratic=KINDS, run={"steps": 240}, evaluation={"every": None})
    train(config)
    last = records(folder_of(config))[-1]
    curvature, offsets = (torch.tensor(KINDS[name], dtype=torch.float64) for name in ("curvature", "offsets"))
    biased = closed_forms.biased_fixed_point(0.2 * curvature, offsets, 6)
    unbiased = (curvature * offsets).sum(dim=0) / curvature.sum(dim=0)
    for j in range(2):
        error = math.sqrt(last[f"variance_{j}"] / REPETITIONS)
        assert abs(last[f"mean_{j}"] - float(biased[j])) < FIVE_SIGMA * error
        assert abs(last[f"mean_{j}"] - float(unbiased[j])) > 2 * FIVE_SIGMA * error


def test_intervals_hold_what_they_say() -> None:
    """Of sums of many samples 99 % of the intervals for mean and variance hold the truth, within five sigma."""
    random = torch.Generator().manual_seed(7)
    sample = 0.5 + 3 * torch.randn(4000, 500, generator=random, dtype=torch.float64)
    z, (mean, variance) = normal_quantile(), (sample.mean(dim=1), sample.var(dim=1))
    for off, half in (
        ((mean - 0.5).abs(), z * (variance / 500).sqrt()),
        ((variance - 9.0).abs(), z * variance * (2 / 499) ** 0.5),
    ):
        assert abs(float((off <= half).double().mean()) - 0.99) < 5 * (0.99 * 0.01 / 4000) ** 0.5


# --- the trainer's promises


@pytest.mark.timeout(240)
def test_two_processes_compute_what_two_simulated_agents_compute(tmp_path: Path) -> None:
    kinds = {name: rows[:2] for name, rows in KINDS.items()}
    real, simulated = (
        quadratic(tmp_path / name, agents=agents, quadratic=kinds, run={"steps": 15})
        for name, agents in (("real", 1), ("simulated", 2))
    )
    done = run(["train", written(real)], processes=2)
    assert done.returncode == 0, done.stdout
    torch.set_num_threads(1)  # as in the processes
    assert main(["train", written(simulated)]) == 0
    for a, b in zip(final_states(folder_of(real), 2), final_states(folder_of(simulated), 2), strict=True):
        assert list(differences(a, b)) == []
    assert records(folder_of(real)) == records(folder_of(simulated))
    assert values(real) == values(simulated)
    assert done.stdout.count("measured values") == 1, "one of the processes speaks"
    assert farthest(real) < FIVE_SIGMA


def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = (
        quadratic(tmp_path / name, inner=MOMENTUM, quadratic=KINDS, checkpoint={"every": 7})
        for name in ("whole", "broken")
    )
    assert main(["train", written(whole)]) == 0
    with monkeypatch.context() as patch:
        crash_before(23, patch)
        with pytest.raises(Crash):
            main(["train", written(broken)])
    assert main(["train", written(broken), "--resume"]) == 0
    for a, b in zip(final_states(folder_of(whole), 3), final_states(folder_of(broken), 3), strict=True):
        assert list(differences(a, b)) == []
    assert records(folder_of(whole)) == records(folder_of(broken))
    assert values(whole) == values(broken)


def test_another_problem_is_not_gone_on_with(tmp_path: Path) -> None:
    train(quadratic(tmp_path))
    with pytest.raises(ValueError, match=r"quadratic\.noise: \[1\.0, 2\.0\] -> 1\.0"):
        train(quadratic(tmp_path, quadratic={"noise": 1.0}), resume=True)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"inner": {"name": "AdamW", "lr": 0.01}}, "theory knows the fast optimizer SGD only, and this is AdamW"),
        ({"inner": {"name": "SGD", "lr": 0.1, "weight_decay": 0.1}}, "theory does not know SGD's weight_decay=0.1"),
        ({"inner": {**MOMENTUM, "dampening": 0.5}}, "theory does not know SGD's dampening=0.5"),
        (
            {"levels": {"recipe": "distributed_lookahead", "tau": 6, "alpha": {"optimal": {"low": 0.1, "high": 1.0}}}},
            "levels[0] chooses alpha while it runs",
        ),
    ],
)
def test_without_a_prediction_the_run_says_why(
    sections: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quadratic(tmp_path, **sections)
    assert main(["train", written(config)]) == 0
    assert f"Nothing is predicted: {reason}" in " ".join(capsys.readouterr().out.split())
    assert not (folder_of(config) / "prediction.json").exists()


@pytest.mark.parametrize(
    ("sections", "first", "then", "reason"),
    [
        ({}, 45, 60, "it has ended at fast step 45 once"),
        ({"lr_schedule": {"name": "cosine"}}, 48, 60, "the learning rate of fast step 6 was that of a run of another"),
        ({}, 48, 60, None),
    ],
)
def test_a_run_that_was_made_longer_is_predicted_only_if_it_is_that_of_its_file(
    sections: dict[str, Any],
    first: int,
    then: int,
    reason: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", written(quadratic(tmp_path, run={"steps": first}, **sections))]) == 0
    capsys.readouterr()
    longer = quadratic(tmp_path, run={"steps": then}, **sections)
    assert main(["train", written(longer), "--resume"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (f"Nothing is predicted: {reason}" if reason else "Bonferroni") in said
    assert reason or farthest(longer) < FIVE_SIGMA


def test_a_hundred_coordinates_are_recorded_but_not_shown_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = {"curvature": None, "spectrum": {"coordinates": 100}, "noise": 1.0, "repetitions": 100}
    config = quadratic(tmp_path, quadratic=many, run={"steps": 12}, logging={"progress": "plain", "plots": True})
    assert main(["train", written(config)]) == 0
    shown = capsys.readouterr()
    assert "mean_7" not in shown.out + shown.err
    assert "8 of 100 coordinates" in shown.out
    assert len(shown.out.splitlines()) < 45
    assert {"mean_7", "variance_99"} <= records(folder_of(config))[-1].keys()
    for picture in ("curves.png", "prediction.png"):
        assert (folder_of(config) / picture).read_bytes().startswith(b"\x89PNG")


# --- refusals


def faults(folder: Path, *settings: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        load_config(written(quadratic(folder)), settings)
    return error.value.faults


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("data={name: digits, batch_size: 8}", "data has no effect with task='quadratic': remove it, or set task: vis"),
        ("model.name=mlp", "model has no effect with task='quadratic'"),
        ("quadratic=null", "quadratic is missing"),
        ("task=quadratics", "task='quadratics' is unknown; did you mean 'quadratic'? allowed: vision, quadratic"),
        ("evaluation.every=5", "evaluation.every=5 epochs has no meaning without a data set"),
        ("lr_schedule={name: cosine, unit: epochs, warmup: 1}", "lr_schedule.unit='epochs' has no meaning without"),
        ("precision=bf16", "precision='bf16' has no effect on noisy quadratics"),
        ("performance.channels_last=true", "performance.channels_last=true has no effect on noisy quadratics"),
        ("levels.tau=999", "levels.tau=999: the run has 48 fast steps"),
        ("quadratic.curvature=null", "quadratic has neither curvature nor spectrum"),
        ("quadratic.spectrum={coordinates: 3}", "quadratic has both curvature and spectrum"),
        ("quadratic.curvature=[1, -1]", "quadratic.curvature=[1.0, -1.0] must be above 0"),
        ("quadratic.curvature=.inf", "quadratic.curvature=inf must be a number, a list with one for each coordinate"),
        ("quadratic.offsets=[[1], 2]", "quadratic.offsets=[[1], 2] must be a number, a list"),
        ("quadratic.noise=[]", "quadratic.noise=[] must be a number, a list"),
        ("quadratic.noise=[1, 2, 3]", "quadratic has different numbers of coordinates: 2 in curvature, 3 in noise"),
        ("quadratic.start=[[1], [2]]", "quadratic.start=[[1.0], [2.0]] must be one list for all kinds of agents"),
        ("quadratic.offsets=[[1], [2]]", "quadratic has 2 kinds of agents, which must divide agents=3: use 2 agents"),
        ("quadratic.repetitions=1", "quadratic.repetitions=1 must be at least 100"),
        ("quadratic.sigma=1", "quadratic.sigma is unknown; allowed: curvature, spectrum, noise"),
    ],
)
def test_settings_without_meaning_are_refused(setting: str, sentence: str, tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, setting)
    assert fault.startswith(sentence)


def test_epochs_are_refused(tmp_path: Path) -> None:
    found = faults(tmp_path, "run.steps=null", "run.epochs=3")
    assert "run.epochs=3 has no meaning without a data set: give run.steps" in found


def test_faults_inside_the_section_come_all_at_once(tmp_path: Path) -> None:
    found = faults(
        tmp_path, "quadratic.curvature=null", "quadratic.spectrum={coordinates: 0, pwoer: 1}", "inner.momentun=1"
    )
    assert [fault.split(" ")[0].split("=")[0] for fault in found] == [
        "quadratic.spectrum.coordinates",
        "quadratic.spectrum.pwoer",
        "inner.momentun",
    ]


def test_agents_that_would_change_their_kind_are_refused_when_their_number_is_known(tmp_path: Path) -> None:
    """Under torchrun the file says one agent."""
    config = quadratic(tmp_path, agents=1, quadratic=KINDS)
    config.check(device="cpu", samples=3, agents=6)
    with pytest.raises(ConfigError, match="has 3 kinds of agents, which must divide agents=4"):
        config.check(device="cpu", samples=3, agents=4)


def test_the_resolved_form_has_the_sections_of_its_task_only(tmp_path: Path) -> None:
    config = quadratic(tmp_path, quadratic=KINDS)
    resolved = config.resolved()
    assert parse_config(resolved) == config
    assert not resolved.keys() & {"data", "model"}
    assert resolved["quadratic"]["noise"] == [1.0, 2.0]
    assert resolved["quadratic"]["start"] == 1.0
    assert resolved["quadratic"]["offsets"] == KINDS["offsets"]
