"""Who sees which samples when: nobody twice, everybody as often, and the same again after a resume."""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dist_lookahead.train.sampler import BatchSampler, Key, evaluation_split, loader, steps_for_epochs

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # fork, Python 3.12
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning"),  # few cores
]

SIZES = {"samples": st.integers(1, 30), "batch_size": st.integers(1, 12), "agents": st.integers(1, 5)}


def samplers(samples: int, batch_size: int, agents: int, seed: int = 0, start: int = 0) -> list[BatchSampler]:
    return [
        BatchSampler(samples=samples, batch_size=batch_size, rank=rank, agents=agents, seed=seed, start=start)
        for rank in range(agents)
    ]


def stream(samples: int, seed: int, positions: int) -> list[Key]:
    """Return what one agent sees alone, one sample at a time."""
    (alone,) = samplers(samples, batch_size=1, agents=1, seed=seed)
    return list(chain.from_iterable(islice(alone, positions)))


class CountingTask:
    """Each sample is its own key, so that a batch tells which samples it holds."""

    def train_batch(self, keys: Sequence[Key]) -> tuple[Tensor, ...]:
        return torch.tensor([epoch for epoch, _ in keys]), torch.tensor([index for _, index in keys])

    def test_batch(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        return (torch.tensor(indices),)


# --- the stream and its shards


@given(**SIZES, seed=st.integers(), steps=st.integers(1, 6))
def test_all_agents_together_read_the_stream_in_order(samples, batch_size, agents, seed, steps) -> None:
    """Breaks if shards overlap, leave a gap, or depend on the number of agents (uneven sizes included)."""
    iterators = [iter(sampler) for sampler in samplers(samples, batch_size, agents, seed)]
    seen = [key for _ in range(steps) for iterator in iterators for key in next(iterator)]
    assert seen == stream(samples, seed, steps * agents * batch_size)


@given(samples=st.integers(1, 40), seed=st.integers(), epochs=st.integers(1, 4))
def test_an_epoch_holds_every_sample_exactly_once(samples: int, seed: int, epochs: int) -> None:
    seen = Counter(stream(samples, seed, epochs * samples))
    assert seen == {(epoch, index): 1 for epoch in range(epochs) for index in range(samples)}


@given(**SIZES, start=st.integers(0, 9))
def test_starting_at_a_step_continues_the_run(samples: int, batch_size: int, agents: int, start: int) -> None:
    for whole, resumed in zip(
        samplers(samples, batch_size, agents), samplers(samples, batch_size, agents, start=start), strict=True
    ):
        assert list(islice(whole, start, start + 3)) == list(islice(resumed, 3))


def test_order_differs_between_epochs_and_seeds_also_along_the_diagonal() -> None:
    """Breaks with the seed `seed + epoch`: run 1 would repeat run 0, one epoch late."""
    orders = {
        tuple(index for _, index in stream(50, seed, 150)[50 * epoch : 50 * (epoch + 1)])
        for seed in (0, 1, 2, -1, 2**32, 2**80)
        for epoch in range(3)
    }
    assert len(orders) == 18


def test_order_is_that_of_earlier_versions() -> None:
    """Breaks if the data's order changes, so that old checkpoints resume on data they have seen already."""
    assert stream(6, 17, 12) == [
        *((0, index) for index in (3, 4, 0, 2, 1, 5)),
        *((1, index) for index in (1, 0, 4, 2, 3, 5)),
    ]


@pytest.mark.parametrize(("samples", "agents", "keeps"), [(2, 4, True), (1, 3, True), (2, 3, False), (4, 2, False)])
def test_without_shuffling_an_agent_keeps_its_sample_if_their_number_divides_that_of_agents(
    samples, agents, keeps
) -> None:
    """Agents that have data of their own rely on it."""
    everybody = [
        BatchSampler(samples=samples, batch_size=1, rank=rank, agents=agents, seed=0, order="in_turn")
        for rank in range(agents)
    ]
    steps = [[sampler.batch(step)[0] for sampler in everybody] for step in range(4)]
    assert list(chain.from_iterable(steps)) == [divmod(position, samples) for position in range(4 * agents)]
    assert all([index for _, index in keys] == [rank % samples for rank in range(agents)] for keys in steps) == keeps


@pytest.mark.parametrize(("samples", "batch_size", "agents"), [(12, 2, 3), (13, 2, 2), (7, 1, 7), (5, 1, 1)])
def test_each_row_of_a_stream_follows_on_the_one_before(samples: int, batch_size: int, agents: int) -> None:
    """What a model remembers of a row would otherwise be of another text."""
    samplers = [
        BatchSampler(samples=samples, batch_size=batch_size, rank=rank, agents=agents, seed=0, order="streams")
        for rank in range(agents)
    ]
    seen = []
    for step in range(3 * samples):
        now, later = ([key for s in samplers for key in s.batch(at)] for at in (step, step + 1))
        assert later == [(epoch + (index + 1) // samples, (index + 1) % samples) for epoch, index in now]
        seen += [index for _, index in now]
    # Streams begin evenly spread, so that all together read each sample as often as any other.
    assert [seen.count(index) for index in range(samples)] == [3 * batch_size * agents] * samples
    epoch = seen[: samples // (batch_size * agents) * batch_size * agents]
    assert len(set(epoch)) == len(epoch), "a sample is read twice before others are read once"


def test_streams_go_on_where_a_run_was_stopped() -> None:
    whole, rest = (
        BatchSampler(samples=9, batch_size=2, rank=1, agents=2, seed=0, order="streams", start=start)
        for start in (0, 5)
    )
    assert list(islice(whole, 5, 12)) == list(islice(rest, 7))


def test_more_streams_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=3 on 2 agents are 6 streams, more than the 5 samples"):
        BatchSampler(samples=5, batch_size=3, rank=0, agents=2, seed=0, order="streams")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "samples must be at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"agents": 0}, "agents must be at least 1; got 0"),
        ({"rank": 2}, "rank must be from 0 to agents - 1 = 1; got 2"),
        ({"rank": -1}, "rank must be from 0 to agents - 1 = 1; got -1"),
        ({"start": -1}, "start must be a fast step, 0 or later; got -1"),
    ],
)
def test_impossible_numbers_are_refused(change: dict[str, int], message: str) -> None:
    settings: dict[str, Any] = {"samples": 5, "batch_size": 2, "rank": 0, "agents": 2, "seed": 0, **change}
    with pytest.raises(ValueError, match=message):
        BatchSampler(**settings)


# --- counting steps


@pytest.mark.parametrize(
    ("epochs", "samples", "batch_size", "agents", "steps"),
    [
        (1, 100, 10, 1, 10),
        (1, 101, 10, 1, 11),
        (3, 101, 10, 1, 31),
        (2, 7, 4, 2, 2),
        (0.5, 100, 5, 2, 5),
        (0, 9, 2, 2, 0),
    ],
)
def test_steps_of_some_epochs_are_rounded_up_once(epochs, samples, batch_size, agents, steps) -> None:
    assert steps_for_epochs(epochs, samples=samples, batch_size=batch_size, agents=agents) == steps


@given(tenths=st.integers(0, 500))
def test_steps_are_not_one_more_because_of_binary_fractions(tenths: int) -> None:
    assert steps_for_epochs(tenths / 10, samples=100, batch_size=5, agents=2) == tenths


# --- the test set


@given(**SIZES)
def test_each_test_sample_is_evaluated_once_by_one_agent(samples: int, batch_size: int, agents: int) -> None:
    splits = [
        evaluation_split(samples=samples, batch_size=batch_size, rank=rank, agents=agents) for rank in range(agents)
    ]
    assert sorted(index for split in splits for batch in split for index in batch) == list(range(samples))
    for rank, split in enumerate(splits):
        assert all(index % agents == rank for batch in split for index in batch)
        assert all(len(batch) == batch_size for batch in split[:-1])
        assert all(0 < len(batch) <= batch_size for batch in split)


# --- the loader


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("start", [0, 7])
def test_batches_are_the_same_for_any_number_of_workers(workers: int, start: int) -> None:
    sampler = samplers(samples=11, batch_size=4, agents=2, start=start)[1]
    batches = islice(loader(CountingTask().train_batch, sampler, workers=workers), 8)
    read = [list(zip(epochs.tolist(), indices.tolist(), strict=True)) for epochs, indices in batches]
    assert read == [sampler.batch(step) for step in range(start, start + 8)]


def generators() -> tuple[object, ...]:
    """Return the states of the global random generators."""
    return torch.get_rng_state().tolist(), random.getstate()


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_generators_are_not_consumed(workers: int) -> None:
    """Breaks with DataLoader's default, which draws a seed from torch's global generator: dropout would change."""
    before = generators()
    next(loader(CountingTask().train_batch, samplers(9, 2, 1)[0], workers=workers))
    assert generators() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_test_set_is_read_to_its_end(workers: int) -> None:
    split = evaluation_split(samples=7, batch_size=2, rank=0, agents=2)
    read = [indices.tolist() for (indices,) in loader(CountingTask().test_batch, split, workers=workers)]
    assert read == [[0, 2], [4, 6]]
