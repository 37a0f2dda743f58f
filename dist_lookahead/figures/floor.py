"""The floor of the convergence bound against the slow step size."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from dist_lookahead import distributed_lookahead
from dist_lookahead.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SMALL,
    Progress,
    label,
    new_figure,
    save,
    silent,
)
from dist_lookahead.theory import admissible_lr, floor, optimal_alpha

COLOURS = {0.6: GREEN, 0.75: ORANGE, 0.95: BLUE, 2.0: RED}  # for each q = gamma L (tau - 1)
AGENTS = (1, 4, 16)
MANY_AGENTS = [2**power for power in range(7)]
ALPHAS = [step / 50 for step in range(1, 51)]
TAU = 25


def draw(folder: Path, progress: Progress = silent) -> None:
    """Floor of the convergence bound against alpha for 1, 4 and 16 agents, and what the best alpha saves.

    Args:
        folder: where floor.png and floor.json go.
        progress: is told how far it is.
    """
    title = (
        r"Floor of the bound: the best slow step size $\alpha^*$ is the same for all $n$, its benefit decays as $1/n$"
    )
    figure, axes = new_figure(title, size=(9.5, 7), rows=2, columns=2)
    numbers: dict[str, Any] = {"alpha": ALPHAS, "best_alpha": {q: _best(q) for q in COLOURS}}
    for axis, agents in zip(axes, AGENTS, strict=False):
        numbers[f"floor_{agents}"] = _draw_floors(axis, agents)
    numbers |= {"agents": MANY_AGENTS, "saved": _draw_saved(axes[3])}
    axes[0].legend(frameon=False, loc="upper right", title=r"$q=\gamma L(\tau-1)$", **SMALL)
    signs = [
        *axes[1].plot([], [], "o", color=GREY, label=r"$\alpha^* = 1 - 1/(2q)$"),
        *axes[1].plot([], [], ":", color=GREY, label="outside the bound's conditions"),
    ]
    axes[1].legend(handles=signs, frameon=False, loc="lower right", **SMALL)
    save(figure, folder, "floor", numbers)
    progress(1.0)


def _floor(alpha: float, q: float, agents: int) -> float:
    return floor(alpha, lr=q / (TAU - 1), smoothness=1.0, tau=TAU, agents=agents)


def _best(q: float) -> float:
    return optimal_alpha(lr=q / (TAU - 1), smoothness=1.0, tau=TAU)


def _is_proved(alpha: float, q: float, agents: int) -> bool:
    return q / (TAU - 1) <= admissible_lr(distributed_lookahead(TAU, alpha), agents=agents, smoothness=1.0)


def _draw_floors(axis: Axes, agents: int) -> dict[float, list[float]]:
    floors = {q: [_floor(alpha, q, agents) for alpha in ALPHAS] for q in COLOURS}
    for q, values in floors.items():
        _draw_line(axis, ALPHAS, values, [_is_proved(alpha, q, agents) for alpha in ALPHAS], q)
        axis.plot(_best(q), _floor(_best(q), q, agents), "o", color=COLOURS[q])
    axis.set_ylim(0, 2.1)
    title = f"{agents} agents" if agents > 1 else "1 agent"
    label(axis, x=r"slow step size $\alpha$", y=r"floor$(\alpha)\ /\ \gamma L\sigma^2$", title=title)
    return floors


def _draw_saved(axis: Axes) -> dict[float, list[float]]:
    saved = {q: [_floor(1.0, q, n) - _floor(_best(q), q, n) for n in MANY_AGENTS] for q in COLOURS}
    for q, values in saved.items():
        proved = [_is_proved(1.0, q, n) and _is_proved(_best(q), q, n) for n in MANY_AGENTS]
        _draw_line(axis, MANY_AGENTS, values, proved, q)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(MANY_AGENTS, [str(agents) for agents in MANY_AGENTS])
    y = r"[floor$(1)-$floor$(\alpha^*)]\ /\ \gamma L\sigma^2$"
    label(axis, x=r"agents $n$", y=y, title=r"what $\alpha^*$ saves: $1/(4qn)$")
    return saved


def _draw_line(axis: Axes, x: Sequence[float], y: Sequence[float], proved: Sequence[bool], q: float) -> None:
    """Draw solid where the bound is proved, dotted elsewhere."""
    axis.plot(x, y, ":", color=COLOURS[q])
    solid = [value if holds else math.nan for value, holds in zip(y, proved, strict=True)]
    axis.plot(x, solid, color=COLOURS[q], label=f"{q:g}")
