"""Every figure in a small version: its files, and that what was measured is what was predicted."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_lookahead.figures import (
    bilinear,
    equal_contraction,
    floor,
    inner_loop,
    stability,
    trajectory,
    variance,
)
from dist_lookahead.figures.equal_contraction import SPECTRA, Setting
from dist_lookahead.figures.registry import FIGURES
from dist_lookahead.theory import closed_forms
from dist_lookahead.train.command import main

SMALL: dict[str, Callable[..., None]] = {
    "variance": partial(variance.draw, repetitions=500),
    "inner_loop": partial(inner_loop.draw, repetitions=500),
    "trajectory": trajectory.draw,
    "floor": floor.draw,
    "stability": partial(stability.draw, betas=5, probes=3),
    "equal_contraction": partial(equal_contraction.draw, rates=5),
    "bilinear": bilinear.draw,
}
WRITTEN = 5e-6  # relative, of six digits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(scope="module")
def numbers_of(folder: Path) -> Callable[[str], dict[str, Any]]:
    """Draw each figure when it is first asked for."""

    def draw(name: str) -> dict[str, Any]:
        if not (folder / f"{name}.json").exists():
            SMALL[name](folder)
        return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))

    return draw


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_measured(measured: Tensor, error: Tensor, predicted: Tensor) -> None:
    """99 % intervals: nearly all dots inside theirs, none beyond twice its own, which is 5.2 sigma."""
    off = (measured - predicted).abs() / error
    assert (off < 2).all()
    assert (off < 1).double().mean() > 0.95


def test_all_figures_are_drawn_here() -> None:
    assert list(SMALL) == list(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_a_small_picture_and_its_numbers(name: str, folder: Path, numbers_of: Any) -> None:
    assert numbers_of(name)
    picture = (folder / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 10_000 < len(picture) < 150_000


def test_progress_ends_at_one(tmp_path: Path) -> None:
    done: list[float] = []
    trajectory.draw(tmp_path, done.append)
    assert done == sorted(done)
    assert done[-1] == 1


def test_variance_is_measured_where_it_is_predicted(numbers_of: Any) -> None:
    panels = [numbers_of("variance")[panel] for panel in ("alpha", "beta", "tau", "agents")]
    assert_measured(
        *(
            torch.cat([tensor(panel[name]) for panel in panels])
            for name in ("measured", "error_99", "predicted_at_dots")
        )
    )


def test_variance_changes_with_each_setting_as_the_titles_say(numbers_of: Any) -> None:
    numbers = numbers_of("variance")
    for panel, sign in (("alpha", 1), ("beta", 1), ("tau", -1), ("agents", -1)):
        small_steps = tensor(numbers[panel]["predicted"])[:, :2]  # at gamma a = 1 tau does not matter
        assert (sign * small_steps.diff(dim=0) > -WRITTEN).all()
    total = tensor(numbers["agents"]["predicted"]) * tensor(numbers["agents"]["line"])[:, None]
    torch.testing.assert_close(total, total[:1].expand_as(total), rtol=1e-4, atol=0)


def test_fast_weights_are_measured_where_they_are_predicted(numbers_of: Any) -> None:
    numbers = numbers_of("inner_loop")
    settled, loss = numbers["variance"], numbers["loss"]
    assert_measured(tensor(settled["measured"]), tensor(settled["error_99"]), tensor(settled["fast"]))
    for which in ("fast", "slow"):
        measured, error = tensor(loss[f"{which}_measured"]).T
        assert (((measured - tensor(loss[which])[1:]) / error).abs() < 2).all()  # steps of one run are not independent
    assert (tensor(settled["fast"]) >= tensor(settled["slow"]) * (1 - WRITTEN)).all()
    assert loss["fast"][9] < loss["slow"][9], "at first the fast weights are ahead"
    assert loss["fast"][79] > loss["slow"][79], "in the end their noise is above that of the slow weights"


def test_paths_meet_at_syncs_and_slow_weights_scatter_less(numbers_of: Any) -> None:
    numbers = numbers_of("trajectory")
    for method in ("lookahead", "slowmo"):
        fast, slow = tensor(numbers[method]["fast"]), tensor(numbers[method]["slow"])
        assert (fast[:, ::5] == slow).all()
        assert slow[4:, 1].std() < fast[:, 20:, 1].std()
    assert len(numbers["slowmo"]["fast"]) == 4


def test_the_least_floor_is_at_the_best_alpha_and_what_it_saves_falls_as_one_over_n(numbers_of: Any) -> None:
    numbers = numbers_of("floor")
    for q, best in numbers["best_alpha"].items():
        for agents in (1, 4, 16):
            floors = numbers[f"floor_{agents}"][q]
            assert abs(numbers["alpha"][floors.index(min(floors))] - best) <= 0.02
        saved = tensor(numbers["saved"][q]) * tensor(numbers["agents"])
        assert saved.tolist() == pytest.approx([1 / (4 * float(q))] * len(saved), rel=1e-4)


def test_real_runs_shrink_below_the_limit_and_grow_above_it(numbers_of: Any) -> None:
    numbers = numbers_of("stability")
    for choice in ("keep", "reset"):
        assert len(numbers[f"runs_{choice}"]) == 3
        for run in numbers[f"runs_{choice}"]:
            below, above = run["measured"]
            assert below < 1 < above
            assert above == pytest.approx(run["predicted"][1], rel=0.02)
    assert min(min(row) for row in numbers["keep"]) < 0.01, "kept momentum fails early in short rounds"
    assert min(min(row) for row in numbers["reset"]) > 1, "reset momentum does not"


def test_the_game_is_played_as_the_formula_says(numbers_of: Any) -> None:
    numbers = numbers_of("bilinear")
    for alpha, measured in numbers["measured"].items():
        predicted = [numbers["predicted"][alpha][tau - 1] for tau in numbers["measured_tau"]]
        assert measured == pytest.approx(predicted, rel=2 * WRITTEN)
    assert tensor(numbers["gda"][-1]).norm() > 1.5
    assert tensor(numbers["lookahead"][-1]).norm() < 0.5


def test_methods_are_compared_at_equal_contraction() -> None:
    """The learning rate for a contraction, against the closed form of the contraction for a learning rate."""
    rates = tensor([0.001, 0.01])
    for setting in (Setting(), Setting(tau=10, alpha=0.5), Setting(tau=10, alpha=0.7, beta=0.5)):
        gamma = equal_contraction._learning_rate(setting, SPECTRA["spread"], rates)
        for rate, lr in zip(rates.tolist(), gamma.tolist(), strict=True):
            left = closed_forms.contraction(lr / 100, setting.tau, setting.alpha, setting.beta)
            assert left ** (1 / setting.tau) == pytest.approx(1 - rate, rel=1e-9)


def test_a_pull_saves_on_a_spread_spectrum_only_and_momentum_on_both(numbers_of: Any) -> None:
    numbers = numbers_of("equal_contraction")
    spread, single = (
        {name: tensor([float("inf") if x is None else x for x in values]) for name, values in numbers[which].items()}
        for which in ("spread", "single")
    )
    variance_of_sgd = closed_forms.sgd_variance(spread["rate"][:, None] * 100 * SPECTRA["spread"].curvature)
    torch.testing.assert_close(spread["sgd"], variance_of_sgd.sum(dim=-1) / 2, rtol=1e-4, atol=0)
    assert (spread["lookahead"] < 0.9 * spread["sgd"])[:2].all()
    assert (single["lookahead"] >= single["sgd"]).all()
    assert (spread["slowmo"] < 0.5 * spread["sgd"]).all()
    assert (single["slowmo"] < 0.65 * single["sgd"]).all()


def test_the_command_draws_what_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figure", "floor", "--out", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "floor.png")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"floor.png", "floor.json"}
    assert main(["figure", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(FIGURES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["varience"], "varience is unknown; did you mean 'variance'?"),
        ([], "give names of figures, or all"),
        (["floor", "--list"], "leave out floor"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figure", *arguments]) == 2
    assert message in capsys.readouterr().err
