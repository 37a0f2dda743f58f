"""Fast steps on a quadratic and syncs as one linear recursion of a state, exact in mean and covariance.

The state s of one coordinate is the row of X (columns of `mixing`, S of them), followed by one momentum buffer u_i for
each agent where the fast optimizer has momentum. A fast step and a sync are

    s <- F s + E (mu + xi),   xi_i ~ N(0, sigma_i^2) fresh,        s <- T s,   T = diag(P_k^T, U_k),

where U_k is the identity, 0 or W^T as the levels that fire keep, reset or average the fast buffers. So

    m <- T (F m + E mu),      C <- T (F C F^T + E diag(sigma^2) E^T) T^T.

Shapes: d coordinates, p agents in the state, S' = S + p with momentum, else S. Everything is float64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_lookahead.averaging.push_sum import PushSum
from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh
from dist_lookahead.theory.calendar import Firing, firings, syncs
from dist_lookahead.theory.eigenvalues import eigenvalues
from dist_lookahead.theory.layout import Layout, layout_of
from dist_lookahead.theory.mixing import product

DOUBLINGS = 64  # of the number of rounds: contraction 1 - 1e-12 has vanished long before
VANISHED = 1e-40


@dataclass(frozen=True, kw_only=True, slots=True)
class Quadratics:
    """Each agent's noisy quadratics, and the momentum of SGD on them.

    Attributes:
        curvature: (p, d), a.
        noise: (p, d), sigma.
        offsets: (p, d), mu, each agent's minimiser.
        mesh: of the p agents.
        momentum: of the fast optimizer; its buffer is in units of gradients, as torch's.
        nesterov: whether that momentum is Nesterov's.

    Raises:
        ValueError: for momentum out of range, and for Nesterov's without momentum.
    """

    curvature: Tensor
    noise: Tensor
    offsets: Tensor
    mesh: Mesh
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be at least 0 and below 1")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=True has no effect with momentum=0: give momentum > 0 or leave it out")

    @property
    def agents(self) -> int:
        """Number p of agents in the state."""
        return self.mesh.size


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Mean (d, S') and covariance (d, S', S') of the state."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class FastStep:
    """One fast step: F (d, S', S') and E (d, S', p)."""

    F: Tensor
    E: Tensor


def at_rest(levels: Sequence[Level], quadratics: Quadratics, start: Tensor) -> Moments:
    """Return the moments before the first step: all weights at `start` (d,), no momentum, no doubt."""
    layout = _layout(levels, quadratics.mesh)
    weights, size = layout.mask(), _size(layout, quadratics)
    mean = torch.zeros(len(start), size, dtype=torch.float64)
    mean[:, : len(weights)] = start[:, None] * weights
    return Moments(mean=mean, covariance=torch.zeros(len(start), size, size, dtype=torch.float64))


def unroll(
    levels: Sequence[Level], quadratics: Quadratics, rates: Sequence[float], moments: Moments
) -> Iterator[Moments]:
    """Yield the moments before the first fast step and after each, syncs included.

    Args:
        levels: innermost first.
        quadratics: of the agents.
        rates: fast learning rate of each step.
        moments: those before the first step.
    """
    yield moments
    for step, sync in _maps(levels, quadratics, rates):
        moments = _after_sync(_after_step(moments, step, quadratics), sync)
        yield moments


def round_map(levels: Sequence[Level], quadratics: Quadratics, lr: float, steps: int) -> Tensor:
    """Return the linear map of the state over the first `steps` fast steps, (d, S', S')."""
    layout = _layout(levels, quadratics.mesh)
    F = _fast_step(quadratics, _size(layout, quadratics), lr).F
    whole, last = torch.eye(F.shape[-1], dtype=torch.float64).expand_as(F), 0
    for fired in syncs(levels, steps):
        whole = _sync(layout, quadratics, fired) @ torch.linalg.matrix_power(F, fired[0].step - last) @ whole
        last = fired[0].step
    return torch.linalg.matrix_power(F, steps - last) @ whole


def spectral_radius(maps: Tensor) -> Tensor:
    """Return the largest modulus of an eigenvalue of each of (.., S', S') maps, infinity where one has overflowed."""
    radius = torch.full(maps.shape[:-2], float("inf"), dtype=torch.float64)
    finite = maps.isfinite().all(dim=-1).all(dim=-1)
    # LAPACK gives up on maps close to overflow, which long rounds of unstable fast steps come to.
    scale = maps[finite].abs().amax(dim=(-2, -1)).clamp(min=1.0)
    radius[finite] = eigenvalues(maps[finite] / scale[:, None, None]).abs().amax(dim=-1) * scale
    return radius


def fixed_point(whole: Tensor, fresh: Moments) -> Moments:
    """Return the moments with m = M m + b and C = M C M^T + N, for maps that contract.

    The discrete Lyapunov equation is solved by doubling: C_j covers 2^j rounds, C_{j+1} = C_j + M_j C_j M_j^T with
    M_{j+1} = M_j^2. All terms are positive semidefinite: nothing cancels, however slowly the map contracts.

    Args:
        whole: M, (d, S', S').
        fresh: b and N, what one round makes of zero mean and covariance.
    """
    identity = torch.eye(whole.shape[-1], dtype=torch.float64)
    mean = torch.linalg.solve(identity - whole, fresh.mean)
    covariance = fresh.covariance
    for _ in range(DOUBLINGS):
        if whole.abs().max() < VANISHED:
            break
        covariance = covariance + whole @ covariance @ whole.mT
        whole = whole @ whole
    return Moments(mean=mean, covariance=covariance)


def _layout(levels: Sequence[Level], mesh: Mesh) -> Layout:
    for index, level in enumerate(levels):
        if isinstance(level.mix, PushSum) and level.mix.is_biased(mesh):
            raise ValueError(
                f"levels[{index}].mix={level.mix}: gradients at x / w make another recursion in each round, and there "
                "is no prediction for it; graphs with doubly stochastic weights have w = 1"
            )
    return layout_of(levels, mesh)


def _size(layout: Layout, quadratics: Quadratics) -> int:
    return len(layout.names) + (quadratics.agents if quadratics.momentum else 0)


def _maps(
    levels: Sequence[Level], quadratics: Quadratics, rates: Sequence[float]
) -> Iterator[tuple[FastStep, Tensor | None]]:
    """Yield each fast step, and the sync T after it, None where no level fires."""
    layout = _layout(levels, quadratics.mesh)
    step, last = None, None
    for rate, fired in zip(rates, firings(levels, len(rates), rates=rates), strict=True):
        if step is None or rate != last:
            step, last = _fast_step(quadratics, _size(layout, quadratics), rate), rate
        yield step, _sync(layout, quadratics, fired) if fired else None


def _fast_step(quadratics: Quadratics, size: int, lr: float) -> FastStep:
    """With g = a (x - mu - xi): u <- m u + g, then x <- x - gamma u, or x <- x - gamma (g + m u) with Nesterov's."""
    a, m, agents = quadratics.curvature.T, quadratics.momentum, quadratics.agents
    from_g, from_u = (1 + m, m * m) if quadratics.nesterov else (1.0, m)
    F = torch.eye(size, dtype=torch.float64).repeat(len(a), 1, 1)
    E = torch.zeros(len(a), size, agents, dtype=torch.float64)
    x = torch.arange(agents)
    F[:, x, x] -= lr * from_g * a
    E[:, x, x] = lr * from_g * a
    if m:
        u = x + size - agents
        F[:, x, u] = -lr * from_u
        F[:, u, x] = a
        F[:, u, u] = m
        E[:, u, x] = -a
    return FastStep(F=F, E=E)


def _sync(layout: Layout, quadratics: Quadratics, fired: Sequence[Firing]) -> Tensor:
    P = product(layout, fired)
    if not quadratics.momentum:
        return P.T
    buffers = torch.eye(quadratics.agents, dtype=torch.float64)
    for firing in fired:
        level = layout.levels[firing.index]
        if level.fast_buffers == "reset":
            buffers = torch.zeros_like(buffers)
        elif level.fast_buffers == "average":
            buffers = layout.average(firing.index, firing.turn).T @ buffers
    return torch.block_diag(P.T, buffers)


def _after_step(moments: Moments, step: FastStep, quadratics: Quadratics) -> Moments:
    scaled = step.E * quadratics.noise.T[:, None]
    mean = step.F @ moments.mean[..., None] + step.E @ quadratics.offsets.T[..., None]
    return Moments(mean=mean[..., 0], covariance=step.F @ moments.covariance @ step.F.mT + scaled @ scaled.mT)


def _after_sync(moments: Moments, sync: Tensor | None) -> Moments:
    if sync is None:
        return moments
    return Moments(mean=moments.mean @ sync.T, covariance=sync @ moments.covariance @ sync.T)
