"""Fast weights within a round against slow weights: why to evaluate at the slow ones."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from dist_lookahead import distributed_lookahead
from dist_lookahead.figures.runs import Agents, mean_and_error, noisy_gradient
from dist_lookahead.figures.style import BLUE, GREEN, ORANGE, SMALL, Progress, label, new_figure, save, silent
from dist_lookahead.theory import noisy_quadratic, stationary
from dist_lookahead.theory.closed_forms import sgd_variance, variance_in_round

TAU, ALPHA, AGENTS = 10, 0.5, 4
LEVELS = distributed_lookahead(TAU, ALPHA)
SETTING = rf"{AGENTS} agents, $\tau={TAU}$, $\alpha={ALPHA}$"
GAMMA_A = torch.tensor([0.05, 0.2], dtype=torch.float64)  # learning rate x curvature, left
BEGINNING, SHOWN = 30, 2  # rounds until the variance has settled, and rounds of which it is drawn, left
CURVATURE = torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64)  # right
LR, START, ROUNDS = 0.5, 3.0, 8  # right


def draw(folder: Path, progress: Progress = silent, *, repetitions: int = 10_000) -> None:
    """Variance and expected loss of fast weights within rounds against those of slow weights, predicted and measured.

    Args:
        folder: where inner_loop.png and inner_loop.json go.
        progress: is told how far it is.
        repetitions: runs for each dot, all at once.
    """
    title = "Why to evaluate at the slow weights: within each round the fast weights gather noise again"
    figure, axes = new_figure(title, size=(11, 4.4), columns=2)
    random = torch.Generator().manual_seed(0)
    numbers: dict[str, Any] = {"tau": TAU, "alpha": ALPHA, "agents": AGENTS, "gamma_a": GAMMA_A}
    numbers["variance"] = _variance(repetitions, random)
    _draw_variance(axes[0], numbers["variance"])
    progress(0.5)
    numbers["loss"] = _loss(repetitions, random)
    _draw_loss(axes[1], numbers["loss"])
    save(figure, folder, "inner_loop", numbers)
    progress(1.0)


def _variance(repetitions: int, random: torch.Generator) -> dict[str, Any]:
    """Variance over V_SGD of an agent's fast weights at each step of settled rounds, and of the slow weights."""
    sgd = sgd_variance(GAMMA_A)
    slow = stationary(LEVELS, curvature=GAMMA_A, noise=1.0, lr=1.0, agents=AGENTS).round.slow.variance[0]
    within = torch.stack([variance_in_round(GAMMA_A, step, slow) / sgd for step in range(TAU)])
    run = Agents(LEVELS, torch.zeros(len(GAMMA_A), repetitions, dtype=torch.float64), lr=1.0, agents=AGENTS)
    gradient = noisy_gradient(GAMMA_A[:, None], random)
    run.steps(BEGINNING * TAU, gradient)
    measured = []
    for _ in range(SHOWN * TAU):
        variance, error = mean_and_error(run.fast[0].square())
        measured.append((variance / sgd, error / sgd))
        run.steps(1, gradient)
    variance, error = (torch.stack(parts) for parts in zip(*measured, strict=True))
    return {"fast": within.repeat(SHOWN, 1), "slow": slow / sgd, "measured": variance, "error_99": error}


def _loss(repetitions: int, random: torch.Generator) -> dict[str, Any]:
    """Expected loss above its least value of agent 0's fast weights at each step, and of the slow weights."""
    predicted = noisy_quadratic(
        LEVELS, curvature=CURVATURE, noise=1.0, lr=LR, steps=ROUNDS * TAU, agents=AGENTS, start=START
    )
    least = CURVATURE.sum() / 2  # of the noise in the minimiser itself
    start = torch.full((len(CURVATURE), repetitions), START, dtype=torch.float64)
    run = Agents(LEVELS, start, lr=LR, agents=AGENTS)
    gradient = noisy_gradient(CURVATURE[:, None], random)
    fast, slow = [], []
    for _ in range(ROUNDS * TAU):
        run.steps(1, gradient)
        fast.append(mean_and_error(_excess(run.fast[0])))
        slow.append(mean_and_error(_excess(run.slow)))
    return {
        "fast": predicted.fast.loss[:, 0] - least,
        "slow": predicted.slow.loss - least,
        "fast_measured": torch.tensor(fast),
        "slow_measured": torch.tensor(slow),
    }


def _excess(weights: Tensor) -> Tensor:
    return (CURVATURE[:, None] * weights.square()).sum(dim=0) / 2


def _draw_variance(axis: Axes, numbers: dict[str, Any]) -> None:
    steps = torch.arange(SHOWN * TAU)
    for index, colour in enumerate((BLUE, GREEN)):
        gamma_a = rf"$\gamma a={GAMMA_A[index].item():g}$"
        measured, error = numbers["measured"][:, index], numbers["error_99"][:, index]
        axis.plot(steps, numbers["fast"][:, index], color=colour, label=f"fast, {gamma_a}")
        axis.errorbar(steps, measured, yerr=error, fmt="o", markersize=3.5, capsize=2, color=colour)
        axis.axhline(numbers["slow"][index].item(), color=colour, linestyle="--", label=f"slow, {gamma_a}")
    axis.set_ylim(0, 1.25)
    axis.set_xticks(range(0, SHOWN * TAU + 1, 5))
    axis.legend(frameon=False, loc="upper center", ncols=2, **SMALL)
    label(axis, x="fast steps", y=r"variance $/\ V_{\mathrm{SGD}}$", title=f"settled rounds: {SETTING}")


def _draw_loss(axis: Axes, numbers: dict[str, Any]) -> None:
    axis.plot(numbers["fast"], color=BLUE, label="fast weights")
    axis.step(range(len(numbers["slow"])), numbers["slow"], where="post", color=ORANGE, label="slow weights")
    steps = torch.arange(ROUNDS * TAU + 1)
    within, syncs = (steps % TAU % 3 == 0) & (steps % TAU > 0), (steps % TAU == 0) & (steps > 0)
    for which, chosen, colour in (("fast", within, BLUE), ("slow", syncs, ORANGE)):
        measured, error = numbers[f"{which}_measured"][chosen[1:]].T
        axis.errorbar(steps[chosen], measured, yerr=error, fmt="o", markersize=3.5, capsize=2, color=colour)
    axis.set_yscale("log")
    axis.legend(frameon=False, loc="upper right", title="lines predicted, dots measured", **SMALL)
    label(axis, x="fast steps", y="expected loss above the least", title=f"from the start: {SETTING}")
