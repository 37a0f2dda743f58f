"""How good generated images are, in the eyes of a classifier of the real ones: measures that add up over batches.

With the judge's features f and probabilities p (`judge.py`), over N generated and N real test images:

    coverage      classes that the judge gives to at least 1 % of the generated images
    entropy       of the histogram of these classes, over log(classes): 1 where all are equally frequent
    confidence    mean of the largest p of a generated image
    frechet       |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)),  m, C mean and covariance of f over generated images, m', C'
                  over real ones

The distance has the form of the FID (arXiv 1706.08500) and is not the FID: the features are 32 of a small classifier of
the same data, and there are as many samples as test images. Compare it within one data set only.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dist_lookahead.tasks.judge import FEATURES, Judge

COVERED = 0.01  # share of the generated images that makes a class covered
KINDS = ("generated", "real")


def quality_measures(classes: int) -> tuple[str, ...]:
    """Return the names of the sums that `quality_sums` returns."""
    return ("confidence", "judged_right", *(f"class_{c}" for c in range(classes)), *_moment_names())


@torch.no_grad()
def quality_sums(judge: Judge, generated: Tensor, real: Tensor, labels: Tensor) -> dict[str, float]:
    """Judge images.

    Args:
        judge: in evaluation mode, on the CPU.
        generated: (n, channels, size, size) in [-1, 1], on the CPU.
        real: as many test images, likewise.
        labels: their classes.

    Returns:
        Sums over the images: they add up over batches and agents.
    """
    features, logits = judge(generated)
    real_features, real_logits = judge(real)
    classes = logits.shape[1]
    counts = torch.bincount(logits.argmax(1), minlength=classes)
    values = (
        logits.softmax(1).amax(1).sum(dtype=torch.float64),
        (real_logits.argmax(1) == labels).sum(),
        *counts,
        *_moments(features.double()),
        *_moments(real_features.double()),
    )
    return {name: value.item() for name, value in zip(quality_measures(classes), values, strict=True)}


def quality_report(sums: Mapping[str, float]) -> dict[str, float]:
    """Turn total sums, "samples" among them, into the measures above, and "judge_accuracy" on the real images."""
    count = sums["samples"]
    histogram = torch.tensor([sums[name] for name in sums if name.startswith("class_")], dtype=torch.float64) / count
    generated, real = (_gaussian(sums, kind) for kind in KINDS)
    return {
        "frechet": frechet_distance(*generated, *real),
        "coverage": float((histogram >= COVERED).sum()),
        "entropy": max(-torch.xlogy(histogram, histogram).sum().item(), 0.0) / math.log(len(histogram)),
        "confidence": sums["confidence"] / count,
        "judge_accuracy": sums["judged_right"] / count,
    }


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """Return the squared Fréchet distance of two Gaussians; NaN where a number is not finite.

    tr (C C')^(1/2) is taken as tr (R C' R)^(1/2) with R = C^(1/2), the root of a symmetric matrix.

    Args:
        mean: (d,), float64.
        covariance: (d, d), symmetric and positive semidefinite.
        other_mean: likewise.
        other_covariance: likewise.

    Example:
        >>> one = torch.eye(2, dtype=torch.float64)
        >>> frechet_distance(torch.zeros(2).double(), one, torch.ones(2).double(), 4 * one)
        4.0
    """
    if not all(part.isfinite().all() for part in (mean, covariance, other_mean, other_covariance)):
        return math.nan
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * overlap
    return max(distance.item(), 0.0)


def _moments(features: Tensor) -> Iterator[Tensor]:
    """The sum of the features, then of the products of each with itself and those after it."""
    rows, columns = torch.triu_indices(FEATURES, FEATURES)
    yield from features.sum(0)
    yield from (features.T @ features)[rows, columns]


def _moment_names() -> Iterator[str]:
    for kind in KINDS:
        yield from (f"{kind}_{j}" for j in range(FEATURES))
        yield from _product_names(kind)


def _product_names(kind: str) -> list[str]:
    return [f"{kind}_{j}_{k}" for j in range(FEATURES) for k in range(j, FEATURES)]


def _gaussian(sums: Mapping[str, float], kind: str) -> tuple[Tensor, Tensor]:
    """Mean and sample covariance from the sums."""
    count = sums["samples"]
    mean = torch.tensor([sums[f"{kind}_{j}"] for j in range(FEATURES)], dtype=torch.float64) / count
    rows, columns = torch.triu_indices(FEATURES, FEATURES)
    products = torch.zeros(FEATURES, FEATURES, dtype=torch.float64)
    products[rows, columns] = torch.tensor([sums[name] for name in _product_names(kind)], dtype=torch.float64)
    products[columns, rows] = products[rows, columns]
    return mean, (products - count * torch.outer(mean, mean)) / (count - 1)
