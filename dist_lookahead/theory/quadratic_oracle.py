"""The noisy quadratic model for any stack of levels: exact mean, variance and loss, and where they settle.

Coordinate j of agent i has the loss a/2 (x - c)^2 with a fresh c ~ N(mu, sigma^2) at each fast step. The fast optimizer
is SGD, with momentum or without. All moments come from one linear recursion (`linear_recursion`), so that every
level, schedule, momentum and treatment of fast buffers is covered; `closed_forms` has formulas for common cases.

Thousands of agents that are alike cost as much as two, by symmetry (`trajectory`); agents that differ, or that average
along the axes of a mesh, are all in the state, which goes well up to some dozens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.mixer import Alone
from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh, as_mesh
from dist_lookahead.schedule import Scheduled, value_at
from dist_lookahead.theory.calendar import cycle
from dist_lookahead.theory.constants import require_constants
from dist_lookahead.theory.growth import smallest_mesh
from dist_lookahead.theory.linear_recursion import (
    Quadratics,
    at_rest,
    fixed_point,
    round_map,
    spectral_radius,
    unroll,
)
from dist_lookahead.theory.modelled import modelled
from dist_lookahead.theory.trajectory import Trajectory, follow

SETTLES = 1 - 1e-12  # a round that contracts less does not contract, up to rounding


@dataclass(frozen=True, kw_only=True, slots=True)
class Stationary:
    """Where mean and variance settle.

    Attributes:
        round: the round of the outermost level that repeats itself, tau + 1 points in time from sync to sync; as many
            rounds as averages that change from sync to sync take to begin again. Of coordinates that do not settle the
            mean is nan and the variance infinite.
        contraction: (d,), factor of a round on the slowest part of mean and deviations; below 1 where they settle.
    """

    round: Trajectory
    contraction: Tensor


def noisy_quadratic(
    levels: Sequence[Level],
    *,
    curvature: float | Tensor,
    noise: float | Tensor,
    lr: Scheduled,
    steps: int,
    agents: int | Mesh = 1,
    start: float | Tensor = 1.0,
    offsets: float | Tensor = 0.0,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> Trajectory:
    """Return exact mean, variance and expected loss of slow weights, agents' mean and agents over a run.

    Args:
        levels: innermost first; schedules are followed.
        curvature: a, a number, (d,), or (agents, d) for agents that differ.
        noise: sigma, the standard deviation of c, a number, (d,) or (agents, d).
        lr: gamma, a number or a schedule of the fast step.
        steps: number of fast steps.
        agents: n, or a mesh of agents.
        start: weights of all agents before the first step, a number or (d,).
        offsets: mu, the agents' minimisers, a number, (d,) or (agents, d).
        momentum: of SGD, 0 <= momentum < 1.
        nesterov: whether SGD's momentum is Nesterov's.

    Returns:
        The run, T = steps + 1 points in time.

    Raises:
        ValueError: for shapes that do not fit, and for Nesterov's momentum without momentum.

    Example:
        >>> from dist_lookahead import lookahead
        >>> run = noisy_quadratic(lookahead(tau=2, alpha=0.5), curvature=1.0, noise=1.0, lr=0.5, steps=2)
        >>> run.slow.mean.squeeze().tolist(), run.fast.mean.squeeze().tolist()
        ([1.0, 1.0, 0.625], [1.0, 0.5, 0.625])

    Reference: arXiv 1907.08610, section 3 (Proposition 2), for n agents and any stack.
    """
    quadratics = _quadratics(levels, curvature, noise, offsets, start, agents, momentum, nesterov)
    begin = torch.as_tensor(start, dtype=torch.float64).expand(quadratics.curvature.shape[1])
    rates = [value_at(lr, step) for step in range(steps)]
    return follow(levels, quadratics, rates, at_rest(levels, quadratics, begin), agents=as_mesh(agents).size)


def stationary(
    levels: Sequence[Level],
    *,
    curvature: float | Tensor,
    noise: float | Tensor,
    lr: float,
    agents: int | Mesh = 1,
    offsets: float | Tensor = 0.0,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> Stationary:
    """Return the round in which mean and variance have settled, and how fast they get there.

    The moments after a sync of the outermost level solve m = M m + b and C = M C M^T + N over one of its rounds, or as
    many as `cycle` has.

    Args:
        levels: innermost first, without schedules.
        curvature: a, a number, (d,), or (agents, d).
        noise: sigma, likewise.
        lr: gamma.
        agents: n, or a mesh of agents.
        offsets: mu, the agents' minimisers, likewise.
        momentum: of SGD, 0 <= momentum < 1.
        nesterov: whether SGD's momentum is Nesterov's.

    Raises:
        ValueError: for schedules, shapes that do not fit, and Nesterov's momentum without momentum.

    Example:
        >>> from dist_lookahead import lookahead
        >>> settled = stationary(lookahead(tau=5, alpha=0.5), curvature=1.0, noise=1.0, lr=1.0)
        >>> settled.contraction.item(), round(settled.round.slow.variance[0].item(), 6)
        (0.5, 0.333333)

    Reference: arXiv 1907.08610, Proposition 2, for n agents and any stack.
    """
    require_constants(modelled(levels), ("tau", "alpha", "beta"), "no round repeats itself")
    length = cycle(levels, as_mesh(agents))
    quadratics = _quadratics(levels, curvature, noise, offsets, 0.0, agents, momentum, nesterov)
    whole = round_map(levels, quadratics, lr, length)
    radius = spectral_radius(whole)
    settles = radius < SETTLES
    *_, fresh = unroll(levels, quadratics, [lr] * length, at_rest(levels, quadratics, torch.zeros(len(radius))))
    point = fixed_point(whole.where(settles[:, None, None], 0.0), fresh)  # 0: 1 - M is regular in every coordinate
    trajectory = follow(levels, quadratics, [lr] * length, point, agents=as_mesh(agents).size, settles=settles)
    return Stationary(round=trajectory, contraction=radius)


def _quadratics(
    levels: Sequence[Level],
    curvature: float | Tensor,
    noise: float | Tensor,
    offsets: float | Tensor,
    start: float | Tensor,
    agents: int | Mesh,
    momentum: float,
    nesterov: bool,
) -> Quadratics:
    """Agents that are alike are represented by two of them at most along each axis."""
    given = {"curvature": curvature, "noise": noise, "offsets": offsets, "start": start}
    tensors = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in given.items()}
    mesh = as_mesh(agents)
    total = mesh.size
    differ = any(tensor.ndim == 2 and len(tensor) > 1 for tensor in tensors.values())
    if not differ and all(_are_alike(level, mesh) for level in levels):
        mesh = smallest_mesh(levels, mesh)
    width = max(tensor.shape[-1] if tensor.ndim else 1 for tensor in tensors.values())
    for name, tensor in tensors.items():
        allowed = [(), (1,), (width,)] + [(n, d) for n in (1, total) for d in (1, width) if name != "start"]
        if tuple(tensor.shape) not in allowed:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: give a number or the shape ({width},)"
                + (f", or ({total}, {width}) for {total} agents that differ" if name != "start" else "")
            )
    a, sigma, mu = (tensors[name].expand(mesh.size, width) for name in ("curvature", "noise", "offsets"))
    return Quadratics(curvature=a, noise=sigma, offsets=mu, mesh=mesh, momentum=momentum, nesterov=nesterov)


def _are_alike(level: Level, mesh: Mesh) -> bool:
    """Whether all agents are alike in a level's average, which is the exact one of all of them, or of each alone."""
    if isinstance(level.mix, Exact):
        return len(mesh.group(level.mix.axis, rank=0)) in (1, mesh.size)
    return isinstance(level.mix, Alone)
