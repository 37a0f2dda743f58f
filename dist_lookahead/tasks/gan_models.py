"""Generators and discriminators of DCGAN's kind (arXiv 1511.06434), for images of 8, 28 and 32 pixels."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

STAGES = {8: 2, 28: 2, 32: 3}
"""By the size of the images: how often the generator doubles it, and the discriminator halves it."""

STD = 0.02  # of all initial weights, as in DCGAN


class Players(nn.Module):
    """A generator and a discriminator; as a function, the generator alone.

    Args:
        generator: latent noise (batch, latent) to images (batch, channels, size, size) in [-1, 1].
        discriminator: such images to logits (batch,), high for real ones.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator

    def forward(self, latents: Tensor) -> Tensor:
        """Return the images that the generator makes."""
        return self.generator(latents)


def build_players(*, channels: int, size: int, latent: int, width: int, spectral: bool) -> Players:
    """Build both players, all weights from N(0, 0.02^2), those of BatchNorm from N(1, 0.02^2).

    Args:
        channels: of the images.
        size: height and width of the images, one of `STAGES`.
        latent: numbers of noise, >= 1.
        width: channels at half the size of the images, >= 1; twice as many at a quarter of it, and so on.
        spectral: divide each weight of the discriminator by its largest singular value (arXiv 1802.05957), in place of
            BatchNorm.

    Example:
        >>> import torch
        >>> players = build_players(channels=1, size=28, latent=16, width=4, spectral=False)
        >>> images = players(torch.zeros(2, 16))
        >>> images.shape, players.discriminator(images).shape
        (torch.Size([2, 1, 28, 28]), torch.Size([2]))
    """
    widths = [width * 2**stage for stage in range(STAGES[size])]
    smallest = size // 2 ** STAGES[size]
    players = Players(
        _generator(channels, smallest, latent, widths[::-1]), _discriminator(channels, smallest, widths, spectral)
    )
    for module in players.modules():
        _initialise(module)
    if spectral:  # last: the first estimate of the singular values is of the weights that are there
        for module in [m for m in players.discriminator.modules() if isinstance(m, nn.Conv2d)]:
            spectral_norm(module)
    return players


def _generator(channels: int, smallest: int, latent: int, widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Unflatten(1, (latent, 1, 1)),
        nn.ConvTranspose2d(latent, widths[0], smallest, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(inplace=True),
    ]
    for inputs, outputs in pairwise(widths):
        layers += [
            nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1), nn.Tanh())


def _discriminator(channels: int, smallest: int, widths: list[int], spectral: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for inputs, outputs in pairwise(widths):
        layers.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=spectral))
        layers += [] if spectral else [nn.BatchNorm2d(outputs)]
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, smallest), nn.Flatten(0))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, STD)
        nn.init.zeros_(module.bias)
