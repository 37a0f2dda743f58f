"""Run files: what is shipped loads, what is wrong is said, all of it at once, and nothing is guessed."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from dist_lookahead import Alone, Copy, Every, Exact, Level, Mesh, Optimal, Piecewise, Pull, slowmo
from dist_lookahead.schedule import value_at
from dist_lookahead.tasks.vision import VisionTask
from dist_lookahead.train.config import Config, ConfigError, load_config, parse_config
from dist_lookahead.train.config_levels import RECIPES
from dist_lookahead.train.config_sections import SAMPLES
from dist_lookahead.train.sweep_file import load_sweep

CONFIGS = Path(__file__).parents[1] / "configs"
SWEEPS = sorted((CONFIGS / "sweeps").rglob("*.yaml"))
SHIPPED = sorted(set(CONFIGS.rglob("*.yaml")).difference(SWEEPS))

GOOD = """
run: {name: test, epochs: 30}
data: {name: digits, batch_size: 32}
model: {name: mlp}
inner: {name: SGD, lr: 0.1, momentum: 0.9}
levels: {recipe: slowmo, tau: 12}
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def faults(path: Path, *settings: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        load_config(path, settings)
    return error.value.faults


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_shipped_config_loads_and_its_resolved_form_gives_an_equal_one(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    written = tmp_path / "config.yaml"
    written.write_text(config.to_yaml())
    assert load_config(written) == config == parse_config(config.resolved())


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_every_point_of_a_shipped_sweep_is_valid(path: Path) -> None:
    sweep, points = load_sweep(path)
    assert sweep.name.replace("-", "_") == path.stem
    assert len(points) > 1


def test_every_recipe_has_a_shipped_config_on_the_embedded_data() -> None:
    shown = {load_config(path).levels.recipe for path in SHIPPED if path.parent.name == "digits"}
    assert shown >= RECIPES.keys()


def test_the_resolved_form_holds_the_defaults_too(good: Path) -> None:
    """Results must say what they were made with, even where a default changes later."""
    resolved = load_config(good).resolved()
    assert resolved["levels"] == {
        "recipe": "slowmo",
        "tau": 12,
        "alpha": 1.0,
        "beta": 0.6,
        "delay": 0,
        "shard": False,
        "codec": None,
        "fast_buffers": "keep",
    }
    assert resolved["data"]["augment"] is False
    assert resolved["checkpoint"] == {"every": 200, "keep": 3, "grace": 20.0}


def test_a_recipe_gives_its_levels(good: Path) -> None:
    assert load_config(good).levels_stack() == slowmo(tau=12)


def test_a_list_gives_its_levels_short_or_in_full(good: Path) -> None:
    pull, tau = "{pull: {alpha: 0.5}}", "{piecewise: {values: [5, 20], boundaries: [100]}}"
    short = f"{{when: {{every: {{tau: 5}}}}, mix: alone, move: {pull}}}"
    full = f"{{level: {{when: {{every: {{tau: {tau}}}}}, mix: exact, move: copy, fast_buffers: reset}}}}"
    config = load_config(good, [f"levels=[{short}, {full}]"])
    assert config.levels_stack() == [
        Level(Every(5), Alone(), Pull(0.5)),
        Level(Every(Piecewise(values=(5, 20), boundaries=(100,))), Exact(), Copy(), "reset"),
    ]
    assert parse_config(config.resolved()) == config


@pytest.mark.parametrize(
    ("written", "value"), [("1e-3", 1e-3), ("1E3", 1000.0), (".5", 0.5), ("010", 10), ("+3", 3), ("2.", 2.0)]
)
def test_numbers_are_read_as_in_yaml_1_2(good: Path, written: str, value: float) -> None:
    """PyYAML reads 1e-3 as a text and 010 as 8."""
    assert load_config(good, [f"inner.lr={written}"]).inner.options["lr"] == value


@pytest.mark.parametrize("name", ["1e-3", "010", "true", "null", "yes"])
def test_texts_that_look_like_something_else_stay_texts_when_written(good: Path, tmp_path: Path, name: str) -> None:
    config = load_config(good, [f"run.name='{name}'"])
    path = tmp_path / "again.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path).run.name == name


def test_settings_are_put_over_the_file(good: Path) -> None:
    config = load_config(good, ["levels.tau=24", "run.epochs=null", "run.steps=50", "data.batch_size=8"])
    assert (config.levels_stack(), config.run.steps, config.feed.batch_size) == (slowmo(tau=24), 50, 8)


def test_a_setting_reaches_into_a_list(good: Path) -> None:
    levels = "levels=[{when: {every: {tau: 5}}, mix: exact, move: copy}]"
    config = load_config(good, [levels, "levels[0].when.every.tau=7", "levels[0].fast_buffers=reset"])
    assert config.levels_stack() == [Level(Every(7), Exact(), Copy(), "reset")]


def test_the_inner_optimizer_is_built_with_its_options(good: Path) -> None:
    config = load_config(good, ["inner={name: AdamW, lr: 1e-3, betas: [0.8, 0.99], weight_decay: 0.1}"])
    optimizer = config.inner.build(nn.Linear(2, 2).parameters())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.99)


def test_vectors_are_left_out_of_the_weight_decay_on_request(good: Path) -> None:
    config = load_config(good, ["inner.weight_decay=0.1", "inner.decay_norm_and_bias=false"])
    groups = config.inner.build(nn.Linear(2, 2).parameters()).param_groups
    assert [(group["weight_decay"], [p.ndim for p in group["params"]]) for group in groups] == [(0.1, [2]), (0.0, [1])]


def test_lengths_in_epochs_become_steps(good: Path) -> None:
    schedule = "lr_schedule={name: multistep, unit: epochs, warmup: 1, milestones: [10, 20], gamma: 0.5}"
    config = load_config(good, [schedule, "evaluation.every=2"])
    length = config.length(samples=1437, agents=2)
    assert length.total == 674  # 30 * 1437 / 64, rounded up
    factor = config.lr_schedule.factor(length)
    assert [value_at(factor, step) for step in (0, 22, 224, 225, 450)] == [1 / 23, 1.0, 1.0, 0.5, 0.25]
    assert config.evaluation.period(length) == 45


def test_the_known_sizes_of_data_sets_are_right() -> None:
    """They decide at load time whether a run is long enough for its levels."""
    assert SAMPLES["digits"] == VisionTask(data="digits", model="mlp").samples


BAD = [
    ("run=5", "run=5 must be a mapping of name, dir"),
    ("run.name=../x", "run.name='../x' must be a text that matches"),
    ("run.steps=4", "run has epochs=30 and steps=4: give one of them"),
    ("run.epochs=null", "run has neither epochs nor steps"),
    ("run.epochs=.inf", "run.epochs=inf must be finite"),
    ("run.seed='3'", "run.seed='3' must be a whole number: remove the quotes"),
    ("run.deterministic=yes", "run.deterministic='yes' must be true or false: write true"),
    ("run.device=gpu", "run.device='gpu' is unknown; did you mean 'cpu'? allowed: auto, cpu, cuda"),
    ("agents=0", "agents=0 must be at least 1"),
    ("agents=2.0", "agents=2.0 must be a whole number"),
    ("optimizer=SGD", "optimizer is unknown; allowed: run, agents, mesh, task"),
    ("data.batchsize=3", "data.batchsize is unknown; did you mean 'batch_size'? allowed: name"),
    ("data.name=digit", "data.name='digit' is unknown; did you mean 'digits'? allowed: digits, mnist"),
    ("data.name=cifar10", "data.path is missing: the folder that holds (or will hold) cifar-10-batches-py"),
    ("data.path=x", "data.path='x' has no effect: digits ships inside a package"),
    ("data.download=true", "data.download=true: digits cannot be downloaded"),
    ("data.augment=true", "data.augment=true: digits has no standard augmentation"),
    ("data.image_size=32", "data.image_size=32: digits has a size of its own"),
    ("model.name=resnet81", "model.name='resnet81' is unknown; did you mean 'resnet18'? allowed: mlp, cnn"),
    ("model.name=resnet18", "model: model='resnet18' takes images of 3 channels, not 1"),
    ("model={name: cifar_resnet18, dropout: 0.1}", "model.dropout=0.1 has no effect on cifar_resnet18"),
    ("inner=SGD", "inner='SGD' must have a name"),
    ("inner.name=sgd", "inner.name='sgd' is unknown; did you mean 'SGD'? allowed: A"),
    ("inner.name=LBFGS", "inner.name='LBFGS' needs a closure"),
    ("inner.name=ASGD", "inner.name='ASGD' keeps the average of its weights where nothing evaluates it: take SGD"),
    ("inner.momentun=0.9", "inner.momentun is unknown; did you mean 'momentum'? allowed: lr, momentum"),
    ("inner.params=[1]", "inner.params is unknown; allowed: lr, momentum"),
    ("inner.lr='0.1'", "inner.lr='0.1' must be a number"),
    ("inner.lr=-1", "inner: SGD(lr=-1, momentum=0.9) is refused by torch: Invalid learning rate"),
    ("inner={name: SGD, momentum: 0.9}", "inner.lr is missing"),
    ("inner={name: SGD, lr: 0.1, nesterov: true}", "inner: SGD(lr=0.1, nesterov=true) is refused by torch: Nesterov"),
    ("inner={name: SGD, lr: 0.1, dampening: 0.5}", "inner.dampening has no effect without momentum"),
    ("inner={name: AdamW, lr: 0.1, betas: [0.9]}", "inner.betas=[0.9] must be a list of 2 numbers"),
    ("inner.decay_norm_and_bias=false", "inner.decay_norm_and_bias=false has no effect without weight_decay"),
    ("lr_schedule=cosine", "lr_schedule='cosine' must be a mapping with a name; allowed: constant, multistep"),
    ("lr_schedule={warmup: 5}", "lr_schedule.name is missing; allowed: constant, multistep"),
    ("lr_schedule.name=cosin", "lr_schedule.name='cosin' is unknown; did you mean 'cosine'? allowed: constant"),
    ("lr_schedule={name: cosine, gamma: 0.1}", "lr_schedule.gamma is unknown; allowed: warmup"),
    ("lr_schedule={name: constant, unit: epochs}", "lr_schedule.unit='epochs' has no effect without warmup"),
    ("lr_schedule={name: linear, warmup: 0.5}", "lr_schedule.warmup=0.5 must be a whole number of steps"),
    ("lr_schedule={name: multistep, milestones: [5, a]}", "lr_schedule.milestones[1]='a' must be a number"),
    ("lr_schedule={name: multistep, milestones: [5, 3]}", "lr_schedule.milestones=[5.0, 3.0] must be above 0 and"),
    ("lr_schedule={name: multistep, milestones: [5], warmup: 9}", "lr_schedule.milestones=[5.0] must not begin before"),
    ("lr_schedule={name: inverse_sqrt}", "lr_schedule.warmup is missing: inverse_sqrt falls from its end on"),
    ("lr_schedule={name: inverse_sqrt, hold: 0.5}", "lr_schedule.hold=0.5 must be a whole number of steps"),
    ("lr_schedule={name: inverse_sqrt, hold: 9999}", "lr_schedule.hold=9999 steps ends after the run of 1348 fast"),
    ("inner.clip_norm=0", "inner.clip_norm=0 must be a number above 0, or null"),
    ("inner.clip_norm=yes", "inner.clip_norm='yes' must be a number above 0, or null"),
    ("lr_schedule={name: multistep, milestones: [9999]}", "lr_schedule.milestones: 9999 steps is beyond the end"),
    ("lr_schedule={name: cosine, unit: epochs, warmup: 30}", "lr_schedule.warmup=30 epochs is longer than the run"),
    ("levels=slowmo", "levels='slowmo' must have a recipe, or be a list of levels"),
    ("levels.recipe=slomo", "levels.recipe='slomo' is unknown; did you mean 'slowmo'? allowed: bmuf"),
    ("levels.tua=3", "levels.tua is unknown; did you mean 'tau'? allowed: tau, alpha, beta"),
    ("levels.tau=0", "levels.tau=0: Every.tau=0 must be a whole number of fast steps, at least 1"),
    ("levels.tau='12'", "levels.tau='12' must be a number or a schedule such as {piecewise"),
    ("levels.tau=9999", "levels.tau=9999: the run has 1348 fast steps, so no sync would ever be due"),
    ("levels.shard=1", "levels.shard=1 must be true or false"),
    ("levels.fast_buffers=rest", "levels.fast_buffers='rest' must be one of keep, reset, average"),
    ("levels={recipe: post_local_sgd}", "levels.start is missing: post_local_sgd needs it"),
    ("levels={recipe: multilayer_lookahead, taus: [5]}", "levels: multilayer_lookahead has 1 taus and 2 alphas"),
    (
        "levels.tau={linear: {start: 1, stop: 9, steps: 99}}",
        "levels in the round that begins at fast step 1: Every.tau",
    ),
    ("levels=[]", "levels=[]: give at least one Level"),
    ("levels=[{when: {every: {tau: 5}}, mix: exakt, move: copy}]", "levels[0].mix='exakt' is unknown; did you mean"),
    ("levels=[{when: {every: {tau: 5}}, mix: alone, move: copy}]", "levels[0]: Level(mix=Alone(), move=Copy()) has no"),
    ("levels=[{when: {every: {tau: 5}}, mix: {exact: {axis: a}}, move: copy}]", "levels[0].mix.exact.axis='a' is"),
    ("levels=[{when: {every: {tau: 5}}, mix: {exact: {shard: 1}}, move: copy}]", "levels[0].mix.exact.shard=1 must be"),
    ("evaluation.weights=[slwo]", "evaluation.weights[0]='slwo' is unknown; did you mean 'slow'? allowed: slow"),
    ("evaluation.weights=[]", "evaluation.weights=[] must be a list of at least 1 item"),
    ("evaluation={every: 0.5, unit: steps}", "evaluation.every=0.5 must be a whole number of steps"),
    ("checkpoint.keep=0", "checkpoint.keep=0 must be at least 1"),
    ("logging.progress=fancy", "logging.progress='fancy' is unknown; allowed: auto, bar, plain, off"),
    ("precision=fp61", "precision='fp61' is unknown; did you mean 'fp16'? allowed: fp32, tf32, bf16, fp16"),
    ("performance.channels_last=true", "performance.channels_last=true has no effect on mlp"),
    ("run.name.x=3", "--set run.name.x=3: run.name='test' holds no x"),
    ("levels.tau", "--set levels.tau: must be path=value"),
    ("levels.tau={a:", "--set levels.tau={a:: line 1, column 4"),
]


@pytest.mark.parametrize(("setting", "sentence"), BAD, ids=[setting for setting, _ in BAD])
def test_a_bad_setting_is_refused_with_path_value_and_remedy(good: Path, setting: str, sentence: str) -> None:
    (fault,) = faults(good, setting)
    assert fault.startswith(sentence)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["run.device=cpu", "precision=tf32"], "precision='tf32' has no effect on device='cpu'"),
        (["run.device=cpu", "data.pin_memory=true"], "data.pin_memory=true has no effect on device='cpu'"),
        (["run.device=cpu", "sync.offload=cpu"], "sync.offload='cpu' has no effect on device='cpu'"),
        (
            ["sync.offload=cpu", "levels={recipe: local_sgd, tau: 12}"],
            "sync.offload='cpu' has no effect: no level keeps",
        ),
        (["agents=4", "levels={recipe: snoo}"], "agents=4 has no effect on levels that never average"),
        (["faults.differing_weights=majority"], "faults.differing_weights='majority' with sync.check_every=0: "),
        (["sync.check_every=4", "levels={recipe: snoo}"], "sync.check_every=4 has no effect on levels that never"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(good: Path, settings: list[str], sentence: str) -> None:
    (fault,) = faults(good, *settings)
    assert fault.startswith(sentence)


def test_all_faults_come_in_one_error(tmp_path: Path) -> None:
    """Also those between the sections that are right in themselves."""
    path = tmp_path / "bad.yaml"
    path.write_text("""
run: {name: bad, epochs: 30, device: cpu}
data: {name: digits, batch_size: 0, workerz: 2}
inner: {name: SGD, lr: fast, momentun: 0.9}
lr_schedule: {name: cosine, milestones: [3]}
levels: {recipe: slowmo, tau: 0, alpha: -1.0}
agents: 4
precision: bf61
""")
    assert [fault.split("=")[0].split(" is ")[0] for fault in faults(path, "sync.chek_every=2", "run.x.y=1")] == [
        "run.x",
        "data.batch_size",
        "data.workerz",
        "model",
        "inner.lr",
        "inner.momentun",
        "lr_schedule.milestones",
        "levels.tau",
        "levels.alpha",
        "sync.chek_every",
        "precision",
    ]
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path} has 9 faults:\n  data.batch_size=0 must be at least 1\n")


def test_faults_between_sound_sections_are_found_beside_others(good: Path) -> None:
    found = faults(good, "run.device=cpu", "precision=tf32", "inner.momentun=0.9")
    assert [fault.split(" ")[0] for fault in found] == ["inner.momentun", "precision='tf32'"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("run: {name: a,\n  epochs: [}", "line 2, column 12: "),
        ("inner:\n  lr: 0.1\n  lr: 0.2\n", "line 3, column 3: the key 'lr' is given twice"),
        ("inner:\n  1: 0.1\n", "line 2, column 3: the key 1 must be a text"),
        ("run: !!python/object:os.system {}", "line 1, column 6: could not determine a constructor"),
        ("", "the file must hold sections"),
        ("- run", "the file must hold sections"),
        ("\udcff", "cannot be read"),
    ],
)
def test_broken_yaml_is_refused_with_its_place(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    (fault,) = faults(path)
    assert sentence in fault


def test_a_missing_file_is_named_with_its_neighbour(tmp_path: Path) -> None:
    shutil.copy(CONFIGS / "digits" / "slowmo.yaml", tmp_path)
    (fault,) = faults(tmp_path / "slomo.yaml")
    assert fault == f"{tmp_path}/slomo.yaml does not exist; did you mean '{tmp_path}/slowmo.yaml'?"
    assert "is a folder" in faults(tmp_path)[0]


@pytest.mark.parametrize(
    ("overrides", "runtime", "sentence"),
    [
        (["precision=tf32"], {"device": "cpu"}, "precision='tf32' has no effect on device='cpu'"),
        (["levels={recipe: snoo}"], {"agents": 2}, "agents=2 has no effect on levels that never average"),
        (["levels.tau=700"], {"agents": 2}, "levels.tau=700: the run has 674 fast steps"),
        (["levels.tau=700"], {"samples": 700}, "levels.tau=700: the run has 657 fast steps"),
    ],
)
def test_what_only_the_running_program_knows_is_checked_there(
    good: Path, overrides: list[str], runtime: dict[str, Any], sentence: str
) -> None:
    """Under torchrun the file does not say how many agents there are, and so how many steps."""
    config = load_config(good, overrides)
    with pytest.raises(ConfigError) as error:
        config.check(**{"device": "cuda", "samples": 1437, "agents": 1, **runtime})
    assert error.value.faults[0].startswith(sentence)


def test_every_setting_says_what_it_is() -> None:
    """The docstrings under the fields are the reference of the run file."""
    parts = [
        part for field in Config.model_fields.values() for part in (get_args(field.annotation) or [field.annotation])
    ]
    sections = [Config, *(part for part in parts if hasattr(part, "model_fields"))]
    fields = [(model, name, field) for model in sections for name, field in model.model_fields.items()]
    assert len(fields) > 60
    assert [(model, name) for model, name, field in fields if not field.description] == []


def test_alpha_may_be_an_interval_to_choose_from(good: Path) -> None:
    config = load_config(good, ["levels={recipe: lookahead, alpha: {optimal: {low: 0.2, high: 1.0}}}"])
    assert config.levels_stack() == [Level(Every(5), Alone(), Pull(Optimal(0.2, 1.0)))]
    assert parse_config(config.resolved()) == config
    for levels, fault in (
        ("{recipe: lookahead, alpha: {optimal: {low: 2, high: 1}}}", "needs two finite numbers, 0 < low <= high"),
        ("{recipe: lookahead, alpha: {optimal: {low: x, high: 1}}}", "low='x', high=1"),
        ("{recipe: lookahead, alpha: fast}", "or {optimal: {low: 0.2, high: 1.0}}"),
        ("{recipe: slowmo, alpha: {optimal: {low: 0.2, high: 1}}}", "alpha={'optimal': {'low': 0.2, 'high': 1}} must"),
    ):
        (told,) = faults(good, f"levels={levels}")
        assert fault in told


def test_a_mesh_names_the_axes_of_levels(good: Path) -> None:
    levels = "levels={recipe: hierarchical_local_sgd, taus: [2, 4]}"
    config = load_config(good, [levels, "mesh={node: 2, local: 3}"])
    assert config.mesh == Mesh((2, 3), ("node", "local"))
    assert parse_config(config.resolved()) == config
    assert load_config(good, [levels]).mesh is None  # the axes are torchrun's
    for settings, fault in (
        (["mesh={node: 2, local: 0}"], "mesh: Mesh.shape=(2, 0): at least 1 agent"),
        (["mesh=[2, 2]"], "mesh=[2, 2] must be a mapping of axes to numbers of agents"),
        (["mesh={node: 2, local: 2}", "agents=3"], "agents=3 and mesh={'node': 2, 'local': 2} of 4 agents"),
        (["mesh={rack: 2, local: 2}", levels], "axis='node' is unknown; allowed: rack, local, world, as mesh says"),
        (["levels={recipe: hierarchical_local_sgd, axes: [locale, node]}"], "did you mean 'local'?"),
        (["levels={recipe: hierarchical_local_sgd, axes: [local]}"], "give one tau for each axis"),
        (["mesh={rack: 2, gpu: 2}", "inner.data_parallel=ddp"], "needs the axis 'local', which mesh does not have"),
        (
            ["levels={recipe: dpsgd}", "inner.data_parallel=ddp", "evaluation.weights=[averaged]"],
            "gives different weights to agents that share their gradients along local: gossip along another axis",
        ),
        (["levels={recipe: dpsgd}", "inner.data_parallel=ddp"], "gossip along another axis"),
        (["levels={recipe: hierarchical_local_sgd, axes: [1, 2]}"], "levels.axes=[1, 2] must be a list of texts"),
    ):
        assert any(fault in told for told in faults(good, *settings)), faults(good, *settings)


LATE = ("levels={recipe: overlapped_local_sgd, tau: 8, delay: 4}", "evaluation.weights=[averaged]")


def test_a_delay_is_read_in_a_recipe_and_in_a_list(good: Path) -> None:
    assert load_config(good, LATE).levels_stack()[0].when == Every(8, 4)
    listed = "levels=[{when: {every: {tau: 8, delay: 4}}, mix: exact, move: {pull: {alpha: 0.5}}}]"
    assert load_config(good, [listed]).levels_stack()[0].when == Every(8, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (LATE[:1], r"of which none has kept all; use \[averaged\]"),
        (("levels.delay=4", "levels.shard=true"), r"of which none has kept all; use \[averaged\]"),
        (("levels.delay=12",), r"Every.delay=12 must be below tau=12"),
        (("levels.delay=0.5",), r"levels.delay=0.5 must be a whole number"),
        (("levels.delay=2", "levels.fast_buffers=average"), r"the agents would wait for it"),
    ],
)
def test_a_delay_that_training_would_refuse_is_refused_here(good: Path, settings: Sequence[str], message: str) -> None:
    (fault,) = faults(good, *settings)
    assert re.search(message, fault)
