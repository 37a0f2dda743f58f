"""Noisy quadratics: the model problem whose mean and variance theory knows exactly."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dist_lookahead.tasks.task import Batch, Key, Order


class Repetitions(nn.Module):
    """R independent repetitions of d weights, as one parameter W (R, d) in float64.

    Args:
        start: (d,), where all repetitions begin.
        repetitions: R.
    """

    def __init__(self, start: Tensor, repetitions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.repeat(repetitions, 1))

    def forward(self, minima: Tensor) -> Tensor:
        """Return the way from the minima (.., d) to the weights."""
        return self.weight - minima


class QuadraticTask:
    """Minimise noisy quadratics, in many independent repetitions at once. A `Task`.

    Coordinate j of an agent of kind i has, with fresh c at each fast step,

        loss = a_ij / 2 (x_j - c_j)^2,    c_j ~ N(mu_ij, sigma_ij^2)

    A training sample is one kind of agent: an epoch has m of them, in their order, so that with a batch size of 1 agent
    r always is of kind r mod m if m divides the number of agents. A batch is (draws c, curvatures a), float64 of shapes
    (batch, R, d) and (batch, 1, d). The one test sample holds a, mu and sigma, each (1, m, d): the loss is then the
    expected one, the mean over all kinds.

    Args:
        curvature: a > 0; a number, (d,), or (m, d) for m kinds of agents.
        noise: sigma >= 0, likewise.
        offsets: mu, likewise.
        start: weights before the first step, a number or (d,).
        repetitions: R >= 2.
        seed: of the draws, >= 0.

    Raises:
        ValueError: for numbers out of range, and for shapes that do not fit.

    Example:
        >>> task = QuadraticTask(curvature=torch.tensor([1.0, 0.1]), offsets=torch.eye(2), repetitions=5)
        >>> draws, curvature = task.train_batch([(0, 1)])
        >>> task.samples, draws.shape, curvature.shape
        (2, torch.Size([1, 5, 2]), torch.Size([1, 1, 2]))

    Reference: arXiv 1907.08610, section 3.
    """

    def __init__(
        self,
        *,
        curvature: float | Tensor,
        noise: float | Tensor = 1.0,
        offsets: float | Tensor = 0.0,
        start: float | Tensor = 1.0,
        repetitions: int = 10_000,
        seed: int = 0,
    ) -> None:
        a, sigma, mu, begin = (torch.as_tensor(x, dtype=torch.float64) for x in (curvature, noise, offsets, start))
        shapes = [tuple(part.shape) for part in (a, sigma, mu, begin)]
        try:
            kinds, width = torch.broadcast_shapes((1, 1), *shapes)
        except (RuntimeError, ValueError) as error:  # shapes that do not fit; too many dimensions
            raise ValueError(f"{shapes} of curvature, noise, offsets, start must be (), (d,) or (m, d)") from error
        if begin.ndim > 1:
            raise ValueError(f"start has the shape {tuple(begin.shape)}, but all agents begin alike: give (d,)")
        if not ((a > 0).all() and (sigma >= 0).all()):
            raise ValueError(f"curvature={curvature} must be above 0, and noise={noise} at least 0")
        if repetitions < 2:
            raise ValueError(f"repetitions={repetitions} must be at least 2: one has no variance")
        self._a, self._sigma, self._mu = (part.expand(kinds, width) for part in (a, sigma, mu))
        self._start = begin.expand(width)
        self._repetitions, self._seed = repetitions, seed

    @property
    def samples(self) -> int:
        """Number m of kinds of agents."""
        return len(self._a)

    @property
    def test_samples(self) -> int:
        """One: the expected loss needs no others."""
        return 1

    @property
    def order(self) -> Order:
        """In turn: each agent keeps its kind."""
        return "in_turn"

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the sums that `evaluate` returns."""
        width = len(self._start)
        return "samples", "loss", *(f"{name}_{j}" for name in ("sum", "square") for j in range(width))

    def model(self) -> nn.Module:
        """Build the repetitions, all at the start."""
        return Repetitions(self._start, self._repetitions)

    def train_batch(self, keys: Sequence[Key]) -> Batch:
        """Draw minima, by what (seed, epoch, index) says and nothing else."""
        # NumPy: twice as fast as torch in double precision, and torch's CPU generator takes 32 bits of a seed only.
        shape = (self._repetitions, len(self._start))
        noise = [np.random.default_rng((self._seed, *key)).standard_normal(shape) for key in keys]
        kinds = [index for _, index in keys]
        draws = torch.from_numpy(noise[0][None] if len(noise) == 1 else np.stack(noise))
        return torch.addcmul(self._mu[kinds, None], self._sigma[kinds, None], draws), self._a[kinds, None]

    def test_batch(self, indices: Sequence[int]) -> Batch:
        """Return the quadratics themselves."""
        return tuple(part.expand(len(indices), *part.shape) for part in (self._a, self._mu, self._sigma))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean over the repetitions, with the gradient of their sum.

        So what is logged does not depend on the number of repetitions, and each of them takes the fast step that it
        would take alone.
        """
        draws, curvature = batch
        total = (model(draws).square() * curvature).sum() / (2 * len(draws))
        return total - (1 - 1 / self._repetitions) * total.detach()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Return sums over the repetitions: number, expected loss, and each coordinate's weights and their squares."""
        curvature, minima, noise = (part[0] for part in batch)
        weights = model(torch.zeros_like(minima[0]))
        sums, squares, count = weights.sum(0), weights.square().sum(0), float(len(weights))
        pulls = curvature * (squares - 2 * minima * sums + count * (minima.square() + noise.square()))
        values = (count, pulls.mean(0).sum().item() / 2, *sums.tolist(), *squares.tolist())
        return dict(zip(self.measures, values, strict=True))

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return "loss", and "mean_0" .. and "variance_0" .., the sample variance over the repetitions."""
        count, width = sums["samples"], range(len(self._start))
        means = [sums[f"sum_{j}"] / count for j in width]
        off = [max(sums[f"square_{j}"] - count * means[j] ** 2, 0.0) for j in width]
        return {
            "loss": sums["loss"] / count,
            **{f"mean_{j}": means[j] for j in width},
            **{f"variance_{j}": off[j] / (count - 1) for j in width},
        }
