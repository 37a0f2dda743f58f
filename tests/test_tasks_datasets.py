"""Data sets, embedded and on disk, the latter written here in the real formats and read through the task."""

import pickle
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets.cifar
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from dist_lookahead.tasks.datasets import DATA_SETS, open_data
from dist_lookahead.tasks.vision import VisionTask

ON_DISK = [name for name, facts in DATA_SETS.items() if facts.files]


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def write_idx(file: Path, array: np.ndarray) -> None:
    """Write MNIST's format: two zeros, the type (8: bytes), the number of dimensions, the sizes, the data."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    file.write_bytes(header + array.tobytes())


def write_mnist(root: Path, folder: str) -> None:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 20), ("t10k", 12)):
        write_idx(raw / f"{split}-images-idx3-ubyte", pixels(count, 28, 28))
        write_idx(raw / f"{split}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)


def write_cifar(root: Path, folder: str, batches: dict[str, int], labels: str, meta: dict[str, list[str]]) -> None:
    """Write pickled batches, one image per row of 3072 bytes: all of red, of green, of blue."""
    (root / folder).mkdir(parents=True)
    for name, count in batches.items():
        content = {"data": pixels(count, 3072), labels: [i % 10 for i in range(count)]}
        (root / folder / name).write_bytes(pickle.dumps(content))
    name = "batches.meta" if folder == "cifar-10-batches-py" else "meta"
    (root / folder / name).write_bytes(pickle.dumps(meta))


def write_folder(root: Path) -> None:
    """Write three classes of images, tall and wide, of several sizes, and one grey PNG for training."""
    for split, count in (("train", 2), ("val", 1)):
        for number, name in enumerate(("ant", "bee", "cat")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                size = (40 + 9 * i, 60) if number % 2 else (70, 50)
                image = Image.fromarray(pixels(*size, 3))
                image.save(root / split / name / f"{i}.jpg")
    Image.fromarray(pixels(44, 44)).save(root / "train" / "cat" / "grey.png")


def write(name: str, root: Path) -> None:
    match name:
        case "mnist":
            write_mnist(root, "MNIST")
        case "fashion_mnist":
            write_mnist(root, "FashionMNIST")
        case "cifar10":
            batches = {**{f"data_batch_{i}": 4 for i in range(1, 6)}, "test_batch": 12}
            write_cifar(root, "cifar-10-batches-py", batches, "labels", {"label_names": list("abcdefghij")})
        case "cifar100":
            fine = {"fine_label_names": [str(i) for i in range(100)]}
            write_cifar(root, "cifar-100-python", {"train": 20, "test": 12}, "fine_labels", fine)
        case "imagefolder":
            write_folder(root)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let made-up CIFAR files pass: torchvision compares them to the MD5 sums of the real ones."""
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).exists())


def small_task(name: str, root: Path, augment: bool | None = None, seed: int = 0) -> VisionTask:
    size = 32 if name == "imagefolder" else None
    return VisionTask(data=name, model="mlp", path=str(root), augment=augment, image_size=size, seed=seed)


def digits_of(batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Undo the normalisation of the digits, to their 17 shades."""
    images, labels = batch
    return (images * (0.3762 * 16) + 0.3058 * 16).round(), labels


def test_the_digits_are_split_without_overlap_and_by_class_to_within_one_image():
    """An image in both splits would make the accuracy a lie."""
    task = VisionTask(data="digits", model="mlp")
    train, train_labels = digits_of(task.train_batch([(0, i) for i in range(task.samples)]))
    test, test_labels = digits_of(task.test_batch(range(task.test_samples)))
    assert (len(train), len(test)) == (1437, 360)

    expected, _ = load_digits(return_X_y=True)
    together = torch.cat([train, test]).flatten(1).numpy()
    assert sorted(map(bytes, together.astype(np.uint8))) == sorted(map(bytes, expected.astype(np.uint8)))
    assert not {bytes(image) for image in together[:1437]} & {bytes(image) for image in together[1437:]}

    share = (torch.bincount(train_labels) + torch.bincount(test_labels)) / 5
    assert (torch.bincount(test_labels) - share).abs().max() < 1


def test_the_split_of_the_digits_never_changes():
    """Two runs can be compared only on the same split: here is the rule, worked out once more."""
    images, labels = load_digits(return_X_y=True)
    by_class = [index for digit in range(10) for index in np.flatnonzero(labels == digit)]
    held_out = sorted(by_class[::5])
    test, test_labels = digits_of(VisionTask(data="digits", model="mlp").test_batch(range(360)))
    assert np.array_equal(test.flatten(1).numpy(), images[held_out])
    assert np.array_equal(test_labels.numpy(), labels[held_out])


def test_the_digits_have_mean_0_and_standard_deviation_1():
    task = VisionTask(data="digits", model="mlp")
    images, _ = task.train_batch([(0, i) for i in range(task.samples)])
    assert images.mean().abs() < 1e-3
    assert (images.std() - 1).abs() < 1e-3


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_are_read_as_written(name: str, tmp_path: Path):
    """Train and test exchanged, or labels shifted against images, would train all the same."""
    write(name, tmp_path)
    opened = open_data(name, path=str(tmp_path), download=False, size=28)
    assert opened.classes == 10
    for split, count in ((opened.train, 20), (opened.test, 12)):
        images, labels = split.take(range(count))
        assert len(split) == count
        assert torch.equal(images, torch.from_numpy(pixels(count, 28, 28)).unsqueeze(1))
        assert labels.tolist() == [i % 10 for i in range(count)]


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
@pytest.mark.usefixtures("unchecked")
def test_cifar_batches_are_read_as_written(name: str, classes: int, tmp_path: Path):
    """Channels last where channels first are meant would give images of the right shape and no sense."""
    write(name, tmp_path)
    opened = open_data(name, path=str(tmp_path), download=False, size=32)
    assert (opened.classes, len(opened.train), len(opened.test)) == (classes, 20, 12)
    images, labels = opened.test.take(range(12))
    assert torch.equal(images, torch.from_numpy(pixels(12, 3072)).reshape(12, 3, 32, 32))
    assert labels.tolist() == [i % 10 for i in range(12)]
    first, _ = opened.train.take([0])
    expected = pixels(4 if name == "cifar10" else 20, 3072)[0]
    assert torch.equal(first.flatten(), torch.from_numpy(expected))


def test_an_image_folder_gives_one_size_of_colour_images_and_classes_in_order(tmp_path: Path):
    write("imagefolder", tmp_path)
    task = small_task("imagefolder", tmp_path)
    assert (task.samples, task.test_samples) == (7, 3)
    images, labels = task.train_batch([(0, i) for i in range(7)])
    assert images.shape == (7, 3, 32, 32)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert task.test_batch([2, 0])[1].tolist() == [2, 0]


def test_the_centre_of_a_plain_image_is_kept_upright(tmp_path: Path):
    """The centre of the image is white and must stay so, its rim black: no random crop, no shift."""
    for split in ("train", "val"):
        canvas = np.zeros((72, 72, 3), dtype=np.uint8)
        canvas[18:54, 18:54] = 255
        (tmp_path / split / "only").mkdir(parents=True)
        Image.fromarray(canvas).save(tmp_path / split / "only" / "square.png")
    opened = open_data("imagefolder", path=str(tmp_path), download=False, size=32)
    for split in (opened.train, opened.test):
        image = split.take([0])[0][0]
        assert (image[:, 12:20, 12:20] == 255).all()
        assert (image[:, :4] == 0).all()


@pytest.mark.parametrize("name", ON_DISK)
@pytest.mark.usefixtures("unchecked")
def test_a_training_sample_is_a_pure_function_of_its_key(name: str, tmp_path: Path):
    """Exact resume and equal data for any number of loader processes rest on this."""
    write(name, tmp_path)
    task = small_task(name, tmp_path)
    keys = [(epoch, index) for epoch in (0, 5) for index in range(7)]
    images, labels = task.train_batch(keys)

    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(1)).tolist()
    mixed_images, mixed_labels = task.train_batch([keys[i] for i in order])
    assert torch.equal(mixed_images, images[order])
    assert torch.equal(mixed_labels, labels[order])

    copy = pickle.loads(pickle.dumps(task))
    alone = [copy.train_batch([key]) for key in keys]
    assert torch.equal(torch.cat([image for image, _ in alone]), images)
    assert torch.equal(torch.cat([label for _, label in alone]), labels)


@pytest.mark.parametrize("name", ON_DISK)
@pytest.mark.usefixtures("unchecked")
def test_augmentation_differs_between_epochs_and_seeds_where_it_is_standard(name: str, tmp_path: Path):
    """The same crops in every epoch would be no augmentation; test images must have none."""
    write(name, tmp_path)
    task = small_task(name, tmp_path)
    first, second = (task.train_batch([(epoch, index) for index in range(7)])[0] for epoch in (0, 1))
    other, _ = small_task(name, tmp_path, seed=1).train_batch([(0, index) for index in range(7)])
    augmented = DATA_SETS[name].augmented
    assert torch.equal(first, second) != augmented
    assert torch.equal(first, other) != augmented
    assert torch.equal(task.test_batch([0, 1])[0], task.test_batch([0, 1])[0])

    plain = small_task(name, tmp_path, augment=False)
    first, second = (plain.train_batch([(epoch, index) for index in range(7)])[0] for epoch in (0, 1))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ON_DISK)
def test_a_missing_file_is_named_with_the_place_and_the_remedy(name: str, tmp_path: Path):
    write(name, tmp_path)
    missing = DATA_SETS[name].files[-1]
    if (tmp_path / missing).is_dir():
        shutil.rmtree(tmp_path / missing)
    else:
        (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=re.escape(f"{missing} is missing in {tmp_path}")) as caught:
        small_task(name, tmp_path)
    assert f"data={name!r}" in str(caught.value)
    assert "Set path to the folder that holds it" in str(caught.value)
    assert ("download: true" in str(caught.value)) == (name != "imagefolder")


def test_of_many_missing_files_the_first_is_named_and_the_others_counted(tmp_path: Path):
    with pytest.raises(ValueError, match=r"data_batch_1 is missing \(and 6 more\) in "):
        small_task("cifar10", tmp_path)


def test_a_damaged_download_is_refused(tmp_path: Path):
    """An interrupted download has all its files, but not their sums."""
    write("cifar10", tmp_path)
    with pytest.raises(ValueError, match=r"data='cifar10' could not be read .*corrupted"):
        small_task("cifar10", tmp_path)


def test_class_folders_that_differ_between_train_and_val_are_refused(tmp_path: Path):
    """torchvision numbers the classes of each split by themselves: the labels would not mean the same."""
    write("imagefolder", tmp_path)
    shutil.rmtree(tmp_path / "val" / "bee")
    with pytest.raises(ValueError, match=r"must hold the same class folders.*'bee'"):
        small_task("imagefolder", tmp_path)


def test_an_empty_image_folder_is_refused(tmp_path: Path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    with pytest.raises(ValueError, match=r"data='imagefolder' could not be read .*class folder"):
        small_task("imagefolder", tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar", {}, "data='cifar' is unknown; did you mean 'cifar10'.* Allowed: digits, mnist, "),
        ("digits", {"path": "."}, "ships inside this package: remove path"),
        ("digits", {"download": True}, "ships inside this package: remove path and download"),
        ("mnist", {}, "data='mnist' needs path: the folder that holds .* MNIST/raw/train-images-idx3-ubyte"),
        ("mnist", {"download": True}, "data='mnist' needs path"),
        ("imagefolder", {"path": ".", "download": True}, "cannot be downloaded: remove download"),
    ],
)
def test_settings_that_do_not_fit_the_data_set_are_refused(name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        VisionTask(data=name, model="mlp", **options)
