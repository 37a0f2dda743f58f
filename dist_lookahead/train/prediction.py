"""What theory says of a run on noisy quadratics, or why it says nothing."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dist_lookahead import theory
from dist_lookahead.level import Every, Level
from dist_lookahead.schedule import Schedule, Scheduled, value_at
from dist_lookahead.theory.trajectory import Trajectory
from dist_lookahead.train.config import Config
from dist_lookahead.train.config_quadratic import Quadratic

LINEAR = ("lr", "momentum", "nesterov", "foreach", "fused", "differentiable")
"""Options of SGD that theory knows, or that change no more than the last bits."""
MOST_AGENTS = 128  # that differ: all of them are in the state, whose size goes into the time with its cube


class NoPredictionError(ValueError):
    """Theory says nothing of this run; the message is the reason."""


@dataclass(frozen=True)
class UntilEnd:
    """Tau of a level whose last round is cut short where the run ends, and synchronises.

    Args:
        when: of the level.
        end: fast steps of the run.

    Example:
        >>> tau = UntilEnd(Every(12), end=30)
        >>> tau(12), tau(24)
        (12, 6)
    """

    when: Every
    end: int

    def __call__(self, step: int) -> int:
        """Return the length of the round that begins after `step` fast steps."""
        return max(min(self.when.after(step), self.end) - step, 1)


@dataclass(frozen=True)
class Rate:
    """The fast learning rate: base x factor.

    Args:
        base: `inner.lr`.
        factor: of `lr_schedule`.
    """

    base: float
    factor: Scheduled

    def __call__(self, step: int) -> float:
        """Return the learning rate after `step` fast steps."""
        return self.base * value_at(self.factor, step)


def predict(config: Config, *, agents: int, steps: int, records: Iterable[Mapping[str, Any]] = ()) -> Trajectory:
    """Return mean, variance and loss after each fast step, syncs included.

    Args:
        config: of a run on noisy quadratics.
        agents: n.
        steps: fast steps of the run, after which it has synchronised, in the middle of a round too.
        records: the run's metrics; a run that was resumed may have done something else than its file says.

    Raises:
        NoPredictionError: where there is none.
    """
    quadratic = config.quadratic
    assert quadratic is not None, "only noisy quadratics are predicted"
    levels = [replace(level, when=Every(UntilEnd(level.when, steps))) for level in config.levels_stack()]
    lr = Rate(
        config.inner.options["lr"], config.lr_schedule.factor(config.length(samples=quadratic.samples, agents=agents))
    )
    for reason in (*_unknown(config, agents), *_departures(records, levels, lr, steps)):
        raise NoPredictionError(reason)
    try:
        return theory.noisy_quadratic(
            levels,
            curvature=_for_agents(quadratic, "curvature", agents),
            noise=_for_agents(quadratic, "noise", agents),
            offsets=_for_agents(quadratic, "offsets", agents),
            start=quadratic.numbers("start")[0],
            lr=lr,
            steps=steps,
            agents=config.mesh or agents,
            momentum=config.inner.options.get("momentum", 0.0),
            nesterov=config.inner.options.get("nesterov", False),
        )
    except ValueError as error:
        raise NoPredictionError(str(error)) from error


def _for_agents(quadratic: Quadratic, name: str, agents: int) -> Tensor:
    """Return (1, d) where all agents are alike, else (n, d)."""
    rows = quadratic.numbers(name)
    return rows if len(rows) == 1 else rows.repeat(agents // len(rows), 1)


def _unknown(config: Config, agents: int) -> Iterator[str]:
    """Say what theory does not know."""
    if config.inner.name != "SGD":
        yield f"theory knows the fast optimizer SGD only, and this is {config.inner.name}"
    for option, value in config.inner.options.items():
        if option not in LINEAR and value:
            yield f"theory does not know SGD's {option}={value}"
    for index, level in enumerate(config.levels_stack()):
        if level.when.delay:
            yield f"theory does not model averages that land later, and levels[{index}].when.delay={level.when.delay}"
        if level.local_share:
            yield f"theory does not model agents that keep local_share={level.local_share} of their own weights"
        settings = {"tau": level.when.tau, **{name: getattr(level.move, name, 0.0) for name in ("alpha", "beta")}}
        for name, value in settings.items():
            if not isinstance(value, int | float | Schedule):
                yield f"levels[{index}] chooses {name} while it runs, by {value}, which theory does not follow"
    if config.quadratic and config.quadratic.samples > 1 and agents > MOST_AGENTS:
        yield f"{agents} agents of different kinds are too many for theory's recursion, which takes {MOST_AGENTS}"


def _departures(records: Iterable[Mapping[str, Any]], levels: list[Level], lr: Scheduled, steps: int) -> Iterator[str]:
    """Say what a run did that its file does not say: it may have been resumed with another length."""
    outermost = len(levels) - 1
    due = [any(f.index == outermost for f in fired) for fired in theory.firings(levels, steps)]
    for record in records:
        step = record["step"]
        if not due[step - 1]:
            yield f"it has ended at fast step {step} once, with a sync that its levels do not have, and gone on"
        elif record["kind"] == "sync" and record["lr"] != value_at(lr, step - 1):
            yield f"the learning rate of fast step {step} was that of a run of another length, which has gone on"
