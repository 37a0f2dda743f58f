"""Which levels of a stack fire after which fast step: the rule of `LevelStack`, from descriptions alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dist_lookahead.level import Level, check_levels


@dataclass(frozen=True, slots=True)
class Firing:
    """One level fires.

    Attributes:
        index: of the level, 0 innermost.
        step: fast steps done; schedules of alpha and beta are asked with it.
        ratio: factor on the slow momentum, gamma_t / gamma_prev where it follows the fast learning rate, else 1.
        turn: how often the level has fired before, for averages that change from sync to sync.
    """

    index: int
    step: int
    ratio: float = 1.0
    turn: int = 0


def firings(
    levels: Sequence[Level], steps: int, *, rates: Sequence[float] | None = None
) -> Iterator[tuple[Firing, ...]]:
    """Yield for each of the fast steps 1 .. `steps` the levels that fire after it, innermost first.

    A level fires for the first time after exactly tau steps, and only where the level below has just fired. A schedule
    of tau is asked at each sync for the length of the round that begins there.

    Args:
        levels: innermost first.
        steps: number of fast steps.
        rates: fast learning rates of the steps, at least `steps` of them; None for a constant one.

    Example:
        >>> from dist_lookahead import multilayer_lookahead
        >>> [[f.index for f in fired] for fired in firings(multilayer_lookahead(taus=(2, 2)), steps=4)]
        [[], [0], [], [0, 1]]
    """
    levels = check_levels(levels)
    if rates is not None and len(rates) < steps:
        raise ValueError(f"rates has {len(rates)} learning rates for {steps} fast steps: give one for each step")
    due = [level.when.after(0) for level in levels]
    previous, turns = [0.0] * len(levels), [0] * len(levels)
    for step in range(1, steps + 1):
        fired = []
        for index, level in enumerate(levels):
            if step < due[index]:
                break
            gamma = rates[step - 1] if rates is not None and level.move.follow_lr else 1.0
            fired.append(Firing(index, step, gamma / (previous[index] or gamma or 1.0), turns[index]))
            previous[index] = gamma or previous[index]
            turns[index] += 1
            due[index] = level.when.after(step)
        yield tuple(fired)
