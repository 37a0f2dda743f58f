"""Image classification: a data set and a classifier, each chosen by name."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dist_lookahead.tasks.augment import sample_seed
from dist_lookahead.tasks.datasets import image_facts, open_data
from dist_lookahead.tasks.models import build_model, check_model
from dist_lookahead.tasks.task import Batch, Key, Order


class VisionTask:
    """Classify images; minimises the cross-entropy, reports it with the accuracy. A `Task`.

    A batch is (images, labels): float32 of shape (batch, channels, size, size), normalised to mean 0 and
    standard deviation 1 per channel over the training data, and int64 of shape (batch,).

    Data sets: digits (8x8, inside this package), mnist, fashion_mnist, cifar10, cifar100 (through
    torchvision, held in memory), and imagefolder (ImageNet's layout, `path/train/CLASS/*.jpg` and
    `path/val/CLASS/*.jpg`, decoded when asked for).

    Args:
        data: name of the data set.
        model: "mlp", "cnn", "cifar_resnet18", "cifar_resnet34", or any classifier in torchvision.models.
        path: the folder that holds the data, in torchvision's layout. Only digits have none.
        download: fetch missing files into `path`. Construct the task in one process before the others:
            torchvision writes the files in place.
        augment: whether training images are augmented. None: as is standard, that is a random crop after
            padding by 4 and a flip for fashion_mnist, cifar10 and cifar100, a random resized crop and a flip
            for imagefolder.
        label_smoothing: share of the label spread evenly over all classes, in [0, 1); in the training loss
            only.
        width: units or channels of the first layer, for the models that have this choice. None: the model's
            default.
        dropout: for the models that have it, in [0, 1). None: the model's default.
        image_size: height and width to which imagefolder brings its images, >= 1. None: 224.
        seed: of the augmentation.

    Raises:
        ValueError: a name is unknown, an option is out of range or has no effect here, or a file is missing.

    Example:
        >>> task = VisionTask(data="digits", model="mlp")
        >>> images, labels = task.train_batch([(0, 3), (0, 5)])
        >>> task.samples, task.test_samples, images.shape
        (1437, 360, torch.Size([2, 1, 8, 8]))
    """

    def __init__(
        self,
        *,
        data: str,
        model: str,
        path: str | None = None,
        download: bool = False,
        augment: bool | None = None,
        label_smoothing: float = 0.0,
        width: int | None = None,
        dropout: float | None = None,
        image_size: int | None = None,
        seed: int = 0,
    ) -> None:
        facts = image_facts(data)
        check_model(model, channels=facts.channels, width=width, dropout=dropout)
        if augment and not facts.augmented:
            raise ValueError(f"augment=True: data={data!r} has no standard augmentation; remove augment")
        if image_size is not None and data != "imagefolder":
            raise ValueError(f"image_size={image_size} has no effect on data={data!r} of {facts.size}; remove it")
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size={image_size} must be at least 1")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        self._size = image_size or facts.size
        self._data = open_data(data, path=path, download=download, size=self._size)
        self._channels = facts.channels
        self._mean, self._std = (
            torch.tensor(values)[:, None, None] * facts.white for values in (facts.mean, facts.std)
        )
        self._augment = facts.augmented if augment is None else augment
        self._model, self._width, self._dropout = model, width, dropout
        self._label_smoothing = label_smoothing
        self._seed = seed

    @property
    def samples(self) -> int:
        """Number of training images."""
        return len(self._data.train)

    @property
    def test_samples(self) -> int:
        """Number of test images."""
        return len(self._data.test)

    @property
    def order(self) -> Order:
        """Each epoch has an order of its own."""
        return "shuffled"

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the sums that `evaluate` returns."""
        return "samples", "loss", "correct"

    def model(self) -> nn.Module:
        """Build a new classifier on the CPU, initialised from torch's global generator.

        Raises:
            ValueError: the images do not fit a classifier of torchvision, or it has no dropout to set.
        """
        return build_model(
            self._model,
            channels=self._channels,
            size=self._size,
            classes=self._data.classes,
            width=self._width,
            dropout=self._dropout,
        )

    def train_batch(self, keys: Sequence[Key]) -> Batch:
        """Read training images, augmented by what (seed, epoch, index) says and nothing else."""
        seeds = [sample_seed(self._seed, epoch, index) for epoch, index in keys] if self._augment else None
        images, labels = self._data.train.take([index for _, index in keys], seeds)
        return self._normalised(images), labels

    def test_batch(self, indices: Sequence[int]) -> Batch:
        """Read test images."""
        images, labels = self._data.test.take(indices)
        return self._normalised(images), labels

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, with label smoothing."""
        images, labels = batch
        return functional.cross_entropy(model(images), labels, label_smoothing=self._label_smoothing)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Return the number of samples, their summed cross-entropy (not smoothed), and the number correct."""
        images, labels = batch
        logits = model(images).float()
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        correct = (logits.argmax(1) == labels).sum()
        return {"samples": float(len(labels)), "loss": loss.item(), "correct": correct.item()}

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the mean "loss" and the "accuracy", in [0, 1]."""
        return {"loss": sums["loss"] / sums["samples"], "accuracy": sums["correct"] / sums["samples"]}

    def _normalised(self, images: Tensor) -> Tensor:
        return images.float().sub_(self._mean).div_(self._std)
