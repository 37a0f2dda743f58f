"""What a plan is made from: the time of a fast step, and of collectives along each axis, measured where it runs."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from dist_lookahead.averaging.exact import Exact
from dist_lookahead.comm.communicator import Communicator, Pending
from dist_lookahead.comm.simulated import simulate
from dist_lookahead.level import Every, Level
from dist_lookahead.mesh import WORLD, Mesh
from dist_lookahead.move import Copy
from dist_lookahead.planner.link import Link, Transfer
from dist_lookahead.planner.tape import seconds_on
from dist_lookahead.tasks.task import Task
from dist_lookahead.train.agent import Agent
from dist_lookahead.train.config import Config
from dist_lookahead.train.config_levels import Levels
from dist_lookahead.train.eras import Eras
from dist_lookahead.train.exchange import texts_of_agents

NEVER = Levels(stack=(Level(Every(10**9), Exact(), Copy()),))  # an agent that only computes
WARM_UP, BLOCK, BLOCKS = 5, 4, 5  # fast steps, and the least number of blocks of them that are timed
ENOUGH = 2.0  # seconds of fast steps: a busy machine is not always equally busy
SMALL, LARGE = 1024, 64 * 2**20  # bytes of the tensors that are sent to find latency and bandwidth
LONG = 0.3  # seconds of a collective that is long enough
REPEATED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A collective that was timed.

    Attributes:
        transfer: what was sent.
        seconds: that it took.
    """

    transfer: Transfer
    seconds: float


def step_seconds(config: Config, task: Task, device: torch.device) -> float:
    """Return the seconds of a fast step of this process's agent, which meets nobody meanwhile.

    Args:
        config: the run.
        task: what is trained.
        device: where.
    """
    alone = config.model_copy(update={"levels": NEVER, "probe": None})
    mesh = config.mesh or Mesh((1,))
    agent = Agent(alone, task, simulate(Mesh((1,) * len(mesh.names), mesh.names))[0], device)
    agent.begin(0, Eras(((0, 1),)))
    try:
        _train(agent, WARM_UP)
        begun, blocks = time.perf_counter(), [_train(agent, BLOCK)]
        while len(blocks) < BLOCKS or time.perf_counter() - begun < ENOUGH:
            blocks.append(_train(agent, BLOCK))
    finally:
        agent.end()
    return median(blocks)


def slowest_of(communicator: Communicator, seconds: Sequence[float], device: torch.device) -> list[float]:
    """Return the largest of each number over the agents: others wait for the slowest."""
    rows = [json.loads(text) for text in texts_of_agents([communicator], [json.dumps(list(seconds))], device)]
    return [max(column) for column in zip(*rows, strict=True)]


def measured_links(communicator: Communicator, device: torch.device, nbytes: int) -> dict[str, Link]:
    """Return what an agent has of the network along each axis, and in the world, while all use it.

    An axis of one agent needs none, and one of all agents is the world: they have its link.

    Args:
        communicator: this agent's end.
        device: where the backend works.
        nbytes: of the weights: no more is sent at once.
    """
    mesh = communicator.mesh
    if mesh.size == 1:
        return {WORLD: Link(bandwidth=math.inf)}
    narrow = [name for name, size in zip(mesh.names, mesh.shape, strict=True) if size in (1, mesh.size)]
    axes = [WORLD, *(name for name in mesh.names if name not in (WORLD, *narrow))]
    found = {axis: link_from(_samples(communicator, axis, device, nbytes)) for axis in axes}
    return {**{name: found[WORLD] for name in narrow}, **found}


def link_from(samples: Sequence[Sample]) -> Link:
    """Fit seconds = messages x latency + bytes / bandwidth: the latency by the least, the rest by the largest one.

    Args:
        samples: the least transfer first, the largest last.

    Example:
        >>> least, most = (Transfer(axis="node", collective="all_reduce", nbytes=n, agents=2) for n in (0, 1_000_000))
        >>> print(link_from([Sample(transfer=least, seconds=0.02), Sample(transfer=most, seconds=0.12)]))
        80 Mbit/s, 10 ms
    """
    least, most = samples[0], samples[-1]
    longer = most.seconds - least.seconds
    more = most.transfer.sent - least.transfer.sent
    latency = least.seconds / least.transfer.messages
    return Link(bandwidth=more / longer if longer > 0 else math.inf, latency=latency)


def _samples(communicator: Communicator, axis: str, device: torch.device, nbytes: int) -> list[Sample]:
    """Send more and more, until it takes long enough; all agents go on together."""
    group, size, samples = communicator.axis(axis), SMALL, []
    most = max(min(nbytes, LARGE), 2 * SMALL)
    while True:
        tensor = torch.zeros(size // 4, device=device)
        _timed(communicator, group, tensor)  # connections are made
        own = median(_timed(communicator, group, tensor) for _ in range(REPEATED))
        (seconds,) = slowest_of(communicator, [own], device)
        sent = Transfer(axis=axis, collective="all_reduce", nbytes=4 * tensor.numel(), agents=group.size)
        samples.append(Sample(transfer=sent, seconds=seconds))
        if size >= most or seconds > LONG:
            return samples
        size = min(4 * size, most)


def _timed(world: Communicator, group: Communicator, tensor: torch.Tensor) -> float:
    """Return the seconds of one all-reduce, which all agents begin together."""
    world.run(_sum(world, tensor[:1].clone()))
    return _clocked(lambda: world.run(_sum(group, tensor)), tensor.device)


def _sum(communicator: Communicator, tensor: torch.Tensor) -> Pending:
    yield communicator.all_reduce(tensor)


def _train(agent: Agent, steps: int) -> float:
    """Return the mean seconds of a few fast steps."""
    return _clocked(lambda: [agent.train_step(1.0) for _ in range(steps)], agent.device) / steps


def _clocked(work: Callable[[], object], device: torch.device) -> float:
    begun = seconds_on(device)
    work()
    return seconds_on(device) - begun
