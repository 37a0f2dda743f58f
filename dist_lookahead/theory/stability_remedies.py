"""Why a stack of levels is unstable at small learning rates, and which changes of its settings help.

Nothing is claimed that was not computed: each remedy is tried out on the whole stack. "tau >= 20" was seen to be calm
from 20 to 60, "beta <= 0.4" at all tenths below.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from dist_lookahead.level import Every, Level
from dist_lookahead.move import Pull

IsCalm = Callable[[Sequence[Level]], bool]

LONGEST = 100  # horizons of what is kept from round to round: longer rounds are no remedy to offer
STREAK = 3  # a tau helps where all up to so many times as long do: calm islands among unstable rounds are shorter
SPACING = 1.1  # from one tau that is tried to the next
TENTHS = [tenth / 10 for tenth in range(21)]  # values of alpha and beta to offer


def culprits(levels: Sequence[Level], is_calm: IsCalm) -> list[int]:
    """Return the indices of as few levels as are alarming without the others.

    Args:
        levels: innermost first, without schedules.
        is_calm: whether a stack is not alarming; this one is.

    Example:
        >>> from dist_lookahead import lookahead, slowmo
        >>> culprits([*slowmo(tau=6), *lookahead(tau=12)], lambda stack: stack[0].move.beta == 0)
        [0]
    """
    blamed = list(range(len(levels)))
    for index in reversed(range(len(levels))):
        others = [other for other in blamed if other != index]
        if others and not is_calm([levels[other] for other in others]):
            blamed = others
    return blamed


def cause(levels: Sequence[Level], blamed: Sequence[int], momentum: float) -> str:
    """Say which settings are unstable together, as the subject of a sentence.

    Args:
        levels: innermost first, without schedules.
        blamed: what `culprits` returned.
        momentum: of the fast optimizer.

    Example:
        >>> from dist_lookahead import lookahead
        >>> cause(lookahead(tau=50, alpha=2.1), [0], momentum=0.0)
        'levels[0]: alpha=2.1 after rounds of tau=50'
    """
    is_kept = momentum > 0 and all(level.fast_buffers != "reset" for level in levels[: blamed[0] + 1])
    parts = [f"{_slow_step(levels[index])} {{}} rounds of tau={levels[index].when.tau}" for index in blamed]
    kept = f"over fast momentum {momentum} that is kept through" if is_kept else "after"
    inner, *outer = parts
    words = " under ".join([inner.format(kept), *(part.format("after") for part in outer)])
    return f"{_names(blamed)}: {words}"


def remedies(levels: Sequence[Level], blamed: Sequence[int], is_calm: IsCalm, momentum: float) -> str:
    """Say which changes make the stack calm: of the blamed levels or, where these do not help, of all.

    Args:
        levels: innermost first, without schedules.
        blamed: what `culprits` returned.
        is_calm: whether a stack is not alarming; this one is.
        momentum: of the fast optimizer.

    Example:
        >>> from dist_lookahead import lookahead
        >>> remedies(lookahead(tau=50, alpha=2.1), [0], lambda stack: stack[0].move.alpha <= 2, momentum=0.0)
        'Use alpha <= 2'
    """
    for chosen in (blamed, range(len(levels))):
        found = [*_resets(levels, chosen, is_calm)]
        if len(levels) - 1 in chosen:
            found += _rounds(levels, is_calm, _horizon(levels, momentum))
        found += _smaller(levels, chosen, is_calm)
        if found:
            return f"Use {_either(found)}"
    return "No single change of fast_buffers, tau, alpha or beta helps: change several"


def _resets(levels: Sequence[Level], chosen: Sequence[int], is_calm: IsCalm) -> Iterator[str]:
    """Reset what is kept, fast momentum and slow momentum of lower levels: in the outermost level, or in all."""
    for some in (chosen[-1:], chosen):
        if is_calm(_changed(levels, some, lambda level: replace(level, fast_buffers="reset"))):
            yield f"fast_buffers='reset'{_where(levels, some)}"
            return


def _rounds(levels: Sequence[Level], is_calm: IsCalm, horizon: float) -> Iterator[str]:
    """Longer rounds of the outermost level, or shorter ones."""
    *below, top = levels
    unit = int(below[-1].when.after(0)) if below else 1
    where = _where(levels, [len(below)])

    def is_calm_with(pulls: int) -> bool:
        return is_calm([*below, replace(top, when=Every(pulls * unit))])

    now = top.when.after(0) // unit
    if longer := _longer(is_calm_with, now, LONGEST * horizon / unit):
        yield f"tau >= {longer * unit}{where}"
    elif (shorter := _shorter(is_calm_with, now)) * unit > 1:
        yield f"tau <= {shorter * unit}{where}"


def _longer(is_calm_with: Callable[[int], bool], now: int, most: float) -> int | None:
    """Return the number above `now` from which on all are calm, None where it is above `most`."""
    alarming, calm, tried = now, None, now + 1
    while calm is None or tried < STREAK * calm:
        if not is_calm_with(tried):
            alarming, calm = tried, None
        elif calm is None:
            calm = tried
        if calm is None and tried > most:
            return None
        tried = int(tried * SPACING) + 1
    return alarming + 1 + bisect_left(range(alarming + 1, calm), True, key=is_calm_with)


def _shorter(is_calm_with: Callable[[int], bool], now: int) -> int:
    """Return the number below `now` up to which all are calm, 0 where 1 is not."""
    calm, tried = 0, 1
    while tried < now and is_calm_with(tried):
        calm, tried = tried, int(tried * SPACING) + 1
    return calm + bisect_left(range(calm + 1, min(tried, now)), True, key=lambda pulls: not is_calm_with(pulls))


def _smaller(levels: Sequence[Level], chosen: Sequence[int], is_calm: IsCalm) -> Iterator[str]:
    """Less slow momentum, or shorter slow steps."""
    changes = {"beta": _with_less_momentum, "alpha": _with_shorter_steps}
    for name, change in changes.items():
        now = max(getattr(levels[index].move, name, 0.0) for index in chosen)
        values = [value for value in TENTHS if value < now and (value or name == "beta")]
        calm = [*takewhile(lambda most: is_calm(_changed(levels, chosen, lambda level: change(level, most))), values)]  # noqa: B023 - consumed at once
        if calm:
            yield f"{name} {f'<= {calm[-1]:g}' if calm[-1] else '= 0'}{_where(levels, chosen)}"


def _with_less_momentum(level: Level, most: float) -> Level:
    if not isinstance(level.move, Pull):
        return level
    alpha, beta = level.move.coefficients(0)
    beta = min(beta, most)
    return replace(level, move=replace(level.move, beta=beta) if beta else Pull(alpha))


def _with_shorter_steps(level: Level, most: float) -> Level:
    if not isinstance(level.move, Pull):
        return level
    return replace(level, move=replace(level.move, alpha=min(level.move.coefficients(0)[0], most)))


def _changed(levels: Sequence[Level], chosen: Sequence[int], change: Callable[[Level], Level]) -> list[Level]:
    return [change(level) if index in chosen else level for index, level in enumerate(levels)]


def _horizon(levels: Sequence[Level], momentum: float) -> float:
    """Fast steps that the fast momentum, and the slow momentum below the outermost level, remember; 0 without any."""
    slow = [
        level.when.after(0) / (1 - level.move.coefficients(0)[1]) for level in levels[:-1] if level.move.keeps_momentum
    ]
    return max([*slow, 1 / (1 - momentum) if momentum else 0.0])


def _slow_step(level: Level) -> str:
    alpha, beta = level.move.coefficients(0)
    return " and ".join(
        [*([f"alpha={alpha}"] if alpha > 1 or not beta else []), *([f"slow momentum {beta}"] if beta else [])]
    )


def _names(indices: Iterable[int]) -> str:
    *first, last = (f"levels[{index}]" for index in indices)
    return f"{', '.join(first)} and {last}" if first else last


def _where(levels: Sequence[Level], chosen: Sequence[int]) -> str:
    return f" in {_names(chosen)}" if len(levels) > 1 else ""


def _either(items: Sequence[str]) -> str:
    *first, last = items
    comma = "," if len(first) > 1 else ""
    return f"{', '.join(first)}{comma} or {last}" if first else last
