"""Links: latency and bandwidth along an axis of the mesh, and how long a collective takes on them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dist_lookahead.comm.communicator import ring_bytes
from dist_lookahead.mesh import WORLD, Mesh

EXCHANGE = "exchange"  # of letters between single agents
RATES = {"kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8}
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """A collective among the agents along an axis.

    Args:
        axis: of the mesh.
        collective: its name, or "exchange".
        nbytes: of the whole tensor; in an exchange, that this agent sends.
        agents: along the axis, n.

    Example:
        >>> Transfer(axis="node", collective="all_reduce", nbytes=1000, agents=4).sent
        1500
    """

    axis: str
    collective: str
    nbytes: int
    agents: int

    @property
    def sent(self) -> int:
        """Bytes that one agent sends, as the ledger counts them."""
        return self.nbytes if self.collective == EXCHANGE else ring_bytes(self.collective, self.nbytes, self.agents)

    @property
    def messages(self) -> int:
        """How many messages follow one on the other: each waits for the one before it.

        A ring passes n - 1 parts on, an all-reduce twice; a broadcast is a tree.
        """
        ring = self.agents - 1
        return {
            "all_reduce": 2 * ring,
            "reduce_scatter": ring,
            "all_gather": ring,
            "all_to_all": ring,
            "broadcast": math.ceil(math.log2(self.agents)),
            EXCHANGE: 1,
        }[self.collective]


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """What an agent has of the network along an axis, while all others use it too.

        seconds = messages x latency + bytes sent / bandwidth

    Args:
        bandwidth: bytes per second in each direction, > 0; infinity for no limit.
        latency: seconds from one agent to the next, >= 0.

    Raises:
        ValueError: for values out of range.

    Example:
        >>> link = Link(bandwidth=1e6, latency=0.01)
        >>> round(link.seconds(Transfer(axis="node", collective="all_reduce", nbytes=1_000_000, agents=2)), 9)
        1.02
    """

    bandwidth: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise ValueError(f"Link.bandwidth={self.bandwidth} must be above 0 bytes per second")
        if not 0 <= self.latency < math.inf:
            raise ValueError(f"Link.latency={self.latency} must be at least 0 seconds, and finite")

    def seconds(self, transfer: Transfer) -> float:
        """Return how long a collective takes."""
        return transfer.messages * self.latency + transfer.sent / self.bandwidth if transfer.agents > 1 else 0.0

    def shared_by(self, agents: int) -> "Link":
        """Return what each of several agents has that use the link at the same time."""
        return replace(self, bandwidth=self.bandwidth / agents)

    def __str__(self) -> str:
        return f"{self.bandwidth / RATES['mbit']:.3g} Mbit/s, {self.latency / TIMES['ms']:.3g} ms"


def with_world(links: Mapping[str, Link], mesh: Mesh) -> dict[str, Link]:
    """Add the link of a ring through all agents, in the order of their ranks: as narrow as its narrowest hop.

    A message of the ring waits for each hop in turn, so that its latency is the mean over the hops.

    Args:
        links: what an agent has along each axis of several agents while all use it.
        mesh: of the agents.

    Example:
        >>> near, far = Link(bandwidth=125e7), Link(bandwidth=125e5, latency=0.02)
        >>> print(with_world({"node": far, "local": near}, Mesh((2, 4), ("node", "local")))["world"])
        100 Mbit/s, 5 ms
    """
    axes = [_axis_of_hop(mesh, rank) for rank in range(mesh.size)]
    hops = [links[axis] for axis in axes if axis is not None]
    if not hops:  # a single agent
        return {**links, WORLD: Link(bandwidth=math.inf)}
    latency = sum(link.latency for link in hops) / len(hops)
    return {**links, WORLD: Link(bandwidth=min(link.bandwidth for link in hops), latency=latency)}


def _axis_of_hop(mesh: Mesh, rank: int) -> str | None:
    """Return the first axis along which a rank and the next one differ."""
    following, stride = (rank + 1) % mesh.size, mesh.size
    for name, size in zip(mesh.names, mesh.shape, strict=True):
        stride //= size
        if rank // stride % size != following // stride % size:
            return name
    return None


def read_bandwidth(text: str) -> float:
    """Read "100mbit" as bytes per second.

    Raises:
        ValueError: for another notation.

    Example:
        >>> read_bandwidth("100mbit"), read_bandwidth("1.5 Gbit")
        (12500000.0, 187500000.0)
    """
    return _read(text, RATES, "bandwidth", "100mbit")


def read_latency(text: str) -> float:
    """Read "20ms" as seconds.

    Raises:
        ValueError: for another notation.

    Example:
        >>> read_latency("20ms")
        0.02
    """
    return _read(text, TIMES, "latency", "20ms")


def read_link(text: str) -> tuple[str, Link]:
    """Read "node=100mbit,20ms" as an axis and its link; the latency may be left out.

    Raises:
        ValueError: for another notation.

    Example:
        >>> axis, link = read_link("node=100mbit,20ms")
        >>> axis, str(link)
        ('node', '100 Mbit/s, 20 ms')
    """
    axis, equals, values = text.partition("=")
    bandwidth, comma, latency = values.partition(",")
    if not axis or not equals:
        raise ValueError(f"link {text!r} must be AXIS=BANDWIDTH,LATENCY, such as node=100mbit,20ms")
    return axis, Link(bandwidth=read_bandwidth(bandwidth), latency=read_latency(latency) if comma else 0.0)


def _read(text: str, units: Mapping[str, float], what: str, example: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
    if match is None or match[2] not in units:
        raise ValueError(f"{what} {text!r} must be a number with one of {', '.join(units)}, such as {example}")
    return float(match[1]) * units[match[2]]
