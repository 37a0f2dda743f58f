"""Uneven work: agents that have no more samples go on meeting the others, with weight 0, until none has any."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.comm.communicator import REST, Pending
from dist_lookahead.stack import LevelStack


@contextmanager
def join(stack: LevelStack) -> Iterator[None]:
    """Meet the others after the block, at each of their syncs, until all agents have come to its end.

    An exception inside leaves at once, and the others find out as they do of any lost agent.

    Raises:
        ValueError: for levels at whose syncs an agent that stands still would change what the others do.
    """
    if fault := _fault(stack.bound, stack.communicator.size):
        raise ValueError(fault)
    _say_done(stack, done=False)
    yield
    _say_done(stack, done=True)
    stack.communicator.run(_attend(stack))


def _attend(stack: LevelStack) -> Pending:
    """End the own round, then those of the others.

    All agents know how long a round is, so that this one comes to the same fast step without taking any.
    """
    while True:
        yield from stack.end_round()
        if stack.communicator.size == 1 or all(stack.mail.received["done"]):
            return _say_done(stack, done=False)
        yield REST


def _say_done(stack: LevelStack, *, done: bool) -> None:
    for bound in stack.bound:
        bound.pace.done = done


def _fault(bounds: Sequence[BoundLevel], agents: int) -> str | None:
    """Say at which level an agent without samples cannot stand still."""
    if agents == 1:
        return None
    for bound in bounds:
        where, adaptive = f"join(): levels[{bound.index}]", bound.pace.adaptive
        if not bound.level.mix.weighted and (bound.mixer.communicates or bound.mixer.group is None):
            return (
                f"{where}.mix={bound.level.mix} would count an agent that has no more samples like the others: "
                "average with mix=Exact(weighted='steps'), or 'samples'"
            )
        if bound.hearing and bound.hearing.size < agents:
            return f"{where}.mix={bound.level.mix} meets some agents only: average over all of them, axis='world'"
        if bound.level.move.follow_lr or (adaptive and adaptive.hears == "lr"):
            return (
                f"{where} depends on the fast learning rate, and that of an agent without samples stands still: "
                "leave follow_lr out, and give a tau that does not follow it"
            )
        if bound.level.fast_buffers != "keep":
            return (
                f"{where}.fast_buffers={bound.level.fast_buffers!r} would mix in buffers of agents that stand still: "
                "use 'keep'"
            )
    return None
