"""The image data sets known by name: their facts, the files they need, and how to open them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from dist_lookahead.tasks.choice import unknown_name
from dist_lookahead.tasks.images import ImageFiles, ImagesInMemory, LabelledImages

TorchvisionSet = type[datasets.MNIST] | type[datasets.CIFAR10]
DIGITS = Path(__file__).with_name("digits.npz")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What is known of a data set before any of its files is read.

    Args:
        channels: 1 for grey, 3 for red, green and blue.
        size: height and width in pixels.
        white: the largest pixel value.
        mean: of each channel over the training images, with white = 1.
        std: standard deviation of each channel, likewise.
        augmented: whether training images are augmented as a standard.
        files: what must lie below `path`; none where the data ship inside a package.
        reader: torchvision's class that reads the files, and can download them.
    """

    channels: int
    size: int
    white: int = 255
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmented: bool
    files: tuple[str, ...] = ()
    reader: TorchvisionSet | None = None


def _idx_files(folder: str) -> tuple[str, ...]:
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(f"{folder}/raw/{kind}-ubyte" for kind in kinds)


def _cifar_files(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


DATA_SETS: dict[str, ImageFacts] = {
    "digits": ImageFacts(channels=1, size=8, white=16, mean=(0.3058,), std=(0.3762,), augmented=False),
    "mnist": ImageFacts(
        channels=1,
        size=28,
        mean=(0.1307,),
        std=(0.3081,),
        augmented=False,
        files=_idx_files("MNIST"),
        reader=datasets.MNIST,
    ),
    "fashion_mnist": ImageFacts(
        channels=1,
        size=28,
        mean=(0.2860,),
        std=(0.3530,),
        augmented=True,  # as for CIFAR, in the baselines of Zhong et al. (arXiv 1708.04896)
        files=_idx_files("FashionMNIST"),
        reader=datasets.FashionMNIST,
    ),
    "cifar10": ImageFacts(
        channels=3,
        size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augmented=True,
        files=_cifar_files(
            "cifar-10-batches-py", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"
        ),
        reader=datasets.CIFAR10,
    ),
    "cifar100": ImageFacts(
        channels=3,
        size=32,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        augmented=True,
        files=_cifar_files("cifar-100-python", "train", "test", "meta"),
        reader=datasets.CIFAR100,
    ),
    "imagefolder": ImageFacts(
        channels=3,
        size=224,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augmented=True,
        files=("train", "val"),
    ),
}
"""Every data set by its name in a configuration. The mean and std of imagefolder are those of ImageNet."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenData:
    """A data set that can be read: its two splits and the number of classes."""

    train: LabelledImages
    test: LabelledImages
    classes: int


def image_facts(name: str) -> ImageFacts:
    """Look up a data set by name.

    Raises:
        ValueError: the name is unknown; the message holds the allowed names and the nearest one.
    """
    if name not in DATA_SETS:
        raise unknown_name("data", name, DATA_SETS)
    return DATA_SETS[name]


def open_data(name: str, *, path: str | None, download: bool, size: int) -> OpenData:
    """Open a data set: small ones are read into memory, an image folder is only listed.

    Args:
        name: a key of `DATA_SETS`.
        path: the folder that holds the files (torchvision's `root`); None for data shipped inside this package.
        download: fetch missing files. One process at a time: the files are written in place.
        size: height and width to which the images of a folder are brought; ignored by sets with a size of
            their own.

    Raises:
        ValueError: `path` or `download` does not fit the data set, or a file is missing or unreadable.
    """
    facts = image_facts(name)
    if not facts.files:
        if path is not None or download:
            raise ValueError(f"data={name!r} ships inside this package: remove path and download")
        return _open_digits()
    if path is None:
        raise ValueError(f"data={name!r} needs path: the folder that holds (or will hold) {facts.files[0]}")
    if download and facts.reader is None:
        raise ValueError(f"data={name!r} cannot be downloaded: remove download, and set path to your own images")
    root = Path(path).expanduser()
    if not download:
        _require_files(name, facts, root)
    try:
        return _open_folder(root, size) if facts.reader is None else _open_small(facts.reader, root, download)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"data={name!r} could not be read from path={str(root)!r}: {error}") from error


def _require_files(name: str, facts: ImageFacts, root: Path) -> None:
    missing = [file for file in facts.files if not (root / file).exists()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        fetch = ", or set download: true, which also unpacks archives that are there" if facts.reader else ""
        raise ValueError(
            f"data={name!r}: {missing[0]} is missing{more} in {root.absolute()}. "
            f"Set path to the folder that holds it{fetch}."
        )


def _open_digits() -> OpenData:
    """Split the 1797 digits of the UCI Machine Learning Repository into 1437 for training and 360 for the test.

    They are the test set of Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998,
    doi 10.24432/C50P49, CC BY 4.0), in the order in which scikit-learn has them.
    Sorted by class, and within a class in the order of the file, every fifth image is a test image: the
    classes keep their shares to within one image, and no version of a random generator can change the split.
    """
    with np.load(DIGITS) as arrays:
        images = torch.from_numpy(arrays["images"]).unsqueeze(1)
        labels = torch.from_numpy(arrays["labels"]).to(torch.int64)
    order = labels.argsort(stable=True)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[order[::5]] = True
    return OpenData(
        train=ImagesInMemory(images[~held_out], labels[~held_out]),
        test=ImagesInMemory(images[held_out], labels[held_out]),
        classes=10,
    )


def _open_small(reader: TorchvisionSet, root: Path, download: bool) -> OpenData:
    train, test = (reader(root, train=train, download=download) for train in (True, False))
    return OpenData(train=_in_memory(train), test=_in_memory(test), classes=len(train.classes))


def _in_memory(read: datasets.MNIST | datasets.CIFAR10) -> ImagesInMemory:
    pixels: Tensor = torch.as_tensor(read.data)
    images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return ImagesInMemory(images.contiguous(), torch.as_tensor(read.targets, dtype=torch.int64))


def _open_folder(root: Path, size: int) -> OpenData:
    train, test = (datasets.ImageFolder(root / split) for split in ("train", "val"))
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(
            f"data='imagefolder': train and val in {root.absolute()} must hold the same class folders, "
            f"but only one of them holds {odd[0]!r}"
        )
    return OpenData(train=ImageFiles(train, size), test=ImageFiles(test, size), classes=len(train.classes))
