"""What is proved of a stack of levels: its bound, the learning rates it allows, and the alpha that is best for it."""

from collections.abc import Iterator, Sequence

from dist_lookahead import theory
from dist_lookahead.level import Level
from dist_lookahead.train.theory_report_setting import Setting
from dist_lookahead.train.theory_report_text import INDENT, coefficient, number, paragraph

SYMBOLS = {"smoothness": "L", "noise": "sigma", "gap": "Delta"}


def bound_lines(setting: Setting, levels: Sequence[Level]) -> Iterator[str]:
    """Yield bound, conditions, admissible rate and numbers, or why there are none.

    Args:
        setting: of the run.
        levels: innermost first, without schedules.

    Raises:
        ValueError: for constants of a bound on the command line where there is none.
    """
    if reason := _why_none(setting, levels):
        if setting.constants:
            raise ValueError(f"{', '.join(setting.constants)} would have no effect: {reason}")
        yield from paragraph(f"{reason}.")
        return
    bound = _bound(setting, levels)
    yield from paragraph(f"Bound {bound.equation}: the mean of E|grad f(y)|^2 over K fast steps is at most")
    yield from paragraph(_terms(setting, levels), 2 * INDENT)
    yield from _rate_lines(setting, levels)
    yield from _number_lines(setting, levels)
    if bound.equation == "(B')":
        yield from _alpha_under_momentum_lines(levels[0])
    elif len(levels) == 1:
        yield from _alpha_lines(setting, levels[0])


def _why_none(setting: Setting, levels: Sequence[Level]) -> str | None:
    if setting.heterogeneity is None:
        return "No bound: the agents' curvatures differ, so that their gradients differ without bound"
    try:
        _bound(setting, levels)
    except ValueError as error:
        return str(error)
    return None


def _terms(setting: Setting, levels: Sequence[Level]) -> str:
    """Each term with its coefficient, which is what it comes to where all else is 1."""
    zeta = 1.0 if setting.heterogeneity else 0.0
    noisy, exact = (_at_one(setting, levels, noise=noise, heterogeneity=zeta) for noise in (1.0, 0.0))
    apart = f" + {coefficient(exact.drift)}gamma^2 L^2 zeta^2" if zeta else ""
    return (
        f"{coefficient(noisy.optimisation)}Delta / (gamma K) + {coefficient(noisy.noise)}gamma L sigma^2 + "
        f"{coefficient(noisy.drift - exact.drift)}gamma^2 L^2 sigma^2{apart}"
    )


def _at_one(setting: Setting, levels: Sequence[Level], *, noise: float, heterogeneity: float) -> theory.Bound:
    return theory.bound(
        levels,
        agents=setting.agents,
        lr=1.0,
        smoothness=1.0,
        noise=noise,
        gap=1.0,
        steps=1,
        heterogeneity=heterogeneity,
    )


def _rate_lines(setting: Setting, levels: Sequence[Level]) -> Iterator[str]:
    L, differ = setting.smoothness, bool(setting.heterogeneity)
    most = theory.admissible_lr(levels, agents=setting.agents, smoothness=L or 1.0, heterogeneous=differ)
    if L is None:
        says = f"gamma <= {number(most)} / L, so gamma = {number(setting.lr)} for L up to {number(most / setting.lr)}"
    else:
        allowed = "admissible" if setting.lr <= most else "not admissible"
        says = f"gamma <= {number(most)} with L = {number(L)}; gamma = {number(setting.lr)} is {allowed}"
    yield from paragraph(f"It is proved for {says}:")
    for condition in _bound(setting, levels).conditions:
        yield from paragraph(condition.formula, 2 * INDENT)
    if setting.momentum:
        yield from paragraph(f"That is for plain SGD inside: with its momentum {setting.momentum} nothing is proved.")


def _number_lines(setting: Setting, levels: Sequence[Level]) -> Iterator[str]:
    bound = _bound(setting, levels)
    unknown = {name: symbol for name, symbol in SYMBOLS.items() if getattr(setting, name) is None}
    known: dict[str, float] = {"gamma": setting.lr, "K": setting.steps or 1}
    known |= {symbol: getattr(setting, name) for name, symbol in SYMBOLS.items() if name not in unknown}
    known |= {"zeta": setting.heterogeneity} if setting.heterogeneity else {}
    given = ", ".join(f"{symbol} = {number(value)}" for symbol, value in known.items())
    options = ", ".join(f"--{name}" for name in unknown)
    units = f", in units of {' = '.join(unknown.values())} = 1 (else give {options})" if unknown else ""
    terms = " + ".join(number(term) for term in (bound.optimisation, bound.noise, bound.drift))
    yield from paragraph(f"With {given}{units}: {terms} = {number(bound.total)}.")
    if setting.steps is None:
        yield from paragraph("The data say how long an epoch is: divide the first term by the number K of fast steps.")
    if not bound.holds:
        yield from paragraph("A condition is not met there, so that these numbers promise nothing.")


def _alpha_lines(setting: Setting, level: Level) -> Iterator[str]:
    tau, L = level.when.after(0), setting.smoothness or 1.0
    q, best = setting.lr * L * (tau - 1), theory.optimal_alpha(lr=setting.lr, smoothness=L, tau=tau)
    yield from paragraph(
        f"Recommended alpha = max(0, 1 - 1 / (2 q)) = {number(best)}, with q = gamma L (tau - 1) = {number(q)}"
        f"{'' if setting.smoothness else ' for L = 1'}: "
        + ("the least floor, which is what more steps do not remove." if best else _WITHOUT_BEST)
    )
    alpha = best or level.move.coefficients(0)[0]
    if alpha != 1:
        shares = {n: _share_of_floor(alpha, setting, tau, n) for n in dict.fromkeys((1, setting.agents))}
        shown = ", ".join(f"{number(share)} with {n} agent{'s' * (n > 1)}" for n, share in shares.items())
        yield from paragraph(f"Floor of alpha = {number(alpha)} over that of 1: {shown}; the benefit decays as 1/n.")


_WITHOUT_BEST = (
    "the smaller alpha, the lower the floor, which is what more steps do not remove, and the slower the run."
)


def _alpha_under_momentum_lines(level: Level) -> Iterator[str]:
    beta = level.move.coefficients(0)[1]
    yield from paragraph(
        f"Under slow momentum alpha = 1 - beta = {number(1 - beta)} makes A = 1: the part (1 - A)^2 of the third term "
        "vanishes."
    )


def _share_of_floor(alpha: float, setting: Setting, tau: int, agents: int) -> float:
    L = setting.smoothness or 1.0
    own, plain = (theory.floor(value, lr=setting.lr, smoothness=L, tau=tau, agents=agents) for value in (alpha, 1.0))
    return own / plain


def _bound(setting: Setting, levels: Sequence[Level]) -> theory.Bound:
    """What is not known is 1."""
    known = {name: 1.0 if (value := getattr(setting, name)) is None else value for name in SYMBOLS}
    return theory.bound(
        levels,
        agents=setting.agents,
        lr=setting.lr,
        steps=setting.steps or 1,
        heterogeneity=setting.heterogeneity or 0.0,
        **known,
    )
