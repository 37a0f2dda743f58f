"""Agents that do not do equally much: weighted means, and agents that run out of samples before the others."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import Tensor, nn

from dist_lookahead import (
    QSR,
    AdaComm,
    Alone,
    Cast,
    Copy,
    DistributedLookahead,
    Every,
    Exact,
    Level,
    Mesh,
    Optimal,
    Pull,
    dpsgd,
    local_sgd,
    simulate,
)
from dist_lookahead.comm.communicator import Communicator

BATCHES = (10, 7, 3)
SIZE = 5
STACKS: dict[str, list[Level]] = {
    "local SGD": [Level(Every(4), Exact(weighted="steps"), Copy())],
    "slow momentum": [Level(Every(4), Exact(weighted="steps"), Pull(0.7, 0.5))],
    "sharded": [Level(Every(4), Exact(weighted="steps", shard=True), Pull(0.7, 0.5))],
    "by samples": [Level(Every(4), Exact(weighted="samples"), Copy())],
}


class Worker:
    """Descends a quadratic of its own with momentum, batch by batch; a batch of agent r has r + 1 samples."""

    def __init__(self, rank: int, levels: Sequence[Level], end: Communicator | None = None) -> None:
        self.rank = rank
        self.weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
        self.optimizer = DistributedLookahead(
            torch.optim.SGD([self.weight], lr=0.1, momentum=0.5), levels, communicator=end, check_every=1
        )
        self.target = torch.arange(SIZE, dtype=torch.float64) - rank

    def step(self) -> None:
        self.weight.grad = self.weight.detach() - self.target
        self.optimizer.report(loss=self.weight.grad.square().sum() + 1, samples=self.rank + 1)
        self.optimizer.step()

    def train(self, batches: int) -> None:
        with self.optimizer.join():
            for _ in range(batches):
                self.step()

    def end(self) -> tuple[Tensor, Tensor]:
        buffer = self.optimizer.state[self.weight].get("momentum_buffer") if self.optimizer.state else None
        return self.weight.detach().clone(), torch.zeros(SIZE) if buffer is None else buffer.clone()


def simulated(levels: Sequence[Level], batches: Sequence[int]) -> list[Worker]:
    workers = [Worker(rank, levels, end) for rank, end in enumerate(simulate(len(batches)))]
    contexts = [ExitStack() for _ in workers]
    for worker, context in zip(workers, contexts, strict=True):
        context.enter_context(worker.optimizer.join())
    for k in range(max(batches) + 1):
        for worker, context, own in zip(workers, contexts, batches, strict=True):
            if k < own:
                worker.step()
            elif k == own:
                context.close()
    return workers


def by_hand(levels: Sequence[Level], batches: Sequence[int], tau: int = 4) -> tuple[Tensor, list[Tensor]]:
    """The loop as one would write it: the mean weighted by the work of the round, and the momenta at the end."""
    ((alpha, beta),) = [level.move.coefficients(0) for level in levels]
    weights, v = [torch.zeros(SIZE, dtype=torch.float64) for _ in batches], torch.zeros(SIZE, dtype=torch.float64)
    z, momenta = weights[0].clone(), [torch.zeros(SIZE, dtype=torch.float64) for _ in batches]
    for begin in range(0, max(batches), tau):
        work = [min(max(own - begin, 0), tau) for own in batches]
        for rank, steps in enumerate(work):
            for _ in range(steps):
                gradient = weights[rank] - (torch.arange(SIZE, dtype=torch.float64) - rank)
                momenta[rank] = 0.5 * momenta[rank] + gradient
                weights[rank] = weights[rank] - 0.1 * momenta[rank]
        shares = [w * (rank + 1) if levels[0].mix.weighted == "samples" else w for rank, w in enumerate(work)]
        mean = sum((w * x for w, x in zip(shares, weights, strict=True)), torch.zeros(())) / sum(shares)
        v = beta * v + mean - z
        z = z + alpha * v
        weights = [z.clone() for _ in weights]
    return z, momenta


@pytest.mark.parametrize("batches", [BATCHES, (3, 7, 10), (4, 8, 8), (0, 5, 1), (6, 6, 6), (0, 0, 0)])
@pytest.mark.parametrize("levels", STACKS.values(), ids=STACKS)
def test_agents_that_run_out_of_samples_count_with_the_work_that_they_did(
    levels: list[Level], batches: tuple[int, ...]
) -> None:
    """Breaks if an agent hangs, counts more or less than its work, steps while it waits, or an empty round moves z."""
    workers = simulated(levels, batches)
    expected, momenta = by_hand(levels, batches)
    weights = [worker.end()[0] for worker in workers]
    assert all(torch.equal(weight, weights[0]) for weight in weights)
    torch.testing.assert_close(weights[0], expected, rtol=1e-12, atol=1e-12)
    for worker, momentum in zip(workers, momenta, strict=True):
        torch.testing.assert_close(worker.end()[1].double(), momentum, rtol=1e-12, atol=1e-12)
    assert len({worker.optimizer.stack.bound[0].due for worker in workers}) == 1, "they can go on together"


def in_a_process(names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    ends = {}
    for name in names:
        worker = Worker(dist.get_rank(), STACKS[name])
        for _ in range(2):  # two epochs
            worker.train(BATCHES[worker.rank])
        ends[name] = worker.end()
    return ends


@pytest.mark.timeout(120)
def test_processes_with_10_7_and_3_batches_end_together() -> None:
    """Three summands: gloo adds in another order than the simulation, so up to rounding."""
    results = run_processes(in_a_process, 3, list(STACKS))
    for name, levels in STACKS.items():
        weights = [result[name][0] for result in results]
        assert all(torch.equal(weight, weights[0]) for weight in weights), name
        workers = [Worker(rank, levels, end) for rank, end in enumerate(simulate(3))]
        for _ in range(2):
            contexts = [ExitStack() for _ in workers]
            for worker, context in zip(workers, contexts, strict=True):
                context.enter_context(worker.optimizer.join())
            for k in range(max(BATCHES) + 1):
                for worker, context in zip(workers, contexts, strict=True):
                    if k < BATCHES[worker.rank]:
                        worker.step()
                    elif k == BATCHES[worker.rank]:
                        context.close()
        for worker, result in zip(workers, results, strict=True):
            for ours, theirs in zip(worker.end(), result[name], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_several_levels_and_an_adaptive_tau_join_too() -> None:
    """The idle agent finds the same lengths from the losses of those that work."""
    levels = [
        Level(Every(AdaComm(start=3, interval=1)), Exact(weighted="steps"), Pull(0.5)),
        Level(Every(6), Exact(), Pull(0.7, 0.5)),
    ]
    workers = simulated(levels, (20, 9, 2))
    weights = [worker.end()[0] for worker in workers]
    assert all(torch.equal(weight, weights[0]) for weight in weights)
    assert len({worker.optimizer.stack.bound[0].rounds for worker in workers}) == 1
    assert workers[0].optimizer.stack.bound[0].pace.memory[1] < 3, "tau has moved"


@pytest.mark.parametrize("shard", [False, True])
def test_equal_work_is_the_plain_mean_bit_for_bit(shard: bool) -> None:
    """Breaks if weights are scaled where they need not be: 1/3 of float32's sums would differ."""
    ends = {}
    for weighted in (None, "steps"):
        gradients = torch.randn(3, 4001, generator=torch.Generator().manual_seed(0))
        weights = [nn.Parameter(torch.ones(4001)) for _ in gradients]
        level = Level(Every(3), Exact(shard=shard, weighted=weighted), Pull(0.7, 0.5))
        agents = [
            DistributedLookahead(torch.optim.SGD([w], lr=1.0), [level], communicator=end)
            for w, end in zip(weights, simulate(3), strict=True)
        ]
        for _ in range(8):
            for agent, weight, gradient in zip(agents, weights, gradients, strict=True):
                weight.grad = gradient.clone()
                agent.step()
        for agent in agents:
            agent.sync()
        ends[weighted] = weights[0].detach()
    assert torch.equal(ends[None], ends["steps"])


def test_on_a_mesh_a_weighted_mean_over_all_is_that_over_all() -> None:
    def trained(shape: Any) -> Tensor:
        workers = [Worker(rank, STACKS["by samples"], end) for rank, end in enumerate(simulate(shape))]
        for _ in range(4):
            for worker in workers:
                worker.step()
        return workers[3].end()[0]

    torch.testing.assert_close(trained(Mesh((2, 2), ("node", "local"))), trained(4), rtol=1e-12, atol=1e-12)


# --- what is refused


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (local_sgd(4), r"levels\[0\].mix=Exact\(.*would count an agent that has no more samples"),
        (dpsgd(), "would count an agent"),
        ([Level(Every(2), Alone(), Pull(0.5)), *STACKS["local SGD"]], "levels.0..mix=Alone.. would count"),
        ([Level(Every(4), Exact(weighted="steps"), Pull(1.0, 0.6, follow_lr=True))], "leave follow_lr out"),
        ([Level(Every(QSR(4, 0.1)), Exact(weighted="steps"), Copy())], "a tau that does not follow it"),
        ([Level(Every(4), Exact(weighted="steps"), Copy(), "average")], "use 'keep'"),
    ],
)
def test_levels_at_which_an_agent_cannot_stand_still_are_refused(levels: list[Level], message: str) -> None:
    worker = Worker(0, levels, simulate(1)[0])
    with worker.optimizer.join():  # alone it can
        worker.step()
    workers = [Worker(rank, levels, end) for rank, end in enumerate(simulate(2))]
    with pytest.raises(ValueError, match=message), workers[0].optimizer.join():
        pass


def test_a_weighted_level_along_an_axis_does_not_join() -> None:
    levels = [Level(Every(4), Exact("local", weighted="steps"), Copy())]
    workers = [Worker(rank, levels, end) for rank, end in enumerate(simulate(Mesh((2, 2), ("node", "local"))))]
    with pytest.raises(ValueError, match="average over all of them"), workers[0].optimizer.join():
        pass


def test_weights_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="must be None, or one of steps, samples"):
        Exact(weighted="time")  # pyright: ignore[reportArgumentType] - that is what is refused
    with pytest.raises(ValueError, match="what a code has lost belongs to the weight of its own round"):
        Exact(weighted="steps", codec=Cast())
    with pytest.raises(ValueError, match="which measures with the plain mean"):
        Level(Every(4), Exact(weighted="steps"), Pull(Optimal(0.2, 1.0)))
    two = [Level(Every(2), Exact(), Copy()), Level(Every(4), Exact(weighted="steps"), Pull(0.5))]
    with pytest.raises(ValueError, match="hold the same weights before this sync"):
        Worker(0, two, simulate(2)[0])


def test_samples_must_be_told_of_each_step() -> None:
    worker = Worker(0, STACKS["by samples"], simulate(2)[0])
    worker.step()
    with pytest.raises(ValueError, match="must be at least 1"):
        worker.optimizer.report(samples=0)
    with pytest.raises(ValueError, match="need to know the samples of each fast step"):
        worker.optimizer.step()
