"""What a plan is made from: agents, links and times, as measured where it runs, or as the command line says."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.mesh import NODES, WORLD, Mesh
from dist_lookahead.planner.link import Link, read_bandwidth, read_latency, read_link, with_world
from dist_lookahead.tasks.task import Task
from dist_lookahead.train.config import Config
from dist_lookahead.train.config_mesh import write_mesh
from dist_lookahead.train.plan_measure import measured_links, slowest_of, step_seconds
from dist_lookahead.train.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the command line says of agents and links; None where it does not.

    Args:
        nodes: number of nodes, >= 1.
        per_node: agents on each of them, >= 1.
        bandwidth: of a node, such as "100mbit", which its agents share.
        latency: from one node to the next, such as "20ms".
        links: of single axes, such as "local=10gbit,50us".
    """

    nodes: int | None = None
    per_node: int | None = None
    bandwidth: str | None = None
    latency: str | None = None
    links: tuple[str, ...] = ()

    @property
    def given(self) -> list[str]:
        """The options that were given, in the words of the command line."""
        values = {"nodes": self.nodes, "per-node": self.per_node, "bandwidth": self.bandwidth, "latency": self.latency}
        return [*(f"--{name}" for name, value in values.items() if value is not None), *(["--link"] * bool(self.links))]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Agents, links and times.

    Attributes:
        step_seconds: of a fast step of the slowest agent.
        links: what an agent has of the network, by axis, and in the world.
        mesh: of the agents.
        device: where the agents train.
        measured: whether the links were measured.
    """

    step_seconds: float
    links: Mapping[str, Link]
    mesh: Mesh
    device: torch.device
    measured: bool


def facts_of(config: Config, task: Task, world: World, asked: Asked, *, distributed: bool) -> Facts:
    """Measure a fast step, and the links where agents are processes; all of them take part.

    Args:
        config: the run.
        task: what is trained.
        world: of this process.
        asked: agents and links, where they are not measured.
        distributed: whether torchrun has started the agents.

    Raises:
        ValueError: for options that are missing, wrong, or without effect.
    """
    if distributed and asked.given:
        raise ValueError(
            f"{', '.join(asked.given)}: under torchrun agents and links are those that are there; leave out"
        )
    mesh = world.communicators[0].mesh if distributed else asked_mesh(config, asked)
    links = {} if distributed else asked_links(mesh, asked)
    own = step_seconds(config, task, world.device)
    if distributed:
        (own,) = slowest_of(world.communicators[0], [own], world.device)
        links = _measured(world.communicators[0], world.device, task)
    return Facts(step_seconds=own, links=links, mesh=mesh, device=world.device, measured=distributed)


def asked_mesh(config: Config, asked: Asked) -> Mesh:
    """Return the agents that are planned for.

    Raises:
        ValueError: where nobody says how many they are, or file and command line both do.
    """
    numbers = [name for name in ("--nodes", "--per-node") if name in asked.given]
    if config.mesh is not None:
        if numbers:
            raise ValueError(f"{', '.join(numbers)} beside mesh={write_mesh(config.mesh)} of the file: leave one out")
        return config.mesh
    nodes = config.agents if asked.nodes is None else asked.nodes
    if nodes == 1 and asked.nodes is None:
        raise ValueError("how many agents? give --nodes N, and --per-node M where a node has several; or use torchrun")
    for name, value in (("nodes", nodes), ("per-node", asked.per_node)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value} must be at least 1")
    return Mesh((nodes, 1 if asked.per_node is None else asked.per_node), NODES)


def asked_links(mesh: Mesh, asked: Asked) -> dict[str, Link]:
    """Return what an agent has of the network along each axis, and in the world, by the command line.

    A link along an axis is that of all agents with the same place on it, who share it.

    Raises:
        ValueError: for links that are missing, wrong, or without effect.

    Example:
        >>> links = asked_links(Mesh((2, 4), NODES), Asked(bandwidth="100mbit", links=("local=10gbit",)))
        >>> [(axis, str(link)) for axis, link in links.items()]
        [('node', '25 Mbit/s, 0 ms'), ('local', '1e+04 Mbit/s, 0 ms'), ('world', '100 Mbit/s, 0 ms')]
    """
    wide = {name: place for place, (name, size) in enumerate(zip(mesh.names, mesh.shape, strict=True)) if size > 1}
    whole = _whole_links(tuple(wide), asked)
    shared = {axis: link.shared_by(math.prod(mesh.shape[wide[axis] + 1 :])) for axis, link in whole.items()}
    return {**shared, WORLD: with_world(whole, mesh)[WORLD]}


def _whole_links(axes: Sequence[str], asked: Asked) -> dict[str, Link]:
    given = dict(map(read_link, asked.links))
    if asked.latency is not None and asked.bandwidth is None:
        raise ValueError(f"--latency {asked.latency} has no effect without --bandwidth: give both, or --link")
    if asked.bandwidth is not None and axes:
        if axes[0] in given:
            raise ValueError(f"--bandwidth and --link {axes[0]}=.. are the same link: leave one out")
        latency = read_latency(asked.latency) if asked.latency is not None else 0.0
        given[axes[0]] = Link(bandwidth=read_bandwidth(asked.bandwidth), latency=latency)
    unknown = [axis for axis in given if axis not in axes]
    if unknown:
        raise ValueError(
            f"--link {unknown[0]}=..: no axis of several agents has this name; there are {', '.join(axes)}"
        )
    missing = [axis for axis in axes if axis not in given]
    if missing:
        say = "--bandwidth 100mbit --latency 20ms" if missing[0] == axes[0] else f"--link {missing[0]}=10gbit,50us"
        raise ValueError(f"nothing is said of the link along {missing[0]!r}: give it, such as {say}")
    return {axis: given[axis] for axis in axes}


def _measured(communicator: Communicator, device: torch.device, task: Task) -> dict[str, Link]:
    weights = sum(parameter.nbytes for parameter in task.model().parameters())
    return measured_links(communicator, device, weights)
