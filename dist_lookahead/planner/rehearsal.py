"""A rehearsal: a stack of levels goes through its rounds on one process, with a communicator that sends nothing.

It is the stack that trains, with the weights of the model, so that what it would send, when it would wait for it, how
long its own arithmetic takes and what it keeps in memory are not estimated but noted.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.level import Level, check_levels
from dist_lookahead.mesh import Mesh
from dist_lookahead.pace import mail_fields
from dist_lookahead.planner.imagined import EchoedMail, ImaginedCommunicator
from dist_lookahead.planner.tape import Event, Tape
from dist_lookahead.stack import LevelStack

WARM_UP, COUNTED = 2, 2  # periods: the first sync compares checksums, and what is under way must have come round


class Onlooker(Protocol):
    """What a training does at syncs beside the stack."""

    def open(self, stack: LevelStack) -> None:
        """Before the first fast step."""
        ...

    def after_sync(self, stack: LevelStack) -> None:
        """A sync of the last level has landed."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """What one agent does in a few periods of its levels.

    Attributes:
        levels: innermost first.
        events: in order.
        period: fast steps after which all levels are where they were.
        weights: bytes of the trained parameters.
        kept: bytes that the levels keep beside them, with what travels while an average is under way.
    """

    levels: tuple[Level, ...]
    events: tuple[Event, ...]
    period: int
    weights: int
    kept: int


def rehearse(
    levels: Sequence[Level],
    model: nn.Module,
    fast: Callable[[Iterable[nn.Parameter]], Optimizer],
    mesh: Mesh,
    *,
    average_buffers: bool = True,
    recoverable: bool = False,
    onlooker: Onlooker | None = None,
) -> Rehearsal:
    """Take fast steps without gradients, and note what the syncs do; the model stays as it is.

    Args:
        levels: innermost first, with a constant tau each.
        model: whose parameters are trained; a copy of it is used.
        fast: makes the fast optimizer.
        mesh: of the agents.
        average_buffers: whether the model's buffers are averaged at the outermost sync.
        recoverable: whether averages work on copies, so that agents go on without lost ones.
        onlooker: what else happens at syncs; None for nothing.

    Raises:
        ValueError: for a tau or an alpha that only a training finds, and levels that do not fit model or mesh.

    Example:
        >>> from dist_lookahead import slowmo
        >>> noted = rehearse(slowmo(tau=4), nn.Linear(9, 1), lambda p: torch.optim.SGD(p, lr=0.1), Mesh((2,)))
        >>> noted.period, noted.weights
        (4, 40)
    """
    period = period_of(levels, mesh)
    model = copy.deepcopy(model)
    inner = fast(model.parameters())
    _fill(inner)
    tape = Tape(next(model.parameters()).device)
    stack = LevelStack(
        inner,
        levels,
        communicator=ImaginedCommunicator(mesh, tape),
        model=model,
        average_buffers=average_buffers,
        recoverable=recoverable,
    )
    stack.mail = stack.post.mail = EchoedMail(stack.communicator.rank, mesh.size, mail_fields(levels))
    tape.events.clear()  # agents open their stack once
    if onlooker:
        onlooker.open(stack)
    for _ in range((WARM_UP + COUNTED) * period):
        stack.begin_step()
        tape.step()
        stack.end_step()
        if onlooker and stack.bound[-1].landed == stack.clock:
            onlooker.after_sync(stack)
    return Rehearsal(
        levels=tuple(levels),
        events=tuple(tape.events),
        period=period,
        weights=_nbytes(slot.weight.parameter for bucket in stack.buckets for slot in bucket.slots),
        kept=sum(_nbytes(_kept(bound)) for bound in stack.bound),
    )


def period_of(levels: Sequence[Level], mesh: Mesh) -> int:
    """Return the fast steps after which levels and graphs of gossip are where they were.

    Raises:
        ValueError: for a tau or an alpha that only a training finds.

    Example:
        >>> from dist_lookahead import OnePeerExponential, dpsgd, multilayer_lookahead
        >>> period_of(multilayer_lookahead(taus=(5, 2)), Mesh((1,))), period_of(dpsgd(OnePeerExponential()), Mesh((8,)))
        (10, 3)
    """
    periods = []
    for index, level in enumerate(check_levels(levels)):
        if level.when.constant is None:
            raise ValueError(f"levels[{index}].tau={level.when.tau} changes in the course of a run: plan with a number")
        if level.move.searches:
            raise ValueError(
                f"levels[{index}].alpha={level.move} is measured with two more gradients at each sync, whose time is "
                "not known here: plan with a number"
            )
        periods.append(level.when.constant * level.mix.period(mesh))
    return math.lcm(*periods)


@torch.no_grad()
def _fill(inner: Optimizer) -> None:
    """Let the fast optimizer make its buffers, which levels may reset or average."""
    parameters = [p for group in inner.param_groups for p in group["params"] if p.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    inner.step()
    for parameter in parameters:
        parameter.grad = None


def _kept(bound: BoundLevel) -> Iterable[Tensor]:
    """All that a level keeps; an average that is under way for several fast steps travels in one more copy."""
    yield from (*bound.slow, *bound.momentum, *bound.snapshot)
    for residuals in bound.residuals:
        yield from residuals
    if bound.level.when.delay:
        yield from bound.snapshot


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
