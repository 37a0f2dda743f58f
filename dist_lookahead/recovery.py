"""Going on with other agents: what a stack needs where some are lost, or new ones come.

The levels are bound anew to the agents that are there now. Agent 0 is one of those that have come furthest. An agent
that has not landed a sync which agent 0 has, as a new one has landed none, takes its slow weights, slow momentum and
counters, and goes on from the slow weights; all others go on from their own fast weights. So a sync that has failed on
all of them can be done again over those that are left, as if the others had never been there.
"""

import json
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from dist_lookahead import slow_state
from dist_lookahead.adaptive import Adaptive
from dist_lookahead.agreement import exchange
from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.mixer import Alone
from dist_lookahead.comm.communicator import Communicator, Pending, Work
from dist_lookahead.level import Level
from dist_lookahead.mail import who_says_what
from dist_lookahead.mesh import WORLD
from dist_lookahead.stack import LevelStack

COUNTERS = ("due", "last", "rounds")
LARGEST = 2**53


def why_not_recoverable(levels: Sequence[Level]) -> str | None:
    """Say which level cannot go on with other agents, and why; None where all can.

    Example:
        >>> from dist_lookahead import slowmo
        >>> why_not_recoverable(slowmo(tau=4)) is None
        True
    """
    for index, level in enumerate(levels):
        mix, where = level.mix, f"recoverable: levels[{index}]"
        if not isinstance(mix, Exact | Alone):
            return f"{where}.mix={mix} has agents that differ, and what a lost one has given away is gone: use Exact()"
        if isinstance(mix, Exact) and mix.axis != WORLD:
            return f"{where}.mix={mix}: agents that are left are no mesh any more; average over axis={WORLD!r}"
        if mix.shard:
            return f"{where}.mix={mix}: the lost agent had a part of the slow state; leave shard out"
        if level.move.searches:
            return f"{where}: alpha=Optimal communicates when the weights are mixed already; give a number"
        if isinstance(level.when.tau, Adaptive):
            return f"{where}.tau={level.when.tau} depends on what agents remember; give a number or a schedule"
    return None


def rebound(stack: LevelStack, communicator: Communicator) -> LevelStack:
    """Return the stack of the same levels and weights over other agents; all of them come here together.

    Where one of them is lost meanwhile, this raises, and the stack that was given can be rebound again.

    Args:
        stack: that is not used any more.
        communicator: this agent's end of all agents that there are now.

    Raises:
        CollectiveError: an agent is lost.
        RuntimeError: an agent has come further than agent 0.
    """
    kept = stack.state_dict()
    for bucket in stack.buckets:
        bucket.release()
    new = LevelStack(
        stack.inner,
        stack.levels,
        communicator=communicator,
        model=stack.model,
        average_buffers=stack.average_buffers,
        check_every=stack.check_every,
        differing=stack.differing,
        offload=stack.offload,
        guard=stack.guard,
        recoverable=stack.recoverable,
        take=False,
    )
    own = slow_state.save(new.bound)
    new.load_state_dict({**kept, "levels": list(map(_without_others, kept["levels"], own))})
    for bound, before in zip(new.bound, stack.bound, strict=True):
        bound.landed, bound.coefficients = before.landed, before.coefficients
    communicator.run(_hand_over(new))
    new.observer = stack.observer
    return new


def _without_others(level: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a level's state what is under way, and what belongs to the place among the agents that were."""
    return {**level, "flight": [], "owned": own["owned"], "residuals": own["residuals"]}


def _hand_over(stack: LevelStack) -> Pending:
    """Take from agent 0 what this agent is behind in; all take its counters."""
    agents = stack.communicator
    if agents.size == 1:
        return
    device = stack.buckets[0].fast.device
    told = [_read(text, stack) for text in (yield from exchange(agents, json.dumps(_counters(stack)), device))]
    rounds = [[level["rounds"] for level in each["levels"]] for each in told]
    if any(one > first for each in rounds for one, first in zip(each, rounds[0], strict=True)):
        raise RuntimeError(f"agent 0 must be one that has come furthest; syncs of each level: {who_says_what(rounds)}")
    behind = [[one < first for one, first in zip(each, rounds[0], strict=True)] for each in rounds]
    wanted = [any(column) for column in zip(*behind, strict=True)]  # of the levels
    yield from _hand_over_weights(stack, behind[agents.rank], wanted)
    _count_like(stack, told[0], behind[agents.rank])


@torch.no_grad()
def _hand_over_weights(stack: LevelStack, behind: Sequence[bool], wanted: Sequence[bool]) -> Pending:
    agents, bounds = stack.communicator, stack.bound
    buckets = stack.inventory.of([bound for bound, asked in zip(bounds, wanted, strict=True) if asked])
    mine = stack.inventory.of([bound for bound, late in zip(bounds, behind, strict=True) if late])
    for bound, asked, late in zip(bounds, wanted, behind, strict=True):
        for kept in (*bound.slow, *bound.momentum) if asked else ():
            yield from _offer(agents, kept, take=late)
    for bucket in buckets:
        outermost = stack.inventory.outermost(bucket)
        if not outermost.slow:  # else those: agent 0's own may have moved since, or not be finite
            yield from _offer(agents, bucket.weights, take=bucket in mine)
        elif bucket in mine:
            bucket.weights.copy_(outermost.slow[outermost.buckets.index(bucket)][: bucket.weights_end])
    stack.inventory.scatter(mine)
    if any(wanted):
        for tensor in stack.inventory.untrained():
            yield from _offer(agents, tensor, take=any(behind))
    if any(behind):
        stack.model_buffers.capture()


def _offer(agents: Communicator, tensor: Tensor, *, take: bool) -> Generator[Work, None, None]:
    """Send agent 0's tensor, which those who do not need it leave aside."""
    sent = tensor.clone()
    yield agents.broadcast(sent)
    if take:
        tensor.copy_(sent)


def _counters(stack: LevelStack) -> dict[str, Any]:
    levels = [
        {**{name: level[name] for name in COUNTERS}, "gammas": level["gammas"]}
        for level in slow_state.save(stack.bound)
    ]
    return {"clock": stack.clock, "levels": levels}


def _read(text: str, stack: LevelStack) -> dict[str, Any]:
    """Read what another agent says of its counters.

    Raises:
        RuntimeError: for anything else.
    """
    try:
        told = json.loads(text)
        numbers = [told["clock"], *(level[name] for level in told["levels"] for name in COUNTERS)]
        gammas = [gamma for level in told["levels"] for gamma in level["gammas"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RuntimeError(f"an agent tells of its counters in a way that is not understood: {text[:80]!r}") from error
    fit = all(type(number) is int and 0 <= number < LARGEST for number in numbers)
    if not fit or len(told["levels"]) != len(stack.bound) or any(type(g) not in (float, type(None)) for g in gammas):
        raise RuntimeError(f"an agent tells of counters that cannot be: {text[:80]!r}")
    return told


def _count_like(stack: LevelStack, first: dict[str, Any], behind: Sequence[bool]) -> None:
    stack.clock = first["clock"]
    for bound, level, late in zip(stack.bound, first["levels"], behind, strict=True):
        bound.due, bound.last, bound.rounds = (level[name] for name in COUNTERS)
        if late:
            bound.landed = bound.last
            bound.gammas = {group: gamma for group, gamma in enumerate(level["gammas"]) if gamma is not None}
