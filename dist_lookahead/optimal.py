"""The description of a slow step size that is measured at each sync instead of given."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Optimal:
    """The alpha of least loss on the way from the slow weights to the average, within limits.

        alpha = clip(- d^T g(z) / d^T (g(z + d) - g(z)), low, high),    d = mean - z

    g is the mean gradient of all agents of the level, so that it takes two gradients and a sum of two numbers at each
    sync: see `probe` of `DistributedLookahead`. On a quadratic it is the best alpha exactly; where the loss bends
    downward along d it is the end of the interval that is lower.

    Args:
        low: least alpha, > 0.
        high: largest alpha, >= low.

    Raises:
        ValueError: for limits that are not finite numbers, or out of order.

    Example:
        >>> Optimal(low=0.2, high=1.0)
        Optimal(low=0.2, high=1.0)

    Reference: arXiv 1907.08610, Proposition 1, with curvature times distance as a difference of gradients.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        given = self.low, self.high
        if not all(isinstance(limit, int | float) for limit in given) or not 0 < self.low <= self.high < math.inf:
            raise ValueError(f"Optimal(low={self.low!r}, high={self.high!r}) needs two finite numbers, 0 < low <= high")
