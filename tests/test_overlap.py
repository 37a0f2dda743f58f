"""Averages that land later: order, progress, what travels with them, and what happens when they do not arrive."""

import copy
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from digits_training import make_agent, make_agents, same, train
from noisy_quadratic import FAST, Problem
from processes import run_processes
from test_paper_loops import assert_follows, crowd, decaying
from torch import Tensor, nn

from dist_lookahead import (
    Alone,
    Copy,
    Every,
    Exact,
    Gossip,
    Level,
    Optimal,
    Piecewise,
    Pull,
    Quantised,
    SyncError,
    TopK,
    diloco,
    overlapped_local_sgd,
    simulate,
    slowmo,
    theory,
)
from dist_lookahead.averaging.mixer import Memory
from dist_lookahead.comm.process_group import default_communicator
from dist_lookahead.flight import Flight
from dist_lookahead.mesh import Mesh
from dist_lookahead.stability import instabilities

pytestmark = pytest.mark.filterwarnings("ignore:levels.* is unstable on quadratics:UserWarning")

# --- the loops

PAPERS: dict[str, tuple[Callable[[int], list[Level]], Callable[..., Iterator[Tensor]]]] = {
    "local SGD": (
        lambda delay: [Level(Every(4, delay), Exact(), Copy())],
        partial(reference.overlapped_local_sgd, tau=4),
    ),
    "SlowMo": (
        lambda delay: slowmo(4, 0.9, 0.6, delay=delay),
        partial(reference.overlapped_slowmo, tau=4, alpha=0.9, beta=0.6),
    ),
    "DiLoCo": (
        lambda delay: diloco(4, 0.7, 0.9, delay=delay),
        partial(reference.overlapped_diloco, h=4, alpha=0.7, beta=0.9),
    ),
}


@pytest.mark.parametrize("agents", [1, 3])
@pytest.mark.parametrize("delay", range(4))
@pytest.mark.parametrize("name", PAPERS)
def test_a_mean_that_arrives_late_moves_the_agents_by_what_it_moved(name: str, delay: int, agents: int) -> None:
    """Breaks if progress is lost, the rate of another step counts, or rounds are counted from where means land."""
    levels, paper = PAPERS[name]
    problem = Problem(agents, FAST["momentum"], decaying)
    assert_follows(problem, levels(delay), paper(problem, delay=delay))


@dataclass
class Layer:
    """A level of a plain loop: tau, delay, slow step size (None for the mean itself), and who is averaged."""

    tau: int
    delay: int
    alpha: float | None
    averages: bool = True


class Layers:
    """Layers over the agents of a problem, with everything under way kept in plain lists."""

    def __init__(self, problem: Problem, layers: Sequence[Layer]) -> None:
        self.agents, self.layers = reference.crowd(problem), layers
        self.z = [[problem.start.clone() for _ in self.agents] for _ in layers]
        self.sent: dict[int, tuple[int, Tensor]] = {}

    def begin(self, m: int, k: int) -> None:
        self.sent[m] = k, reference.now(self.agents)

    def land(self, m: int, k: int) -> None:
        layer, (begun, q) = self.layers[m], self.sent.pop(m)
        for i, agent in enumerate(self.agents):
            average = q.mean(dim=0) if layer.averages else q[i]
            z = average if layer.alpha is None else self.z[m][i] + layer.alpha * (average - self.z[m][i])
            way = z - q[i]
            self.z[m][i] = z
            agent.become(z if begun == k else agent.x.detach() + way)
            for lower in range(m):
                self.z[lower][i] = z if begun == k else self.z[lower][i] + way

    def sync(self, k: int) -> None:
        landing = [m for m, (begun, _) in self.sent.items() if begun + self.layers[m].delay == k]
        for m in sorted(self.sent):
            if m <= max(landing, default=-1):
                self.land(m, k)
        due = [m for m, layer in enumerate(self.layers) if k % layer.tau == 0]
        for m in due:
            self.begin(m, k)
            if m < due[-1] or self.layers[m].delay == 0:
                self.land(m, k)


def nested(problem: Problem, layers: Sequence[Layer]) -> Iterator[Tensor]:
    state = Layers(problem, layers)
    for k in range(1, problem.steps + 1):
        for agent in state.agents:
            agent.step(k - 1)
        state.sync(k)
        yield reference.now(state.agents)


STACKS = {
    "agents alone below": [Layer(2, 0, 0.5, averages=False), Layer(4, 3, 0.8)],
    "averages below": [Layer(2, 0, 0.5), Layer(8, 5, 0.8)],
    "the lower is under way where the upper lands": [Layer(4, 3, 0.5), Layer(8, 5, 0.8)],
    "the lower is under way where the upper fires": [Layer(4, 2, None), Layer(8, 0, 0.8)],
    "both land together": [Layer(3, 2, 0.5), Layer(12, 5, None)],
}


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
def test_levels_over_each_other_land_in_order(layers: list[Layer]) -> None:
    """Breaks if z below is overwritten or left where it was, or if a level moves under one that is in flight."""
    levels = [
        Level(
            Every(layer.tau, layer.delay),
            Exact() if layer.averages else Alone(),
            Copy() if layer.alpha is None else Pull(layer.alpha),
        )
        for layer in layers
    ]
    problem = Problem(3)
    assert_follows(problem, levels, nested(problem, layers))


@pytest.mark.parametrize(
    "options", [{}, {"shard": True}, {"codec": Quantised(8)}], ids=["whole", "sharded", "in a code"]
)
def test_what_lands_before_the_next_fast_step_is_a_sync_without_delay_bit_for_bit(options: dict[str, Any]) -> None:
    late, now = (make_agents(3, slowmo(3, beta=0.6, delay=delay, **options)) for delay in (2, 0))
    for agents in (late, now):
        train(agents, range(3))
    for agent in late:
        agent.optimizer.sync()
    one, other = ([agent.model.state_dict() for agent in agents] for agents in (late, now))
    assert same(one, other)


def test_a_sync_on_demand_lands_what_is_under_way_and_leaves_the_schedule_as_it_was() -> None:
    agents = crowd(Problem(2), slowmo(4, 0.9, 0.6, delay=3))
    bound = agents[0].optimizer.stack.bound[0]
    for k in range(5):
        for agent in agents:
            agent.step(k)
    assert bound.flight
    assert bound.rounds == 0
    for agent in agents:
        agent.optimizer.sync()
    assert (bound.flight, bound.rounds, bound.last, bound.due) == (None, 2, 5, 8)
    assert torch.equal(*(agent.weights() for agent in agents))


# --- what travels with it


def test_a_flag_that_is_raised_under_way_is_heard_with_the_next_average() -> None:
    """Breaks if the landing of mail that was sent before clears it: a signal would be lost."""
    agents = make_agents(2, slowmo(3, beta=0.6, delay=2))
    train(agents, range(4))
    agents[1].optimizer.stack.raise_flag(7)
    heard = []
    for step in range(4, 8):
        train(agents, [step])
        heard.append(agents[0].optimizer.stack.flags)
    assert heard == [(0, 0), (0, 0), (0, 0), (0, 7)]


def test_parameters_that_come_under_way_join_with_an_average_that_has_begun_with_word_of_them() -> None:
    agents = crowd(Problem(2), overlapped_local_sgd(4, 2))
    extras = [nn.Parameter(torch.full((3,), float(rank), dtype=torch.float64)) for rank in range(2)]
    joined = []
    for k in range(12):
        for agent in agents:
            agent.step(k)
        if k == 4:
            for agent, extra in zip(agents, extras, strict=True):
                agent.optimizer.add_param_group({"params": [extra]})
        joined.append(len(agents[0].optimizer.stack.buckets) == 2)
    assert joined.index(True) + 1 == 10, "the average of step 4 lands at 6 and knows nothing of them, that of 8 at 10"
    assert all(torch.equal(extra, torch.full((3,), 0.5, dtype=torch.float64)) for extra in extras)


def test_agents_that_begin_at_different_steps_are_told_so() -> None:
    agents = make_agents(2, slowmo(3, beta=0.6, delay=2))
    agents[1].optimizer.stack.clock = 1
    for bound in agents[1].optimizer.stack.bound:
        bound.due = 4
    with pytest.raises(RuntimeError, match=r"different fast steps: 3 on agents \[0\]; 4 on agents \[1\]"):
        train(agents, range(5))


# --- phases


@pytest.mark.parametrize(
    ("phases", "steps"),
    [([1], [5]), ([2, 2], [3, 3, 5, 5]), ([1, 1, 1], [3, 4, 5]), ([1] * 8, [2, 2, 3, 3, 4, 4, 5, 5])],
)
def test_phases_are_spread_over_the_delay(phases: list[int], steps: list[int]) -> None:
    """Breaks if a first phase is waited for at once, or if all others are left for the landing."""
    flight, waited, clock = Flight(1, 5, []), [], 1

    @dataclass
    class Noting:
        def wait(self) -> None:
            waited.append(clock)

    def pending() -> Iterator[Any]:
        yield from (Noting() for _ in range(sum(phases)))

    flight.begin(pending(), [], torch.zeros(0), phases)  # pyright: ignore[reportArgumentType] - an iterator will do
    for clock in range(1, 6):
        if clock >= flight.next_stop:
            for work in flight.go_on(clock):
                work.wait()
    assert waited == steps


@pytest.mark.parametrize(
    "mix", [Exact(), Exact("node"), Exact(codec=TopK(0.1)), Exact("local", codec=TopK(0.1)), Gossip(rounds=3)]
)
@pytest.mark.parametrize("alike", [(), ("local",)])
def test_mixers_wait_as_often_as_they_say(mix: Exact | Gossip, alike: tuple[str, ...]) -> None:
    """Breaks if a phase is missing from what a mixer says: it would be waited for in the wrong step."""
    ends = simulate(Mesh((2, 2), ("node", "local")))
    counts = []

    def counted(end: Any) -> Iterator[Any]:
        mixer, works = mix.bind(end, alike), 0
        weights = [torch.ones(64), torch.ones(16)]
        memory = _memory(mixer, weights) if mixer.compares else []
        for work in mixer.collect(weights, 0, memory):
            works += 1
            yield work
        counts.append((works, sum(mixer.phases(2))))

    for end in ends:
        end.run(counted(end))  # pyright: ignore[reportArgumentType] - an iterator will do
    assert len(counts) == 4
    assert all(works == said for works, said in counts)


def _memory(mixer: Any, weights: Sequence[Tensor]) -> list[Any]:
    return [
        Memory(torch.zeros_like(w), tuple(torch.zeros_like(w[s]) for s in mixer.residuals(len(w))), (0, 0, 0))
        for w in weights
    ]


# --- processes


def go_on_before_the_other_has_come(folder: str) -> list[int]:
    """Agent 1 comes to where the average begins only when agent 0 has gone two steps further."""
    end, sign = default_communicator(), Path(folder) / "gone on"
    agent = make_agent(end.rank, end, slowmo(4, beta=0.6, delay=3))
    train([agent], range(3))
    while end.rank == 1 and not sign.exists():
        time.sleep(0.01)
    train([agent], range(3, 6))
    sign.touch()
    train([agent], range(6, 7))
    return [agent.optimizer.stack.bound[0].rounds, agent.optimizer.stack.bound[0].last]


@pytest.mark.timeout(90)
def test_nobody_waits_where_an_average_begins(tmp_path: Path) -> None:
    """Breaks if the average is waited for before it lands: the agents would wait for each other for ever."""
    assert run_processes(go_on_before_the_other_has_come, 2, str(tmp_path)) == [[1, 4], [1, 4]]


def lose_one_under_way() -> dict[str, Any]:
    end = default_communicator()
    agent = make_agent(end.rank, end, slowmo(4, beta=0.6, delay=3))
    train([agent], range(7))
    landed = {name: slow.clone() for name, slow in agent.state()["optimizer"]["levels"]["levels"][0]["slow"].items()}
    train([agent], range(7, 8 - end.rank))
    if end.rank == 1:  # before it has begun its part of the second average
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        train([agent], range(8, 12))
    except SyncError as error:
        return {
            "message": str(error),
            "whole": same({name: p.detach() for name, p in agent.model.named_parameters()}, landed),
        }
    return {"message": "no error"}


@pytest.mark.timeout(90)
def test_an_agent_that_is_lost_under_way_leaves_the_slow_weights_of_the_last_landing() -> None:
    first = run_processes(lose_one_under_way, 2, silence=3.0, may_die=[1])[0]
    assert "failed on agent 0 of 2" in first["message"]
    assert "the model is back at the slow weights of fast step 4" in first["message"]
    assert first["whole"]


# --- memory, and what is refused


def test_a_copied_optimizer_begins_again_what_is_under_way() -> None:
    agents = make_agents(2, slowmo(3, beta=0.6, delay=2))
    train(agents, range(4))
    flight = copy.deepcopy(agents)[0].optimizer.stack.bound[0].flight
    assert flight
    assert (flight.begun, flight.step, flight.lands) == (False, 3, 5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Every(4, 4), r"Every.delay=4 must be below tau=4: .* use at most 3"),
        (lambda: Every(4, -1), "must be a whole number of fast steps, at least 0"),
        (lambda: Every(4, 1.5), "must be a whole number of fast steps, at least 0"),  # pyright: ignore[reportArgumentType]
        (lambda: Every(Piecewise((8, 2), (10,)), 3).after(12), r"Every.delay=3 must be below tau=2"),
        (lambda: Level(Every(4, 2), Alone(), Pull(0.5)), "nothing travels that could be waited for"),
        (lambda: Level(Every(4, 2), Exact(), Copy(), "average"), "the agents would wait for it"),
        (lambda: Level(Every(4, 2), Exact(), Pull(Optimal(0.2, 0.8))), "the agents would wait for their sum"),
        (lambda: overlapped_local_sgd(4, 0), "overlaps nothing: use local_sgd"),
    ],
)
def test_delays_without_sense_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


LATE = slowmo(4, beta=0.6, delay=2)
ASKED: dict[str, Callable[[], object]] = {
    "mixing matrix": lambda: theory.mixing_matrix(LATE, 2, step=4),
    "bound": lambda: theory.bound(LATE, agents=2, lr=0.01, smoothness=1.0, noise=1.0, gap=1.0, steps=100),
    "effective rate": lambda: theory.effective_lr(LATE, 2),
    "verdict": lambda: theory.verdict(LATE, agents=2, momentum=0.9),
    "firings": lambda: list(theory.firings(LATE, 8)),
    "stability limit": lambda: theory.stability_limit(LATE, agents=2),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_theory_says_that_it_does_not_know_delays(ask: Callable[[], object]) -> None:
    """Breaks where a part of the theory takes a late average for one that is not."""
    with pytest.raises(ValueError, match=r"levels\[0\].when.delay=2: theory does not model averages that land later"):
        ask()


def test_nothing_is_said_of_the_stability_of_what_is_not_modelled() -> None:
    inner = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    said = [list(instabilities(slowmo(4, beta=0.9, delay=delay), inner, agents=2)) for delay in (0, 2)]
    assert [len(sentences) for sentences in said] == [1, 0]


def test_local_sgd_with_a_delay_has_no_slow_weights_to_be_evaluated() -> None:
    agents = make_agents(2, overlapped_local_sgd(3, 1))
    train(agents, range(4))
    with pytest.raises(RuntimeError, match=r"keeps no slow weights"), agents[0].optimizer.slow_weights():
        pass
