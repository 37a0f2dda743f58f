"""Checks of settings against each other, across sections.

Each check is a function of the sections it reads, named as in the file, and `feed` for that which feeds the task. It
runs where all of these are given and free of faults in themselves.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields

import torch

from dist_lookahead.adaptive import Timed
from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.gossip import OnGraph
from dist_lookahead.averaging.push_sum import PushSum
from dist_lookahead.binding import bind_levels
from dist_lookahead.comm.simulated import simulate
from dist_lookahead.guard import Guard
from dist_lookahead.level import Level
from dist_lookahead.mesh import NODES, WORLD, Mesh
from dist_lookahead.notation import is_unknown
from dist_lookahead.offload import check_offload
from dist_lookahead.replicas import unfit
from dist_lookahead.schedule import Schedule
from dist_lookahead.tasks.datasets import DATA_SETS
from dist_lookahead.tasks.models import OWN_MODELS, build_model
from dist_lookahead.train.config_elastic import elastic
from dist_lookahead.train.config_gan import GAN_PAIRS
from dist_lookahead.train.config_inner import Inner
from dist_lookahead.train.config_language import LANGUAGE_PAIRS
from dist_lookahead.train.config_length import RunLength
from dist_lookahead.train.config_levels import Levels
from dist_lookahead.train.config_lr import CosineRate, InverseSqrtRate, LinearRate, LrSchedule, MultistepRate
from dist_lookahead.train.config_mesh import agreeing, shared_axes, sharing_faults, write_mesh
from dist_lookahead.train.config_quadratic import QUADRATIC_PAIRS
from dist_lookahead.train.config_sections import (
    Data,
    Evaluation,
    FaultHandling,
    ModelChoice,
    Performance,
    Precision,
    Probe,
    Run,
    Sync,
)
from dist_lookahead.train.config_tasks import Feed
from dist_lookahead.train.config_translation import TRANSLATION_PAIRS


def run_length(run: Run, feed: Feed, *, samples: int, agents: int) -> RunLength:
    """Return the length of the run."""
    if run.steps is not None:
        return RunLength(samples=samples, batch_size=feed.batch_size, agents=agents, amount=run.steps, unit="steps")
    assert run.epochs is not None
    return RunLength(samples=samples, batch_size=feed.batch_size, agents=agents, amount=run.epochs, unit="epochs")


def device_faults(device: str, feed: Feed, precision: Precision, sync: Sync) -> Iterator[str]:
    """Say what has no effect on this device."""
    if device != "cpu":
        return
    if precision == "tf32":
        yield "precision='tf32' has no effect on device='cpu': use fp32 or bf16, or device: cuda"
    if feed.pin_memory:
        yield "data.pin_memory=true has no effect on device='cpu': remove it, or use device: cuda"
    if sync.offload:
        yield "sync.offload='cpu' has no effect on device='cpu', where slow weights are anyway: remove it"


def agents_faults(agents: int, levels: Levels) -> Iterator[str]:
    """Say whether the agents would never hear of each other."""
    if agents > 1 and not any(level.mix.communicates for level in levels.stack):
        yield f"agents={agents} has no effect on levels that never average: use one agent, or mix: exact in a level"


def length_faults(length: RunLength, levels: Levels, lr_schedule: LrSchedule) -> Iterator[str]:
    """Say what would come only after the end of the run."""
    for index, level in enumerate(levels.stack):
        path = "levels" if levels.recipe and len(levels.stack) == 1 else f"levels[{index}]"
        yield from _level_faults(level, path, length.total)
    yield from _rate_faults(length, lr_schedule)


def _level_faults(level: Level, path: str, total: int) -> Iterator[str]:
    """Go through all rounds: a schedule may leave the allowed range in any of them."""
    settings = [level.when.tau, *(getattr(level.move, field.name) for field in fields(level.move))]
    scheduled = any(isinstance(value, Schedule) for value in settings)
    step = 0
    try:
        while (step := level.when.after(step)) <= total:
            if not level.move.searches:
                level.move.coefficients(step)
            if not scheduled:
                return
    except ValueError as error:
        yield f"{path} in the round that begins at fast step {step}: {error}"
        return
    if step == level.when.after(0):
        yield f"{path}.tau={step}: the run has {total} fast steps, so no sync would ever be due"


def _rate_faults(length: RunLength, lr_schedule: LrSchedule) -> Iterator[str]:
    total, unit = length.total, lr_schedule.unit
    warmup = length.steps(lr_schedule.warmup, unit)
    decays = isinstance(lr_schedule, CosineRate | LinearRate)
    if warmup > total or (decays and warmup == total):
        yield f"lr_schedule.warmup={lr_schedule.warmup:g} {unit} is longer than the run of {total} fast steps"
    if isinstance(lr_schedule, InverseSqrtRate) and lr_schedule.hold:
        hold = length.steps(lr_schedule.hold, unit)
        if warmup + hold >= total:
            yield f"lr_schedule.hold={lr_schedule.hold:g} {unit} ends after the run of {total} fast steps: use constant"
    if isinstance(lr_schedule, MultistepRate):
        for milestone in lr_schedule.milestones:
            if length.steps(milestone, unit) >= total:
                yield f"lr_schedule.milestones: {milestone:g} {unit} is beyond the end of the run of {total} fast steps"


def window_faults(length: RunLength, probe: Probe) -> Iterator[str]:
    """Say whether the window that is looked at lies outside the run."""
    for name, value, latest in (("start", probe.start, length.total - 1), ("end", probe.end, length.total)):
        if value is not None and value > latest:
            yield f"probe.{name}={value} must be at most {latest}: the run has {length.total} fast steps"


def _device(run: Run, feed: Feed, precision: Precision, sync: Sync) -> Iterator[str]:
    return device_faults(run.device, feed, precision, sync)


def _offloads(sync: Sync, levels: Levels) -> Iterator[str]:
    try:
        check_offload(sync.offload, levels.stack)
    except ValueError as error:
        yield f"sync.{error}"


def _agents(agents: int, mesh: Mesh | None, levels: Levels) -> Iterator[str]:
    if mesh is not None and agents not in (1, mesh.size):
        yield f"agents={agents} and mesh={write_mesh(mesh)} of {mesh.size} agents: leave one of them out"
    yield from agents_faults(agents if mesh is None else mesh.size, levels)


def _length(run: Run, feed: Feed, agents: int, levels: Levels, lr_schedule: LrSchedule) -> Iterator[str]:
    """Under torchrun there may be more agents and so fewer steps, never more of them."""
    if feed.samples is not None:
        yield from length_faults(run_length(run, feed, samples=feed.samples, agents=agents), levels, lr_schedule)


def _looks(probe: Probe | None, inner: Inner, levels: Levels) -> Iterator[str]:
    """Say where weights between a fast step and a sync are not what a model is evaluated at."""
    if probe is not None and inner.data_parallel == "fsdp2":
        yield "probe with inner.data_parallel='fsdp2' is not supported: leave one of them out, or use ddp"
    if probe is not None and any(isinstance(level.mix, PushSum) for level in levels.stack):
        yield "probe with mix: push_sum, where weights have a mass between a fast step and its sync: leave probe out"


def _window(run: Run, feed: Feed, agents: int, probe: Probe | None) -> Iterator[str]:
    if feed.samples is not None and probe is not None:
        yield from window_faults(run_length(run, feed, samples=feed.samples, agents=agents), probe)


def _model_takes_images(data: Data, model: ModelChoice) -> Iterator[str]:
    facts = DATA_SETS[data.name]
    if model.name in OWN_MODELS:
        return
    try:
        with torch.device("meta"):  # no memory, and no random numbers of the run
            build_model(
                model.name,
                channels=facts.channels,
                size=data.image_size or facts.size,
                classes=10,
                dropout=model.dropout,
            )
    except ValueError as error:
        yield f"model: {error}"


def _axes(mesh: Mesh | None, levels: Levels) -> Iterator[str]:
    names = (*(NODES if mesh is None else mesh.names), WORLD)
    for index, mix in enumerate(level.mix for level in levels.stack):
        if isinstance(mix, Exact | OnGraph) and mix.axis not in names:
            where = f"levels[{index}].mix.{type(mix).__name__.lower()}.axis={mix.axis!r}"
            yield f"{where} {is_unknown(mix.axis, names)}, as mesh says"


def _shares(mesh: Mesh | None, inner: Inner, levels: Levels) -> Iterator[str]:
    if not any(_axes(mesh, levels)):
        yield from sharing_faults(levels.stack, mesh, inner)


def _binds(mesh: Mesh | None, agents: int, inner: Inner, levels: Levels) -> Iterator[str]:
    """Say what the levels refuse when they meet the agents, unless it has been said."""
    if any(_axes(mesh, levels)) or any(_shares(mesh, inner, levels)):
        return
    crowd, shared = mesh or Mesh((1, agents), NODES), shared_axes(inner)
    try:
        list(bind_levels(levels.stack, simulate(crowd)[0], next(iter(shared), None)))
    except ValueError as error:
        yield str(error)


def _splits(inner: Inner, levels: Levels, precision: Precision, performance: Performance) -> Iterator[str]:
    """Say what does not go with weights that are split over the processes of a node."""
    if inner.data_parallel != "fsdp2":
        return
    if fault := unfit(levels.stack, NODES[-1]):
        yield f"inner.data_parallel='fsdp2': {fault}"
    if precision == "fp16":
        yield (
            "precision='fp16' with inner.data_parallel='fsdp2': each process would see overflows in its part of the "
            "gradients only; use bf16, or data_parallel: ddp"
        )
    if performance.compile:
        yield "performance.compile=true with inner.data_parallel='fsdp2' is not supported: leave one of them out"


def _weighs(levels: Levels) -> Iterator[str]:
    for index, mix in enumerate(level.mix for level in levels.stack):
        if mix.weighted and not isinstance(levels.stack[index].when.tau, Timed):
            yield (
                f"levels[{index}].mix.exact.weighted={mix.weighted!r} has no effect: in a run all agents take equally "
                "many steps of equally many samples; remove it"
            )
    for index, level in enumerate(levels.stack):
        if isinstance(level.when.tau, Timed):
            yield (
                f"levels[{index}].when.every.tau={level.when.tau}: in a run all agents take equally many steps, which "
                "its length, learning rates and samples are counted in; give a number of steps"
            )


def _averages(levels: Levels, sync: Sync) -> Iterator[str]:
    mixes = [level.mix for level in levels.stack]
    if any(isinstance(mix, Exact) for mix in mixes):
        return
    for name in ("model_buffers", "check_every"):
        if getattr(sync, name) != Sync.model_fields[name].default:
            yield f"sync.{name}={getattr(sync, name)} has no effect on levels that never average exactly: remove it"


def _repairs(sync: Sync, faults: FaultHandling) -> Iterator[str]:
    if faults.differing_weights != "stop" and not sync.check_every:
        yield (
            f"faults.differing_weights={faults.differing_weights!r} with sync.check_every=0: weights are compared "
            "after the first sync only; set sync.check_every to the syncs between comparisons, such as 1"
        )


def _guards(faults: FaultHandling, levels: Levels) -> Iterator[str]:
    """Say what poison: leave_out does not fit together with."""
    if faults.poison == "stop":
        if faults.clip is not None:
            yield f"faults.clip={faults.clip:g} has no effect with faults.poison='stop': set poison: leave_out"
        return
    averaging = [level.mix for level in levels.stack if level.mix.communicates]
    if not averaging or not all(isinstance(mix, Exact) for mix in averaging):
        yield "faults.poison='leave_out' needs exact averages, mix: exact, in all levels that average"
    for index, level in enumerate(levels.stack):
        try:
            Guard(faults.clip).check(index, level)
        except ValueError as error:
            yield f"faults.poison='leave_out': {error}"


def _weights(mesh: Mesh | None, inner: Inner, levels: Levels, evaluation: Evaluation) -> Iterator[str]:
    """Agents that gossip, or average along some axes only, have no slow weights in common."""
    averages = any(level.mix.communicates for level in levels.stack)
    if not averages or "slow" not in evaluation.weights:
        return
    if any(_axes(mesh, levels)) or any(_shares(mesh, inner, levels)):
        return  # faults of their own
    outer = levels.stack[-1]
    whole = outer.move.keeps_slow_weights or (isinstance(outer.mix, Exact) and outer.mix.codec)
    if (outer.when.delay or outer.local_share) and (outer.mix.shard or not whole):
        yield (
            f"evaluation.weights={list(evaluation.weights)}: where an average lands after delay={outer.when.delay}, "
            f"with local_share={outer.local_share}, agents have gone on from slow weights of which none has kept all; "
            "use [averaged]"
        )
    elif not agreeing(levels.stack, mesh, inner):
        yield (
            f"evaluation.weights={list(evaluation.weights)}: after a sync of these levels agents have slow weights of "
            "their own; use [averaged], or a level with mix: exact over all agents above"
        )


def _images_have_an_order(model: ModelChoice, performance: Performance) -> Iterator[str]:
    if performance.channels_last and model.name == "mlp":
        yield "performance.channels_last=true has no effect on mlp, which has no convolutions: remove it"


PAIRS: tuple[Callable[..., Iterator[str]], ...] = (
    _device,
    _agents,
    _axes,
    _length,
    _window,
    _looks,
    _model_takes_images,
    _shares,
    _binds,
    _offloads,
    _guards,
    _splits,
    _weighs,
    _averages,
    _repairs,
    elastic,
    _weights,
    _images_have_an_order,
    *QUADRATIC_PAIRS,
    *LANGUAGE_PAIRS,
    *TRANSLATION_PAIRS,
    *GAN_PAIRS,
)
