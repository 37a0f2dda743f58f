"""Stationary variance of the slow weights against alpha, beta, tau and the number of agents."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from dist_lookahead import Level, bmuf, distributed_lookahead
from dist_lookahead.figures.runs import Agents, mean_and_error, noisy_gradient
from dist_lookahead.figures.style import BLUE, GREEN, ORANGE, SMALL, Progress, label, new_figure, save, silent
from dist_lookahead.theory import stationary
from dist_lookahead.theory.closed_forms import sgd_variance

GAMMA_A = torch.tensor([0.05, 0.3, 1.0], dtype=torch.float64)  # learning rate x curvature
FORGOTTEN = 1e-4  # part of the variance that may be missing because the run begins at 0


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity that is varied, and the method that it belongs to."""

    symbol: str
    title: str
    dots: Sequence[float]
    line: Sequence[float]
    levels: Callable[[float], list[Level]]
    agents: Callable[[float], int] = lambda _: 1
    logarithmic: Sequence[str] = ()


PANELS = {
    "alpha": Panel(
        symbol=r"slow step size $\alpha$",
        title=r"a smaller pull: Lookahead, $\tau=5$",
        dots=(0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0),
        line=[step / 50 for step in range(1, 51)],
        levels=lambda alpha: distributed_lookahead(5, alpha),
    ),
    "beta": Panel(
        symbol=r"slow momentum $\beta$",
        title=r"slow momentum adds noise: $\tau=5$, $\alpha=1$",
        dots=(0.0, 0.2, 0.4, 0.6, 0.7, 0.8),
        line=[step / 50 for step in range(41)],
        levels=lambda beta: bmuf(5, 1.0, beta),
    ),
    "tau": Panel(
        symbol=r"fast steps between syncs $\tau$",
        title=r"longer rounds: Lookahead, $\alpha=0.5$",
        dots=(1, 2, 4, 8, 16, 32, 64),
        line=range(1, 65),
        levels=lambda tau: distributed_lookahead(int(tau), 0.5),
        logarithmic=("x",),
    ),
    "agents": Panel(
        symbol=r"agents $n$",
        title=r"$n$ agents divide it by $n$: $\tau=5$, $\alpha=0.5$",
        dots=(1, 2, 4, 8, 16, 32),
        line=(1, 2, 4, 8, 16, 32),
        levels=lambda _: distributed_lookahead(5, 0.5),
        agents=int,
        logarithmic=("x", "y"),
    ),
}


def draw(folder: Path, progress: Progress = silent, *, repetitions: int = 10_000) -> None:
    """Stationary variance of the slow weights over SGD's, predicted and measured, against alpha, beta, tau and n.

    Args:
        folder: where variance.png and variance.json go.
        progress: is told how far it is.
        repetitions: runs for each dot, all at once.
    """
    figure, axes = new_figure(
        "Variance of the slow weights: the real optimizer settles where the formulas say",
        size=(9.5, 7),
        rows=2,
        columns=2,
    )
    numbers: dict[str, Any] = {"gamma_a": GAMMA_A, "repetitions": repetitions}
    random = torch.Generator().manual_seed(0)
    for done, (axis, (name, panel)) in enumerate(zip(axes, PANELS.items(), strict=True)):
        numbers[name] = _compute(panel, repetitions, random)
        progress((done + 1) / len(PANELS))
        _draw_panel(axis, panel, numbers[name])
    axes[0].legend(frameon=False, title="learning rate x curvature\nlines predicted, dots measured (99 %)", **SMALL)
    save(figure, folder, "variance", numbers)


def _compute(panel: Panel, repetitions: int, random: torch.Generator) -> dict[str, Any]:
    measured = [_measure(panel.levels(value), panel.agents(value), repetitions, random) for value in panel.dots]
    variance, error = (torch.stack(parts) for parts in zip(*measured, strict=True))
    return {
        "line": list(panel.line),
        "predicted": torch.stack([_predict(panel, value) for value in panel.line]),
        "dots": list(panel.dots),
        "predicted_at_dots": torch.stack([_predict(panel, value) for value in panel.dots]),
        "measured": variance / sgd_variance(GAMMA_A),
        "error_99": error / sgd_variance(GAMMA_A),
    }


def _predict(panel: Panel, value: float) -> Tensor:
    settled = stationary(panel.levels(value), curvature=GAMMA_A, noise=1.0, lr=1.0, agents=panel.agents(value))
    return settled.round.slow.variance[0] / sgd_variance(GAMMA_A)


def _measure(levels: list[Level], agents: int, repetitions: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Run until the start is forgotten, and return the slow weights' variance, their mean being 0, and its error."""
    contraction = stationary(levels, curvature=GAMMA_A, noise=1.0, lr=1.0, agents=agents).contraction.max()
    rounds = math.ceil(math.log(FORGOTTEN) / (2 * math.log(contraction)))
    run = Agents(levels, torch.zeros(len(GAMMA_A), repetitions, dtype=torch.float64), lr=1.0, agents=agents)
    run.steps(rounds * levels[-1].when.after(0), noisy_gradient(GAMMA_A[:, None], random))
    return mean_and_error(run.slow.square())


def _draw_panel(axis: Axes, panel: Panel, numbers: dict[str, Any]) -> None:
    for index, colour in enumerate((BLUE, ORANGE, GREEN)):
        gamma_a = rf"$\gamma a={GAMMA_A[index].item():g}$"
        axis.plot(numbers["line"], numbers["predicted"][:, index], color=colour, label=gamma_a)
        axis.errorbar(
            numbers["dots"],
            numbers["measured"][:, index],
            yerr=numbers["error_99"][:, index],
            fmt="o",
            markersize=4,
            capsize=2.5,
            color=colour,
        )
    label(axis, x=panel.symbol, y=r"$V\,/\,V_{\mathrm{SGD}}$", title=panel.title)
    for which in panel.logarithmic:
        _logarithmic(axis, which, panel.dots)


def _logarithmic(axis: Axes, which: str, dots: Sequence[float]) -> None:
    """Powers of two are what one reads off an axis of agents or steps."""
    if which == "y":
        axis.set_yscale("log")
    else:
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(dots), [f"{dot:g}" for dot in dots])
