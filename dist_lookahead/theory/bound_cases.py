"""Which stacks of levels have a convergence bound, and the constants with which each enters it.

With g = gamma L all bounds of `bounds.py` share one form and differ in four numbers:

    1/K sum_k E|grad f(y_k)|^2 <= 2 Delta / (A gamma K) + A g sigma^2 / n
                                  + g^2 sigma^2 [(k_1 - 1)(1 - 1/n) + spread / n]
    if  A g + quadratic g^2 <= 1  and, for n >= 2,  g^2 k_1 (k_1 - 1) <= 1

    one pull        A = alpha                spread = (1 - alpha)^2 (tau - 1)
    slow momentum   A = alpha / (1 - beta)   spread = 2 (1 - A)^2 (tau - 1) + 4 A^2 beta^2 tau / (1 - beta^2)
    nested          A = A_M                  spread = sum_m (A_{m-1} - A_M)^2 T_{m-1} (k_m - 1)

where A_m = alpha_1 .. alpha_m, layer m pulls every T_m = k_1 .. k_m fast steps, and k_1 is the innermost tau.

(B') does not become (B) as beta goes to 0: it bounds a sum of two vectors by |a + b|^2 <= 2 |a|^2 + 2 |b|^2, which
doubles what (B) has for the first. So beta = 0 takes (B), and a tiny beta may look worse than none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import mul

from dist_lookahead.averaging.gossip import OnGraph
from dist_lookahead.averaging.mixer import Alone
from dist_lookahead.level import Level
from dist_lookahead.theory.modelled import modelled

COVERED = (
    "Bounds are known for one level Every(tau) with Copy() or Pull(alpha), for one level with heavy-ball slow momentum "
    "Pull(alpha, beta), and for nested levels without slow momentum; tau, alpha and beta are numbers, and every level "
    "averages over all agents, mix=Exact(), or is mix=Alone() with agents=1"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """The constants of a stack's bound.

    Attributes:
        equation: which bound this is.
        alpha: A, effective over fast learning rate.
        tau: k_1, fast steps from one averaging to the next.
        spread: how far the mean of the fast weights runs ahead of y by noise.
        quadratic: coefficient of g^2 in the condition on the learning rate.
        condition: that condition in words.
        allows_changing_lr: whether the proof goes through for a learning rate that changes.
    """

    equation: str
    alpha: float
    tau: int
    spread: float
    quadratic: float
    condition: str
    allows_changing_lr: bool = False


def case_of(levels: Sequence[Level], agents: int) -> Case:
    """Return the constants of the stack's bound.

    Args:
        levels: innermost first.
        agents: n, >= 1.

    Raises:
        ValueError: for a stack without a bound here.

    Example:
        >>> from dist_lookahead import lookahead
        >>> case_of(lookahead(tau=5, alpha=0.5), agents=1).quadratic
        5.0
    """
    if agents < 1:
        raise ValueError(f"agents={agents} must be at least 1")
    stack = list(modelled(levels))
    for index, level in enumerate(stack):
        if reason := _why_not(level, agents, nested=len(stack) > 1):
            raise ValueError(f"levels[{index}] has no bound here: {reason}. {COVERED}")
    if len(stack) > 1:
        return _nested(stack)
    return _slow_momentum(stack[0]) if stack[0].move.keeps_momentum else _one_pull(stack[0], agents)


def _why_not(level: Level, agents: int, *, nested: bool) -> str | None:
    """Return what rules the level out, if anything."""
    move, mix = level.move, level.mix
    settings = {"tau": level.when.tau, "alpha": getattr(move, "alpha", 1.0), "beta": getattr(move, "beta", 0.0)}
    for name, value in settings.items():
        if not isinstance(value, int | float):
            return f"{name}={value} changes during the run"
    if getattr(move, "nesterov", False):
        return "its slow momentum is Nesterov's"
    if nested and move.keeps_momentum:
        return f"slow momentum beta={settings['beta']} in a stack of several levels"
    if isinstance(mix, Alone):
        return f"mix=Alone() with agents={agents}: its slow weights differ between agents" if agents > 1 else None
    if isinstance(mix, OnGraph) and agents > 1:
        return f"mix={mix}: its agents do not hold their mean"
    return f"it averages along axis={mix.axis!r}, over part of the agents" if mix.axis != "world" else None


def _one_pull(level: Level, agents: int) -> Case:
    (alpha, _), tau = level.move.coefficients(0), level.when.after(0)
    return Case(
        equation="(14)" if agents == 1 else "(B)",
        alpha=alpha,
        tau=tau,
        spread=(1 - alpha) ** 2 * (tau - 1),
        quadratic=(1 - alpha) ** 2 * tau * (tau - 1),
        condition="(13): alpha gamma L + (1 - alpha)^2 gamma^2 L^2 tau (tau - 1) <= 1",
        allows_changing_lr=True,
    )


def _slow_momentum(level: Level) -> Case:
    (alpha, beta), tau = level.move.coefficients(0), level.when.after(0)
    effective = alpha / (1 - beta)
    pull, momentum = 2 * (1 - effective) ** 2, 4 * (effective * beta) ** 2
    return Case(
        equation="(B')",
        alpha=effective,
        tau=tau,
        spread=pull * (tau - 1) + momentum * tau / (1 - beta**2),
        quadratic=pull * tau * (tau - 1) + momentum * tau**2 / (1 - beta) ** 2,
        condition="A gamma L + gamma^2 L^2 [2 (1 - A)^2 tau (tau - 1) + 4 A^2 beta^2 tau^2 / (1 - beta)^2] <= 1, "
        "A = alpha / (1 - beta)",
    )


def _nested(stack: Sequence[Level]) -> Case:
    """The steps that z^{m-1} is ahead of z^m are other steps for each m, so that their noise adds in variance.

    Step j of a round enters y - mean x with weight A_{m-1} - A_M for one m. Where all alphas are at most 1 the
    largest weight is 1 - A_M. It must be the largest: alphas 2 and 1/2 have A_M = 1, and with 1 - A_M = 0 in the
    condition gradient descent exceeds the bound 199 times over (quadratic, gamma L = 1, T = 3 and 12, 400 steps).
    """
    products = list(accumulate((level.move.coefficients(0)[0] for level in stack), mul, initial=1.0))
    periods = [1, *(level.when.after(0) for level in stack)]
    ahead = [product - products[-1] for product in products[:-1]]
    steps = [above - below for below, above in pairwise(periods)]  # T_{m-1} (k_m - 1)
    largest = max(weight**2 for weight in ahead)
    return Case(
        equation="(B), nested",
        alpha=products[-1],
        tau=periods[1],
        spread=sum(weight**2 * length for weight, length in zip(ahead, steps, strict=True)),
        quadratic=largest * periods[-1] * (periods[-1] - 1),
        condition="A_M gamma L + max_m (A_{m-1} - A_M)^2 gamma^2 L^2 T_M (T_M - 1) <= 1",
    )
