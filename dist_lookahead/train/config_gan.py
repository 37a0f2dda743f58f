"""The sections `images` and `gan`: what is imitated, and the two players of the game."""

from collections.abc import Callable, Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from dist_lookahead.averaging.push_sum import PushSum
from dist_lookahead.tasks.gan import GAN_DATA
from dist_lookahead.train.config_faults import Faults
from dist_lookahead.train.config_inner import Inner
from dist_lookahead.train.config_levels import Levels
from dist_lookahead.train.config_sections import SAMPLES, Performance, Precision, Section, one_of, place_faults


class Images(Section):
    """What is imitated."""

    name: Annotated[str, one_of(GAN_DATA)] = "digits"
    """Data set: digits (8 x 8, in this package), mnist, fashion_mnist, cifar10 or cifar100."""
    path: str | None = None
    """Folder that holds the files, in torchvision's layout; digits have none."""
    download: bool = False
    """Fetch missing files into `path`."""
    batch_size: int = Field(ge=1)
    """Real images per agent and fast step, in equal parts for the updates: d_steps of them, or 2 if extragradient."""
    judge_dir: str | None = None
    """Folder that keeps the classifier by which samples are judged; null trains it anew, the same each time."""

    # How it is fed: the images lie in memory, and a batch is an indexing.
    workers: ClassVar[int] = 0
    pin_memory: ClassVar[bool] = False

    @property
    def samples(self) -> int | None:
        """Training images."""
        return SAMPLES[self.name]

    @model_validator(mode="after")
    def _is_where_it_says(self) -> "Images":
        if faults := place_faults("images", self.name, self.path, download=self.download):
            raise Faults(faults)
        return self


class Gan(Section):
    """Generator and discriminator, of DCGAN's kind."""

    latent: int = Field(default=100, ge=1)
    """Numbers of noise that an image is made of."""
    width: int = Field(default=64, ge=1)
    """Channels at half the image size; twice as many at a quarter of it, and so on."""
    loss: Literal["non_saturating", "hinge"] = "non_saturating"
    """What the players minimise."""
    spectral_norm: bool = False
    """Divide the discriminator's weights by their largest singular value, in place of BatchNorm."""
    step: Literal["alternating", "extragradient"] = "alternating"
    """alternating: the discriminator, then the generator; extragradient: both, along gradients one step ahead."""
    d_steps: int = Field(default=1, ge=1)
    """Updates of the discriminator in each fast step, before that of the generator."""

    @model_validator(mode="after")
    def _takes_turns(self) -> "Gan":
        if self.step == "extragradient" and self.d_steps > 1:
            raise Faults([f"gan.d_steps={self.d_steps} has no effect on step='extragradient': remove it"])
        return self


def _divided(images: Images, gan: Gan) -> Iterator[str]:
    extra = gan.step == "extragradient"
    parts, what = (2, "gan.step='extragradient'") if extra else (gan.d_steps, f"gan.d_steps={gan.d_steps}")
    if images.batch_size % parts:
        yield f"images.batch_size={images.batch_size} must be a multiple of {parts}, the parts of {what}"


def _one_player_at_a_time(gan: Gan, inner: Inner, precision: Precision, performance: Performance) -> Iterator[str]:
    if inner.data_parallel != "none":
        yield (
            f"inner.data_parallel={inner.data_parallel!r} averages the gradients of one backward pass, but a fast "
            "step of a GAN has several, each for one player: use none, and levels with mix: exact"
        )
    if inner.clip_norm is not None:
        yield f"inner.clip_norm={inner.clip_norm:g}: a GAN's fast step has several updates, none clipped: remove it"
    if precision == "fp16":
        yield "precision='fp16' scales the loss of one backward pass per fast step; a GAN has several: use bf16 or fp32"
    if performance.compile:
        yield "performance.compile=true has no effect on a GAN, whose players are called one by one: remove it"


def _levels_know_no_loss(gan: Gan, levels: Levels) -> Iterator[str]:
    for index, level in enumerate(levels.stack):
        if level.move.searches:
            yield f"levels[{index}]: alpha: optimal descends on one loss, and a GAN has two: give a number"
        if isinstance(level.mix, PushSum):
            yield (
                f"levels[{index}].mix: push_sum holds the weights times their mass within a fast step, between whose "
                "updates a GAN computes gradients: use gossip or exact"
            )


GAN_PAIRS: tuple[Callable[..., Iterator[str]], ...] = (_divided, _one_player_at_a_time, _levels_know_no_loss)
