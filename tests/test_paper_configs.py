"""The papers' configs: the files of one experiment differ in the method alone, and no two write into one folder."""

from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from dist_lookahead.train.config import load_config

PAPERS = Path(__file__).parents[1] / "configs" / "papers"
FILES = sorted(PAPERS.rglob("*.yaml"))

METHOD = {"inner", "levels", "lr_schedule"}
"""Sections that make the method."""
MEASURED = {"evaluation", "logging", "checkpoint"}
"""Sections that say what is looked at, and when."""
IN_A_STEP = {"run.name", "run.epochs", "gan.step", "gan.d_steps", "images.batch_size"}
"""Names, ImageNet's two lengths, and what a fast step of a GAN is, of which its batch is a multiple."""


def experiments() -> dict[str, list[Path]]:
    """Return the files by paper and data set, with which their names begin."""
    found: dict[str, list[Path]] = defaultdict(list)
    for file in FILES:
        found[f"{file.parent.name}-{file.stem.split('_')[0]}"].append(file)
    return found


def shared(file: Path) -> dict[str, Any]:
    """Return the settings that all methods of an experiment have in common."""
    sections = {k: v for k, v in load_config(file).resolved().items() if k not in METHOD | MEASURED}
    settings = chain.from_iterable(
        ((f"{name}.{key}", value) for key, value in section.items()) if isinstance(section, dict) else [(name, section)]
        for name, section in sections.items()
    )
    return {path: value for path, value in settings if path not in IN_A_STEP}


@pytest.mark.parametrize(("name", "files"), experiments().items(), ids=experiments())
def test_curves_of_one_figure_are_trained_on_the_same(name: str, files: list[Path]) -> None:
    """With another batch, model or precision, a comparison of methods would compare those."""
    first, *others = files
    assert others, f"{name} has nothing to be compared with"
    for other in others:
        assert shared(other) == shared(first)


def test_no_two_runs_have_the_same_folder() -> None:
    """The second one would be refused, or go on from the first one's checkpoint."""
    names = [load_config(file).run.name for file in FILES]
    assert sorted(set(names)) == sorted(names)


def test_the_seed_papers_experiments_are_there() -> None:
    """Of all four papers, and of language, translation and GANs beside images."""
    assert experiments().keys() >= {
        "lookahead_converges-cifar10",
        "lookahead_converges-imagenet",
        "lookahead-cifar10",
        "lookahead-cifar100",
        "lookahead-imagenet",
        "lookahead-ptb",
        "lookahead-wmt14",
        "multilayer_lookahead-cifar10",
        "multilayer_lookahead-cifar100",
        "multilayer_lookahead-mnist",
        "slowmo-cifar10",
        "slowmo-imagenet",
        "slowmo-wmt16",
    }
