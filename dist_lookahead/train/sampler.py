"""Which samples an agent sees at which step, and the loader that reads them.

The data of all epochs form one endless stream: a fresh permutation of the samples per epoch (or their own
order, where a task wants that), one after the other. At fast step k (counting from 0) agent r of n takes the
B positions that start at (k n + r) B. Where the number of agents changes after k0 steps, by which they have read m0
samples together, the n agents go on from there: at m0 + ((k - k0) n + r) B.

So the agents' shards never overlap, every sample of an epoch is seen exactly once by somebody whatever the
sizes are (a batch may straddle two epochs), and all agents have the same number of steps: none waits in a
collective for another one that has run out of data. Nothing is remembered between steps, hence resuming is
`start=k`.

Where a model remembers, as on text, each row of each batch is a stream of its own: S = n B of them begin evenly
spread over the m samples, stream s at sample floor(s m / S), and each goes on by one sample at every fast step,
round and round. What it has read when it comes to a sample is, but for its own beginning, the samples before.
In m / S fast steps all streams together have come once through the data (to within one sample for each stream).
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import count, islice
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dist_lookahead.tasks.task import Batch, Key, Order
from dist_lookahead.train.signals import reset_in_worker

K = TypeVar("K")  # a training key, or the index of a test sample


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSampler:
    """The keys of one agent's batches, step after step, for ever.

    Args:
        samples: number of training samples, at least 1.
        batch_size: samples per agent and fast step (B), at least 1; it may exceed `samples`.
        rank: this agent (r), from 0 to `agents` - 1.
        agents: number of agents (n), at least 1.
        seed: the same on all agents; any integer.
        start: the fast step at which iteration begins, at least 0.
        since: the fast step after which there have been as many agents as now, at least 0.
        before: samples that all agents together have read before it, at least 0.
        order: "shuffled" permutes each epoch. "in_turn" leaves it as 0, 1, 2, .., so that agent r always reads r, if
            `samples` is `agents` and the batch size is 1. "streams": row b of each batch is one stream.

    Raises:
        ValueError: if a number is out of its range, or there are more streams than samples.

    Example:
        >>> a, b = (BatchSampler(samples=5, batch_size=2, rank=rank, agents=2, seed=0) for rank in range(2))
        >>> sorted(index for epoch, index in (a.batch(0) + b.batch(0) + a.batch(1)) if epoch == 0)
        [0, 1, 2, 3, 4]
    """

    samples: int
    batch_size: int
    rank: int
    agents: int
    seed: int
    start: int = 0
    since: int = 0
    before: int = 0
    order: Order = "shuffled"

    def __post_init__(self) -> None:
        _check_split(self.samples, self.batch_size, self.rank, self.agents)
        for name, value in (("start", self.start), ("since", self.since)):
            if value < 0:
                raise ValueError(f"{name} must be a fast step, 0 or later; got {value}")
        if self.before < 0:
            raise ValueError(f"before must be a number of samples, at least 0; got {self.before}")
        if self.order == "streams" and self._streams > self.samples:
            raise ValueError(
                f"batch_size={self.batch_size} on {self.agents} agents are {self._streams} streams, more than the "
                f"{self.samples} samples that they would read one after the other: use a smaller batch_size"
            )

    def __iter__(self) -> Iterator[list[Key]]:
        return map(self.batch, count(self.start))

    def batch(self, step: int) -> list[Key]:
        """Return the keys that this agent reads at fast step `step`."""
        if self.order == "streams":
            first = self.rank * self.batch_size
            begins = (s * self.samples // self._streams for s in range(first, first + self.batch_size))
            return [divmod(begin + step, self.samples) for begin in begins]
        position = self.before + ((step - self.since) * self.agents + self.rank) * self.batch_size
        end = position + self.batch_size
        keys: list[Key] = []
        while position < end:
            epoch, offset = divmod(position, self.samples)
            indices = self._indices(epoch, slice(offset, min(offset + end - position, self.samples)))
            keys += [(epoch, index) for index in indices]
            position += len(indices)
        return keys

    @property
    def _streams(self) -> int:
        return self.agents * self.batch_size

    def _indices(self, epoch: int, part: slice) -> list[int]:
        """Return a part of an epoch's samples in their order."""
        if self.order == "in_turn":
            return list(range(part.start, part.stop))
        return _permutation(self.samples, self.seed, epoch)[part].tolist()


@lru_cache(maxsize=2)  # a batch straddles two epochs; shared by all agents simulated in this process
def _permutation(samples: int, seed: int, epoch: int) -> Tensor:
    """Return the order of one epoch's samples, int64 of shape (samples,)."""
    # Hashed, because seed + epoch would give run 1 the orders that run 0 has one epoch later, and to 4
    # bytes, because torch's CPU generator drops all but the lowest 32 bits of a seed.
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=4).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.randperm(samples, generator=generator)


def steps_for_epochs(epochs: float, *, samples: int, batch_size: int, agents: int) -> int:
    """Return the number of fast steps after which `epochs` epochs have been seen, rounded up.

    Args:
        epochs: how often each sample is seen; need not be whole.
        samples: number of training samples.
        batch_size: samples per agent and fast step.
        agents: number of agents.

    Example:
        >>> steps_for_epochs(1.1, samples=100, batch_size=5, agents=2)
        11
    """
    # The decimal that the user wrote: in binary 1.1 * 10 is a little more than 11, and would round up to 12.
    return math.ceil(Fraction(str(epochs)) * samples / (batch_size * agents))


def evaluation_split(*, samples: int, batch_size: int, rank: int, agents: int) -> list[list[int]]:
    """Return an agent's share of a test set in batches: the indices rank, rank + agents, rank + 2 agents, ...

    All samples are evaluated exactly once. Agents may have different numbers of batches (none at all, where
    there are fewer samples than agents), so no collective may run per batch: sum locally, then reduce once.

    Args:
        samples: number of test samples.
        batch_size: samples per batch; the last one may be smaller.
        rank: this agent, from 0 to `agents` - 1.
        agents: number of agents.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> evaluation_split(samples=7, batch_size=2, rank=0, agents=2)
        [[0, 2], [4, 6]]
    """
    _check_split(samples, batch_size, rank, agents)
    own = iter(range(rank, samples, agents))
    return list(iter(lambda: list(islice(own, batch_size)), []))


def _check_split(samples: int, batch_size: int, rank: int, agents: int) -> None:
    for name, value in (("samples", samples), ("batch_size", batch_size), ("agents", agents)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if not 0 <= rank < agents:
        raise ValueError(f"rank must be from 0 to agents - 1 = {agents - 1}; got {rank}")


class _BatchReader(Dataset[Batch], Generic[K]):
    """What DataLoader asks for batches: it hands over a whole batch's keys at once."""

    def __init__(self, read: Callable[[list[K]], Batch]) -> None:
        self.read = read

    def __getitems__(self, keys: list[K]) -> Batch:
        return self.read(keys)


def _as_it_is(batch: Any) -> Any:
    return batch


def loader(
    read: Callable[[list[K]], Batch],
    batches: Iterable[list[K]],
    *,
    workers: int = 0,
    pin_memory: bool = False,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Return an iterator over `read(keys)` for each list of keys, in order, read ahead by worker processes.

    The batches are the same whatever the number of workers is, provided that `read` is a function of its
    keys alone. So it must not draw from global random generators: all workers of all agents start with the
    same ones. Torch's own global generator is not consumed. Deleting the iterator ends its workers.

    Args:
        read: a task's `train_batch` or `test_batch`.
        batches: a `BatchSampler`, or what `evaluation_split` returns.
        workers: processes that read; 0 reads in this one.
        pin_memory: copy batches to page-locked memory, for asynchronous copies to a GPU; needs one.
        prefetch: batches that each worker reads ahead, at least 1.

    Example:
        >>> list(loader(lambda indices: (torch.tensor(indices),), [[0, 2], [4]]))
        [(tensor([0, 2]),), (tensor([4]),)]
    """
    return iter(
        DataLoader(
            _BatchReader(read),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            worker_init_fn=reset_in_worker,
            generator=torch.Generator(),
            prefetch_factor=prefetch if workers else None,
        )
    )
