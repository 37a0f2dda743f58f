"""The planner's cost model: what a rehearsal notes is what agents do, and a forecast is arithmetic on it."""

from collections.abc import Callable, Sequence

import pytest
import torch

from dist_lookahead import (
    QSR,
    Alone,
    Cast,
    Copy,
    Every,
    Exact,
    Gossip,
    Level,
    Mesh,
    OnePeerExponential,
    Optimal,
    Part,
    Pull,
    Quantised,
    TopK,
    diloco,
    distributed_lookahead,
    hierarchical_local_sgd,
    local_sgd,
    overlapped_local_sgd,
    polyak,
    sgp,
    slowmo,
    slowmo_over,
    streaming_diloco,
)
from dist_lookahead.comm.simulated import simulate
from dist_lookahead.planner.forecast import Forecast, forecast
from dist_lookahead.planner.link import EXCHANGE, Link, Transfer, read_bandwidth, read_latency, read_link, with_world
from dist_lookahead.planner.rehearsal import COUNTED, Rehearsal, rehearse
from dist_lookahead.planner.tape import Arithmetic, Event, Start, Step, Wait
from tests.digits_training import FAST, make_agent, make_model

NODES = Mesh((2, 4), ("node", "local"))
STACKS: dict[str, list[Level]] = {
    "local SGD": local_sgd(tau=3),
    "SlowMo": slowmo(tau=4),
    "SlowMo, sharded": slowmo(tau=4, shard=True),
    "SlowMo, momentum averaged": slowmo(tau=4, fast_buffers="average"),
    "SlowMo, momentum reset": slowmo(tau=4, fast_buffers="reset"),
    "DiLoCo, bf16": diloco(tau=4, codec=Cast("bf16")),
    "SlowMo, 8 bits": slowmo(tau=4, codec=Quantised(bits=8)),
    "SlowMo, 4 bits at random": slowmo(tau=2, codec=Quantised(bits=4, rounding="stochastic")),
    "local SGD, largest": local_sgd(tau=2, codec=TopK(0.1)),
    "overlapped": overlapped_local_sgd(tau=5, delay=3),
    "overlapped, 8 bits": slowmo(tau=6, delay=4, codec=Quantised(bits=8)),
    "in parts": streaming_diloco(tau=6, parts=3, delay=2),
    "nested": [Level(Every(2), Alone(), Pull(0.5)), Level(Every(6), Exact(), Pull(1.0, 0.5))],
    "gossip": slowmo_over([Level(Every(1), Gossip(topology=OnePeerExponential()), Copy())], tau=6),
    "push-sum": sgp(tau=2),
    "near and far": hierarchical_local_sgd((2, 6)),
    "far in 8 bits": [
        Level(Every(2), Exact("local"), Copy()),
        Level(Every(4), Exact("node", codec=Quantised(bits=8)), Pull(1.0, 0.6)),
    ],
    "a part near": [Level(Every(4), Exact(), Copy(), params=Part(part, 2)) for part in range(2)],
}


def sent_in_training(levels: Sequence[Level], mesh: Mesh, period: int) -> dict[str, int]:
    """What agent 0 of a simulated training sends along each axis in the periods that a rehearsal counts."""
    ends = simulate(mesh)
    agents = [make_agent(rank, end, levels) for rank, end in enumerate(ends)]
    total = 2 * COUNTED * period
    before: dict[str, int] = {}
    for step in range(total):
        if step == total - COUNTED * period:
            before = dict(ends[0].bytes_along)
        for agent in agents:
            agent.step(step)
    return {axis: sent - before.get(axis, 0) for axis, sent in ends[0].bytes_along.items()}


def sent_in_rehearsal(noted: Rehearsal) -> dict[str, int]:
    sent: dict[str, int] = {}
    steps = 0
    for event in noted.events:
        steps += isinstance(event, Step)
        if isinstance(event, Start) and steps > COUNTED * noted.period:
            sent[event.transfer.axis] = sent.get(event.transfer.axis, 0) + event.transfer.sent
    return sent


@pytest.mark.parametrize("mesh", [Mesh((3,)), NODES], ids=["3 agents", "2 nodes of 4"])
@pytest.mark.parametrize("name", STACKS)
def test_a_rehearsal_sends_the_bytes_of_a_training(name: str, mesh: Mesh) -> None:
    """To the byte, along each axis: a plan that counts other bytes than the run's own ledger is worth nothing."""
    levels = STACKS[name]
    if mesh.names != NODES.names and any(getattr(level.mix, "axis", "world") != "world" for level in levels):
        mesh = Mesh((1, 3), NODES.names)
    noted = rehearse(levels, make_model(), FAST["momentum"], mesh)
    expected = sent_in_training(levels, mesh, noted.period)
    assert sent_in_rehearsal(noted) == {axis: sent for axis, sent in expected.items() if sent}
    told = forecast(noted, 1.0, {axis: Link(bandwidth=1e6) for axis in (*mesh.names, "world")})
    assert told.bytes_sent * COUNTED * noted.period == pytest.approx(sum(expected.values()), rel=1e-12)


@pytest.mark.parametrize(
    ("levels", "copies"),
    [
        (local_sgd(), 0),
        (slowmo(tau=4, beta=0.0), 1),
        (slowmo(tau=4), 2),
        (slowmo(tau=4, delay=2), 4),
        (polyak(0.9), 2),
        (diloco(4), 2),
    ],
    ids=["Copy", "Pull", "with momentum", "with delay", "with a share", "Nesterov"],
)
def test_memory_is_that_of_the_design(levels: list[Level], copies: int) -> None:
    model = torch.nn.Linear(1000, 100, bias=False)
    noted = rehearse(levels, model, FAST["sgd"], Mesh((4,)))
    assert noted.kept / noted.weights == pytest.approx(copies, abs=0.01)  # the table that travels with a sync


def test_agents_that_go_on_without_lost_ones_keep_a_copy_more() -> None:
    model = torch.nn.Linear(1000, 100, bias=False)
    for levels, copies in ((local_sgd(), 1), (slowmo(tau=4), 3)):
        noted = rehearse(levels, model, FAST["sgd"], Mesh((4,)), recoverable=True)
        assert noted.kept / noted.weights == pytest.approx(copies, abs=0.01)


def test_the_model_stays_as_it_was() -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rehearse(slowmo(tau=2), model, FAST["momentum"], Mesh((4,)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_only_a_training_finds_is_refused() -> None:
    for levels in (local_sgd(tau=QSR(4, 0.1)), distributed_lookahead(tau=4, alpha=Optimal(0.5, 1.0))):
        with pytest.raises(ValueError, match="plan with a number"):
            rehearse(levels, make_model(), FAST["sgd"], Mesh((2,)))


def by_hand(events: Sequence[Event], step_seconds: float, link: Link) -> Forecast:
    """Forecast of a tape whose periods are all alike, one fast step each."""
    tape = [event for _ in range(2 * COUNTED) for event in events]
    noted = Rehearsal(levels=(), events=tuple(tape), period=1, weights=4, kept=8)
    return forecast(noted, step_seconds, {"world": link})


def transfer(nbytes: int, agents: int = 2, collective: str = "all_reduce") -> Transfer:
    return Transfer(axis="world", collective=collective, nbytes=nbytes, agents=agents)


def test_a_sync_that_is_waited_for_at_once_is_all_exposed() -> None:
    told = by_hand([Step(), Start(0, transfer(1000)), Wait(0), Arithmetic(0.5)], 2.0, Link(bandwidth=1000, latency=0.1))
    assert told.exposed_seconds == pytest.approx(1.2)  # two messages, and 1000 bytes
    assert told.seconds == pytest.approx(2.0 + 1.2 + 0.5)
    assert told.arithmetic_seconds == pytest.approx(0.5)
    assert told.exposed == pytest.approx(1.2 / 3.7)
    assert told.bytes_per_day == pytest.approx(1000 / 3.7 * 86400)
    assert told.copies == 2


def test_what_travels_during_a_fast_step_is_exposed_for_the_rest_of_its_way() -> None:
    link = Link(bandwidth=1000)
    for nbytes, exposed in ((1000, 0.0), (2000, 0.0), (3000, 1.0)):
        told = by_hand([Start(0, transfer(nbytes)), Step(), Wait(0)], 2.0, link)
        assert told.exposed_seconds == pytest.approx(exposed)


def test_collectives_along_an_axis_go_one_after_the_other() -> None:
    events = [Step(), Start(0, transfer(1000)), Start(1, transfer(500)), Wait(0), Wait(1)]
    assert by_hand(events, 1.0, Link(bandwidth=1000)).exposed_seconds == pytest.approx(1.5)


def test_along_two_axes_they_go_side_by_side() -> None:
    near, far = (Transfer(axis=axis, collective="all_reduce", nbytes=1000, agents=2) for axis in ("local", "node"))
    links = {"local": Link(bandwidth=1000), "node": Link(bandwidth=250, latency=1.0)}
    for transfers, exposed in (([near, far], 6.0), ([near], 1.0), ([near, near], 2.0)):
        starts = [Start(number, one) for number, one in enumerate(transfers)]
        events = [Step(), *starts, *(Wait(number) for number in range(len(transfers)))]
        noted = Rehearsal(levels=(), events=tuple(events * 2 * COUNTED), period=1, weights=4, kept=0)
        assert forecast(noted, 1.0, links).exposed_seconds == pytest.approx(exposed)


def test_a_ring_through_all_agents_crosses_between_nodes_once_for_each_node() -> None:
    links = {"node": Link(bandwidth=100, latency=4.0), "local": Link(bandwidth=1000, latency=1.0)}
    assert with_world(links, Mesh((2, 2), ("node", "local")))["world"] == Link(bandwidth=100, latency=2.5)
    assert with_world(links, Mesh((3, 1), ("node", "local")))["world"] == links["node"]
    assert with_world(links, Mesh((1, 3), ("node", "local")))["world"] == links["local"]


@pytest.mark.parametrize(
    ("collective", "agents", "messages", "sent"),
    [
        ("all_reduce", 4, 6, 1500),
        ("all_gather", 4, 3, 750),
        ("reduce_scatter", 2, 1, 500),
        ("all_to_all", 4, 3, 750),
        ("broadcast", 8, 3, 875),
        (EXCHANGE, 8, 1, 1000),
    ],
)
def test_a_collective_takes_its_messages_and_its_bytes(collective: str, agents: int, messages: int, sent: int) -> None:
    one = transfer(1000, agents, collective)
    assert (one.messages, one.sent) == (messages, sent)
    assert Link(bandwidth=500, latency=2.0).seconds(one) == pytest.approx(2.0 * messages + sent / 500)


def test_links_are_read_with_their_units() -> None:
    assert read_bandwidth("800kbit") == 1e5
    assert read_bandwidth("2.5gbit") == pytest.approx(312.5e6)
    assert read_latency("50us") == pytest.approx(5e-5)
    assert read_link("local=10gbit") == ("local", Link(bandwidth=1.25e9))


@pytest.mark.parametrize(
    ("read", "text", "says"),
    [
        (read_bandwidth, "100", "kbit, mbit, gbit, such as 100mbit"),
        (read_bandwidth, "100MB", "kbit, mbit, gbit"),
        (read_latency, "20", "us, ms, s, such as 20ms"),
        (read_latency, "-1ms", "us, ms, s"),
        (read_link, "100mbit,20ms", "AXIS=BANDWIDTH,LATENCY"),
        (read_link, "node=0mbit", "above 0"),
    ],
)
def test_other_notations_are_refused(read: Callable[[str], object], text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read(text)
