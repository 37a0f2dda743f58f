"""Random augmentation that is a pure function of (seed, epoch, index).

Nothing here reads or moves a global random generator: each sample brings its own 63 random bits. So a sample
looks the same in whatever batch, process or resumed run it is drawn.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn import functional


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Hash (seed, epoch, index) to 63 uniform bits, the same on every machine.

    Example:
        >>> sample_seed(0, 1, 2) == sample_seed(0, 1, 2), sample_seed(0, 1, 2) == sample_seed(0, 2, 1)
        (True, False)
    """
    digest = blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: a torch integer is signed


def crop_and_flip(images: Tensor, seeds: Sequence[int], *, padding: int = 4) -> Tensor:
    """Pad with zeros, cut out the old size at a random place, and mirror one half of the images.

    The augmentation that He et al. (arXiv 1512.03385, section 4.2) use for CIFAR. A whole batch is cut at
    once: this is several times as fast as one transform per image.

    Args:
        images: shape (batch, channels, height, width), any dtype.
        seeds: one number of 63 uniform bits per image, from `sample_seed`.
        padding: pixels added on each side, >= 0.

    Returns:
        A new tensor of the shape and dtype of `images`.
    """
    height, width = images.shape[-2:]
    # The places and the coin are the lowest digits of the seed, in base `places` twice and then in base 2.
    places = 2 * padding + 1
    digits = torch.tensor(seeds)
    top, left, mirrored = digits % places, digits // places % places, digits // places**2 % 2 == 1
    windows = functional.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view
    crops = windows[torch.arange(len(images)), :, top, left]
    return torch.where(mirrored[:, None, None, None], crops.flip(3), crops)
