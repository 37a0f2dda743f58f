"""Where slow momentum over fast momentum is stable: maps over beta and tau, with kept and with reset buffers.

For one agent, or the mean of several that are alike. Above the least unstable value there may be stable ones again.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from torch import Tensor

from dist_lookahead import Level, slowmo
from dist_lookahead.figures.runs import Agents
from dist_lookahead.figures.style import Progress, label, new_figure, save, silent
from dist_lookahead.level import FastBuffers
from dist_lookahead.theory import stability_limit, stationary

MOMENTUM = 0.9  # of SGD, heavy ball
CHOICES: tuple[FastBuffers, ...] = ("keep", "reset")
TITLES = {
    "keep": "fast momentum kept at syncs",
    "reset": "fast momentum reset at syncs",
}
TAUS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20, 22, 24, 28, 32, 36, 40, 48)
HORIZONS = {1: 10, 2: 20}  # tau (1 - m) and tau
LEVELS = (0.01, 0.1, 1.0)  # of the contour lines
PROBES = ((0.2, 3), (0.4, 6), (0.6, 2), (0.6, 6), (0.6, 12), (0.8, 6), (0.8, 12), (0.9, 24))  # (beta, tau) of real runs
BESIDE = torch.tensor([0.97, 1.03], dtype=torch.float64)  # of the predicted limit
CLEAR, LONGEST = 4.0, 3000  # a real run goes on until it has grown or shrunk by e^4, if that is not too long


def draw(folder: Path, progress: Progress = silent, *, betas: int = 39, probes: int = len(PROBES)) -> None:
    """Least unstable learning rate x curvature over beta and tau, with fast momentum 0.9 kept or reset at syncs.

    Args:
        folder: where stability.png and stability.json go.
        progress: is told how far it is.
        betas: number of slow momenta from 0 to 0.95.
        probes: number of places where real runs are made on both sides of the limit.
    """
    title = f"Slow momentum over fast momentum {MOMENTUM}: short rounds need a reset"
    figure, axes = new_figure(title, size=(10, 4.8), columns=2)
    beta = torch.linspace(0, 0.95, betas, dtype=torch.float64).tolist()
    numbers: dict[str, Any] = {"momentum": MOMENTUM, "beta": beta, "tau": TAUS}
    for done, choice in enumerate(CHOICES):
        numbers[choice] = [[stability_limit(_levels(b, tau, choice), momentum=MOMENTUM) for b in beta] for tau in TAUS]
        progress(done / 2 + 0.2)
        numbers[f"runs_{choice}"] = [_probe(b, tau, choice) for b, tau in PROBES[:probes]]
        progress(done / 2 + 0.5)
    meshes = [_draw_map(axis, numbers, choice) for axis, choice in zip(axes, CHOICES, strict=True)]
    figure.colorbar(meshes[0], ax=axes, label=r"least unstable learning rate x curvature $\gamma a$", pad=0.02)
    axes[1].legend(loc="lower left", fontsize=8.5, framealpha=0.9)
    save(figure, folder, "stability", numbers)


def _levels(beta: float, tau: int, choice: FastBuffers) -> list[Level]:
    return slowmo(tau, 1.0, beta, fast_buffers=choice)


def _probe(beta: float, tau: int, choice: FastBuffers) -> dict[str, Any]:
    """Run without noise just below and just above the limit, and compare growth per round with the prediction."""
    levels = _levels(beta, tau, choice)
    gamma_a = BESIDE * stability_limit(levels, momentum=MOMENTUM)
    predicted = stationary(levels, curvature=gamma_a, noise=0.0, lr=1.0, momentum=MOMENTUM).contraction
    measured = [_growth(levels, a, rate) for a, rate in zip(gamma_a, predicted.tolist(), strict=True)]
    return {"beta": beta, "tau": tau, "gamma_a": gamma_a, "predicted": predicted, "measured": measured}


def _growth(levels: Sequence[Level], gamma_a: Tensor, rate: float) -> float:
    """Factor per round by which the peaks of |z| change from the middle third to the last third of a run."""
    third = min(max(math.ceil(CLEAR / abs(math.log(rate)) / 3), 3), LONGEST // 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the instability that is looked for here
        run = Agents(levels, torch.ones(1, dtype=torch.float64), lr=1.0, momentum=MOMENTUM)
    peaks = []
    for _ in range(3):
        heights = []
        for _ in range(third):
            run.steps(levels[-1].when.after(0), lambda x: gamma_a * x)
            heights.append(run.slow.abs().item())
        peaks.append(max(heights))
    return (peaks[2] / peaks[1]) ** (1 / third)


def _draw_map(axis: Axes, numbers: dict[str, Any], choice: FastBuffers) -> QuadMesh:
    axis.set_yscale("log", base=2)
    axis.set_ylim(0.8, 55)
    axis.set_yticks([1, 2, 4, 8, 16, 32, 48], ["1", "2", "4", "8", "16", "32", "48"])
    scale = LogNorm(vmin=1e-3, vmax=4)
    mesh = axis.pcolormesh(numbers["beta"], TAUS, numbers[choice], norm=scale, cmap="cividis", shading="nearest")
    lines = axis.contour(numbers["beta"], TAUS, numbers[choice], levels=LEVELS, colors="white", linewidths=1)
    axis.clabel(lines, fmt=lambda value: f"{value:g}", fontsize=9)
    for product, tau in HORIZONS.items():
        axis.axhline(tau, color="black", linestyle="--", linewidth=1)
        axis.text(0.01, tau * 1.03, rf"$\tau(1-m)={product}$", fontsize=8.5)
    _draw_runs(axis, numbers[f"runs_{choice}"])
    label(axis, x=r"slow momentum $\beta$", y=r"fast steps between syncs $\tau$", title=TITLES[choice])
    axis.grid(visible=False)
    return mesh


def _draw_runs(axis: Axes, runs: Sequence[dict[str, Any]]) -> None:
    """Mark where real runs were made, and how they came out."""
    for agrees, marker, text in (
        (True, "wo", "shrinks at 0.97, grows at 1.03 of the limit"),
        (False, "rX", "does otherwise"),
    ):
        places = [(run["beta"], run["tau"]) for run in runs if (run["measured"][0] < 1 < run["measured"][1]) == agrees]
        if places:
            axis.plot(*zip(*places, strict=True), marker, markeredgecolor="black", label=f"real run {text}")
