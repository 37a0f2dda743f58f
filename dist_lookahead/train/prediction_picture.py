"""Predicted and measured mean and variance of a run on noisy quadratics, as a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from torch import Tensor

from dist_lookahead.figures.style import BLUE, DPI, GREEN, ORANGE, RED, label, new_figure
from dist_lookahead.theory.trajectory import Trajectory
from dist_lookahead.train.config_quadratic import Quadratic
from dist_lookahead.train.prediction_comparison import Compared, coordinates

LOOKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (RED, "D"))  # told apart by colour-blind readers, and in grey
EXPLAINED = "lines: predicted; dots: measured, 99 % intervals"
DOTS = 40  # evaluations in the picture, at most


def draw_prediction(
    picture: Path, title: str, trajectory: Trajectory, compared: Sequence[Compared], quadratic: Quadratic
) -> None:
    """Draw the predicted moments after every fast step, and what was measured, with 99 % intervals.

    Args:
        picture: the PNG to write.
        title: above all.
        trajectory: the prediction.
        compared: what was measured.
        quadratic: whose moments they are; where agents differ the minimum of their mean loss is drawn too.
    """
    last = compared[-1].weights
    weights = trajectory.slow if last == "slow" else trajectory.average
    own = [one for one in compared if one.weights == last]
    curvature, offsets = quadratic.numbers("curvature"), quadratic.numbers("offsets")
    minima = (curvature * offsets).mean(dim=0) / curvature.mean(dim=0)
    differ = quadratic.samples > 1
    explained = EXPLAINED + ("; dotted: minimum of the mean loss" if differ else "")
    figure, (left, right) = new_figure(f"{title}\n{explained}", size=(11, 4.5), columns=2)
    for j, look in zip(coordinates(len(minima), len(LOOKS)), LOOKS, strict=False):
        name = f"coordinate {j}, curvature {float(curvature[:, j].mean()):.3g}"
        _draw(left, weights.mean[:, j], own, "mean", j, look, name)
        _draw(right, weights.variance[:, j], own, "variance", j, look, name)
        if differ:
            left.axhline(float(minima[j]), color=look[0], linestyle=":")
    label(left, x="fast steps", y=f"mean of the {last} weights")
    label(right, x="fast steps", y=f"variance of the {last} weights")
    right.set_yscale("log")
    left.legend(frameon=False, fontsize=9)
    figure.savefig(picture, dpi=DPI)


def _draw(
    axis: Axes,
    predicted: Tensor,
    compared: Sequence[Compared],
    quantity: str,
    j: int,
    look: tuple[str, str],
    name: str,
) -> None:
    colour, marker = look
    own = [one for one in compared if one.quantity == quantity]
    shown = [own[k] for k in coordinates(len(own), DOTS)]
    axis.plot(predicted.tolist(), color=colour, linewidth=1.2, drawstyle="steps-post")
    axis.errorbar(
        [one.step for one in shown],
        [float(one.measured[j]) for one in shown],
        yerr=[float(one.half_width[j]) for one in shown],
        fmt=marker,
        color=colour,
        markersize=4,
        capsize=2,
        label=name,
    )
