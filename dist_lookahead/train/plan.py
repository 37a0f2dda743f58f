"""`dist-lookahead plan`: which stacks of levels a run could have, what each would cost, and which to take."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dist_lookahead.planner.advice import EXPOSED
from dist_lookahead.planner.forecast import Forecast, forecast
from dist_lookahead.planner.rehearsal import period_of, rehearse
from dist_lookahead.planner.variants import Variant, longest, overlapped, shapes, with_longest
from dist_lookahead.tasks.task import Task
from dist_lookahead.train.agent import initial_model
from dist_lookahead.train.config import Config, ConfigError
from dist_lookahead.train.plan_facts import Facts
from dist_lookahead.train.plan_file import with_levels
from dist_lookahead.train.plan_onlooker import TrainerOnlooker
from dist_lookahead.train.plan_price import Price, price_of

MARGIN = 1.2  # of a delay over the time that an average is known to take


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What is looked for.

    Attributes:
        exposed: share of wall time that may be waiting, above 0 and below 1.
        longest: most fast steps between two syncs, >= 1.

    Raises:
        ValueError: for values out of range.
    """

    exposed: float = EXPOSED
    longest: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.exposed < 1:
            raise ValueError(f"--exposed {100 * self.exposed:g}% must be above 0 and below 100%")
        if self.longest < 1:
            raise ValueError(f"--max-tau {self.longest} must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A stack that the run could have.

    Attributes:
        variant: the stack, and in what it differs from the file's.
        config: the run with it.
        weights: bytes of the trained parameters.
        forecast: what it will cost.
        price: what theory says of it.
    """

    variant: Variant
    config: Config
    weights: int
    forecast: Forecast
    price: Price | None

    @property
    def tau(self) -> int:
        """The longest one."""
        return longest(self.variant.levels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All candidates, the file's own first, and the one to take.

    Attributes:
        candidates: that were looked at.
        chosen: by the rule.
        refused: why other changes are not offered, by the change.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    refused: Mapping[str, str]


def make_plan(config: Config, task: Task, facts: Facts, target: Target, say: Callable[[str], object]) -> Plan:
    """Look at the stacks that the file's could become, each with longer and longer rounds until it meets the target.

    Args:
        config: the run.
        task: what is trained.
        facts: of the agents and their links.
        target: what is looked for.
        say: told of each stack before it is rehearsed.

    Raises:
        ValueError: for levels that cannot be planned.
        ConfigError: for a run that is not valid with so many agents.
    """
    period_of(config.levels_stack(), facts.mesh)
    if config.inner.data_parallel != "none":
        raise ValueError(
            f"inner.data_parallel={config.inner.data_parallel!r}: gradients that are shared in each fast step are not "
            "planned; use --set inner.data_parallel=none"
        )
    return _Search(config, task, facts, target, say).plan()


class _Search:
    def __init__(self, config: Config, task: Task, facts: Facts, target: Target, say: Callable[[str], object]) -> None:
        self._config, self._facts, self._target, self._say = config, facts, target, say
        self._samples = task.samples
        self._model = initial_model(config, task).to(facts.device)
        self._refused: dict[str, str] = {}

    def plan(self) -> Plan:
        found: list[Candidate] = []
        for shape in shapes(self._config.levels_stack(), self._facts.mesh):
            plain = list(self._ladder(shape))
            if plain and self._meets(plain[0]):
                found += [*plain, *self._halved(shape)]
            elif plain:
                found += [*plain, *self._ladder(shape, delay=self._way(plain[0]))]
        return Plan(candidates=tuple(found), chosen=choose(found, self._target.exposed), refused=self._refused)

    def _ladder(self, shape: Variant, delay: int = 0) -> Iterator[Candidate]:
        """Double tau until the target is met, from the first one that is longer than the delay."""
        tau, most = longest(shape.levels), max(self._target.longest, longest(shape.levels))
        while tau <= most:
            if delay < tau:
                if (one := self._candidate(shape, tau, delay)) is None:
                    return
                yield one
                if self._meets(one):
                    return
            tau *= 2

    def _halved(self, shape: Variant) -> Iterator[Candidate]:
        """Halve the file's own tau as long as the target is met."""
        tau = longest(shape.levels)
        while not shape.changes and tau % 2 == 0 and (one := self._candidate(shape, tau := tau // 2)) is not None:
            yield one
            if not self._meets(one):
                return

    def _way(self, candidate: Candidate) -> int:
        """Return how many fast steps an average takes, with a margin: those that are waited for at once say it."""
        syncs = sum(level.when.tau == candidate.tau for level in candidate.variant.levels)
        seconds = candidate.forecast.exposed_seconds * candidate.tau / syncs
        return math.ceil(MARGIN * seconds / self._facts.step_seconds)

    def _candidate(self, shape: Variant, tau: int, delay: int = 0) -> Candidate | None:
        """Rehearse a stack; None where it is refused, and the reason is kept."""
        changes = (*shape.changes, f"landing {delay} later") if delay else shape.changes
        try:
            levels = with_longest(shape.levels, tau)
            variant = Variant(changes=changes, levels=overlapped(levels, delay) if delay else levels)
            self._say(f"{variant.name}, tau {tau}")
            return self._rehearsed(variant)
        except ValueError as error:
            if not changes and tau == longest(shape.levels):  # the file's own
                raise
            self._refused.setdefault(", ".join(changes) or f"tau {tau}", _reason(error))
            return None

    def _rehearsed(self, variant: Variant) -> Candidate:
        facts = self._facts
        config = with_levels(self._config, variant.levels)
        config.check(device=facts.device.type, samples=self._samples, agents=facts.mesh.size)
        noted = rehearse(
            variant.levels,
            self._model,
            config.inner.build,
            facts.mesh,
            average_buffers=config.sync.model_buffers == "average",
            recoverable=config.faults.on_lost_agent == "continue",
            onlooker=TrainerOnlooker(config, facts.mesh),
        )
        return Candidate(
            variant=variant,
            config=config,
            weights=noted.weights,
            forecast=forecast(noted, facts.step_seconds, facts.links),
            price=price_of(variant.levels, facts.mesh.size, config.inner),
        )

    def _meets(self, candidate: Candidate) -> bool:
        return candidate.forecast.exposed <= self._target.exposed


def choose(candidates: Sequence[Candidate], exposed: float) -> Candidate:
    """Return the file's own stack where it meets the target; else of those that do the one with the smallest tau.

    Of several with that tau the one with the fewest changes, and of these the fastest; where none meets the target, the
    one that is nearest to it.

    Args:
        candidates: the file's own first.
        exposed: share of wall time that may be waiting.
    """
    fitting = [candidate for candidate in candidates if candidate.forecast.exposed <= exposed]
    if candidates[0] in fitting:
        return candidates[0]
    if not fitting:
        return min(candidates, key=lambda one: one.forecast.exposed)
    return min(fitting, key=lambda one: (one.tau, len(one.variant.changes), one.forecast.seconds))


def _reason(error: ValueError) -> str:
    return error.faults[0] if isinstance(error, ConfigError) else str(error)
