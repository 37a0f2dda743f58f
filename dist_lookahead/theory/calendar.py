"""Which levels of a stack fire after which fast step: the rule of `LevelStack`, from descriptions alone."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

from dist_lookahead.adaptive import Adaptive, Facts
from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh
from dist_lookahead.theory.modelled import modelled


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


def syncs(levels: Sequence[Level], steps: int, *, rates: Sequence[float] | None = None) -> Iterator[tuple[Firing, ...]]:
    """Yield the levels that fire together, innermost first, from sync to sync: long rounds take no time.

    A level fires for the first time after exactly tau steps, and only where the level below has just fired. A schedule
    of tau is asked at each sync for the length of the round that begins there.

    Args:
        levels: innermost first.
        steps: number of fast steps.
        rates: fast learning rates of the steps, at least `steps` of them; None for a constant one. tau=QSR is found
            from them.

    Raises:
        ValueError: for fewer rates, for tau=QSR without any, and for a tau that depends on the loss.

    Example:
        >>> from dist_lookahead import QSR, local_sgd, multilayer_lookahead
        >>> rates = [0.1] * 4 + [0.05] * 12
        >>> [fired[0].step for fired in syncs(local_sgd(tau=QSR(base=2, coefficient=0.1)), steps=16, rates=rates)]
        [2, 4, 8, 12, 16]
        >>> [[(f.index, f.step) for f in fired] for fired in syncs(multilayer_lookahead(taus=(500, 2)), steps=1000)]
        [[(0, 500)], [(0, 1000), (1, 1000)]]
    """
    levels = modelled(levels)
    if rates is not None and len(rates) < steps:
        raise ValueError(f"rates has {len(rates)} learning rates for {steps} fast steps: give one for each step")
    due = [_after(index, level, 0, rates) for index, level in enumerate(levels)]
    previous, turns = [0.0] * len(levels), [0] * len(levels)
    while (step := due[0]) <= steps:
        fired = []
        for index, level in enumerate(levels):
            if step < due[index]:
                break
            gamma = rates[step - 1] if rates is not None and level.move.follow_lr else 1.0
            fired.append(Firing(index, step, gamma / (previous[index] or gamma or 1.0), turns[index]))
            previous[index] = gamma or previous[index]
            turns[index] += 1
            due[index] = _after(index, level, step, rates)
        yield tuple(fired)


def _after(index: int, level: Level, step: int, rates: Sequence[float] | None) -> int:
    """The fast step at which the round that begins after `step` ends."""
    tau = level.when.tau
    if isinstance(tau, int | float) or not isinstance(tau, Adaptive):
        return level.when.after(step)
    if tau.hears != "lr":
        facts = {"loss": "losses of the run", "speed": "speeds of the agents"}[tau.hears]
        raise ValueError(
            f"levels[{index}].tau={tau} depends on the {facts}, which nobody knows beforehand: give a number "
            "or a schedule of the step"
        )
    if rates is None:
        raise ValueError(
            f"levels[{index}].tau={tau} depends on the learning rates of the run, and none are given: give rates, or a "
            "number or a schedule of the step for tau"
        )
    if step >= len(rates):
        return step + 1  # beyond the end
    return step + tau.next_round(Facts(step, rates[step]), ())[0]


def firings(
    levels: Sequence[Level], steps: int, *, rates: Sequence[float] | None = None
) -> Iterator[tuple[Firing, ...]]:
    """Yield for each of the fast steps 1 .. `steps` the levels that fire after it: `syncs`, and () in between.

    Args:
        levels: innermost first.
        steps: number of fast steps.
        rates: fast learning rates of the steps, at least `steps` of them; None for a constant one.

    Example:
        >>> from dist_lookahead import multilayer_lookahead
        >>> [[f.index for f in fired] for fired in firings(multilayer_lookahead(taus=(2, 2)), steps=4)]
        [[], [0], [], [0, 1]]
    """
    last = 0
    for fired in syncs(levels, steps, rates=rates):
        yield from repeat((), fired[0].step - last - 1)
        yield fired
        last = fired[0].step
    yield from repeat((), steps - last)


def cycle(levels: Sequence[Level], mesh: Mesh) -> int:
    """Return the number of fast steps after which everything repeats.

    It is a round of the outermost level, or as many rounds as averages that change from sync to sync take to begin
    again on all levels.

    Args:
        levels: innermost first, with a constant tau.
        mesh: of the agents.

    Example:
        >>> from dist_lookahead import Gossip, OnePeerExponential, dpsgd, slowmo_over
        >>> graph = OnePeerExponential()
        >>> cycle(dpsgd(graph), Mesh((8,))), cycle(slowmo_over(dpsgd(graph), tau=12), Mesh((8,)))
        (3, 12)
    """
    length = levels[-1].when.after(0)
    rounds = 1
    for level in levels:
        fired, period = length // level.when.after(0), level.mix.period(mesh)
        rounds = math.lcm(rounds, period // math.gcd(period, fired))
    return length * rounds
