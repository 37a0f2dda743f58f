"""The experiments in small: each file trains for some steps, on generated files in the layout that it asks for."""

import math
from pathlib import Path

import pytest
import torchvision.datasets.cifar

from dist_lookahead.tasks.number_words import english
from dist_lookahead.train.config import load_config
from dist_lookahead.train.recorder import read_metrics
from dist_lookahead.train.sweep_file import load_sweep
from tests.test_tasks_datasets import write
from tests.test_tasks_translation import write_multi30k
from tests.training import folder_of, train

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = sorted(file.stem for file in (CONFIGS / "small").glob("*.yaml"))
PATHS = {"vision": "data.path", "language": "corpus.path", "translation": "parallel_corpus.path", "gan": "images.path"}
SHORTER = {
    "multi30k_transformer": [
        "parallel_corpus.vocabulary_size=300",
        "lr_schedule.warmup=2",
        "parallel_corpus.longest=90",
    ],
    "ptb_lstm": ["lr_schedule.milestones=[3, 5]", "corpus.batch_size=4"],
    "shakespeare_gpt": ["lr_schedule.warmup=2", "levels.tau=2", "corpus.batch_size=2"],
    "cifar10_resnet": ["lr_schedule.unit=steps", "lr_schedule.milestones=[3, 5]", "data.batch_size=4"],
    "mnist_agents": ["agents=2", "data.batch_size=2", "levels.tau=2"],
    "mnist_cnn": ["data.batch_size=4"],
    "mnist_multilayer": ["data.batch_size=4", "levels.taus=[2, 1, 2]"],
    "digits_gan": ["levels.taus=[2, 2]", "evaluation.every=4"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files named and built like the real ones, with little in them."""
    root = tmp_path_factory.mktemp("data")
    write("mnist", root)
    write("cifar10", root)
    for folder in ("ptb", "shakespeare", "multi30k"):
        (root / folder).mkdir()
    for part, lines in (("train", 60), ("valid", 20), ("test", 20)):
        text = "".join(f" {english(number)} \n" for number in range(lines))
        (root / "ptb" / f"ptb.{part}.txt").write_text(text, encoding="utf-8")
    (root / "shakespeare" / "input.txt").write_text("\n".join(map(english, range(200))), encoding="utf-8")
    write_multi30k(root / "multi30k")
    return root


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", SMALL)
def test_each_file_trains_on_the_layout_that_it_asks_for(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).exists())
    plain = load_config(CONFIGS / "small" / f"{name}.yaml")
    key = PATHS[plain.task]
    section, _, field = key.partition(".")
    path = getattr(getattr(plain, section), field)
    moved = [] if path is None else [f"{key}={data / Path(path).relative_to('data')}"]
    length = ["run.epochs=null", "run.steps=8", f"run.dir={tmp_path}", "run.device=cpu", "logging.progress=off"]
    config = load_config(CONFIGS / "small" / f"{name}.yaml", [*length, *moved, *SHORTER[name]])
    assert train(config).step == 8
    *_, last = [
        record for record in read_metrics(folder_of(config) / "metrics.jsonl") if record["kind"] == "evaluation"
    ]
    assert all(math.isfinite(value) for value in last.values() if isinstance(value, float))


def test_the_sweep_of_all_results_runs_every_file_with_three_seeds() -> None:
    """Spread over fewer is not known."""
    sweep, points = load_sweep(CONFIGS / "sweeps" / "results.yaml")
    assert sweep.grid["run.seed"] == (0, 1, 2)
    assert sorted({str(variant.base) for variant in sweep.points}) == [f"../small/{name}.yaml" for name in SMALL]
    assert len(points) % 3 == 0
