"""Generative adversarial networks: two players, pulled together by one stack."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from dist_lookahead.tasks.choice import unknown_name
from dist_lookahead.tasks.datasets import DATA_SETS, image_facts, open_data
from dist_lookahead.tasks.gan_losses import ADVERSARIAL
from dist_lookahead.tasks.gan_models import STAGES, Players, build_players
from dist_lookahead.tasks.images import ImagesInMemory
from dist_lookahead.tasks.judge import judge_of, scaled
from dist_lookahead.tasks.sample_quality import quality_measures, quality_report, quality_sums
from dist_lookahead.tasks.task import Batch, Key, Losses, Order, Update

GAN_DATA = tuple(name for name, facts in DATA_SETS.items() if facts.size in STAGES)
"""The data sets whose images the networks fit."""

FAST_STEPS = ("alternating", "extragradient")
SHOWN = 64  # images that are drawn


class GanTask:
    """Generate images like those of a data set; a generator G against a discriminator D. A `Game`.

    One fast step is, for a batch of real images x in equal parts and fresh latents z ~ N(0, I),

        alternating:    d_steps updates of D, one for each part, then one of G
        extragradient:  both players at once: gradients on the second part, where a step on the first one leads to

    with the losses (arXiv 1406.2661, 1705.02894)

        non_saturating:  D: mean log(1 + e^-D(x)) + mean log(1 + e^D(G(z))),    G: mean log(1 + e^-D(G(z)))
        hinge:           D: mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z))),   G: - mean D(G(z))

    Levels count fast steps, that is updates of the generator, and pull both players together.

    A training batch is real images, float32 in [-1, 1]. A test batch is real images, their classes and one fixed latent
    for each, so that what is measured depends on the weights alone.

    Args:
        data: name of the data set: digits, mnist, fashion_mnist, cifar10 or cifar100.
        path: the folder that holds the data, in torchvision's layout. Only digits have none.
        download: fetch missing files into `path`.
        latent: numbers of noise that an image is made of, >= 1.
        width: channels of the layers at half the image size, >= 1.
        loss: "non_saturating" or "hinge".
        spectral_norm: divide the discriminator's weights by their largest singular value, in place of BatchNorm.
        step: "alternating" or "extragradient" (arXiv 1802.10551).
        d_steps: updates of the discriminator before each of the generator, >= 1; for alternating steps.
        judge_dir: folder that keeps the classifier by which images are judged; None trains it anew, the same each time.
        seed: of the latents of test batches.

    Raises:
        ValueError: a name is unknown, an option is out of range or has no effect here, or a file is missing.

    Example:
        >>> task = GanTask(data="digits", width=8, latent=16)
        >>> players = task.model()
        >>> (images,) = task.train_batch([(0, 3), (0, 5)])
        >>> images.shape, [tuple(update.losses) for update in task.updates(players, (images,))]
        (torch.Size([2, 1, 8, 8]), [('discriminator',), ('generator',)])

    Reference: arXiv 1511.06434; pulled together: arXiv 2006.14567.
    """

    def __init__(
        self,
        *,
        data: str,
        path: str | None = None,
        download: bool = False,
        latent: int = 100,
        width: int = 64,
        loss: str = "non_saturating",
        spectral_norm: bool = False,
        step: str = "alternating",
        d_steps: int = 1,
        judge_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        for what, given, allowed in (("data", data, GAN_DATA), ("loss", loss, ADVERSARIAL), ("step", step, FAST_STEPS)):
            if given not in allowed:
                raise unknown_name(what, given, allowed)
        for name, value in (("latent", latent), ("width", width), ("d_steps", d_steps)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if step == "extragradient" and d_steps > 1:
            raise ValueError(f"d_steps={d_steps} has no effect on step='extragradient': remove it")
        self._facts = image_facts(data)
        self._data = open_data(data, path=path, download=download, size=self._facts.size)
        self._latent, self._width, self._spectral = latent, width, spectral_norm
        self._adversarial, self._step, self._d_steps, self._seed = ADVERSARIAL[loss], step, d_steps, seed
        assert isinstance(self._data.train, ImagesInMemory)
        self._judge = judge_of(self._data.train, self._data.classes, white=self._facts.white, folder=judge_dir)

    @property
    def samples(self) -> int:
        """Number of training images."""
        return len(self._data.train)

    @property
    def test_samples(self) -> int:
        """Number of test images, and of those that are generated to be measured."""
        return len(self._data.test)

    @property
    def order(self) -> Order:
        """How an epoch's images follow each other: in a new order each epoch."""
        return "shuffled"

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the sums that `evaluate` returns."""
        return ("samples", "discriminator_loss", "generator_loss", *quality_measures(self._data.classes))

    def model(self) -> nn.Module:
        """Build both players on the CPU, initialised from torch's global generator."""
        return build_players(
            channels=self._facts.channels,
            size=self._facts.size,
            latent=self._latent,
            width=self._width,
            spectral=self._spectral,
        )

    def train_batch(self, keys: Sequence[Key]) -> Batch:
        """Read real images."""
        images, _ = self._data.train.take([index for _, index in keys])
        return (scaled(images, self._facts.white),)

    def test_batch(self, indices: Sequence[int]) -> Batch:
        """Read real images and classes, and draw the latents of generated ones by (seed, index)."""
        images, labels = self._data.test.take(indices)
        return scaled(images, self._facts.white), labels, self._latents(indices)

    def updates(self, model: nn.Module, batch: Batch) -> Sequence[Update]:
        """Return the updates of one fast step.

        Raises:
            ValueError: the batch cannot be divided into equal parts.
        """
        assert isinstance(model, Players)
        parts = [self._losses(model, part) for part in self._parts(batch[0])]
        if self._step == "extragradient":
            ahead, there = parts
            return [Update(there, extrapolation=ahead)]
        discriminator = [Update({"discriminator": losses["discriminator"]}) for losses in parts]
        return [*discriminator, Update({"generator": parts[-1]["generator"]})]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Return the number of samples, both players' losses, and the sums of `sample_quality`."""
        assert isinstance(model, Players)
        images, labels, latents = batch
        generated = model(latents).float()
        real, fake = (model.discriminator(x).double() for x in (images, generated))
        rule = self._adversarial
        return {
            "samples": float(len(images)),
            "discriminator_loss": (rule.real(real) + rule.fake(fake)).sum().item(),
            "generator_loss": rule.generator(fake).sum().item(),
            # On the CPU, wherever the players are: the judge is the same everywhere.
            **quality_sums(self._judge, generated.cpu(), images.cpu(), labels.cpu()),
        }

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the mean losses, "loss" being their sum, and the measures of `sample_quality`."""
        discriminator, generator = (sums[f"{name}_loss"] / sums["samples"] for name in ("discriminator", "generator"))
        losses = {"discriminator_loss": discriminator, "generator_loss": generator}
        return {"loss": discriminator + generator, **losses, **quality_report(sums)}

    @torch.no_grad()
    def pictures(self, model: nn.Module) -> Tensor:
        """Return what the generator makes of the first 64 latents of the test."""
        latents = self._latents(range(SHOWN)).to(next(model.parameters()).device)
        return model(latents).float().cpu().add(1).div(2)

    def _parts(self, images: Tensor) -> Sequence[Tensor]:
        count = 2 if self._step == "extragradient" else self._d_steps
        if len(images) % count:
            raise ValueError(f"a batch of {len(images)} images cannot be divided into {count} equal parts")
        return images.chunk(count)

    def _losses(self, model: Players, images: Tensor) -> Losses:
        return {
            "discriminator": partial(self._discriminator_loss, model, images),
            "generator": partial(self._generator_loss, model, images),
        }

    def _discriminator_loss(self, model: Players, images: Tensor) -> Tensor:
        with torch.no_grad():
            generated = model(self._noise(images))
        rule = self._adversarial
        # In float32, also under autocast: the mean of a batch in bf16 would have three digits.
        real, fake = (model.discriminator(x).float() for x in (images, generated))
        return rule.real(real).mean() + rule.fake(fake).mean()

    def _generator_loss(self, model: Players, images: Tensor) -> Tensor:
        """On as many images as there are real ones in a part."""
        return self._adversarial.generator(model.discriminator(model(self._noise(images))).float()).mean()

    def _noise(self, images: Tensor) -> Tensor:
        return torch.randn(len(images), self._latent, device=images.device)

    def _latents(self, indices: Sequence[int]) -> Tensor:
        rows = [np.random.default_rng((self._seed, index)).standard_normal(self._latent) for index in indices]
        return torch.from_numpy(np.stack(rows)).float()
