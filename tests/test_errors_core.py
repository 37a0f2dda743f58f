"""Errors of the core: each says what was given, what is allowed and what to change."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from digits_training import make_agents
from torch import Tensor, nn
from torch.optim import SGD

from dist_lookahead import (
    Alone,
    Copy,
    Cosine,
    DistributedLookahead,
    Every,
    Exact,
    Level,
    Linear,
    Piecewise,
    Pull,
    bmuf,
    local_sgd,
    lookahead,
    multilayer_lookahead,
    simulate,
    slowmo,
)
from dist_lookahead.notation import from_plain


def weight(**options: Any) -> nn.Parameter:
    return nn.Parameter(torch.zeros(3, **options))


def optimizer(w: Tensor | None = None, **options: Any) -> DistributedLookahead:
    return DistributedLookahead(SGD([weight() if w is None else w], lr=0.1), lookahead(2), **options)


def shell(levels: Any) -> DistributedLookahead:
    return DistributedLookahead(SGD([weight()], lr=0.1), levels)


# --- values that are refused

REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Every(0), r"Every.tau=0 must be a whole number of fast steps, at least 1"),
    (lambda: Every(2.5), r"Every.tau=2.5 must be a whole number"),
    (lambda: Every(float("nan")), r"Every.tau=nan must be finite"),
    (lambda: Every(True), r"Every.tau=True must be a number or a schedule such as Piecewise"),
    (lambda: Every("5"), r"Every.tau='5' must be a number or a schedule"),  # pyright: ignore[reportArgumentType] - refused
    (lambda: Every(lambda step: 5), r"cannot be compared between agents .* make it a frozen dataclass"),
    (lambda: local_sgd(Linear(1.0, 2.0, 4))[0].when.after(1), r"Every.tau=1.25 must be a whole number"),
    (lambda: Pull(0.0), r"Pull.alpha=0.0 must be above 0: with 0 the slow weights never move"),
    (lambda: Pull(1.0, 1.0), r"Pull.beta=1.0 must be at least 0 and below 1"),
    (lambda: Pull(1.0, -0.1), r"Pull.beta=-0.1 must be at least 0 and below 1"),
    (lambda: Pull(1.0, nesterov=True), r"Pull.nesterov=True has no effect with beta=0"),
    (lambda: Pull(1.0, follow_lr=True), r"Pull.follow_lr=True has no effect with beta=0"),
    (lambda: Pull(Linear(1.0, -1.0, 4)).coefficients(3), r"Pull.alpha=-0.5 must be above 0"),
    (lambda: Piecewise((1, 2), ()), r"Piecewise has 2 values and 0 boundaries: give one more value"),
    (lambda: Piecewise((1, 2, 3), (5, 5)), r"Piecewise.boundaries=\(5, 5\) must be positive and increasing"),
    (lambda: Cosine(1.0, 0.0, 0), r"Cosine.steps=0 must be at least 1"),
    (lambda: Level(Every(2), Alone(), Copy()), r"mix=Alone\(\), move=Copy\(\)\) has no effect: average with mix=Exact"),
    (lambda: lookahead(fast_buffers="average"), r"fast_buffers='average' has no effect with mix=Alone"),
    (lambda: lookahead(fast_buffers="drop"), r"fast_buffers='drop' must be one of keep, reset, average"),  # pyright: ignore[reportArgumentType] - refused
    (lambda: Level(Every(2), Exact(shard=True), Copy()), r"shard=True\) has no effect with move=Copy\(\)"),
    (lambda: multilayer_lookahead((5,), (0.5, 0.5)), r"has 1 taus and 2 alphas: give one pair per layer"),
    (lambda: shell([]), r"levels=\[\]: give at least one Level, or a recipe"),
    (lambda: shell([Pull(0.5)]), r"levels\[0\]=Pull.* is not a Level"),
    (
        lambda: shell([*lookahead(3), *local_sgd(5)]),
        r"levels\[1\].tau=5 must be a multiple of levels\[0\].tau=3: use 6",
    ),
    (
        lambda: shell([Level(Every(2), Exact("rack"), Copy())]),
        r"axis 'rack' does not exist; allowed: node, local, world",
    ),
    (lambda: optimizer(model_buffers="mine"), r"model_buffers='mine' must be 'average' or 'local'"),
    (lambda: optimizer(check_every=-1), r"check_every=-1 must be at least 0"),
    (lambda: DistributedLookahead(nn.Linear(1, 1), lookahead()), r"inner=Linear: give a plain torch optimizer"),  # pyright: ignore[reportArgumentType] - refused
    (lambda: optimizer(weight(dtype=torch.complex64)), r"has dtype torch.complex64, which cannot be averaged: use"),
    (lambda: optimizer(weight().requires_grad_(False)), r"the optimizer has no trainable parameters"),
    (lambda: simulate(0), r"agents=0: at least 1 agent is needed"),
    (lambda: from_plain({"puul": {"alpha": 1}}), r"level.puul is unknown; did you mean 'pull'\?"),
    (lambda: from_plain({"every": {"tau": 0}}, "levels[1].when"), r"levels\[1\].when.every: Every.tau=0 must be"),
    (lambda: from_plain({"pull": 3}), r"level.pull=3 must be a mapping of alpha, beta, nesterov, follow_lr"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_bad_values_are_refused_with_what_to_change(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("levels", [slowmo(10, beta=0.6), bmuf(2, eta=0.5)], ids=["slowmo", "bmuf"])
def test_an_unstable_pair_of_momenta_is_warned_of_and_the_remedies_help(levels: list[Level]) -> None:
    def build(levels: list[Level]) -> DistributedLookahead:
        return DistributedLookahead(SGD([weight()], lr=0.1, momentum=0.95), levels)

    with pytest.warns(UserWarning, match=r"levels\[0\]: slow momentum .* Use fast_buffers='reset', tau >=") as caught:
        build(levels)
    tau = int(str(caught[0].message).split("tau >= ")[1].split(",")[0])
    (level,) = levels
    build([Level(Every(tau), level.mix, level.move)])  # a warning is an error here
    build([Level(level.when, level.mix, level.move, "reset")])


# --- states that do not fit


def test_a_state_of_other_levels_is_refused() -> None:
    state = shell(lookahead(3)).state_dict()
    with pytest.raises(ValueError, match=r"the saved levels are .*'tau': 3.* construct it with the saved levels"):
        shell(lookahead(4)).load_state_dict(state)


def test_a_state_of_another_format_is_refused() -> None:
    state = shell(lookahead(3)).state_dict()
    state["levels"]["format"] = 99
    with pytest.raises(ValueError, match="state of format 99; this version reads format 1"):
        shell(lookahead(3)).load_state_dict(state)


def test_a_state_with_unknown_parameters_is_refused() -> None:
    (agent,) = make_agents(1, lookahead(3))
    state = copy.deepcopy(agent.optimizer.state_dict())
    state["levels"]["parameters"][0][1] = "no.such"
    with pytest.raises(ValueError, match=r"1 parameters that this optimizer has not, first 'no.such'"):
        agent.optimizer.load_state_dict(state)


def test_another_agents_shard_is_refused() -> None:
    first, second = make_agents(2, slowmo(3, beta=0.6, shard=True))
    with pytest.raises(ValueError, match=r"levels\[0\] is sharded.* Load each agent's own state, with as many agents"):
        second.optimizer.load_state_dict(first.optimizer.state_dict())
