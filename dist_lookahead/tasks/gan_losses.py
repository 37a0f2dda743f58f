"""What the two players of a GAN minimise, from the discriminator's logits."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Adversarial:
    """A pair of losses, per image, of logits that are high for images taken for real.

    Args:
        real: of the discriminator on a real image.
        fake: of the discriminator on a generated image.
        generator: of the generator on an image that it makes.
    """

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def _low(logits: Tensor) -> Tensor:
    """log(1 + e^D): cross-entropy with the answer "generated"."""
    return functional.softplus(logits)


def _high(logits: Tensor) -> Tensor:
    """log(1 + e^-D): cross-entropy with the answer "real"."""
    return functional.softplus(-logits)


def _below_margin(logits: Tensor) -> Tensor:
    return functional.relu(1 + logits)


def _above_margin(logits: Tensor) -> Tensor:
    return functional.relu(1 - logits)


ADVERSARIAL = {
    "non_saturating": Adversarial(real=_high, fake=_low, generator=_high),
    "hinge": Adversarial(real=_above_margin, fake=_below_margin, generator=Tensor.neg),
}
"""By name: non_saturating, of Goodfellow et al. (arXiv 1406.2661); hinge, of arXiv 1705.02894."""
