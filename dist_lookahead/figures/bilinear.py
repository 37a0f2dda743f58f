"""The game min_x max_y x y: gradient descent-ascent spirals out, Lookahead over both players spirals in."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from torch import Tensor

from dist_lookahead import Level, local_sgd, lookahead
from dist_lookahead.figures.runs import Agents
from dist_lookahead.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SMALL,
    Progress,
    label,
    new_figure,
    save,
    silent,
)
from dist_lookahead.theory import bilinear_contraction

LR = 0.1
PATH_TAU, PATH_ALPHA, PATH_STEPS = 12, 0.5, 96
TAUS = range(1, 61)
ALPHAS = {0.3: GREEN, 0.5: BLUE, 0.7: ORANGE}
MEASURED_EVERY = 3  # of the taus
START = torch.tensor([1.0, 0.0], dtype=torch.float64)  # x, y


def draw(folder: Path, progress: Progress = silent) -> None:
    """The game min_x max_y x y with simultaneous gradient steps: paths, and contraction per round against tau.

    Args:
        folder: where bilinear.png and bilinear.json go.
        progress: is told how far it is.
    """
    title = (
        r"The game min$_x$ max$_y$ $x\,y$: gradient descent-ascent spirals out, Lookahead over both players spirals in"
    )
    figure, axes = new_figure(title, size=(10.5, 4.6), columns=2)
    paths = {"gda": _path(local_sgd(1)), "lookahead": _path(lookahead(PATH_TAU, PATH_ALPHA))}
    _draw_paths(axes[0], paths["gda"], paths["lookahead"])
    progress(0.3)
    predicted = {alpha: [bilinear_contraction(LR, tau, alpha) for tau in TAUS] for alpha in (*ALPHAS, 1.0)}
    measured = {alpha: [_measure(tau, alpha) for tau in TAUS[::MEASURED_EVERY]] for alpha in (*ALPHAS, 1.0)}
    _draw_contraction(axes[1], predicted, measured)
    numbers = {"lr": LR, "tau": TAUS, "predicted": predicted, "measured_tau": TAUS[::MEASURED_EVERY]}
    save(figure, folder, "bilinear", {**numbers, "measured": measured, **paths})
    progress(1.0)


def _simultaneous(weights: Tensor) -> Tensor:
    """Gradients for SGD: the x player descends x y, the y player ascends it, both from the same point."""
    x, y = weights
    return torch.stack((y, -x))


def _path(levels: Sequence[Level]) -> Tensor:
    run = Agents(levels, START, lr=LR)
    path = [run.fast[0]]
    for _ in range(PATH_STEPS):
        run.steps(1, _simultaneous)
        path.append(run.fast[0])
    return torch.stack(path)


def _measure(tau: int, alpha: float) -> float:
    """Distance to the solution after one round over that before."""
    run = Agents(lookahead(tau, alpha), START, lr=LR)
    run.steps(tau, _simultaneous)
    return (run.slow.norm() / START.norm()).item()


def _draw_paths(axis: Axes, gda: Tensor, lookahead: Tensor) -> None:
    axis.plot(*gda.T, color=GREY, linewidth=1.2, label="gradient descent-ascent")
    axis.plot(*lookahead.T, color=BLUE, linewidth=0.9, label="Lookahead: fast weights")
    axis.plot(*lookahead[::PATH_TAU].T, "o-", color=ORANGE, linewidth=2, markersize=5, label="Lookahead: slow weights")
    axis.plot(0, 0, "k+", markersize=10)
    axis.set_aspect("equal")
    axis.set_xlim(-2.1, 2.1)
    axis.set_ylim(-1.5, 2.5)
    axis.legend(frameon=False, loc="upper left", **SMALL)
    title = rf"$\gamma={LR}$, $\tau={PATH_TAU}$, $\alpha={PATH_ALPHA}$, {PATH_STEPS} simultaneous steps"
    label(axis, x="$x$", y="$y$", title=title)


def _draw_contraction(axis: Axes, predicted: dict[float, list[float]], measured: dict[float, list[float]]) -> None:
    for alpha, line in predicted.items():
        colour = ALPHAS.get(alpha, GREY)
        text = rf"$\alpha={alpha:g}$" + (" (descent-ascent)" if alpha == 1 else "")
        axis.plot(TAUS, line, color=colour, label=text)
        axis.plot(TAUS[::MEASURED_EVERY], measured[alpha], "o", markersize=4, color=colour)
    axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axis.axvline(math.pi / math.atan(LR), color="black", linewidth=0.8, linestyle=":")
    axis.text(math.pi / math.atan(LR) + 0.7, 1.65, "half a turn", fontsize=9)
    axis.set_ylim(0, 1.9)
    axis.legend(frameon=False, loc="upper left", title="lines predicted, dots measured", **SMALL)
    y = r"contraction of a round $|1-\alpha+\alpha(1+i\gamma)^\tau|$"
    label(axis, x=r"fast steps between syncs $\tau$", y=y, title="below 1: spirals in")
