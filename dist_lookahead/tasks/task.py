"""The protocol between the trainer and what it trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

Batch = tuple[Tensor, ...]
"""Tensors whose first dimension is the sample, such as (images, labels)."""

Key = tuple[int, int]
"""(epoch, index): what a training sample is drawn by; the index picks it, both together augment it."""

Order = Literal["shuffled", "in_turn", "streams"]
"""How an epoch's samples follow each other: anew at random, 0, 1, 2, .. dealt to the agents in turn, or in parallel
streams: row b of an agent's batches reads one sample after its neighbour, for ever, so that a model may remember."""

Memory = tuple[Tensor, ...]
"""What a model remembers of the batches before, without a graph; the first dimension is the sample."""


@runtime_checkable
class Remembering(Protocol):
    """A model that carries something from each batch to the next, such as the hidden state of a recurrent network.

    It is the agent's own, as the stream that it reads is: never averaged or exported, but kept in checkpoints. The
    trainer lays it aside where the model meets other batches than those of its training.
    """

    memory: Memory
    """() before the first batch."""


class Task(Protocol):
    """A model, its data and its measure, without a word on how they are trained.

    What a fast step descends on is said by `Minimisation` or by `Game`, and each task is one of them.

    A task is handed to data-loading processes and read by many agents, so it is a description plus read-only
    data: it pickles, and no method changes it. What a batch holds depends on the arguments and on how the
    task was constructed, never on which process asks, in what order, or on any global random generator.

    The functions on models take the model as an argument: the same task serves every agent, and fast, slow
    and averaged weights alike. Whether the model is in training or evaluation mode is the caller's choice.
    """

    @property
    def samples(self) -> int:
        """Number of training samples in one epoch, >= 1."""
        ...

    @property
    def test_samples(self) -> int:
        """Number of test samples, >= 1."""
        ...

    @property
    def order(self) -> Order:
        """How training samples follow each other."""
        ...

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the sums that `evaluate` returns: agents without test samples need them too."""
        ...

    def model(self) -> nn.Module:
        """Build a new model on the CPU, initialised from torch's global generator; the caller seeds that."""
        ...

    def train_batch(self, keys: Sequence[Key]) -> Batch:
        """Read and augment training samples: a pure function of `keys` and the task's own seed.

        Sample i of the result depends on `keys[i]` alone, so a batch may be split or merged freely.

        Args:
            keys: (epoch, index) of each sample, 0 <= index < `samples`; at least one.

        Returns:
            CPU tensors whose first dimension is `len(keys)`.
        """
        ...

    def test_batch(self, indices: Sequence[int]) -> Batch:
        """Read test samples, without augmentation.

        Args:
            indices: 0 <= index < `test_samples`; at least one.

        Returns:
            CPU tensors whose first dimension is `len(indices)`.
        """
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Measure `model` on a batch, without a graph.

        Returns:
            SUMS over the samples of the batch, "samples" among them. Sums, because they add up over batches
            and agents of unequal size, which means do not; `report` turns the total into metrics.
        """
        ...

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Turn the total of `evaluate` over all batches and agents into metrics, "loss" among them.

        Names that end in a number, such as "mean_7", are coordinates of a vector: recorded, but not shown one by one.
        """
        ...


@runtime_checkable
class Minimisation(Task, Protocol):
    """A task with one loss, on which all weights descend."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what training minimises: a scalar, the mean over the samples of `batch`, with its graph.

        `batch` lies on the device of `model`.
        """
        ...


Losses = Mapping[str, Callable[[], Tensor]]
"""Of each player that moves, by the name of its submodule: a scalar with its graph, computed anew at each call."""


@dataclass(frozen=True, slots=True)
class Update:
    """One step of some players of a game, each along the gradient of its own loss; the others stand still.

    With an extrapolation it is an extragradient step (arXiv 1802.10551): the players first take a step of the optimizer
    along the gradients of `extrapolation`, read those of `losses` there, go back, and step with these.

    Args:
        losses: of the players that move.
        extrapolation: of the step ahead; empty for none.
    """

    losses: Losses
    extrapolation: Losses = field(default_factory=dict)


@runtime_checkable
class Game(Task, Protocol):
    """A task of several players, submodules of one model, each with a loss of its own.

    One optimizer and one stack of levels move all of them, so that all slow weights are pulled together.
    """

    def updates(self, model: nn.Module, batch: Batch) -> Sequence[Update]:
        """Say what one fast step consists of, at least one update; each is computed when those before are done.

        Random numbers come from torch's global generators, which the caller makes the agent's own. `batch` lies on the
        device of `model`.
        """
        ...


@runtime_checkable
class Pictured(Protocol):
    """A task whose models make images."""

    def pictures(self, model: nn.Module) -> Tensor:
        """Return images to look at, always those that the model makes of the same inputs.

        Returns:
            CPU tensor of shape (images, channels, height, width) with values in [0, 1].
        """
        ...
