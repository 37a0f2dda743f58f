"""Paths of fast and slow weights over a narrow noisy valley."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from dist_lookahead import Level, local_sgd, lookahead, slowmo
from dist_lookahead.figures.runs import Agents, noisy_gradient
from dist_lookahead.figures.style import BLUE, GREY, ORANGE, Progress, label, new_figure, save, silent

CURVATURE = torch.tensor([1.0, 12.0], dtype=torch.float64)
START = torch.tensor([-12.0, 4.0], dtype=torch.float64)
LR, STEPS = 0.1, 60
SEED = 4


@dataclass(frozen=True, kw_only=True)
class Method:
    """One panel."""

    title: str
    levels: list[Level]
    agents: int = 1
    has_slow: bool = True


METHODS = {
    "sgd": Method(title="SGD", levels=local_sgd(1), has_slow=False),
    "lookahead": Method(title=r"Lookahead, $\tau=5$, $\alpha=0.5$", levels=lookahead(5, 0.5)),
    "slowmo": Method(
        title=r"SlowMo, 4 agents, $\tau=5$, $\alpha=0.5$, $\beta=0.4$", levels=slowmo(5, 0.5, 0.4), agents=4
    ),
}


def draw(folder: Path, progress: Progress = silent) -> None:
    """Paths of fast and slow weights on a noisy quadratic: SGD, Lookahead, SlowMo with 4 agents.

    Args:
        folder: where trajectory.png and trajectory.json go.
        progress: is told how far it is.
    """
    title = "Fast weights scatter across the valley; slow weights move along it"
    figure, axes = new_figure(title, size=(12, 4), columns=3)
    numbers: dict[str, Any] = {"curvature": CURVATURE, "lr": LR, "steps": STEPS}
    for done, (axis, (name, method)) in enumerate(zip(axes, METHODS.items(), strict=True)):
        fast, slow = _path(method)
        numbers[name] = {"fast": fast, "slow": slow}
        _draw_valley(axis)
        _draw_path(axis, method, fast, slow)
        progress((done + 1) / len(METHODS))
    axes[-1].legend(frameon=False, fontsize=9, loc="upper right")
    save(figure, folder, "trajectory", numbers)


def _path(method: Method) -> tuple[Tensor, Tensor]:
    """Return fast weights (n, T, 2) after each fast step, and slow weights (rounds, 2) after each sync."""
    run = Agents(method.levels, START, lr=LR, agents=method.agents)
    gradient = noisy_gradient(CURVATURE, torch.Generator().manual_seed(SEED))
    fast, slow, tau = [run.fast], [run.fast[0]], method.levels[-1].when.after(0)
    for step in range(STEPS):
        run.steps(1, gradient)
        fast.append(run.fast)
        if (step + 1) % tau == 0:
            slow.append(run.slow if method.has_slow else run.fast[0])
    return torch.stack(fast, dim=1), torch.stack(slow)


def _draw_valley(axis: Axes) -> None:
    x, y = torch.linspace(-13, 4, 120), torch.linspace(-5, 5, 120)
    loss = (CURVATURE[0] * x**2 + CURVATURE[1] * y[:, None] ** 2) / 2
    levels: Sequence[float] = (2, 8, 20, 40, 70, 110)
    axis.contour(x, y, loss, levels=levels, colors="#c8c8c8", linewidths=0.8)
    axis.plot(0, 0, "k+", markersize=9)


def _draw_path(axis: Axes, method: Method, fast: Tensor, slow: Tensor) -> None:
    for agent, path in enumerate(fast):
        axis.plot(*path.T, color=BLUE, linewidth=0.8, alpha=0.7, label="" if agent else r"fast weights $x_i$")
    if method.has_slow:
        axis.plot(*slow.T, "o-", color=ORANGE, linewidth=2.5, markersize=4, label=r"slow weights $z$")
    axis.plot(*START, "o", color=GREY)
    label(axis, x=r"$w_1$ (curvature 1)", y=r"$w_2$ (curvature 12)", title=method.title)
    axis.set_xticks([-12, -8, -4, 0, 4])
    axis.grid(visible=False)
