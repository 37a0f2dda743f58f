"""The best alpha: for the bound's floor, and along the segment from slow to fast weights.

Floor of the n-agent bound (B) in units of gamma L sigma^2, with q = gamma L (tau - 1):

    floor(alpha) = alpha / n + q [1 - alpha (2 - alpha) / n],   least at alpha* = max(0, 1 - 1 / (2 q))

alpha* does not depend on n, but its benefit decays as 1/n: at q = 2 the floor is 0.875 of that of alpha = 1 for n = 1,
0.982 for n = 4, 0.996 for n = 16. With many agents slow momentum is the lever, not alpha.
"""

import torch
from torch import Tensor


def floor(alpha: float, *, lr: float, smoothness: float, tau: int, agents: int = 1) -> float:
    """Return what more steps do not remove from the bound (B), in units of gamma L sigma^2.

    Args:
        alpha: slow step size, >= 0; 0 is the limit of small ones.
        lr: gamma > 0, constant.
        smoothness: L > 0.
        tau: fast steps between syncs, >= 1.
        agents: n, >= 1.

    Example:
        >>> floor(0.75, lr=0.5, smoothness=1.0, tau=5) / floor(1.0, lr=0.5, smoothness=1.0, tau=5)
        0.875

    Reference: Wang, Tantia, Ballas and Rabbat, ICASSP 2020, (14), for n = 1.
    """
    return alpha / agents + _q(lr, smoothness, tau) * (1 - alpha * (2 - alpha) / agents)


def optimal_alpha(*, lr: float, smoothness: float, tau: int) -> float:
    """Return the alpha of the least floor: alpha* = max(0, 1 - 1 / (2 q)), q = gamma L (tau - 1).

    The same for every number of agents n; it lowers the floor by 1 / (4 q n) from that of alpha = 1 (q >= 1/2).
    0 (for q <= 1/2) means: the smaller alpha the lower the floor, and the slower the run, whose first term grows as
    1 / alpha. The floor is a bound's; at equal contraction of a single quadratic mode Lookahead has no less variance
    than SGD with a smaller rate.

    Args:
        lr: gamma > 0, constant.
        smoothness: L > 0.
        tau: fast steps between syncs, >= 1.

    Example:
        >>> optimal_alpha(lr=0.5, smoothness=1.0, tau=5)
        0.75

    Reference: the minimum over alpha of Wang, Tantia, Ballas and Rabbat, ICASSP 2020, (14).
    """
    q = _q(lr, smoothness, tau)
    return max(0.0, 1 - 1 / (2 * q)) if q else 0.0


def beats_sgd(alpha: float, *, lr: float, smoothness: float, tau: int) -> bool:
    """Return whether the floor is no higher than that of alpha = 1: alpha <= 1 and q (1 - alpha) <= 1.

    With one agent alpha = 1 is SGD, with n it is local SGD with the same tau; the condition does not depend on n.

    Args:
        alpha: slow step size, > 0; none above 1 lowers the floor.
        lr: gamma > 0, constant.
        smoothness: L > 0.
        tau: fast steps between syncs, >= 1.

    Example:
        >>> beats_sgd(0.5, lr=0.5, smoothness=1.0, tau=5), beats_sgd(0.4, lr=0.5, smoothness=1.0, tau=5)
        (True, False)
    """
    return alpha <= 1 and _q(lr, smoothness, tau) * (1 - alpha) <= 1


def proposition_1_alpha(start: Tensor, end: Tensor, minimiser: Tensor, curvature: Tensor) -> Tensor:
    """Return the alpha of least loss on a quadratic, for theta = start + alpha (end - start).

    alpha* = (theta_0 - theta*)^T A (theta_0 - theta_k) / (theta_0 - theta_k)^T A (theta_0 - theta_k)

    Args:
        start: theta_0 (D,), the slow weights before the round.
        end: theta_k (D,), the fast weights at its end.
        minimiser: theta* (D,).
        curvature: A, (D,) for a diagonal matrix or symmetric (D, D).

    Returns:
        A scalar tensor, float64; not clipped. Without positive curvature along the segment as `line_alpha` says.

    Example:
        >>> start, end, best = torch.tensor([[4.0, 2.0], [0.0, 2.0], [1.0, 2.0]])
        >>> proposition_1_alpha(start, end, best, curvature=torch.tensor([1.0, 3.0])).item()
        0.75

    Reference: arXiv 1907.08610, Proposition 1.
    """
    start, end, minimiser, matrix = (tensor.double() for tensor in (start, end, minimiser, curvature))
    displacement = end - start
    bent = matrix * displacement if matrix.ndim == 1 else matrix @ displacement
    return line_alpha(slope=torch.dot(start - minimiser, bent), bend=torch.dot(displacement, bent))


def secant_alpha(displacement: Tensor, gradient_start: Tensor, gradient_end: Tensor) -> Tensor:
    """Return Proposition 1's alpha from two gradients, without knowing the minimiser or the curvature.

    alpha* = - d^T g_0 / d^T (g_k - g_0),   d = theta_k - theta_0

    The same number on a quadratic; on any loss, where the slope along d would vanish if it changed linearly. Sums over
    several tensors, or over shards on several agents, go through `line_alpha`: two numbers to add.

    Args:
        displacement: d, any shape.
        gradient_start: g_0, the gradient at theta_0, same shape.
        gradient_end: g_k, the gradient at theta_k, same shape.

    Returns:
        A scalar tensor, float64; not clipped. Without positive curvature along d as `line_alpha` says.

    Example:
        >>> secant_alpha(torch.tensor([-4.0]), torch.tensor([3.0]), torch.tensor([-1.0])).item()
        0.75

    Reference: arXiv 1907.08610, Proposition 1, with A d = g_k - g_0 and A (theta_0 - theta*) = g_0.
    """
    d, before, after = (tensor.double().flatten() for tensor in (displacement, gradient_start, gradient_end))
    return line_alpha(slope=torch.dot(d, before), bend=torch.dot(d, after - before))


def line_alpha(slope: Tensor, bend: Tensor) -> Tensor:
    """Return the alpha of least slope * alpha + bend * alpha^2 / 2, for clipping to an interval.

    Args:
        slope: d^T g_0, the slope at alpha = 0, scalar.
        bend: d^T A d, or d^T (g_k - g_0), scalar.

    Returns:
        - slope / bend where bend > 0. Where it is not, the stationary point is a maximum or does not exist, and the
        loss is least at an end of any interval: infinity if it falls from alpha = 0 to 1, so that clipping takes the
        longest step allowed, minus infinity if it rises, so that clipping takes the shortest. If it does neither, as
        for d = 0: 1, the fast weights as they are. Never not-a-number for finite arguments. Stays on the device:
        nothing waits for the values.

    Example:
        >>> slope, bend = torch.tensor([-3.0, -3.0, 3.0, 0.0]), torch.tensor([4.0, -1.0, 0.0, 0.0])
        >>> line_alpha(slope, bend).tolist()
        [0.75, inf, -inf, 1.0]
    """
    change = slope + bend / 2  # of the loss from alpha = 0 to 1
    end = torch.where(change == 0, torch.ones_like(change), -change.sign() * torch.inf)
    return torch.where(bend > 0, -slope / bend, end)


def _q(lr: float, smoothness: float, tau: int) -> float:
    return lr * smoothness * (tau - 1)
