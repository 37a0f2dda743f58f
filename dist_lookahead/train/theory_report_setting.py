"""What `dist-lookahead theory` is asked about: a run file, and assumptions that no file can know."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.gossip import OnGraph
from dist_lookahead.fragments import WHOLE
from dist_lookahead.level import Level
from dist_lookahead.mesh import NODES, WORLD, Mesh
from dist_lookahead.theory.cells import cell_stacks
from dist_lookahead.train.config import Config, ConfigError
from dist_lookahead.train.config_inner import Inner
from dist_lookahead.train.config_mesh import write_mesh
from dist_lookahead.train.config_pairs import agents_faults
from dist_lookahead.train.config_quadratic import Quadratic, kinds_faults

CONSTANTS = ("smoothness", "noise", "gap")
MOST_THAT_GOSSIP = 32
SEVERAL = 4  # agents where the file leaves their number to torchrun


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
    """What is said on the command line; None where it is not.

    Args:
        agents: n, >= 1.
        smoothness: L > 0.
        lr: gamma > 0, in place of `inner.lr`.
        noise: sigma >= 0, in units of the gradient.
        gap: Delta = f(y_0) - inf f, >= 0.
        curvatures: of quadratics to look at, > 0.

    Raises:
        ValueError: for values out of range.
    """

    agents: int | None = None
    smoothness: float | None = None
    lr: float | None = None
    noise: float | None = None
    gap: float | None = None
    curvatures: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.agents is not None and self.agents < 1:
            raise ValueError(f"--agents {self.agents} must be at least 1")
        positive = [("smoothness", self.smoothness), ("lr", self.lr), *(("curvature", a) for a in self.curvatures)]
        for name, value in positive:
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name} {value} must be above 0 and finite")
        for name, value in (("noise", self.noise), ("gap", self.gap)):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"--{name} {value} must be at least 0 and finite")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A run as the theory sees it.

    Attributes:
        levels: innermost first, schedules included.
        agents: n.
        mesh: of the agents, where levels average along its axes.
        lr: gamma, constant.
        steps: K, None where only the data say how long an epoch is.
        momentum: of SGD; 0 for other optimizers.
        nesterov: whether it is Nesterov's.
        smoothness: L, None where it is not known, as below.
        noise: sigma, in units of the gradient.
        gap: Delta.
        heterogeneity: zeta, None where the agents' gradients differ without bound.
        curvatures: of the quadratics.
        constants: options on the command line that only a bound knows.
        remarks: what was assumed, and what of the run the theory leaves out.
    """

    levels: tuple[Level, ...]
    agents: int
    mesh: Mesh | None
    lr: float
    steps: int | None
    momentum: float
    nesterov: bool
    smoothness: float | None
    noise: float | None
    gap: float | None
    heterogeneity: float | None
    curvatures: tuple[float, ...]
    constants: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def crowd(self) -> int | Mesh:
        """The agents, as the theory asks for them."""
        return self.mesh or self.agents


def setting_of(config: Config, assumed: Assumptions) -> Setting:
    """Return what is known of a run.

    Raises:
        ConfigError: for a number of agents that does not fit the file.
    """
    agents = assumed.agents or _agents(config)
    faults = [
        *_mesh_faults(config, agents),
        *agents_faults(agents, config.levels),
        *_gossip_faults(agents, config),
        *(kinds_faults(agents, config.quadratic) if config.quadratic else ()),
    ]
    if faults:
        raise ConfigError(f"run {config.run.name!r}", faults)
    is_sgd, options = config.inner.name == "SGD", config.inner.options
    facts = _facts(config.quadratic) if config.quadratic else _NOTHING
    given = {name: value for name in CONSTANTS if (value := getattr(assumed, name)) is not None}
    return Setting(
        levels=cell_stacks([_modelled(level) for level in config.levels.stack])[0],
        agents=agents,
        mesh=_mesh(config, agents),
        lr=assumed.lr or options["lr"],
        steps=_steps(config, agents),
        momentum=options.get("momentum", 0.0) if is_sgd else 0.0,
        nesterov=is_sgd and options.get("nesterov", False),
        **{name: given.get(name, getattr(facts, name)) for name in CONSTANTS},
        heterogeneity=facts.heterogeneity,
        curvatures=assumed.curvatures or facts.curvatures,
        constants=tuple(f"--{name}" for name in given),
        remarks=tuple(_remarks(config, assumed, agents)),
    )


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is known of the loss."""

    smoothness: float | None = None
    noise: float | None = None
    gap: float | None = None
    heterogeneity: float | None = 0.0
    curvatures: tuple[float, ...] = ()


_NOTHING = _Facts()


def _facts(quadratic: Quadratic) -> _Facts:
    """With loss sum_j a_j / 2 (x_j - c_j)^2 a gradient is a (x - c), so that its noise is a sigma."""
    a, sigma, mu, start = (quadratic.numbers(name) for name in ("curvature", "noise", "offsets", "start"))
    mean = (a * mu).mean(dim=0) / a.mean(dim=0)
    apart = a[0] * (mu - mu.mean(dim=0))
    return _Facts(
        smoothness=float(a.max()),
        noise=float(_length(a * sigma).max()),
        gap=float((a.mean(dim=0) * (start - mean) ** 2).sum()) / 2,
        heterogeneity=math.sqrt(float((_length(apart) ** 2).mean())) if len(a.unique(dim=0)) == 1 else None,
        curvatures=_a_few(sorted({float(value) for value in a.flatten()}, reverse=True)),
    )


def _length(rows: Tensor) -> Tensor:
    return rows.square().sum(dim=-1).sqrt()


def _a_few(values: list[float]) -> tuple[float, ...]:
    """Largest, middle and smallest."""
    return tuple(values) if len(values) <= 3 else (values[0], values[len(values) // 2], values[-1])


def _along(config: Config) -> list[str]:
    """The axes along which levels average, "world" aside."""
    mixes = [level.mix for level in config.levels.stack]
    return [mix.axis for mix in mixes if isinstance(mix, Exact | OnGraph) and mix.axis != WORLD]


def _mesh(config: Config, agents: int) -> Mesh | None:
    """The file's mesh, or two nodes, where levels average along axes."""
    if not _along(config):
        return None
    return config.mesh or Mesh((2, agents // 2), NODES)


def _mesh_faults(config: Config, agents: int) -> Iterator[str]:
    if config.mesh is not None and agents != config.mesh.size:
        yield f"--agents {agents} with mesh={write_mesh(config.mesh)} of {config.mesh.size} agents: leave one out"
    elif config.mesh is None and _along(config) and agents % 2:
        yield f"{agents} agents on two nodes, which are assumed for levels along {_along(config)[0]!r}: give mesh"


def _gossip_faults(agents: int, config: Config) -> Iterator[str]:
    """Say whether a graph fits the agents, and whether they are too many to look at all of them."""
    gossips = [(index, mix) for index, level in enumerate(config.levels.stack) if isinstance(mix := level.mix, OnGraph)]
    if gossips and agents > MOST_THAT_GOSSIP:
        yield f"agents={agents}: of agents that gossip all are looked at; use --agents {MOST_THAT_GOSSIP} or fewer"
        return
    for index, mix in gossips:
        try:
            mix.weights(_mesh(config, agents) or Mesh((agents,)))
        except ValueError as error:
            yield f"levels[{index}].mix: {error}"


def _agents(config: Config) -> int:
    if config.mesh is not None:
        return config.mesh.size
    averages = any(level.mix.communicates for level in config.levels.stack)
    if config.agents > 1 or not averages:
        return config.agents
    kinds = config.quadratic.samples if config.quadratic else 1
    return -(-SEVERAL // kinds) * kinds


def _steps(config: Config, agents: int) -> int | None:
    samples = config.feed.samples
    if samples is None and config.run.steps is None:
        return None
    return config.length(samples=samples or 0, agents=agents).total


def _modelled(level: Level) -> Level:
    return replace(level, when=replace(level.when, delay=0), local_share=0.0)


def _remarks(config: Config, assumed: Assumptions, agents: int) -> Iterator[str]:
    if agents != config.agents and assumed.agents is None and config.mesh is None:
        yield f"The file says agents={config.agents}, as for torchrun: {agents} are assumed, or what --agents says."
    if _along(config) and config.mesh is None:
        yield "The agents are taken to be on two nodes: the file has no mesh."
    if any(level.params != WHOLE for level in config.levels.stack):
        stacks = len(cell_stacks([_modelled(level) for level in config.levels.stack]))
        which = "each of them" if stacks == 1 else f"the first of them; {stacks} differ"
        yield f"The levels act on parts of the parameters. Below is the stack of {which}, steps counted from its sync."
    for index, level in enumerate(config.levels.stack):
        if level.when.delay:
            yield f"levels[{index}].when.delay={level.when.delay} is left out: averages are taken to land at once."
        if level.local_share:
            yield f"levels[{index}].local_share={level.local_share} is left out: all of this is said of another method."
    if config.lr_schedule.name != "constant" or config.lr_schedule.warmup:
        yield "The learning rate is taken as constant: lr_schedule is left out."
    if config.quadratic and config.quadratic.samples > 1:
        yield "The agents differ; on noisy quadratics they are looked at as if they were alike."
    yield from _remarks_on_inner(config.inner)


def _remarks_on_inner(inner: Inner) -> Iterator[str]:
    if inner.name != "SGD":
        yield f"The theory is that of SGD without momentum as fast optimizer, and this is {inner.name}."
        return
    if inner.options.get("weight_decay"):
        yield f"weight_decay={inner.options['weight_decay']} belongs to the loss: it adds as much to every curvature."
    for option in ("dampening", "maximize"):
        if inner.options.get(option):
            yield f"inner.{option}={inner.options[option]} is left out."
