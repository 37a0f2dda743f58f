"""How the fast learning rates enter the bounds: constant, or one for each fast step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dist_lookahead.theory.bound_cases import COVERED, Case


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a bound takes from the learning rates gamma_k; in brackets for a constant one.

    Attributes:
        total: sum_k gamma_k [gamma K].
        noise: sum_k gamma_k^2 / total [gamma].
        drift: mean over rounds, weighted by gamma, of a round's squared noise [gamma^2].
        heterogeneity: the same for differences that last through the round [gamma^2].
        largest: max_k gamma_k [gamma].
        largest_round: the round of largest squared rates [gamma^2].
    """

    total: float
    noise: float
    drift: float
    heterogeneity: float
    largest: float
    largest_round: float


def constant_rates(lr: float, steps: int) -> Rates:
    """Return what enters (B) for a constant rate.

    Raises:
        ValueError: for a rate that is not above 0.

    Example:
        >>> constant_rates(0.1, steps=100).total
        10.0
    """
    if not 0 < lr < math.inf:
        raise ValueError(f"lr={lr} must be above 0 and finite")
    squared = lr**2
    return Rates(total=lr * steps, noise=lr, drift=squared, heterogeneity=squared, largest=lr, largest_round=squared)


def changing_rates(lr: Sequence[float], steps: int, case: Case) -> Rates:
    """Return what enters (B) for a rate per step: its proof with sums over a round, gamma_l the rate at position l.

    gamma^3 tau (tau - 1)                  is  2 sum_l gamma_l sum_{j<l} gamma_j^2
    gamma^3 tau (tau - 1)(2 tau - 1) / 6   is  sum_l gamma_l (sum_{j<l} gamma_j)^2
    gamma^2 tau (tau - 1)                  is  (sum_l gamma_l)^2 - sum_l gamma_l^2

    Args:
        lr: gamma_k >= 0, (steps,), not all 0.
        steps: K.
        case: one level without slow momentum.

    Raises:
        ValueError: for another case, and for rates out of range.

    Reference: Wang, Tantia, Ballas and Rabbat, ICASSP 2020, (43), for rates that are constant in each round.
    """
    if not case.allows_changing_lr:
        raise ValueError(
            f"lr is a sequence, but the bound {case.equation} is for a constant one: give a number, or one level "
            f"without slow momentum. {COVERED}"
        )
    if len(lr) != steps:
        raise ValueError(f"lr has {len(lr)} rates for steps={steps}: give one rate for each fast step")
    if min(lr) < 0 or max(lr) <= 0:
        raise ValueError(f"lr ranges from {min(lr)} to {max(lr)}: rates must not be negative, nor all 0")
    rates = torch.tensor(lr, dtype=torch.float64)
    pairs = max(case.tau * (case.tau - 1), 1)  # for tau = 1 all sums over a round are 0
    rounds = torch.nn.functional.pad(rates, (0, -steps % case.tau)).view(-1, case.tau)  # the last may be cut short
    squared, before = rounds**2, rounds.cumsum(1) - rounds
    total = float(rates.sum())
    return Rates(
        total=total,
        noise=float(squared.sum()) / total,
        drift=2 * float((rounds * (squared.cumsum(1) - squared)).sum()) * case.tau / (pairs * total),
        heterogeneity=6 * float((rounds * before**2).sum()) * case.tau / (pairs * (2 * case.tau - 1) * total),
        largest=max(lr),
        largest_round=float((rounds.sum(1) ** 2 - squared.sum(1)).max()) / pairs,
    )
