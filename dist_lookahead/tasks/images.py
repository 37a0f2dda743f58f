"""Labelled images, in memory or in files, read as batches of 8-bit pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from dist_lookahead.tasks.augment import crop_and_flip


class LabelledImages(Protocol):
    """One split (train or test) of a data set."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def take(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Read images, augmented where each of them is given a seed.

        Returns:
            uint8 images of shape (batch, channels, height, width), and int64 labels of shape (batch,).
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ImagesInMemory:
    """Images held as one tensor; a batch is one indexing operation, with no work per image.

    Args:
        images: uint8, shape (samples, channels, height, width).
        labels: int64, shape (samples,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """See `LabelledImages.take`; the augmentation is `crop_and_flip`."""
        where = torch.tensor(indices)
        images = self.images[where]
        return images if seeds is None else crop_and_flip(images, seeds), self.labels[where]


class ImageFiles:
    """Images decoded from files when they are asked for, brought to one size.

    Plain: the shorter side resized to size * 256 / 224, then the centre cut out. Augmented: a random part of
    the image (8 to 100 % of its area) resized to size x size, and mirrored with probability 1/2. Both are
    torchvision's reference for ImageNet.

    Args:
        folder: the files and their labels.
        size: height and width of the images returned, in pixels.
    """

    def __init__(self, folder: ImageFolder, size: int) -> None:
        self._folder = folder
        resized = size * 256 // 224
        self._plain = v2.Compose([v2.Resize(resized), v2.CenterCrop(size), v2.PILToTensor()])
        self._random = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._folder.samples)

    def take(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """See `LabelledImages.take`."""
        paths, labels = zip(*(self._folder.samples[i] for i in indices), strict=True)
        if seeds is None:
            images = [self._plain(self._folder.loader(path)) for path in paths]
        else:
            images = self._augmented(paths, seeds)
        return torch.stack(images), torch.tensor(labels)

    def _augmented(self, paths: Sequence[str], seeds: Sequence[int]) -> list[Tensor]:
        images = []
        with torch.random.fork_rng(devices=[]):
            for path, seed in zip(paths, seeds, strict=True):
                # Not torch.manual_seed: that seeds the GPUs' generators too, which the fork leaves alone.
                torch.default_generator.manual_seed(seed)
                images.append(self._random(self._folder.loader(path)))
        return images
