"""The vision task: its loss and sums, the random generators it leaves alone, and that it can be learned."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from dist_lookahead.tasks import Task
from dist_lookahead.tasks.vision import VisionTask


def keys(count: int, epoch: int = 0) -> list[tuple[int, int]]:
    return [(epoch, index) for index in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an image folder of two classes with two images each: the data that draw most random numbers."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("left", "right"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                image = Image.fromarray(generator.integers(0, 256, (48, 40, 3), dtype=np.uint8))
                image.save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_global_random_generators_are_left_as_they_were(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Dropout would otherwise repeat itself at every step; on the GPU too, if torch.manual_seed were used."""

    def refuse(seed: int) -> None:
        raise AssertionError("the generators of the GPUs were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    task = VisionTask(data="imagefolder", model="mlp", path=str(folder), image_size=16)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 the global one is meant
    task.train_batch(keys(4))
    task.test_batch([0, 1])
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 the global one is meant
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert str(before[2]) == str(after[2])


def test_the_global_generator_does_not_change_the_augmentation(folder: Path):
    task = VisionTask(data="imagefolder", model="mlp", path=str(folder), image_size=16)
    torch.manual_seed(1)
    first, _ = task.train_batch(keys(4))
    torch.manual_seed(2)
    second, _ = task.train_batch(keys(4))
    assert torch.equal(first, second)


def test_label_smoothing_acts_on_the_training_loss_alone():
    """The reported loss must be comparable between runs with and without it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    plain, smooth = (VisionTask(data="digits", model="mlp", label_smoothing=s) for s in (0.0, 0.2))
    batch = plain.train_batch(keys(16))
    logits = model(batch[0])
    log_probabilities = logits.log_softmax(1)
    expected = -0.8 * log_probabilities[range(16), batch[1]] - 0.2 * log_probabilities.mean(1)
    torch.testing.assert_close(smooth.loss(model, batch), expected.mean())
    torch.testing.assert_close(plain.loss(model, batch), functional.cross_entropy(logits, batch[1]))
    assert smooth.evaluate(model, batch) == plain.evaluate(model, batch)


def test_sums_over_unequal_batches_give_the_metrics_of_all_samples():
    """Means of means would be wrong by the last, smaller batch."""
    task: Task = VisionTask(data="digits", model="cnn", width=4)
    torch.manual_seed(0)
    model = task.model().eval()
    total = {"samples": 0.0, "loss": 0.0, "correct": 0.0}
    for start, stop in ((0, 200), (200, 353), (353, 360)):
        sums = task.evaluate(model, task.test_batch(range(start, stop)))
        total = {name: total[name] + value for name, value in sums.items()}

    images, labels = task.test_batch(range(task.test_samples))
    logits = model(images)
    assert total["samples"] == 360
    assert total["correct"] == sum(int(row.argmax() == label) for row, label in zip(logits, labels, strict=True))
    report = task.report(total)
    assert report["accuracy"] == total["correct"] / 360
    assert report["loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_evaluation_builds_no_graph_and_leaves_the_model_as_it_is():
    """The caller chooses the mode; a task that switched it would spoil BatchNorm's statistics or dropout."""
    task = VisionTask(data="digits", model="cnn", width=4)
    model = task.model()
    seen: list[bool] = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    for mode in (True, False):
        model.train(mode)
        task.evaluate(model, task.test_batch(range(8)))
        assert model.training == mode
    assert seen == [False, False]
    assert task.loss(model, task.train_batch(keys(8))).requires_grad


def test_reading_a_batch_leaves_the_data_unchanged():
    """Normalisation works in place, on a copy."""
    task = VisionTask(data="digits", model="mlp")
    first, second = task.train_batch(keys(8))[0], task.train_batch(keys(8))[0]
    assert torch.equal(first, second)
    first.zero_()
    assert torch.equal(task.train_batch(keys(8))[0], second)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_plain_sgd_learns_the_digits(model: str):
    """Wrong labels, a dead layer or a wrong sign of the loss would end near 10 %."""
    task = VisionTask(data="digits", model=model)
    torch.manual_seed(0)
    network = task.model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for epoch in range(4):
        for indices in torch.randperm(task.samples).split(32):
            optimizer.zero_grad()
            task.loss(network, task.train_batch([(epoch, index) for index in indices.tolist()])).backward()
            optimizer.step()
    sums = task.evaluate(network.eval(), task.test_batch(range(task.test_samples)))
    assert task.report(sums)["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "mpl"}, "model='mpl' is unknown; did you mean 'mlp'"),
        ({"model": "resnet18"}, "takes images of 3 channels, not 1"),
        ({"augment": True}, "data='digits' has no standard augmentation; remove augment"),
        ({"image_size": 16}, "image_size=16 has no effect on data='digits'"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0 must be in \[0, 1\)"),
        ({"data": "imagefolder", "image_size": 0, "path": "."}, "image_size=0 must be at least 1"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused_before_data_are_read(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        VisionTask(**{"data": "digits", "model": "mlp", **options})
