"""GANs in the trainer: Lookahead-minmax as written by hand, exact resume, agents, pictures, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dist_lookahead.tasks.gan import GanTask
from dist_lookahead.tasks.gan_models import Players
from dist_lookahead.train.command import main
from dist_lookahead.train.config import Config, ConfigError, load_config, parse_config
from dist_lookahead.train.random_state import RandomState, derive_seed
from dist_lookahead.train.sampler import BatchSampler
from tests.launching import train_in_processes
from tests.test_tasks_datasets import write_mnist
from tests.training import Crash, crash_before, differences, final_states, folder_of, records, train

CONFIGS = Path(__file__).parents[1] / "configs" / "gan"
ADAM = {"name": "Adam", "lr": 0.002, "betas": [0.5, 0.99]}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the judge of the digits is kept: it is trained once."""
    folder = str(tmp_path_factory.mktemp("judge"))
    GanTask(data="digits", judge_dir=folder)
    return folder


def gan_config(folder: Path, kept: str, **sections: Any) -> Config:
    """A short Lookahead-minmax on the digits; sections are merged into it."""
    plain: dict[str, Any] = {
        "run": {"name": "small", "dir": str(folder), "steps": 13, "device": "cpu"},
        "task": "gan",
        "images": {"batch_size": 8, "judge_dir": kept},
        "gan": {"latent": 6, "width": 4},
        "inner": ADAM,
        "levels": {"recipe": "lookahead", "tau": 4, "alpha": 0.5},
        "evaluation": {"every": 6, "unit": "steps"},
        "checkpoint": {"every": 3},
        "logging": {"progress": "off", "tensorboard": False, "plots": False},
    }
    for name, value in sections.items():
        merge = isinstance(value, dict) and name in plain and name not in ("levels", "inner")
        plain[name] = {**plain[name], **value} if merge else value
    return parse_config(plain)


def by_hand(config: Config, d_steps: int) -> tuple[Players, list[float]]:
    """Lookahead-minmax as its paper writes it, in plain torch: the model, and the sum of both losses at each step."""
    task = config.build_task()
    assert isinstance(task, GanTask)
    with RandomState(derive_seed(0, "model"), torch.device("cpu")).active():
        model = task.model()
    assert isinstance(model, Players)
    generator, discriminator = model.generator, model.discriminator
    adam = {"lr": 0.002, "betas": (0.5, 0.99)}
    of_g, of_d = torch.optim.Adam(generator.parameters(), **adam), torch.optim.Adam(discriminator.parameters(), **adam)
    slow = [p.detach().clone() for p in model.parameters()]
    batches = iter(BatchSampler(samples=task.samples, batch_size=8, rank=0, agents=1, seed=0))
    log_loss = torch.nn.functional.softplus
    losses = []
    with RandomState(derive_seed(0, "agent", 0), torch.device("cpu")).active():
        for step in range(1, 14):
            loss = torch.zeros(())
            for real in task.train_batch(next(batches))[0].chunk(d_steps):
                fake = generator(torch.randn(len(real), 6)).detach()
                loss = log_loss(-discriminator(real)).mean() + log_loss(discriminator(fake)).mean()
                of_d.zero_grad()
                loss.backward()
                of_d.step()
                of_g.zero_grad()
            g_loss = log_loss(-discriminator(generator(torch.randn(8 // d_steps, 6)))).mean()
            g_loss.backward()
            of_g.step()
            losses.append(loss.item() + g_loss.item())
            if step % 4 == 0 or step == 13:
                with torch.no_grad():
                    for z, p in zip(slow, model.parameters(), strict=True):
                        z += 0.5 * (p - z)
                        p.copy_(z)
    return model, losses


@pytest.mark.parametrize("d_steps", [1, 2])
def test_a_run_is_lookahead_minmax_as_written_by_hand(d_steps: int, tmp_path: Path, kept: str) -> None:
    """Also the weights at which the first pull begins, and the latents, drawn in the order of the updates."""
    config = gan_config(tmp_path, kept, gan={"d_steps": d_steps})
    train(config)
    model, losses = by_hand(config, d_steps)
    (state,) = final_states(folder_of(config))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state["model"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    syncs = [record for record in records(folder_of(config)) if record["kind"] == "sync"]
    assert [record["step"] for record in syncs] == [4, 8, 12, 13]
    assert syncs[1]["loss"] == pytest.approx(sum(losses[4:8]) / 4, rel=1e-4)


GAMES: dict[str, dict[str, Any]] = {
    "alternating, two updates of the discriminator": {"gan": {"d_steps": 2}},
    "extragradient, hinge, spectral norm": {
        "gan": {"step": "extragradient", "loss": "hinge", "spectral_norm": True},
    },
    "two agents": {"agents": 2, "levels": {"recipe": "slowmo", "tau": 4, "beta": 0.2}},
    "two layers": {"levels": {"recipe": "multilayer_lookahead", "taus": [2, 2]}},
    "local SGD, Adam's moments averaged": {
        "agents": 2,
        "levels": {"recipe": "local_sgd", "tau": 4, "fast_buffers": "average"},
    },
    "bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize("sections", GAMES.values(), ids=GAMES)
def test_a_run_that_was_interrupted_goes_on_bit_for_bit(
    sections: dict[str, Any], tmp_path: Path, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (gan_config(tmp_path / name, kept, **sections) for name in ("whole", "broken"))
    train(whole)
    with monkeypatch.context() as patch:
        crash_before(11, patch)  # the last checkpoint is of step 9, the last sync of step 8
        with pytest.raises(Crash):
            train(broken)
    outcome = train(broken, resume=True)
    assert outcome.steps_here < outcome.step, "the resumed run began from the start"
    agents = whole.agents
    for a, b in zip(final_states(folder_of(whole), agents), final_states(folder_of(broken), agents), strict=True):
        assert list(differences(a, b)) == []
    assert records(folder_of(whole)) == records(folder_of(broken))


def test_all_agents_end_with_the_same_players_and_play_games_of_their_own(tmp_path: Path, kept: str) -> None:
    config = gan_config(tmp_path, kept, agents=3, levels={"recipe": "distributed_lookahead", "tau": 4, "alpha": 0.5})
    train(config)
    states = final_states(folder_of(config), 3)
    assert {name.split(".")[0] for name in states[0]["model"]} == {"generator", "discriminator"}
    for other in states[1:]:
        assert list(differences(states[0]["model"], other["model"])) == []
    draws = [tuple(state["random"]["cpu"].tolist()) for state in states]
    assert len(set(draws)) == 3, "each draws latents of its own"
    losses = [record["spread"] for record in records(folder_of(config)) if record["kind"] == "sync"]
    assert losses[0] > 0


@pytest.mark.timeout(240)
def test_two_processes_compute_what_two_simulated_agents_compute(tmp_path: Path, kept: str) -> None:
    levels = {"recipe": "slowmo", "tau": 4, "beta": 0.2}
    train_in_processes(gan_config(tmp_path / "real", kept, agents=1, levels=levels), processes=2)
    train(gan_config(tmp_path / "simulated", kept, agents=2, levels=levels))
    folders = [tmp_path / name / "small" for name in ("real", "simulated")]
    for a, b in zip(*(final_states(folder, 2) for folder in folders), strict=True):
        assert list(differences(a, b)) == []
    assert records(folders[0]) == records(folders[1])
    pictures = [sorted((folder / "samples").iterdir()) for folder in folders]
    assert [path.name for path in pictures[0]] == [path.name for path in pictures[1]]
    for a, b in zip(*pictures, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_samples_are_drawn_at_each_evaluation_for_each_kind_of_weights(tmp_path: Path, kept: str) -> None:
    config = gan_config(
        tmp_path,
        kept,
        agents=2,
        levels={"recipe": "distributed_lookahead", "tau": 4, "alpha": 0.5},
        inner={**ADAM, "lr": 0.02},
        evaluation={"weights": ["slow", "averaged"]},
    )
    train(config)
    files = sorted((folder_of(config) / "samples").iterdir())
    steps = [8, 12, 13]  # the first syncs after 6 and 12 steps, and the end
    assert [file.name for file in files] == [f"step_{s:06d}_{w}.png" for s in steps for w in ("averaged", "slow")]
    grid, later = (np.asarray(Image.open(file)) for file in (files[0], files[-2]))
    assert grid.shape == (8 * 34 + 2, 8 * 34 + 2, 3)
    assert len(np.unique(later)) > 20, "not one grey"
    assert (grid != later).any(), "it learns"


def test_a_run_reports_both_losses_and_the_quality_and_no_coordinates(
    tmp_path: Path, kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = gan_config(tmp_path, kept, gan={"loss": "hinge"}, logging={"plots": True})
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert main(["train", str(file)]) == 0
    shown = capsys.readouterr().out
    for name in ("discriminator_loss", "generator_loss", "frechet", "coverage", "samples"):
        assert name in shown
    (*_, last) = [record for record in records(folder_of(config)) if record["kind"] == "evaluation"]
    assert not any(name[-1].isdigit() for name in last)
    assert (folder_of(config) / "curves.png").exists()


def test_images_of_28_pixels_are_read_from_disk(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    images = {"name": "mnist", "path": str(tmp_path), "batch_size": 4}
    config = gan_config(tmp_path, str(tmp_path / "judge"), run={"steps": 4}, images=images)
    train(config)
    with Image.open(folder_of(config) / "samples" / "step_000004_slow.png") as grid:
        assert grid.size == (8 * 58 + 2, 8 * 58 + 2)  # 28 pixels, magnified twice


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("digits_*.yaml")))
def test_a_shipped_file_on_the_embedded_digits_trains(name: str, tmp_path: Path, kept: str) -> None:
    plain = load_config(CONFIGS / f"{name}.yaml").resolved()
    plain["run"] |= {"dir": str(tmp_path), "steps": 50}
    plain["images"] |= {"judge_dir": kept}
    plain["logging"] |= {"progress": "off", "tensorboard": False, "plots": False}
    outcome = train(parse_config(plain))
    before = gan_config(tmp_path, kept, run={"name": "before", "steps": 4}, inner={**ADAM, "lr": 1e-9})
    assert outcome.metrics["slow"]["frechet"] < train(before).metrics["slow"]["frechet"], "nearer than noise"


GOOD = """
run: {name: test, steps: 20}
task: gan
images: {batch_size: 8}
gan: {}
inner: {name: Adam, lr: 1e-3}
levels: {recipe: lookahead, tau: 5}
"""


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["images.name=imagefolder"], "images.name='imagefolder' is unknown; allowed: digits, mnist"),
        (["images.name=mnist"], "images.path is missing: the folder that holds (or will hold) MNIST/raw"),
        (["images.path=x"], "images.path='x' has no effect: digits ships inside a package"),
        (["images.download=true"], "images.download=true: digits cannot be downloaded"),
        (["gan.loss=wasserstein"], "gan.loss='wasserstein' is unknown; allowed: non_saturating, hinge"),
        (["gan.d_steps=3"], "images.batch_size=8 must be a multiple of 3, the parts of gan.d_steps=3"),
        (["gan.step=extragradient", "gan.d_steps=2"], "gan.d_steps=2 has no effect on step='extragradient'"),
        (
            ["gan.step=extragradient", "images.batch_size=7"],
            "images.batch_size=7 must be a multiple of 2, the parts of",
        ),
        (["inner.clip_norm=1"], "inner.clip_norm=1: a GAN's fast step has several updates"),
        (["precision=fp16"], "precision='fp16' scales the loss of one backward pass"),
        (["performance.compile=true"], "performance.compile=true has no effect on a GAN"),
        (
            ["inner.data_parallel=ddp", "levels={recipe: slowmo}"],
            "inner.data_parallel='ddp' averages the gradients of one backward pass",
        ),
        (["levels={recipe: lookahead, alpha: {optimal: {low: 0.2, high: 1.0}}}"], "levels[0]: alpha: optimal descends"),
        (["levels={recipe: sgp}", "evaluation.weights=[averaged]"], "levels[0].mix: push_sum holds the weights times"),
        (["data={name: digits, batch_size: 8}"], "data has no effect with task='gan': remove it, or set task: vision"),
        (["gan=null"], "gan is missing"),
    ],
)
def test_what_does_not_fit_a_game_is_refused_with_the_reason(
    settings: list[str], sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(GOOD, encoding="utf-8")
    load_config(file)
    with pytest.raises(ConfigError) as error:
        load_config(file, settings)
    (fault,) = error.value.faults
    assert fault.startswith(sentence)
