"""A stack of levels in words and formulas."""

from collections.abc import Iterator, Sequence

from dist_lookahead.adaptive import Adaptive
from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.gossip import OnGraph
from dist_lookahead.level import Level
from dist_lookahead.mesh import WORLD
from dist_lookahead.move import Pull
from dist_lookahead.theory.first_round import frozen
from dist_lookahead.train.theory_report_text import coefficient, number, paragraph

BELOW = 15  # columns before what stands under a level's name
BUFFERS = {"keep": "fast buffers are kept", "reset": "what is below is reset", "average": "fast buffers are averaged"}


def level_lines(levels: Sequence[Level]) -> Iterator[str]:
    """Yield each level in two lines, and what is taken for values that change."""
    for index, (level, first) in enumerate(zip(levels, frozen(levels), strict=True)):
        yield from paragraph(f"levels[{index}]  {_when(first)}, {_whose(level)}; {BUFFERS[level.fast_buffers]}")
        for line in (_formula(level, first, index), *_changes(level, first)):
            yield from paragraph(line, BELOW)


def _changes(level: Level, first: Level) -> Iterator[str]:
    """Say which values change during the run, and which are taken."""
    settings = [("tau", level.when, first.when), ("alpha", level.move, first.move), ("beta", level.move, first.move)]
    for name, given, taken in settings:
        value = getattr(given, name, 0.0)
        if name == "alpha" and level.move.searches:
            yield f"alpha is measured at each sync, {value}: both ends are looked at"
        elif not isinstance(value, int | float) and isinstance(value, Adaptive):
            yield f"tau = {first.when.tau} is taken for {value}, which depends on how the training goes"
        elif not isinstance(value, int | float):
            yield f"{name} = {number(getattr(taken, name, 0.0))} is that of the first round of {value}"


def _when(first: Level) -> str:
    tau = first.when.after(0)
    return "after every fast step" if tau == 1 else f"every {tau} fast steps"


def _whose(level: Level) -> str:
    if isinstance(level.mix, OnGraph):
        times = f", {level.mix.rounds} times" if level.mix.rounds > 1 else ""
        return f"over the neighbours in a graph, {type(level.mix.topology).__name__}{times}"
    if not isinstance(level.mix, Exact):
        return "each agent for itself"
    over = "over all agents" if level.mix.axis == WORLD else f"over the agents along {level.mix.axis!r}"
    over += f", sent as {level.mix.codec} (not modelled)" if level.mix.codec else ""
    return f"{over}, slow state split among them" if level.mix.shard else over


def _formula(level: Level, first: Level, index: int) -> str:
    mean = "mean x" if level.mix.communicates else "x"
    if isinstance(level.mix, OnGraph):
        mean = "(neighbours' mean x)"
    if not isinstance(first.move, Pull):
        return f"x <- {mean}"
    z, v = f"z{index}", f"v{index}"
    alpha, beta = first.move.coefficients(0)
    size = "alpha " if level.move.searches else coefficient(alpha)
    if not beta:
        return f"{z} <- {f'{z} + {size}({mean} - {z})' if size else mean},  x <- {z}"
    step = f"{size or '1 '}(d + {number(beta)} {v})" if first.move.nesterov else f"{size}{v}"
    follows = f"   ({v} follows the rate)" if level.move.follow_lr else ""
    return f"d = {mean} - {z},  {v} <- {number(beta)} {v} + d,  {z} <- {z} + {step},  x <- {z}{follows}"
