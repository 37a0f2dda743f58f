"""A small classifier of a data set's own images, by which generated images are judged."""

import os
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from dist_lookahead.tasks.images import ImagesInMemory

FEATURES = 32
"""Width of the layer whose outputs are the features."""

STEPS, BATCH, RATE = 500, 64, 3e-3
SEED = 0  # one of its own: runs with different seeds are judged alike


class Judge(nn.Module):
    """Two convolutions and a layer of features: images to features (batch, 32) and logits (batch, classes).

    Args:
        channels: of the images.
        size: height and width of the images, a multiple of 4.
        classes: number of classes.
    """

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (size // 4) ** 2, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits of images in [-1, 1]."""
        features = self.body(images)
        return features, self.head(features)


def judge_of(data: ImagesInMemory, classes: int, *, white: int, folder: str | None) -> Judge:
    """Return the judge of a data set: trained on it, the same way each time, or read from where it was kept.

    500 steps of Adam on batches of 64 images, with a cosine to zero, all drawn from a seed of its own.

    Args:
        data: training images.
        classes: number of classes.
        white: the largest pixel value.
        folder: where it is kept, under a name that is made from the data; None for nowhere.
    """
    channels, size = data.images.shape[1:3]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        judge = Judge(channels, size, classes)
    file = Path(folder).expanduser() / f"judge-{_fingerprint(data)}.pt" if folder else None
    if file and file.exists():
        judge.load_state_dict(torch.load(file, weights_only=True))
    else:
        _train(judge, data, white)
    if file and not file.exists():
        _keep(judge, file)
    return judge.eval().requires_grad_(False)


def scaled(images: Tensor, white: int) -> Tensor:
    """Bring pixels to [-1, 1], as generators make them."""
    return images.float().mul_(2 / white).sub_(1)


def _train(judge: Judge, data: ImagesInMemory, white: int) -> None:
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.Adam(judge.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        where = torch.randint(len(data), (BATCH,), generator=generator)
        optimizer.zero_grad()
        _, logits = judge(scaled(data.images[where], white))
        functional.cross_entropy(logits, data.labels[where]).backward()
        optimizer.step()
        schedule.step()


def _fingerprint(data: ImagesInMemory) -> str:
    """Of the data and of how the judge is trained: another one must not be read in its place."""
    digest = blake2b(f"{STEPS} {BATCH} {RATE} {SEED} {FEATURES}".encode(), digest_size=8)
    for tensor in (data.images, data.labels):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _keep(judge: Judge, file: Path) -> None:
    """In one move: other processes may look for it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    torch.save(judge.state_dict(), part)
    part.replace(file)
