"""A training method is a stack of levels, innermost first, and a level is `when` x `mix` x `move`.

    when   at which fast steps the level fires                  Every(tau, delay)
    mix    with whom the average is taken, and in what code     Alone(), Exact(axis, shard, codec), Gossip(axis, ..)
    move   how the slow weights move toward the average         Copy(), Pull(alpha, beta, nesterov, follow_lr)

Known methods are points in this product:

    Lookahead                 (tau, Alone, Pull(alpha))
    Multilayer Lookahead      (tau_1, Alone, Pull(alpha_1)), (tau_1 tau_2, Alone, Pull(alpha_2)), ...
    local SGD                 (tau, Exact, Copy)
    post-local SGD            (1 and later tau, Exact, Copy)
    overlapped local SGD      ((tau, delay), Exact, Copy)
    hierarchical local SGD    (tau_1, Exact("local"), Copy), (tau_2, Exact("node"), Copy)
    distributed Lookahead     (tau, Exact, Pull(alpha))
    SlowMo                    (tau, Exact, Pull(alpha, beta, follow_lr))
    BMUF                      (tau, Exact, Pull(zeta, eta))
    DiLoCo                    (tau, Exact, Pull(alpha, beta, nesterov))
    SNOO                      (tau, Alone, Pull(alpha, beta, nesterov))
    D-PSGD                    (tau, Gossip, Copy)
    SlowMo over D-PSGD        (1, Gossip, Copy), (tau, Exact, Pull(alpha, beta, follow_lr))

Levels are pure descriptions: frozen, without tensors, comparable, written to YAML and back (`notation.py`).
`LevelStack` binds them to tensors and a communicator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.gossip import Gossip
from dist_lookahead.averaging.mixer import Alone
from dist_lookahead.move import Copy, Move
from dist_lookahead.schedule import Scheduled, check_scheduled, value_at

Mix = Alone | Exact | Gossip
FastBuffers = Literal["keep", "reset", "average"]


@dataclass(frozen=True)
class Every:
    """Fire after every tau fast steps: the first time after exactly tau steps, never before the first step.

    Args:
        tau: fast steps from one sync to the next, >= 1; a whole number or a schedule of the fast step, which is
            asked at each sync for the length of the round that begins there.
        delay: fast steps d from the sync, where the average begins, to where it lands, 0 <= d < tau. Rounds are
            counted from where averages begin.

    With a delay the average goes on while the agents train. At step s, after the levels below have fired, each agent
    keeps q_i = x_i, and the average of all q begins. After step s + d it lands, before anything else that is due there:

        z <- z + ..,  the slow step with m = mean_i q_i, and with alpha, beta, gamma and z as they were at s
        x_i <- x_i + (z - q_i),  and the z of each level below likewise

    so that the progress since s is kept. With d = 0 that is x_i <- z. What is in flight below a level lands before
    that level fires or lands, and all of it before a `sync()` on demand.

    Example:
        >>> Every(12).after(24)
        36

    Reference: arXiv 1906.12043 (the average of local SGD with the progress kept).
    """

    tau: Scheduled
    delay: int = 0

    def __post_init__(self) -> None:
        check_scheduled("Every.tau", self.tau)
        if not isinstance(self.delay, int) or self.delay < 0:
            raise ValueError(f"Every.delay={self.delay!r} must be a whole number of fast steps, at least 0")
        if isinstance(self.tau, int | float):
            _check_tau(self.tau, self.delay)

    def after(self, step: int) -> int:
        """Return the fast step at which the round that begins after `step` ends."""
        tau = value_at(self.tau, step)
        _check_tau(tau, self.delay)
        return step + int(tau)


@dataclass(frozen=True)
class Level:
    """One level of a stack: when it fires, with whom it averages, how its slow weights move.

    Args:
        when: `Every(tau, delay)`.
        mix: `Alone()`, `Exact(axis, shard, codec)` or `Gossip(axis, topology, rounds)`.
        move: `Copy()` or `Pull(alpha, beta, nesterov, follow_lr)`.
        fast_buffers: what becomes of what lies below when the level fires. The fast optimizer's buffers (momentum,
            Adam's moments) are kept as they are, reset to those of a new optimizer, or averaged over the level's
            agents. The slow momentum of lower levels is reset with "reset" and kept otherwise.

    Raises:
        ValueError: for a setting without effect.

    Example:
        >>> from dist_lookahead import Exact, Pull
        >>> slowmo = Level(Every(12), Exact(), Pull(alpha=1.0, beta=0.6, follow_lr=True))
        >>> slowmo.move.beta
        0.6

    Reference: arXiv 1907.08610, 1910.00643, Wang, Tantia, Ballas and Rabbat, ICASSP 2020, eq. 4.
    """

    when: Every
    mix: Mix
    move: Move
    fast_buffers: FastBuffers = "keep"

    def __post_init__(self) -> None:
        if self.fast_buffers not in get_args(FastBuffers):
            raise ValueError(
                f"Level.fast_buffers={self.fast_buffers!r} must be one of {', '.join(get_args(FastBuffers))}"
            )
        fault = _fault(self.mix, self.move, self.fast_buffers)
        if fault := fault or (_delay_fault(self) if self.when.delay else None):
            raise ValueError(fault)


def check_levels(levels: Sequence[Level]) -> tuple[Level, ...]:
    """Return the levels as a stack, or refuse it.

    Raises:
        ValueError: without levels, or where a tau is not a multiple of the tau below it: the result of the level
            below is what a level averages, so it must have just fired.

    Example:
        >>> from dist_lookahead import Alone, Pull
        >>> check_levels([Level(Every(3), Alone(), Pull(0.5)), Level(Every(5), Alone(), Pull(0.5))])
        Traceback (most recent call last):
        ...
        ValueError: levels[1].tau=5 must be a multiple of levels[0].tau=3: use 6
    """
    if not levels:
        raise ValueError("levels=[]: give at least one Level, or a recipe such as slowmo(tau=12)")
    for index, level in enumerate(levels):
        if not isinstance(level, Level):
            raise ValueError(f"levels[{index}]={level!r} is not a Level: give Level(when, mix, move) or a recipe")
    for index, (below, level) in enumerate(pairwise(levels), start=1):
        lower, upper = below.when.tau, level.when.tau
        if isinstance(lower, int | float) and isinstance(upper, int | float) and upper % lower:
            allowed = int(-(-upper // lower) * lower)
            raise ValueError(
                f"levels[{index}].tau={upper} must be a multiple of levels[{index - 1}].tau={lower}: use {allowed}"
            )
    return tuple(levels)


def _fault(mix: Mix, move: Move, fast_buffers: FastBuffers) -> str | None:
    """Say what does not fit together."""
    if isinstance(mix, Alone) and isinstance(move, Copy):
        return "Level(mix=Alone(), move=Copy()) has no effect: average with mix=Exact() or pull with move=Pull()"
    if isinstance(mix, Alone) and fast_buffers == "average":
        return "Level.fast_buffers='average' has no effect with mix=Alone(): use 'keep' or 'reset', or mix=Exact()"
    if isinstance(mix, Gossip) and fast_buffers == "average":
        return (
            "Level.fast_buffers='average' needs a mean of all, mix=Exact(), and not mix=Gossip(): use 'keep' or 'reset'"
        )
    if isinstance(mix, Gossip) and move.searches:
        return "mix=Gossip() with alpha=Optimal: each agent would find another alpha; give a number, or mix=Exact()"
    if mix.shard and not move.keeps_slow_weights:
        return "Exact(shard=True) has no effect with move=Copy(), which keeps no slow weights: leave it out"
    if mix.shard and move.searches:
        return "Exact(shard=True) with alpha=Optimal: no agent has all of z to take gradients at; leave shard out"
    return None


def _delay_fault(level: Level) -> str | None:
    """Say what a delay does not fit together with."""
    given = f"Every.delay={level.when.delay}"
    if isinstance(level.mix, Alone):
        return f"{given} with mix=Alone(): nothing travels that could be waited for; leave delay out"
    if level.fast_buffers == "average":
        return (
            f"Level.fast_buffers='average' with {given}: the buffers' average would begin where that of the weights "
            "lands, and the agents would wait for it; use 'keep' or 'reset', or delay=0"
        )
    if level.move.searches:
        return (
            f"alpha=Optimal with {given}: its gradients would be computed where the average lands, and the agents "
            "would wait for their sum; give a number, or delay=0"
        )
    return None


def _check_tau(tau: float, delay: int) -> None:
    if tau != int(tau) or tau < 1:
        raise ValueError(f"Every.tau={tau} must be a whole number of fast steps, at least 1")
    if delay >= tau:
        raise ValueError(
            f"Every.delay={delay} must be below tau={tau}: an average lands before the next one begins; "
            f"use at most {int(tau) - 1}"
        )
