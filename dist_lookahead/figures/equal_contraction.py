"""What methods pay for the same contraction: stationary excess loss over that of SGD with a fitting learning rate.

With Lambda = (1 - rate)^tau, what is left after a round, and the momentum b of the slow or fast step, the slowest
coordinate contracts at that rate if Lambda is the larger root of lambda^2 - (1 + b - theta) lambda + b:

    theta = (1 - Lambda)(Lambda - b) / Lambda,   b <= Lambda^2,     theta = alpha [1 - (1 - gamma a_min)^tau]

Contraction is the factor in the long run. At b = Lambda^2, critical damping, the distance shrinks as t Lambda^t.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from dist_lookahead import slowmo
from dist_lookahead.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    Progress,
    label,
    new_figure,
    save,
    silent,
)
from dist_lookahead.theory import stationary

TAU = 10
ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SLOW_ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
ROUNDING = 1e-6  # of a double eigenvalue


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything of a method but its learning rate: SlowMo, without slow momentum Lookahead, with tau = 1 SGD."""

    tau: int = 1
    alpha: float = 1.0
    beta: float = 0.0
    momentum: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Noisy quadratic: curvature a and standard deviation sigma of the minimiser, (d,), and rates to compare at."""

    title: str
    curvature: Tensor
    noise: Tensor
    slowest: float
    fastest: float

    def rates(self, count: int) -> Tensor:
        """Return contractions per fast step."""
        return torch.logspace(self.slowest, self.fastest, count, dtype=torch.float64)


_SPREAD = 1 / torch.arange(1, 101, dtype=torch.float64)
_ONE = torch.ones(1, dtype=torch.float64)
SPECTRA = {
    "spread": Spectrum(
        title=r"100 modes, $a_i=1/i$, $\sigma_i^2=1/a_i$",
        curvature=_SPREAD,
        noise=_SPREAD.rsqrt(),
        slowest=-3.3,
        fastest=-1.75,
    ),
    "single": Spectrum(title="a single mode", curvature=_ONE, noise=_ONE, slowest=-2.5, fastest=-0.8),
}
STYLES = {
    "sgd": (GREY, "-", "SGD"),
    "lookahead_half": (BLUE, "--", rf"Lookahead, $\tau={TAU}$, $\alpha=0.5$"),
    "lookahead": (BLUE, "-", rf"Lookahead, $\tau={TAU}$, best $\alpha<1$"),
    "heavy_ball": (GREEN, "-", "SGD, heavy ball"),
    "slowmo": (ORANGE, "-", rf"SlowMo, $\tau={TAU}$, best $\alpha$, $\beta$"),
}


def draw(folder: Path, progress: Progress = silent, *, rates: int = 24) -> None:
    """Stationary excess loss over SGD's at equal contraction: heavy ball, Lookahead, SlowMo; 100 modes and one.

    Args:
        folder: where equal_contraction.png and equal_contraction.json go.
        progress: is told how far it is.
        rates: number of contractions at which the methods are compared.
    """
    title = "At equal contraction: a pull alone saves little, on a single mode nothing; momentum saves about half"
    figure, axes = new_figure(title, size=(11, 4.6), columns=2)
    numbers: dict[str, Any] = {"tau": TAU}
    for done, (axis, (name, spectrum)) in enumerate(zip(axes, SPECTRA.items(), strict=True)):
        at = spectrum.rates(rates)
        fronts = {method: _front(settings, spectrum, at) for method, settings in _methods(at).items()}
        numbers[name] = {"rate": at, **fronts}
        _draw_fronts(axis, spectrum, numbers[name])
        progress((done + 1) / len(SPECTRA))
    axes[0].legend(frameon=False, loc="lower left", fontsize=9)
    save(figure, folder, "equal_contraction", numbers)


def _methods(rates: Tensor) -> dict[str, list[Setting]]:
    """The momenta that are critically damped at one of the rates, and no others: the best are among them."""
    kept = (1 - rates).tolist()
    return {
        "sgd": [Setting()],
        "heavy_ball": [Setting(momentum=part**2) for part in kept],
        "lookahead_half": [Setting(tau=TAU, alpha=0.5)],
        "lookahead": [Setting(tau=TAU, alpha=alpha) for alpha in ALPHAS],
        "slowmo": [Setting(tau=TAU, alpha=alpha, beta=part ** (2 * TAU)) for alpha in SLOW_ALPHAS for part in kept],
    }


def _front(settings: Sequence[Setting], spectrum: Spectrum, rates: Tensor) -> Tensor:
    return torch.stack([_excess_loss(setting, spectrum, rates) for setting in settings]).amin(dim=0)


def _excess_loss(setting: Setting, spectrum: Spectrum, rates: Tensor) -> Tensor:
    """Return the stationary excess loss at each rate, infinite where no learning rate gives all modes that rate.

    With learning rate 1 a coordinate of curvature gamma a has the variance of one of curvature a with learning rate
    gamma, so that all learning rates are coordinates of one call.
    """
    gamma_a = _learning_rate(setting, spectrum, rates)[:, None] * spectrum.curvature
    settled = stationary(
        slowmo(setting.tau, setting.alpha, setting.beta),
        curvature=gamma_a.flatten(),
        noise=spectrum.noise.expand_as(gamma_a).flatten(),
        lr=1.0,
        momentum=setting.momentum,
    )
    slowest = settled.contraction.view_as(gamma_a).amax(dim=-1)
    variance = settled.round.slow.variance[0].view_as(gamma_a)
    loss = (spectrum.curvature * variance).sum(dim=-1) / 2
    return loss.where(slowest <= (1 - rates) ** setting.tau + ROUNDING, float("inf"))


def _learning_rate(setting: Setting, spectrum: Spectrum, rates: Tensor) -> Tensor:
    """Return gamma for which the mode of least curvature has the rate; 0, with which none has, where there is none."""
    left, b = (1 - rates) ** setting.tau, setting.beta + setting.momentum
    theta = (1 - left) * (left - b) / left
    possible = (b <= left**2 * (1 + ROUNDING)) & (theta < setting.alpha)
    gamma_a = 1 - (1 - theta / setting.alpha).clamp(min=0) ** (1 / setting.tau)
    return gamma_a.where(possible, 0.0) / spectrum.curvature.min()


def _draw_fronts(axis: Axes, spectrum: Spectrum, numbers: dict[str, Tensor]) -> None:
    for method, (colour, line, name) in STYLES.items():
        axis.plot(numbers["rate"], numbers[method] / numbers["sgd"], line, linewidth=2, color=colour, label=name)
    axis.set_xscale("log")
    axis.set_ylim(0, 1.35)
    x = "contraction of the slowest mode per fast step"
    label(axis, x=x, y="stationary excess loss / SGD's", title=spectrum.title)
