"""Rounds of so many seconds: agents of different speed take different numbers of fast steps, and none hangs."""

import time
from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import Tensor, nn

from dist_lookahead import (
    Alone,
    Copy,
    DistributedLookahead,
    Every,
    Exact,
    Level,
    Linear,
    Pull,
    Timed,
    local_sgd,
    simulate,
    theory,
)
from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.notation import from_plain, to_plain
from dist_lookahead.theory.calendar import syncs
from dist_lookahead.train.config import ConfigError
from tests.training import small_config

ROUNDS = 3


class Runner:
    """Adds its rank + 1 to its weight in each fast step."""

    def __init__(
        self, rank: int, levels: Sequence[Level], end: Communicator | None = None, watch: "Watch | None" = None
    ) -> None:
        self.rank, self._watch = rank, watch
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        inner = torch.optim.SGD([self.weight], lr=1.0)
        self.optimizer = DistributedLookahead(inner, levels, communicator=end, check_every=1)
        self.lengths: list[int] = []

    @property
    def rounds(self) -> int:
        return self.optimizer.stack.bound[0].rounds

    def step(self) -> None:
        if self._watch:
            self._watch.now += self.rank + 1
        self.weight.grad = torch.full_like(self.weight, -self.rank - 1)
        self.optimizer.step()

    def round(self) -> None:
        """Up to the sync, which a simulated agent only waits for."""
        stack = self.optimizer.stack
        before = stack.clock
        self.step()
        while stack.clock < stack.bound[0].due and stack.bound[0].last <= before:
            self.step()
        self.lengths.append(stack.clock - before)


def expected(lengths: Sequence[Sequence[int]]) -> Tensor:
    """x of all agents after rounds in which agent r took lengths[r] steps."""
    z = 0.0
    for work in zip(*lengths, strict=True):
        z += sum(steps * steps * (rank + 1) for rank, steps in enumerate(work)) / sum(work)
    return torch.full((3,), z, dtype=torch.float64)


def levels(seconds: float, first: int = 4) -> list[Level]:
    return [Level(Every(Timed(seconds, first)), Exact(weighted="steps"), Copy())]


def in_a_process(pauses: tuple[float, ...]) -> tuple[list[int], Tensor]:
    runner = Runner(dist.get_rank(), levels(seconds=0.4))
    for _ in range(ROUNDS):
        begun = len(runner.lengths)
        before = runner.optimizer.stack.clock
        while runner.rounds == begun:
            time.sleep(pauses[runner.rank])
            runner.step()
        runner.lengths.append(runner.optimizer.stack.clock - before)
    return runner.lengths, runner.weight.detach().clone()


@pytest.mark.timeout(120)
def test_a_slow_process_takes_fewer_steps_and_nobody_hangs() -> None:
    """The slow one pauses forty times as long; the mean is weighted by what each has done."""
    (fast, x0), (slow, x1) = run_processes(in_a_process, 2, (0.002, 0.08))
    assert fast[0] == slow[0] == 4, "the first round, in which all are measured"
    assert sum(fast) > sum(slow)
    assert torch.equal(x0, x1)
    torch.testing.assert_close(x0, expected([fast, slow]), rtol=1e-12, atol=1e-12)


def with_samples_of_its_own(pauses: tuple[float, ...], batches: tuple[int, ...]) -> tuple[int, Tensor]:
    runner = Runner(dist.get_rank(), levels(seconds=0.05))
    with runner.optimizer.join():
        for _ in range(batches[runner.rank]):
            time.sleep(pauses[runner.rank])
            runner.step()
    return runner.rounds, runner.weight.detach().clone()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("batches", [(60, 6), (6, 30)])
def test_agents_of_different_speed_end_when_their_samples_do(batches: tuple[int, int]) -> None:
    """Breaks if the one that waits does not come to the syncs of the other, which are at other steps than its own."""
    (first, x0), (second, x1) = run_processes(with_samples_of_its_own, 2, (0.002, 0.02), batches)
    assert first == second > 1
    assert torch.equal(x0, x1)


class Watch:
    """Time passes as agents take steps: rank + 1 seconds for each."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("shard", [False, True])
def test_steps_follow_from_the_speeds_of_the_round_before(shard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if an agent is given another one's steps, or is measured while it waits."""
    watch = Watch()
    monkeypatch.setattr("dist_lookahead.pace.perf_counter", watch)
    level = Level(Every(Timed(seconds=12.0, first=3)), Exact(weighted="steps", shard=shard), Pull(1.0))
    runners = [Runner(rank, [level], end, watch) for rank, end in enumerate(simulate(3))]
    for _ in range(ROUNDS):
        begun = watch.now
        for runner in runners:
            watch.now = begun  # they run side by side
            runner.round()
    assert [runner.lengths for runner in runners] == [[3, 12, 12], [3, 6, 6], [3, 4, 4]]
    weights = [runner.weight.detach() for runner in runners]
    assert all(torch.equal(weight, weights[0]) for weight in weights)
    torch.testing.assert_close(weights[0], expected([r.lengths for r in runners]), rtol=1e-12, atol=1e-12)


def test_a_resumed_agent_goes_on_with_the_length_that_was_agreed() -> None:
    runners = [Runner(rank, levels(0.01), end) for rank, end in enumerate(simulate(2))]
    for runner in runners:
        runner.round()
    for runner in runners:
        runner.step()
    states = [(runner.weight.detach().clone(), runner.optimizer.state_dict()) for runner in runners]
    resumed = [Runner(rank, levels(0.01), end) for rank, end in enumerate(simulate(2))]
    for runner, (weight, state), old in zip(resumed, states, runners, strict=True):
        runner.weight.data.copy_(weight)
        runner.optimizer.load_state_dict(state)
        assert runner.optimizer.stack.bound[0].due == old.optimizer.stack.bound[0].due
    for _ in range(2):
        for runner in resumed:
            runner.round()
    assert torch.equal(resumed[0].weight, resumed[1].weight)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Timed(0.0), "Timed.seconds=0.0 must be a number above 0"),
        (lambda: Timed(1.0, first=1), "the first step of a run is not measured"),
        (lambda: local_sgd(Timed(1.0)), "need a mean weighted by them"),
        (lambda: Level(Every(Timed(1.0)), Alone(), Pull(0.5)), "need a mean weighted by them"),
        (lambda: Level(Every(Timed(1.0)), Exact(weighted="steps"), Pull(1.0, 0.5, follow_lr=True)), "leave follow_lr"),
        (lambda: Level(Every(Timed(1.0)), Exact(weighted="steps"), Pull(Linear(0.5, 1.0, 9))), "give numbers"),
        (lambda: theory.columns([*levels(1.0), *local_sgd(4)], 2), "use it in the only level"),
        (lambda: list(syncs(levels(1.0), 10)), "depends on the speeds of the agents, which nobody knows beforehand"),
    ],
)
def test_what_does_not_go_with_it_is_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_run_files_count_in_steps(tmp_path) -> None:
    plain = [to_plain(level)["level"] for level in levels(1.0)]
    assert list(from_plain([{"level": level} for level in plain])) == levels(1.0)
    with pytest.raises(ConfigError, match="in a run all agents take equally many steps"):
        small_config(tmp_path, agents=2, levels=plain)
