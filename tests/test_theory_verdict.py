"""The verdict on stability: its limits are those of the recursion, and what it advises helps."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dist_lookahead import (
    Alone,
    DistributedLookahead,
    Every,
    Exact,
    Level,
    Linear,
    Mesh,
    Optimal,
    Piecewise,
    Pull,
    diloco,
    distributed_lookahead,
    local_sgd,
    lookahead,
    simulate,
    slowmo,
)
from dist_lookahead.stability import instabilities
from dist_lookahead.theory.first_round import frozen
from dist_lookahead.theory.growth import GRID, GROWS, stability_limit
from dist_lookahead.theory.linear_recursion import Quadratics, round_map, spectral_radius
from dist_lookahead.theory.stability import ALARMING, is_calm, verdict

HEAVY_BALL = Level(Every(1), Alone(), Pull(1.0, beta=0.9))
"""Slow momentum in every step: SGD with heavy-ball momentum 0.9, as a level."""


def test_the_sentence_names_cause_limit_and_remedies() -> None:
    limit = stability_limit(slowmo(6, beta=0.8), agents=4, momentum=0.9)
    said = verdict(slowmo(6, beta=0.8), agents=4, momentum=0.9)
    assert said.limit == pytest.approx(limit, rel=1e-9)
    assert said.sentence == (
        "levels[0]: slow momentum 0.8 over fast momentum 0.9 that is kept through rounds of tau=6 is unstable on "
        f"quadratics from learning rate x curvature = {limit:.2g} on. Use fast_buffers='reset', tau >= 17, "
        "beta <= 0.4, or alpha <= 0.3"
    )


def test_the_sentence_of_a_stable_stack_compares_with_the_fast_optimizer() -> None:
    said = verdict(lookahead(5, 0.5))
    assert not said.alarming
    assert said.sentence == (
        "The levels are stable on quadratics up to learning rate x curvature = 2.25; the fast optimizer alone up to 2"
    )


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.9, True)])
def test_the_fast_optimizer_alone_is_what_a_pull_of_1_after_every_step_is(momentum: float, nesterov: bool) -> None:
    alone = [Level(Every(1), Alone(), Pull(1.0))]
    said = verdict(alone, momentum=momentum, nesterov=nesterov)
    assert said.plain == pytest.approx(said.limit, rel=1e-6)


@dataclass(frozen=True)
class Alarm:
    """A stack that is alarming, and which of its levels are to blame."""

    levels: Sequence[Level]
    blamed: str
    momentum: float = 0.9
    nesterov: bool = False
    agents: int | Mesh = 2


ALARMS = {
    "slowmo": Alarm(slowmo(6, beta=0.8), "levels[0]: "),
    "nesterov inside": Alarm(slowmo(12, beta=0.8), "levels[0]: ", nesterov=True),
    "gap among unstable tau": Alarm(diloco(3, alpha=1.0, beta=0.6), "levels[0]: "),
    "diloco, long memory": Alarm(diloco(10), "levels[0]: ", momentum=0.99),
    "averaged buffers": Alarm(slowmo(6, beta=0.6, fast_buffers="average"), "levels[0]: "),
    "too little momentum too": Alarm(slowmo(16, alpha=1.5, beta=0.8), "levels[0]: "),
    "far too long": Alarm(distributed_lookahead(50, alpha=2.1), "levels[0]: ", momentum=0.0),
    "far too long, with momenta": Alarm(slowmo(500, alpha=5.0, beta=0.5), "levels[0]: "),
    "below": Alarm([*slowmo(6, beta=0.8), *slowmo(24, beta=0.4, fast_buffers="reset")], "levels[0]: "),
    "above": Alarm([*local_sgd(5), *slowmo(10, beta=0.9)], "levels[1]: "),
    "two together": Alarm([HEAVY_BALL, *slowmo(6, beta=0.8)], "levels[0] and levels[1]: ", momentum=0.0),
    "each for itself": Alarm([*slowmo(6), *slowmo(12)], "levels[0]: "),
    "axes": Alarm(
        [Level(Every(3), Exact("local"), Pull(1.0, beta=0.8)), *local_sgd(6)],
        "levels[0]: ",
        agents=Mesh((2, 4), ("node", "local")),
    ),
}


def judged(alarm: Alarm, levels: Sequence[Level]) -> float:
    return stability_limit(levels, agents=alarm.agents, momentum=alarm.momentum, nesterov=alarm.nesterov)


def with_setting(level: Level, name: str, value: str) -> Level:
    if name == "fast_buffers":
        return replace(level, fast_buffers=value.strip("'"))  # pyright: ignore[reportArgumentType] - read from a text
    if name == "tau":
        return replace(level, when=Every(int(value)))
    assert isinstance(level.move, Pull)
    new = {"alpha": level.move.alpha, "beta": level.move.beta, name: float(value)}
    return replace(level, move=replace(level.move, **new) if new["beta"] else Pull(new["alpha"]))


def advised(sentence: str, levels: Sequence[Level]) -> list[list[Level]]:
    """Every stack that the sentence says is stable, each bound a little inside of it too."""
    stacks = []
    pattern = r"(fast_buffers|tau|alpha|beta) ?(=|>=|<=) ?([\w.']+)((?: in)?(?:(?: and)? ?levels\[\d\])*)"
    for name, relation, value, where in re.findall(pattern, sentence.split(". Use ")[1]):
        indices = {int(index) for index in re.findall(r"\[(\d)\]", where)} or {0}
        unit = int(levels[-2].when.after(0)) if name == "tau" and len(levels) > 1 else 1
        values = [value]
        if relation != "=":
            step = {"tau": unit, "alpha": 0.05, "beta": 0.1}[name] * (1 if relation == ">=" else -1)
            number = int(value) if name == "tau" else float(value)
            values = [str(round(number + k * step, 3)) for k in (0, 1, 2, 5) if number + k * step > 0]
            values += ["0"] if name == "beta" else []
        stacks += [
            [with_setting(level, name, chosen) if index in indices else level for index, level in enumerate(levels)]
            for chosen in values
        ]
    return stacks


@pytest.mark.parametrize("alarm", ALARMS.values(), ids=ALARMS)
def test_what_is_advised_helps(alarm: Alarm) -> None:
    """A remedy that does not cure sends its reader into the same divergence once more."""
    said = verdict(alarm.levels, agents=alarm.agents, momentum=alarm.momentum, nesterov=alarm.nesterov)
    assert said.alarming
    assert said.limit == pytest.approx(judged(alarm, alarm.levels), rel=1e-6)
    assert said.sentence.startswith(alarm.blamed)
    stacks = advised(said.sentence, alarm.levels)
    assert stacks
    for stack in stacks:
        assert judged(alarm, stack) >= ALARMING, stack


def test_advised_rounds_are_not_needlessly_long() -> None:
    for tau in (16, 17):
        assert is_calm(slowmo(tau, beta=0.8), momentum=0.9) == (tau == 17)


@pytest.mark.parametrize(("beta", "momentum"), [(0.6, 0.9), (0.8, 0.9), (0.9, 0.8), (0.5, 0.95)])
def test_from_the_advised_tau_on_all_are_stable(beta: float, momentum: float) -> None:
    """Between unstable taus there are stable ones, which are not what "tau >= 20" says."""
    levels = diloco(2, alpha=1.0, beta=beta)
    sentence = verdict(levels, momentum=momentum).sentence
    least = int(re.findall(r"tau >= (\d+)", sentence)[0])
    assert not is_calm(diloco(least - 1, alpha=1.0, beta=beta), momentum=momentum)
    assert all(is_calm(diloco(tau, alpha=1.0, beta=beta), momentum=momentum) for tau in range(least, 3 * least))


def test_momentum_is_alarming_as_a_level_and_inside_the_fast_optimizer_alike() -> None:
    """The same recursion written in two ways."""
    inside = verdict(slowmo(6, beta=0.8), momentum=0.9)
    outside = verdict([HEAVY_BALL, *slowmo(6, beta=0.8)])
    assert outside.limit == pytest.approx(inside.limit, rel=1e-6)
    assert "fast_buffers='reset' in levels[1], tau >= 17 in levels[1]" in outside.sentence


STACKS = st.lists(
    st.builds(
        Level,
        st.just(Every(1)),
        st.sampled_from([Alone(), Exact()]),
        st.builds(Pull, st.sampled_from([0.3, 0.5, 1.0, 1.5, 2.5]), st.sampled_from([0.0, 0.5, 0.8, 0.9])),
        st.sampled_from(["keep", "reset"]),
    ),
    min_size=1,
    max_size=3,
)


def radius(levels: Sequence[Level], rates: Tensor, mesh: Mesh, momentum: float) -> Tensor:
    """The plain way to the growth of a round: all agents, step by step."""
    zero = torch.zeros(mesh.size, len(rates), dtype=torch.float64)
    quadratics = Quadratics(
        curvature=rates.expand_as(zero), noise=zero, offsets=zero, mesh=mesh, momentum=momentum, nesterov=False
    )
    return spectral_radius(round_map(levels, quadratics, 1.0, levels[-1].when.after(0)))


def assert_least(limit: float, levels: Sequence[Level], mesh: Mesh, momentum: float) -> None:
    below = GRID[limit * (1 - 1e-7) > GRID]
    assert (radius(levels, below, mesh, momentum) <= GROWS).all()
    if limit < float("inf"):
        assert radius(levels, torch.tensor([limit * (1 + 1e-7)], dtype=torch.float64), mesh, momentum).item() > 1


@settings(deadline=None, max_examples=60, derandomize=True)
@given(STACKS, st.sampled_from([1, 4, 11]), st.sampled_from([1, 3]), st.sampled_from([0.0, 0.9]))
def test_the_quick_look_sees_what_the_search_sees(levels: list[Level], tau: int, pulls: int, momentum: float) -> None:
    """The optimizer warns by the quick look: on few agents, by powers, and skipping stacks that cannot grow."""
    stack = [replace(level, when=Every(tau * pulls**above)) for above, level in enumerate(levels)]
    limit = stability_limit(stack, agents=4, momentum=momentum)
    assert_least(limit, stack, Mesh((4,)), momentum)
    assert is_calm(stack, agents=4, momentum=momentum) == (limit >= ALARMING)
    assert verdict(stack, agents=4, momentum=momentum).limit == limit


@pytest.mark.parametrize("tau", [635, 1000, 2000])
def test_rounds_that_overflow_at_large_rates_have_a_limit(tau: int) -> None:
    """LAPACK refuses matrices near the largest number. With alpha (1 - R) < 2 (1 + beta) the limits are known."""
    assert verdict(diloco(tau), agents=2).limit == pytest.approx(2.0, rel=1e-3)
    far = verdict(slowmo(tau, alpha=5.0, beta=0.5), agents=2)
    assert far.limit == pytest.approx(1 - 0.4 ** (1 / tau), rel=1e-6)


def test_sizes_of_axes_make_no_difference() -> None:
    levels = [Level(Every(3), Exact("local"), Pull(0.7, beta=0.5)), Level(Every(6), Exact("node"), Pull(1.0, beta=0.5))]
    few, many = (Mesh(shape, ("node", "local")) for shape in ((2, 2), (3, 4)))
    assert_least(verdict(levels, agents=many, momentum=0.9).limit, levels, many, 0.9)
    assert verdict(levels, agents=many, momentum=0.9) == verdict(levels, agents=few, momentum=0.9)


# --- values that are not numbers


def test_schedules_count_with_the_values_of_their_first_round() -> None:
    levels = slowmo(Piecewise((6, 50), (100,)), alpha=Linear(0.0, 1.0, 6), beta=0.8)
    assert frozen(levels) == slowmo(6, alpha=1.0, beta=0.8)
    said = verdict(levels, momentum=0.9)
    assert said.limit == verdict(slowmo(6, beta=0.8), momentum=0.9).limit
    assert "on, with schedules as in the first round. Use" in said.sentence


def test_a_level_waits_for_the_level_below() -> None:
    levels = [*lookahead(Piecewise((3, 4), (9,))), *distributed_lookahead(5)]
    assert [level.when.tau for level in frozen(levels)] == [3, 6]


def test_a_momentum_that_begins_with_0_is_none_yet() -> None:
    assert frozen(diloco(4, beta=Piecewise((0.0, 0.9), (100,)))) == distributed_lookahead(4, alpha=0.7)


def test_a_measured_alpha_is_judged_at_its_worse_end() -> None:
    said = verdict(lookahead(50, alpha=Optimal(0.5, 2.5)), momentum=0.9)
    assert said.limit == verdict(lookahead(50, alpha=2.5), momentum=0.9).limit
    assert said.sentence.startswith("levels[0]: alpha=2.5 over fast momentum")
    assert "on, at the worse end of a measured alpha. Use" in said.sentence
    assert not verdict(lookahead(50, alpha=Optimal(0.5, 1.0)), momentum=0.9).alarming


# --- what the optimizer says


def sgd(**options: float | bool) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1, **options)  # pyright: ignore[reportArgumentType]


ADAM = torch.optim.Adam([nn.Parameter(torch.zeros(2))])
SHORT = slowmo(6, beta=0.8)


@pytest.mark.parametrize(
    ("levels", "inner", "sentences"),
    [
        (SHORT, sgd(momentum=0.9), 1),
        (SHORT, sgd(momentum=0.9, nesterov=True), 1),
        (SHORT, sgd(), 0),
        (distributed_lookahead(50, alpha=2.1), sgd(), 1),
        (SHORT, sgd(momentum=0.9, dampening=0.9), 0),
        (SHORT, ADAM, 0),
        (SHORT, torch.optim.RMSprop([nn.Parameter(torch.zeros(2))], momentum=0.9), 1),
    ],
)
def test_the_optimizer_speaks_of_linear_momentum_only(
    levels: list[Level], inner: torch.optim.Optimizer, sentences: int
) -> None:
    assert len(list(instabilities(levels, inner, agents=3))) == sentences


def test_each_momentum_of_the_groups_is_looked_at() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "momentum": m} for m in (0.0, 0.9, 0.9, 0.95)]
    sentences = list(instabilities(SHORT, torch.optim.SGD(groups, lr=0.1), agents=1))
    assert ["momentum 0.9 that" in sentences[0], "momentum 0.95 that" in sentences[1]] == [True, True]
    assert len(sentences) == 2


def test_a_warning_never_keeps_a_stack_from_being_built() -> None:
    """Long rounds whose fast steps overflow at large rates, rates of momentum beyond the theory, levels along axes."""
    levels = [Level(Every(1000), Exact("local"), Pull(2.5)), Level(Every(2000), Exact("node"), Pull(1.0, beta=0.5))]
    ends = simulate(Mesh((2, 2), ("node", "local")))
    with pytest.warns(UserWarning, match=r"levels\[0\]: alpha=2.5 after rounds of tau=1000 is unstable on quadratics"):
        agents = [DistributedLookahead(sgd(), levels, communicator=end) for end in ends]
    assert len(agents) == 4
    DistributedLookahead(sgd(momentum=1.5), levels, communicator=simulate(Mesh((1, 1), ("node", "local")))[0])
