"""What a model has generated, as a grid of images in one file."""

from pathlib import Path

from torch import Tensor
from torchvision.utils import save_image

MAGNIFIED = 32  # pixels of an image at least, where it has fewer


def write_grid(images: Tensor, file: Path) -> None:
    """Write images side by side, eight in a row; small ones magnified without smoothing.

    Args:
        images: (images, channels, height, width) in [0, 1].
        file: the PNG to write.
    """
    times = -(-MAGNIFIED // images.shape[-1])
    large = images.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_image(large, file, nrow=8, padding=2, pad_value=1.0)
