"""A stack that has stopped changing, for what is defined for constant levels only."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from dist_lookahead.level import Every, Level
from dist_lookahead.move import Move, Pull
from dist_lookahead.optimal import Optimal
from dist_lookahead.theory.modelled import modelled

End = Literal["low", "high"]


def frozen(levels: Sequence[Level], step: int = 0, *, end: End = "high") -> list[Level]:
    """Return the levels with numbers for all tau, alpha and beta: those of the first round after `step`, and its sync.

    Of an adaptive tau that is the length to begin with: QSR's `base`, which is the shortest, and AdaComm's `start`.
    A tau that is not a multiple of the tau below it is rounded up to one, as the level waits for the level below.

    Args:
        levels: innermost first.
        step: fast steps done, >= 0; 0 for the first round.
        end: which end of its interval an alpha takes that is measured at each sync.

    Raises:
        ValueError: for a value out of range, and for a stack that is not modelled.

    Example:
        >>> from dist_lookahead import Linear, Piecewise, slowmo
        >>> (level,) = frozen(slowmo(tau=Piecewise((1, 12), (100,)), beta=Linear(0.4, 0.6, 4)))
        >>> level.when, level.move
        (Every(tau=1), Pull(alpha=1.0, beta=0.45, nesterov=False, follow_lr=True))
    """
    stopped, below = [], 1
    for level in modelled(levels):
        below *= -(-(level.when.after(step) - step) // below)
        stopped.append(replace(level, when=Every(below), move=_frozen_move(level.move, step + below, end)))
    return stopped


def ends(levels: Sequence[Level]) -> tuple[End, ...]:
    """Return the ends of the intervals at which to look: both where an alpha is measured at each sync, else one.

    Example:
        >>> from dist_lookahead import lookahead
        >>> ends(lookahead(alpha=Optimal(0.5, 1.0))), ends(lookahead(alpha=0.5))
        (('low', 'high'), ('high',))
    """
    return ("low", "high") if any(level.move.searches for level in levels) else ("high",)


def _frozen_move(move: Move, step: int, end: End) -> Move:
    if not isinstance(move, Pull):
        return move
    if isinstance(move.alpha, Optimal):
        return Pull(getattr(move.alpha, end))
    alpha, beta = move.coefficients(step)
    return replace(move, alpha=alpha, beta=beta) if beta else Pull(alpha)  # the options of a momentum of 0 are refused
