"""The GAN task: losses and networks by hand, measures that add up, and a judge that is always the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from dist_lookahead.tasks import Game, Minimisation, Pictured
from dist_lookahead.tasks.datasets import open_data
from dist_lookahead.tasks.gan import GAN_DATA, GanTask
from dist_lookahead.tasks.gan_losses import ADVERSARIAL
from dist_lookahead.tasks.gan_models import Players, build_players
from dist_lookahead.tasks.images import ImagesInMemory
from dist_lookahead.tasks.judge import FEATURES, judge_of
from dist_lookahead.tasks.sample_quality import frechet_distance
from dist_lookahead.tasks.vision import VisionTask

LOGITS = torch.tensor([-3.0, -0.4, 0.2, 2.5], dtype=torch.float64)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the judge of the digits is kept: it is trained once."""
    return str(tmp_path_factory.mktemp("judge"))


def build(kept: str, **options) -> GanTask:
    return GanTask(data="digits", judge_dir=kept, **{"width": 4, "latent": 5, **options})


def players(task: GanTask) -> Players:
    torch.manual_seed(0)
    model = task.model()
    assert isinstance(model, Players)
    return model


def test_a_task_either_minimises_or_is_a_game(kept: str) -> None:
    """The agent asks which; a task that were both would be trained in two ways."""
    gan, vision = build(kept), VisionTask(data="digits", model="mlp")
    assert [isinstance(gan, kind) for kind in (Game, Minimisation, Pictured)] == [True, False, True]
    assert [isinstance(vision, kind) for kind in (Game, Minimisation, Pictured)] == [False, True, False]


def test_the_non_saturating_loss_is_the_cross_entropy_of_telling_real_from_generated() -> None:
    loss, ones = ADVERSARIAL["non_saturating"], torch.ones_like(LOGITS)
    entropy = functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(loss.real(LOGITS).mean(), entropy(LOGITS, ones))
    torch.testing.assert_close(loss.fake(LOGITS).mean(), entropy(LOGITS, 0 * ones))
    torch.testing.assert_close(loss.generator(LOGITS).mean(), entropy(LOGITS, ones))


def test_the_hinge_loss_asks_for_a_margin_of_one() -> None:
    loss = ADVERSARIAL["hinge"]
    assert loss.real(LOGITS).tolist() == pytest.approx([4.0, 1.4, 0.8, 0.0])
    assert loss.fake(LOGITS).tolist() == pytest.approx([0.0, 0.6, 1.2, 3.5])
    assert loss.generator(LOGITS).tolist() == (-LOGITS).tolist()


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("spectral", [False, True])
def test_players_fit_the_images_and_begin_small(size: int, spectral: bool) -> None:
    torch.manual_seed(0)
    model = build_players(channels=3, size=size, latent=7, width=16, spectral=spectral)
    images = model(torch.randn(6, 7))
    assert images.shape == (6, 3, size, size)
    assert model.discriminator(images).shape == (6,)
    convolutions = [m for m in model.generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [m.weight.std().item() for m in convolutions] == pytest.approx([0.02] * len(convolutions), rel=0.1)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.discriminator.modules()) != spectral


def test_spectral_norm_bounds_every_weight_of_the_discriminator_and_none_of_the_generator() -> None:
    torch.manual_seed(0)
    model = build_players(channels=1, size=28, latent=7, width=8, spectral=True)
    for _ in range(50):  # each call in training refines the estimate by one step
        model.discriminator(torch.randn(4, 1, 28, 28))
    normed = [m for m in model.discriminator.modules() if isinstance(m, nn.Conv2d)]
    largest = [torch.linalg.matrix_norm(m.weight.flatten(1), 2).item() for m in normed]
    assert largest == pytest.approx([1.0] * 3, rel=0.02)
    assert not any(parametrize.is_parametrized(m) for m in model.generator.modules())


@pytest.mark.parametrize("loss", list(ADVERSARIAL))
@pytest.mark.parametrize("step", ["alternating", "extragradient"])
def test_losses_are_those_of_the_two_players(loss: str, step: str, kept: str) -> None:
    """A discriminator that were asked for the wrong side would teach the generator the opposite."""
    task = build(kept, loss=loss, step=step)
    model = players(task).eval()
    (images,) = task.train_batch([(0, index) for index in range(8)])
    update = task.updates(model, (images,))
    losses = update[0].losses if step == "extragradient" else {**update[0].losses, **update[1].losses}
    part = images.chunk(2)[1] if step == "extragradient" else images
    rule = ADVERSARIAL[loss]

    def noise() -> torch.Tensor:
        torch.manual_seed(1)
        return torch.randn(len(part), 5)

    fake = model.discriminator(model(noise()))
    expected = rule.real(model.discriminator(part)).mean() + rule.fake(fake).mean()
    torch.manual_seed(1)
    torch.testing.assert_close(losses["discriminator"](), expected)
    torch.manual_seed(1)
    torch.testing.assert_close(losses["generator"](), rule.generator(fake).mean())


def test_losses_keep_their_digits_under_autocast(kept: str) -> None:
    """What the networks compute in bf16 has eight bits; a mean that is rounded to as many hides what a step changes."""
    task = build(kept, loss="hinge")
    (images,) = task.train_batch([(0, index) for index in range(8)])
    for update in task.updates(players(task), (images,)):
        for loss in update.losses.values():
            with torch.autocast("cpu", torch.bfloat16):
                assert loss().dtype == torch.float32


def test_each_update_of_the_discriminator_sees_real_images_of_its_own(kept: str) -> None:
    task = build(kept, d_steps=3)
    model = players(task)
    (images,) = task.train_batch([(0, index) for index in range(12)])
    seen: list[torch.Tensor] = []
    model.discriminator.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    *discriminator, generator = task.updates(model, (images,))
    for update in discriminator:
        update.losses["discriminator"]()
    assert list(generator.losses) == ["generator"]
    assert torch.equal(torch.cat(seen[::2]), images), "real and generated batches take turns"
    with pytest.raises(ValueError, match="a batch of 11 images cannot be divided into 3 equal parts"):
        task.updates(model, (images[:11],))


def test_measures_add_up_over_batches_and_name_every_sum(kept: str) -> None:
    """Agents sum unequal shares, and those without any contribute zeros under the same names."""
    task = build(kept)
    model = players(task).eval()
    whole = task.evaluate(model, task.test_batch(range(360)))
    parts = [
        task.evaluate(model, task.test_batch(range(start, stop))) for start, stop in ((0, 7), (7, 200), (200, 360))
    ]
    assert tuple(whole) == task.measures
    for name, value in whole.items():
        assert sum(part[name] for part in parts) == pytest.approx(value, rel=1e-5, abs=1e-4), name
    assert sum(whole[f"class_{c}"] for c in range(10)) == whole["samples"] == 360


def test_the_report_is_what_the_images_say_directly(kept: str) -> None:
    task = build(kept)
    model = players(task).eval()
    images, labels, latents = task.test_batch(range(360))
    report = task.report(task.evaluate(model, (images, labels, latents)))
    data = open_data("digits", path=None, download=False, size=8)
    assert isinstance(data.train, ImagesInMemory)
    judge = judge_of(data.train, 10, white=16, folder=kept)
    with torch.no_grad():
        generated = model(latents)
        (f, logits), (g, real_logits) = judge(generated), judge(images)
    shares = np.bincount(logits.argmax(1).numpy(), minlength=10) / 360
    some = shares[shares > 0]
    assert report["coverage"] == (shares >= 0.01).sum()
    assert report["entropy"] == pytest.approx(-(some * np.log(some)).sum() / np.log(10), abs=1e-12)
    assert report["confidence"] == pytest.approx(logits.softmax(1).amax(1).mean().item(), rel=1e-5)
    assert report["judge_accuracy"] == pytest.approx((real_logits.argmax(1) == labels).double().mean().item())
    assert report["frechet"] == pytest.approx(direct_distance(f.double().numpy(), g.double().numpy()), rel=1e-6)
    assert report["loss"] == pytest.approx(report["discriminator_loss"] + report["generator_loss"])


def direct_distance(f: np.ndarray, g: np.ndarray) -> float:
    """By the eigenvalues of the product of the covariances, which is not symmetric."""
    c, d = np.cov(f.T), np.cov(g.T)
    root = np.real(np.sqrt(np.linalg.eigvals(c @ d).astype(complex))).sum()
    return float(((f.mean(0) - g.mean(0)) ** 2).sum() + np.trace(c) + np.trace(d) - 2 * root)


def test_the_distance_is_zero_of_a_gaussian_from_itself_and_symmetric() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(200, FEATURES, generator=generator, dtype=torch.float64) for _ in range(2))
    b = 2 * b + 1
    one, other = ((x.mean(0), torch.cov(x.T)) for x in (a, b))
    assert frechet_distance(*one, *one) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(*one, *other) == pytest.approx(frechet_distance(*other, *one), rel=1e-10)
    assert frechet_distance(*one, *other) > FEATURES  # the means alone are that far from each other
    assert np.isnan(frechet_distance(*one, torch.full_like(one[0], torch.inf), one[1]))


def test_real_images_are_near_and_one_class_alone_is_far_and_uncovered(kept: str) -> None:
    """The measures must tell a good generator from one that has collapsed to a digit."""
    task = build(kept)
    images, labels, _ = task.test_batch(range(360))
    data = open_data("digits", path=None, download=False, size=8)
    train, classes = data.train.take(range(1437))
    train = train.float() / 8 - 1

    class Copies(Players):
        """A generator that has learnt some images by heart."""

        def __init__(self, shown: torch.Tensor) -> None:
            super().__init__(nn.Identity(), nn.Flatten())
            self.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))
            self.shown = shown

        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            return self.shown[torch.arange(len(latents)) * len(self.shown) // len(latents)]

    def report(shown: torch.Tensor) -> dict[str, float]:
        return task.report(task.evaluate(Copies(shown), (images, labels, torch.zeros(360, 5))))

    real, threes = report(train[classes.argsort()]), report(train[classes == 3])
    assert real["coverage"] == 10
    assert real["entropy"] > 0.99
    assert threes["coverage"] <= 2
    assert threes["entropy"] < 0.2
    assert threes["frechet"] > 20 * real["frechet"]
    assert real["judge_accuracy"] > 0.95


def test_the_judge_is_the_same_each_time_and_kept_under_the_name_of_its_data(tmp_path: Path) -> None:
    """Two processes judge by judges of their own, and figures of two runs must compare."""
    data = open_data("digits", path=None, download=False, size=8).train
    assert isinstance(data, ImagesInMemory)
    few = ImagesInMemory(data.images[:200], data.labels[:200])
    before = torch.get_rng_state()
    one, two = (judge_of(few, 10, white=16, folder=None) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before), "the agent's random numbers are its own"
    kept, read = (judge_of(few, 10, white=16, folder=str(tmp_path / "new")) for _ in range(2))
    for judge in (two, kept, read):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), judge.parameters(), strict=True))
    (file,) = (tmp_path / "new").iterdir()
    written = file.stat().st_mtime_ns
    judge_of(ImagesInMemory(few.images, few.labels.flip(0)), 10, white=16, folder=str(tmp_path / "new"))
    assert len(list((tmp_path / "new").iterdir())) == 2, "other data, another judge"
    assert file.stat().st_mtime_ns == written


def test_what_is_measured_depends_on_the_index_alone(kept: str) -> None:
    """Agents measure every n-th sample: the latents must not depend on how they are dealt."""
    task = build(kept)
    together, alone = task.test_batch([3, 8]), task.test_batch([8])
    assert all(torch.equal(a[1:], b) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(together[2][0], together[2][1])
    assert not torch.equal(build(kept, seed=1).test_batch([8])[2], alone[2])


def test_pictures_are_the_same_latents_in_the_range_of_pixels(kept: str) -> None:
    task = build(kept)
    model = players(task).eval()
    shown = task.pictures(model)
    assert shown.shape == (64, 1, 8, 8)
    assert 0 <= shown.min() < shown.max() <= 1
    assert torch.equal(shown, task.pictures(model))


def test_pixels_lie_where_the_generator_can_reach_them(kept: str) -> None:
    (images,) = build(kept).train_batch([(0, index) for index in range(100)])
    assert (images.min(), images.max()) == (-1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "imagefolder"}, f"data='imagefolder' is unknown. Allowed: {', '.join(GAN_DATA)}"),
        ({"loss": "hinges"}, "loss='hinges' is unknown; did you mean 'hinge'"),
        ({"step": "simultaneous"}, "step='simultaneous' is unknown"),
        ({"latent": 0}, "latent=0 must be at least 1"),
        ({"d_steps": 0}, "d_steps=0 must be at least 1"),
        ({"step": "extragradient", "d_steps": 2}, "d_steps=2 has no effect on step='extragradient'"),
        ({"path": "here"}, "data='digits' ships inside this package: remove path"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GanTask(**{"data": "digits", **options})
