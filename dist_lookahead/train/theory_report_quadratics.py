"""What a stack of levels does on noisy quadratics: how fast, how noisy, and where it is unstable."""

import math
from collections.abc import Iterator, Sequence

import torch

from dist_lookahead import theory
from dist_lookahead.averaging.mixer import Alone
from dist_lookahead.level import Every, Level
from dist_lookahead.mesh import Mesh
from dist_lookahead.move import Pull
from dist_lookahead.theory.quadratic_oracle import Stationary
from dist_lookahead.train.theory_report_setting import Setting
from dist_lookahead.train.theory_report_text import number, paragraph, table

RATES = (0.01, 0.1, 0.5, 1.0)
UNSURE = 1e-5  # smaller eigenvalues than that are rounding where a matrix cannot be diagonalised
SGD = (Level(Every(1), Alone(), Pull(1.0)),)
"""The fast optimizer alone: a pull of 1 after every fast step changes nothing."""
TITLES = (
    ("lr x", "factor", "per fast", "SGD's", "variance", "SGD's", "", ""),
    ("curvature", "per round", "step", "per step", "after sync", "variance", "ratio", ""),
)


def quadratic_lines(setting: Setting, levels: Sequence[Level]) -> Iterator[str]:
    """Yield a table of what is left of the error, and of the variance where it has settled.

    Args:
        setting: of the run.
        levels: innermost first, without schedules.
    """
    marks = dict.fromkeys(RATES, "") | {_rate(setting.lr * a): f"curvature {number(a)}" for a in setting.curvatures}
    rates = torch.tensor(sorted(marks), dtype=torch.float64)
    own = _settled(levels, rates, setting, setting.crowd)
    alone = _settled(SGD, rates, setting, 1)
    tau = levels[-1].when.after(0)
    rounds = (len(own.round.slow.variance) - 1) // tau  # more than one where averages change from sync to sync
    rows = [
        [
            number(rate),
            *_factors(own.contraction[place].item() ** (1 / rounds), tau),
            _factors(alone.contraction[place].item(), 1)[0],
            *_variances(own.round.slow.variance[0, place].item(), alone.round.slow.variance[0, place].item()),
            marks[rate],
        ]
        for place, rate in enumerate(sorted(marks))
    ]
    yield from paragraph(
        f"Loss a/2 (x - c)^2 with c ~ N(mu, sigma^2) anew at each step, {_optimizer(setting)}. A round of {tau} fast "
        f"step{'s' * (tau > 1)} leaves a factor of the error; variances are those that settle, in units of sigma^2."
    )
    yield from table([*TITLES, *rows])


def verdict_lines(setting: Setting) -> Iterator[str]:
    """Yield the verdict on stability, and a warning of a run that is beyond it."""
    said = theory.verdict(setting.levels, agents=setting.crowd, momentum=setting.momentum, nesterov=setting.nesterov)
    yield from paragraph(said.sentence)
    beyond = [a for a in setting.curvatures if setting.lr * a >= said.limit]
    if beyond:
        yield from paragraph(
            f"lr x curvature = {number(setting.lr * max(beyond))} is beyond that: use a learning rate below "
            f"{number(said.limit / max(beyond))}"
        )


def _rate(value: float) -> float:
    """Forget rounding, so that no rate stands in the table twice."""
    return float(f"{value:.12g}")


def _settled(levels: Sequence[Level], rates: torch.Tensor, setting: Setting, agents: int | Mesh) -> Stationary:
    """Everything depends on the product of learning rate and curvature, so that the rate is 1."""
    return theory.stationary(
        levels, curvature=rates, noise=1.0, lr=1.0, agents=agents, momentum=setting.momentum, nesterov=setting.nesterov
    )


def _factors(of_round: float, tau: int) -> tuple[str, str]:
    if of_round < UNSURE:
        return f"< {UNSURE:g}", ""
    return number(of_round), number(of_round ** (1 / tau))


def _variances(own: float, alone: float) -> tuple[str, str, str]:
    texts = [number(value) if math.isfinite(value) else "grows" for value in (own, alone)]
    return texts[0], texts[1], "" if "grows" in texts else number(own / alone)


def _optimizer(setting: Setting) -> str:
    kind = "Nesterov momentum" if setting.nesterov else "momentum"
    return f"SGD with {kind} {setting.momentum}" if setting.momentum else "SGD without momentum"
