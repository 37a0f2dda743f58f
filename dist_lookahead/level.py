"""A training method is a stack of levels, innermost first, and a level is `when` x `mix` x `move`.

    when   at which fast steps the level fires                  Every(tau, delay)
    mix    with whom the average is taken, and in what code     Alone(), Exact(axis, ..), Gossip(axis, ..), PushSum(..)
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
    D-PSGD, SGP               (tau, Gossip, Copy), (tau, PushSum, Copy)
    SlowMo over D-PSGD        (1, Gossip, Copy), (tau, Exact, Pull(alpha, beta, follow_lr))

Levels are pure descriptions: frozen, without tensors, comparable, written to YAML and back (`notation.py`).
`LevelStack` binds them to tensors and a communicator.

A level acts on all parameters, or on some of them (`fragments.py`): streaming DiLoCo is one level for each part of the
parameters, all with the same tau and each with a phase of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from dist_lookahead.adaptive import Adaptive, Tau, Timed, check_tau
from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.gossip import Gossip, OnGraph
from dist_lookahead.averaging.mixer import Alone
from dist_lookahead.averaging.push_sum import PushSum
from dist_lookahead.fragments import WHOLE, Params, surely_share
from dist_lookahead.move import Copy, Move

Mix = Alone | Exact | Gossip | PushSum
FastBuffers = Literal["keep", "reset", "average"]


@dataclass(frozen=True, repr=False)
class Every:
    """Fire after every tau fast steps: the first time after exactly tau steps, never before the first step.

    Args:
        tau: fast steps from one sync to the next, >= 1; a whole number, a schedule of the fast step, which is asked
            at each sync for the length of the round that begins there, or `QSR`, `AdaComm` or `Timed`, which ask for
            more.
        delay: fast steps d from the sync, where the average begins, to where it lands, 0 <= d < tau. Rounds are
            counted from where averages begin. With a tau that depends on no more than the fast step.
        phase: fire after the fast steps k with k mod tau = phase instead, 0 <= phase < tau: levels over different
            parts of the parameters then have their syncs at different times. With a constant tau only.

    With a delay the average goes on while the agents train. At step s, after the levels below have fired, each agent
    keeps q_i = x_i, and the average of all q begins. After step s + d it lands, before anything else that is due there:

        z <- z + ..,  the slow step with m = mean_i q_i, and with alpha, beta, gamma and z as they were at s
        x_i <- x_i + (z - q_i),  and the z of each level below likewise

    so that the progress since s is kept. With d = 0 that is x_i <- z. What is in flight below a level lands before
    that level fires or lands, and all of it before a `sync()` on demand.

    Example:
        >>> Every(12).after(24), Every(12, phase=5).after(0), Every(12, phase=5).after(5)
        (36, 5, 17)

    Reference: arXiv 1906.12043 (the average of local SGD with the progress kept).
    """

    tau: Tau
    delay: int = 0
    phase: int = 0

    def __post_init__(self) -> None:
        check_tau("Every.tau", self.tau)
        if not isinstance(self.delay, int) or self.delay < 0:
            raise ValueError(f"Every.delay={self.delay!r} must be a whole number of fast steps, at least 0")
        if isinstance(self.tau, int | float):
            _check_tau(self.tau, self.delay)
        _check_phase(self.phase, self.tau)

    @property
    def constant(self) -> int | None:
        """Fast steps of every round; None where a schedule or a rule sets them in the course of a run."""
        return int(self.tau) if isinstance(self.tau, int | float) else None

    def after(self, step: int) -> int:
        """Return the fast step at which the round that begins after `step` ends; of an adaptive tau, its first one."""
        tau = self.tau
        if not isinstance(tau, int | float):
            tau = tau.first if isinstance(tau, Adaptive) else tau(step)
        _check_tau(tau, self.delay)
        return step + ((self.phase - step - 1) % int(tau) + 1 if self.phase else int(tau))

    def __repr__(self) -> str:
        return _concise(self, always=1)


@dataclass(frozen=True, repr=False)
class Level:
    """One level of a stack: when it fires, with whom it averages, how its slow weights move.

    Args:
        when: `Every(tau, phase, delay)`.
        mix: `Alone()`, `Exact(axis, shard, codec)`, `Gossip(axis, topology, rounds)` or `PushSum(..)`.
        move: `Copy()` or `Pull(alpha, beta, nesterov, follow_lr)`.
        fast_buffers: what becomes of what lies below when the level fires. The fast optimizer's buffers (momentum,
            Adam's moments) are kept as they are, reset to those of a new optimizer, or averaged over the level's
            agents. The slow momentum of lower levels is reset with "reset" and kept otherwise.
        params: over which parameters the level acts: `Whole()`, `Part(index, of)` or `Named(patterns)`.
        local_share: share of its own fast weights that an agent keeps where the level lands, 0 <= share <= 1:
            x_i <- z + share (x_i - z), whatever the delay, in place of x_i <- z. Agents then go on from different
            weights. With 1 the level only follows: z is a running mean of the weights.

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
    params: Params = WHOLE
    local_share: float = 0.0

    def __post_init__(self) -> None:
        if self.fast_buffers not in get_args(FastBuffers):
            raise ValueError(
                f"Level.fast_buffers={self.fast_buffers!r} must be one of {', '.join(get_args(FastBuffers))}"
            )
        fault = _fault(self.mix, self.move, self.fast_buffers) or _timed_fault(self.when, self.mix, self.move)
        if fault := fault or (_delay_fault(self) if self.when.delay else None) or _share_fault(self):
            raise ValueError(fault)

    def __repr__(self) -> str:
        return _concise(self, always=3)


def check_levels(levels: Sequence[Level], cells: Sequence[Sequence[int]] = ()) -> tuple[Level, ...]:
    """Return the levels as a stack, or refuse it.

    Args:
        levels: innermost first.
        cells: the levels that act together on some parameter, where that is known; else what is sure is looked at.

    Raises:
        ValueError: without levels, or where a tau is not a multiple of the tau below it: the result of the level
            below is what a level averages, so it must have just fired. That holds between levels that act on a
            common parameter.

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
    if len(levels) > 1 and any(isinstance(level.when.tau, Timed) for level in levels):
        raise ValueError(
            "levels with tau=Timed: agents do not come to the same fast step, at which two levels could fire together; "
            "use it in the only level"
        )
    for index, level in enumerate(levels):
        for below in reversed(range(index)):
            together = any({index, below} <= set(cell) for cell in cells)
            if together or surely_share(levels[below].params, level.params):
                _check_pair(levels, below, index)
    return tuple(levels)


def _check_pair(levels: Sequence[Level], below: int, above: int) -> None:
    lower, upper = levels[below].when, levels[above].when
    if levels[above].local_share:
        raise ValueError(
            f"levels[{above}].local_share={levels[above].local_share} above levels[{below}]: what becomes of the slow "
            "weights below is not defined; give it to the lowest level"
        )
    if not isinstance(lower.tau, int | float) or not isinstance(upper.tau, int | float):
        return
    if upper.tau % lower.tau:
        allowed = int(-(-upper.tau // lower.tau) * lower.tau)
        raise ValueError(
            f"levels[{above}].tau={upper.tau} must be a multiple of levels[{below}].tau={lower.tau}: use {allowed}"
        )
    if (upper.phase - lower.phase) % lower.tau:
        raise ValueError(
            f"levels[{above}].phase={upper.phase} must be levels[{below}].phase={lower.phase} plus a multiple of "
            f"levels[{below}].tau={lower.tau}: a level fires on the result of the one below"
        )


def _fault(mix: Mix, move: Move, fast_buffers: FastBuffers) -> str | None:
    """Say what does not fit together."""
    if isinstance(mix, Alone) and isinstance(move, Copy):
        return "Level(mix=Alone(), move=Copy()) has no effect: average with mix=Exact() or pull with move=Pull()"
    if isinstance(mix, Alone) and fast_buffers == "average":
        return "Level.fast_buffers='average' has no effect with mix=Alone(): use 'keep' or 'reset', or mix=Exact()"
    if isinstance(mix, OnGraph) and fast_buffers == "average":
        return (
            f"Level.fast_buffers='average' needs a mean of all, mix=Exact(), and not mix={type(mix).__name__}(): "
            "use 'keep' or 'reset'"
        )
    if isinstance(mix, PushSum) and not isinstance(move, Copy):
        return (
            f"mix=PushSum() with move={move}: what agents get are multiples of means, and slow weights are not; use "
            "move=Copy(), and pull in a level with mix=Exact() above"
        )
    if isinstance(mix, Gossip) and move.searches:
        return "mix=Gossip() with alpha=Optimal: each agent would find another alpha; give a number, or mix=Exact()"
    if mix.weighted and move.searches:
        return f"Exact(weighted={mix.weighted!r}) with alpha=Optimal, which measures with the plain mean: give a number"
    if mix.shard and not move.keeps_slow_weights:
        return "Exact(shard=True) has no effect with move=Copy(), which keeps no slow weights: leave it out"
    if mix.shard and move.searches:
        return "Exact(shard=True) with alpha=Optimal: no agent has all of z to take gradients at; leave shard out"
    return None


def _timed_fault(when: Every, mix: Mix, move: Move) -> str | None:
    if not isinstance(when.tau, Timed):
        return None
    if not mix.weighted:
        return (
            f"tau={when.tau} with mix={mix}: agents that take other numbers of steps need a mean weighted by them, "
            "mix=Exact(weighted='steps') or 'samples'"
        )
    changing = [value for value in vars(move).values() if not isinstance(value, int | float)]
    if move.follow_lr or changing:
        return (
            f"tau={when.tau} with move={move}: agents are at different fast steps, with other learning rates and other "
            "values of schedules, and would take other slow steps; give numbers, and leave follow_lr out"
        )
    return None


def _delay_fault(level: Level) -> str | None:
    """Say what a delay does not fit together with."""
    given = f"Every.delay={level.when.delay}"
    if isinstance(level.mix, Alone):
        return f"{given} with mix=Alone(): nothing travels that could be waited for; leave delay out"
    if isinstance(level.when.tau, Adaptive):
        return f"{given} with tau={level.when.tau}, which waits for what the last sync has brought: leave one out"
    if level.mix.weighted:
        return f"{given} with mix={level.mix}: work in the flight would belong to two rounds; leave one of them out"
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


def _share_fault(level: Level) -> str | None:
    """Say what a share of the local weights does not fit together with."""
    share, given = level.local_share, f"Level.local_share={level.local_share}"
    if not 0 <= share <= 1:
        return f"{given} must be at least 0 and at most 1"
    if not share:
        return None
    if share == 1 and not level.move.keeps_slow_weights:
        return f"{given} with move=Copy() has no effect: each agent would keep its own weights; use less, or Pull"
    if isinstance(level.mix, PushSum):
        return f"{given} with mix=PushSum(): weights of different mass do not mix; use Gossip, or leave it out"
    if level.mix.weighted or level.mix.shard or level.move.searches:
        return f"{given} with mix={level.mix}, move={level.move}: leave weighted, shard and alpha=Optimal out"
    return None


def _check_tau(tau: float, delay: int) -> None:
    if tau != int(tau) or tau < 1:
        raise ValueError(f"Every.tau={tau} must be a whole number of fast steps, at least 1")
    if delay >= tau:
        raise ValueError(
            f"Every.delay={delay} must be below tau={tau}: an average lands before the next one begins; "
            f"use at most {int(tau) - 1}"
        )


def _check_phase(phase: int, tau: Tau) -> None:
    if phase and not isinstance(tau, int | float):
        raise ValueError(f"Every.phase={phase} needs a constant tau, and tau={tau} changes: leave phase out")
    if isinstance(tau, int | float) and (phase != int(phase) or not 0 <= phase < tau):
        raise ValueError(f"Every.phase={phase} must be a whole number of fast steps, 0 <= phase < tau={tau}")


def _concise(description: Any, always: int) -> str:
    """Write a description with its first fields, and those others that are not at their defaults."""
    shown = [
        f"{field.name}={getattr(description, field.name)!r}"
        for place, field in enumerate(fields(description))
        if place < always or getattr(description, field.name) != field.default
    ]
    return f"{type(description).__name__}({', '.join(shown)})"
