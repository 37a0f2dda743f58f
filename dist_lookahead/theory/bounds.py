"""Convergence bounds: how small the gradient gets at y_k, the weighted mean of fast and slow weights.

Every stack covered here has a sequence y_k = X_k a, a the fixed vector of its mixing matrices, that moves by plain SGD
with the effective rate A gamma and the mean gradient of all agents: y_{k+1} = y_k - A gamma 1/n sum_i g(x^i_k).

For one pull, without slow momentum (B); n = 1 is (14) of Wang, Tantia, Ballas and Rabbat (ICASSP 2020) verbatim,
alpha = 1 is local SGD:

    1/K sum_k E|grad f(y_k)|^2 <= 2 Delta / (alpha gamma K) + alpha gamma L sigma^2 / n
                                  + gamma^2 L^2 sigma^2 (tau - 1) [1 - alpha (2 - alpha) / n]

if (13) alpha gamma L + (1 - alpha)^2 gamma^2 L^2 tau (tau - 1) <= 1 and, for n >= 2, gamma^2 L^2 tau (tau - 1) <= 1.
`bound_cases.py` has the constants for slow momentum (B') and nesting. (B'), nesting and n >= 2 were derived for this
package; (B') has the structure of SlowMo's theorem (arXiv 1910.00643).

What the proofs assume:
    f is L-smooth, bounded below, not necessarily convex, and the same for all agents unless `heterogeneity` is given;
    fast steps are plain SGD, x <- x - gamma g, without momentum or weight decay of their own;
    gradients are unbiased, their noise independent between agents and steps, E|g - grad f|^2 <= sigma^2;
    all agents start at y_0.

Slips of the ICASSP paper corrected here: (11), smoothness, is |grad f(x) - grad f(y)| <= L |x - y| (printed with f);
Algorithm 1 needs z_{-1} = z_0; Theorem 1 is about y_k, and a limit inferior, while the introduction promises x_k.
Its (43), the bound for rates gamma_t that change from round to round, is read as, with S = sum_t gamma_t,

    1/(tau S) sum_t gamma_t sum_l E|grad f(y_{t tau + l})|^2 <= 2 Delta / (alpha tau S)
        + alpha L sigma^2 sum gamma_t^2 / S + (1 - alpha)^2 L^2 sigma^2 (tau - 1) sum gamma_t^3 / S.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dist_lookahead.level import Level
from dist_lookahead.theory.bound_cases import Case, case_of
from dist_lookahead.theory.bound_rates import Rates, changing_rates, constant_rates

ROUNDING = 1e-12  # a condition that holds with equality may come out this much above 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """A condition under which a bound is proved: value <= 1.

    Attributes:
        formula: the condition.
        value: its left-hand side.
    """

    formula: str
    value: float

    @property
    def holds(self) -> bool:
        """Whether it is met."""
        return self.value <= 1 + ROUNDING


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """A bound on the mean of E|grad f(y_k)|^2 over the fast steps k = 0 .. K - 1.

    Attributes:
        equation: "(14)", "(B)", "(B')" or "(B), nested".
        alpha: A, the effective over the fast learning rate.
        optimisation: 2 Delta / (A gamma K), the part that vanishes with more steps.
        noise: A gamma L sigma^2 / n, the noise of plain SGD at the effective rate.
        drift: what the fast weights' distance from y costs: noise and heterogeneity of a round.
        conditions: under which the bound is proved; where one fails, the numbers promise nothing.
    """

    equation: str
    alpha: float
    optimisation: float
    noise: float
    drift: float
    conditions: tuple[Condition, ...]

    @property
    def total(self) -> float:
        """The bound."""
        return self.optimisation + self.floor

    @property
    def floor(self) -> float:
        """What more steps do not remove: noise + drift."""
        return self.noise + self.drift

    @property
    def holds(self) -> bool:
        """Whether all conditions are met."""
        return all(condition.holds for condition in self.conditions)


def bound(
    levels: Sequence[Level],
    *,
    agents: int,
    lr: float | Sequence[float],
    smoothness: float,
    noise: float,
    gap: float,
    steps: int,
    heterogeneity: float = 0.0,
) -> Bound:
    """Bound the mean squared gradient of a stack of levels: (14), (B), (B'), nested, or with changing rates (43).

    With a rate for each step the mean is weighted by them, sum_k gamma_k E|grad f(y_k)|^2 / sum_k gamma_k. Rates may
    change inside a round as well; where they do not, this is (43), with n agents.

    With agents of different f_i, each L-smooth, the condition for n >= 2 becomes 4 gamma^2 L^2 tau (tau - 1) <= 1,
    the drift's 1 - 1/n doubles, and 4/3 (2 tau - 1)(tau - 1) gamma^2 L^2 zeta^2 is added; nesting: tau = k_1.

    Args:
        levels: innermost first.
        agents: n, >= 1.
        lr: gamma > 0, the fast learning rate; or one for each fast step, (steps,), for one level without slow momentum.
        smoothness: L > 0.
        noise: sigma >= 0, in units of the gradient: E|g - grad f|^2 <= sigma^2.
        gap: Delta = f(y_0) - inf f, >= 0.
        steps: K >= 1, fast steps.
        heterogeneity: zeta >= 0, in units of the gradient: 1/n sum_i |grad f_i(x) - grad f(x)|^2 <= zeta^2 for all x.

    Raises:
        ValueError: for a stack without a bound here, and for values out of range.

    Example:
        >>> from dist_lookahead import lookahead
        >>> b = bound(lookahead(5, 0.5), agents=1, lr=0.1, smoothness=1.0, noise=1.0, gap=1.0, steps=1000)
        >>> b.equation, b.holds, round(b.optimisation, 6), round(b.noise, 6), round(b.drift, 6)
        ('(14)', True, 0.04, 0.05, 0.01)

    Reference: Wang, Tantia, Ballas and Rabbat, ICASSP 2020, (13), (14) and (43); arXiv 1910.00643.
    """
    case = case_of(levels, agents)
    _check_positive(smoothness=smoothness, steps=steps)
    _check_not_negative(noise=noise, gap=gap, heterogeneity=heterogeneity)
    if heterogeneity and agents == 1:
        raise ValueError(f"heterogeneity={heterogeneity} with agents=1: one agent has one f, use 0")
    rates = constant_rates(lr, steps) if isinstance(lr, int | float) else changing_rates(lr, steps, case)
    return Bound(
        equation=case.equation,
        alpha=case.alpha,
        optimisation=2 * gap / (case.alpha * rates.total),
        noise=case.alpha * rates.noise * smoothness * noise**2 / agents,
        drift=_drift(case, rates, agents, noise**2, heterogeneity**2) * smoothness**2,
        conditions=_conditions(case, rates, agents, smoothness, heterogeneous=heterogeneity > 0),
    )


def admissible_lr(levels: Sequence[Level], *, agents: int, smoothness: float, heterogeneous: bool = False) -> float:
    """Return the largest constant gamma under which the stack's bound is proved.

    With g = gamma L, (13) is A g + c g^2 = 1, so g = 2 / (A + sqrt(A^2 + 4 c)); with several agents
    also g <= 1 / sqrt(tau (tau - 1)), half of that for heterogeneous agents. It is sufficient, and conservative: for
    Lookahead with tau = 5, alpha = 0.5 it allows g = 0.4, where gradient descent on a quadratic is stable to 2.2457.

    Args:
        levels: innermost first.
        agents: n, >= 1.
        smoothness: L > 0.
        heterogeneous: whether agents have different f_i.

    Raises:
        ValueError: for a stack without a bound here.

    Example:
        >>> from dist_lookahead import lookahead
        >>> round(admissible_lr(lookahead(tau=5, alpha=0.5), agents=1, smoothness=1.0), 12)
        0.4

    Reference: Wang, Tantia, Ballas and Rabbat, ICASSP 2020, (13).
    """
    case = case_of(levels, agents)
    _check_positive(smoothness=smoothness)
    largest = 2 / (case.alpha + math.sqrt(case.alpha**2 + 4 * case.quadratic))
    if agents > 1 and case.tau > 1:
        largest = min(largest, 1 / ((2 if heterogeneous else 1) * math.sqrt(case.tau * (case.tau - 1))))
    return largest / smoothness


def _drift(case: Case, rates: Rates, agents: int, noise: float, heterogeneity: float) -> float:
    """The third term over L^2: of the agents around their mean, and of the mean ahead of y."""
    consensus = (case.tau - 1) * (1 - 1 / agents) * (2 if heterogeneity else 1)
    unlike = 4 / 3 * (2 * case.tau - 1) * (case.tau - 1) * rates.heterogeneity * heterogeneity
    return rates.drift * noise * (consensus + case.spread / agents) + unlike


def _conditions(
    case: Case, rates: Rates, agents: int, smoothness: float, *, heterogeneous: bool
) -> tuple[Condition, ...]:
    value = case.alpha * rates.largest * smoothness + case.quadratic * rates.largest_round * smoothness**2
    first = Condition(formula=case.condition, value=value)
    if agents == 1:
        return (first,)
    value = rates.largest_round * smoothness**2 * case.tau * (case.tau - 1)
    if heterogeneous:
        return first, Condition(formula="4 gamma^2 L^2 tau (tau - 1) <= 1", value=4 * value)
    return first, Condition(formula="gamma^2 L^2 tau (tau - 1) <= 1", value=value)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be above 0 and finite")


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} must be at least 0 and finite")
