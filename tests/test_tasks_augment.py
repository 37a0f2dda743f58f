"""Augmentation that depends on (seed, epoch, index) alone."""

import torch
from torchvision.transforms.v2 import functional

from dist_lookahead.tasks.augment import crop_and_flip, sample_seed

PLACES = 9  # with a padding of 4 on each side
OUTCOMES = PLACES * PLACES * 2


def images(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def test_a_sample_seed_is_the_same_on_every_machine_and_in_every_version():
    """Otherwise a run resumed elsewhere would see other images: these numbers must never change."""
    assert sample_seed(0, 0, 0) == 3882903725285577553
    assert sample_seed(7, 3, 49_999) == 4600127399113826949


def test_seed_epoch_and_index_all_count_and_do_not_run_together():
    keys = [(seed, epoch, index) for seed in range(12) for epoch in range(12) for index in range(12)]
    seeds = {sample_seed(*key) for key in keys}
    assert len(seeds) == len(keys)  # "1" + "11" and "11" + "1" among them
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_outcome_equals_torchvisions_pad_crop_and_flip():
    """The batched cut must be the standard augmentation, for each of its 162 outcomes."""
    batch = images(1).expand(OUTCOMES, -1, -1, -1)
    expected = []
    for outcome in range(OUTCOMES):
        top, left, mirrored = outcome % PLACES, outcome // PLACES % PLACES, outcome >= PLACES**2
        crop = functional.crop(functional.pad(batch[outcome], [4]), top, left, 32, 32)
        expected.append(functional.horizontal_flip(crop) if mirrored else crop)
    result = crop_and_flip(batch, range(OUTCOMES))
    assert result.dtype == torch.uint8
    assert torch.equal(result, torch.stack(expected))
    assert len({image.numpy().tobytes() for image in result}) == OUTCOMES


def test_images_that_are_not_square_keep_their_shape():
    """Height and width exchanged would go unnoticed on square images."""
    tall = images(1)[:, :, :, :20]
    assert torch.equal(crop_and_flip(tall, [4 + 4 * PLACES]), tall)  # the middle place, not mirrored
    assert crop_and_flip(tall, [0]).shape == tall.shape


def test_all_outcomes_are_equally_frequent_over_the_samples_of_an_epoch():
    """A poor hash would favour some places; 5 standard deviations of a fair one are allowed."""
    draws = 50_000
    seeds = torch.tensor([sample_seed(0, 1, index) for index in range(draws)])
    counts = torch.bincount(seeds % OUTCOMES, minlength=OUTCOMES).double()
    mean = draws / OUTCOMES
    assert (counts - mean).abs().max() < 5 * mean**0.5


def test_the_input_is_left_as_it_was():
    """The batch may be a view of the data set itself."""
    batch = images(4)
    before = batch.clone()
    crop_and_flip(batch, [sample_seed(0, 0, index) for index in range(4)])
    assert torch.equal(batch, before)
