"""Closed forms on the noisy quadratic model: what a sync leaves of mean and variance, and where both settle.

One coordinate: loss a/2 (x - c)^2 with a fresh c ~ N(0, sigma^2) at each fast step and agent; plain SGD as fast
optimizer. With r = 1 - gamma a and R = r^tau everything depends on gamma a, tau and the slow move only. All functions
work elementwise on floats and on tensors of gamma a alike. `noisy_quadratic` has the same numbers for any stack.

The known slides on the Lookahead paper (arXiv 1907.08610) print some of these with slips. Corrected here: in (0.8)
the noise enters as sigma^2 (Sigma is the covariance already, it is not squared again); in (0.19) gamma is squared
where a is; in (0.1) the weights of old fast weights are alpha (1 - alpha)^j, j = 0 for the newest; and Proposition 2,
that Lookahead's variance is strictly below SGD's, needs alpha < 1 and 0 < gamma a < 2.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

T = TypeVar("T", float, Tensor)


def sgd_variance(gamma_a: T, noise: float = 1.0) -> T:
    """Stationary variance of plain SGD: V_SGD = gamma a sigma^2 / (2 - gamma a).

    Args:
        gamma_a: fast learning rate x curvature, in (0, 2).
        noise: sigma, the standard deviation of the minimiser c.

    Example:
        >>> sgd_variance(0.5)
        0.3333333333333333

    Reference: arXiv 1907.08610, Proposition 2, first equation.
    """
    return gamma_a * noise**2 / (2 - gamma_a)


def lookahead_ratio(gamma_a: T, tau: int, alpha: float) -> T:
    """Lookahead's stationary variance over SGD's: V_LA / V_SGD = alpha (1 + R) / (2 - alpha (1 - R)), at most 1.

    That holds at the same learning rate. At equal contraction of a single coordinate Lookahead does not win.

    Example:
        >>> lookahead_ratio(0.5, tau=5, alpha=1.0)
        1.0

    Reference: arXiv 1907.08610, Proposition 2, in compact form.
    """
    big_r = (1 - gamma_a) ** tau
    return alpha * (1 + big_r) / (2 - alpha * (1 - big_r))


def mean_factor(gamma_a: T, tau: int, alpha: float) -> T:
    """What a sync leaves of the slow weights' mean: E z_{t+1} = [1 - alpha (1 - R)] E z_t.

    Example:
        >>> mean_factor(1.0, tau=5, alpha=0.5)
        0.5
    """
    return 1 - alpha * (1 - (1 - gamma_a) ** tau)


def next_variance(variance: T, gamma_a: T, tau: int, alpha: float, *, agents: int = 1, noise: float = 1.0) -> T:
    """Slow weights' variance one sync later: [1 - alpha (1 - R)]^2 V + alpha^2 / n (1 - R^2) V_SGD.

    Args:
        variance: V after a sync.
        gamma_a: fast learning rate x curvature.
        tau: fast steps from sync to sync.
        alpha: slow step size.
        agents: n.
        noise: sigma.

    Example:
        >>> next_variance(0.0, 1.0, tau=5, alpha=0.5, agents=4)
        0.0625
    """
    big_r = (1 - gamma_a) ** tau
    fresh = alpha**2 * (1 - big_r**2) * sgd_variance(gamma_a, noise) / agents
    return mean_factor(gamma_a, tau, alpha) ** 2 * variance + fresh


def variance_in_round(gamma_a: T, steps: int, slow_variance: T, noise: float = 1.0) -> T:
    """An agent's variance some fast steps after a sync: r^{2l} V_z + (1 - r^{2l}) V_SGD.

    It is never below V_z where V_z <= V_SGD: the reason to evaluate at the slow weights.

    Args:
        gamma_a: fast learning rate x curvature.
        steps: l, fast steps since the sync.
        slow_variance: V_z after the sync.
        noise: sigma.

    Example:
        >>> variance_in_round(0.5, steps=0, slow_variance=0.25)
        0.25

    Reference: arXiv 1907.08610, Figure 10, as a formula.
    """
    left = (1 - gamma_a) ** (2 * steps)
    return left * slow_variance + (1 - left) * sgd_variance(gamma_a, noise)


def slow_momentum_variance(
    gamma_a: T, tau: int, alpha: float, beta: float = 0.0, *, agents: int = 1, noise: float = 1.0
) -> T:
    """Stationary variance of the slow weights with n agents and heavy-ball slow momentum.

    V = V_SGD / n  alpha (1 + R) (1 + beta) / ((1 - beta) [2 (1 + beta) - alpha (1 - R)]), where `slow_momentum_stable`:
    z_{t+1} = (1 + beta - theta) z_t - beta z_{t-1} + noise is an AR(2) process with theta = alpha (1 - R). To first
    order in gamma a only alpha / (1 - beta) matters. alpha = 1 and beta = 0 is local SGD: V_SGD / n for every tau.

    Args:
        gamma_a: fast learning rate x curvature.
        tau: fast steps from sync to sync.
        alpha: slow step size.
        beta: slow momentum.
        agents: n.
        noise: sigma.

    Example:
        >>> slow_momentum_variance(0.5, tau=5, alpha=1.0, agents=2) == sgd_variance(0.5) / 2
        True
    """
    big_r = (1 - gamma_a) ** tau
    factor = alpha * (1 + big_r) * (1 + beta) / ((1 - beta) * (2 * (1 + beta) - alpha * (1 - big_r)))
    return sgd_variance(gamma_a, noise) * factor / agents


def slow_momentum_stable(gamma_a: float, tau: int, alpha: float, beta: float = 0.0) -> bool:
    """Whether mean and variance under heavy-ball slow momentum settle: |beta| < 1, 0 < alpha (1 - R) < 2 (1 + beta).

    Fast weights that grow within a round (gamma a > 2) may be held by the slow ones: see `lookahead_frontier`.

    Example:
        >>> slow_momentum_stable(2.2, tau=5, alpha=0.5), slow_momentum_stable(2.2, tau=5, alpha=1.0)
        (True, False)
    """
    theta = alpha * (1 - (1 - gamma_a) ** tau)
    return abs(beta) < 1 and 0 < theta < 2 * (1 + beta)


def contraction(gamma_a: float, tau: int, alpha: float, beta: float = 0.0) -> float:
    """Factor per sync by which the mean of slow weights under heavy-ball slow momentum shrinks in the long run.

    The larger root of lambda^2 - (1 + beta - theta) lambda + beta, theta = alpha (1 - R); sqrt(beta) where the roots
    are complex; |1 - theta| without momentum.

    Example:
        >>> contraction(1.0, tau=5, alpha=0.5)
        0.5
    """
    trace = 1 + beta - alpha * (1 - (1 - gamma_a) ** tau)
    discriminant = trace**2 - 4 * beta
    return math.sqrt(beta) if discriminant < 0 else (abs(trace) + math.sqrt(discriminant)) / 2


def nesterov_variance(gamma_a: T, tau: int, alpha: float, beta: float, *, agents: int = 1, noise: float = 1.0) -> T:
    """Stationary variance of the slow weights under a Nesterov outer step (DiLoCo, SNOO).

    With theta = alpha (1 - R), q = 1 - theta and p the outer iterate without the last step's lookahead:
    V_p = alpha^2 (1 - R^2) V_SGD / n (1 + beta q) / [(1 - beta q) theta (1 + (1 + 2 beta) q)],
    V = V_p [(1 + beta)^2 + beta^2 - 2 beta (1 + beta)^2 q / (1 + beta q)].

    Args:
        gamma_a: fast learning rate x curvature.
        tau: fast steps from sync to sync.
        alpha: outer learning rate.
        beta: outer momentum.
        agents: n.
        noise: sigma.

    Example:
        >>> round(nesterov_variance(0.5, tau=500, alpha=0.7, beta=0.9, agents=8), 4)
        0.0796
    """
    big_r = (1 - gamma_a) ** tau
    theta = alpha * (1 - big_r)
    q = 1 - theta
    fresh = alpha**2 * (1 - big_r**2) * sgd_variance(gamma_a, noise) / agents
    plain = fresh * (1 + beta * q) / ((1 - beta * q) * theta * (1 + (1 + 2 * beta) * q))
    return plain * ((1 + beta) ** 2 + beta**2 - 2 * beta * (1 + beta) ** 2 * q / (1 + beta * q))


def nested_variance(
    gamma_a: T, taus: Sequence[int], alphas: Sequence[float], *, agents: int = 1, noise: float = 1.0
) -> T:
    """Stationary variance of the outermost slow weights of nested pulls: a product over the layers.

    rho_0 = 1 - gamma a, R_m = rho_{m-1}^{k_m}, rho_m = 1 - alpha_m (1 - R_m), and
    V = V_SGD / n  prod_m alpha_m (1 + R_m) / (2 - alpha_m (1 - R_m)).

    Args:
        gamma_a: fast learning rate x curvature.
        taus: k_m, pulls of the layer below (fast steps for the first) per pull of each layer, innermost first.
        alphas: slow step size of each layer.
        agents: n, averaged at the outermost layer at least.
        noise: sigma.

    Example:
        >>> nested_variance(0.5, [5], [0.5]) == lookahead_ratio(0.5, 5, 0.5) * sgd_variance(0.5)
        True

    Reference: arXiv 2110.14254 has the method; its slow weights are those that overwrite all below.
    """
    variance, rho = sgd_variance(gamma_a, noise) / agents, 1 - gamma_a
    for tau, alpha in zip(taus, alphas, strict=True):
        big_r = rho**tau
        variance = variance * (alpha * (1 + big_r) / (2 - alpha * (1 - big_r)))
        rho = 1 - alpha * (1 - big_r)
    return variance


def gossip_consensus(gamma_a: float, eigenvalues: Tensor, tau: int, alpha: float = 1.0, noise: float = 1.0) -> Tensor:
    """Stationary squared distance of gossiping agents from their mean, after a sync: E 1/n sum_i (z_i - mean z)^2.

    A symmetric W splits the agents into modes. That of the eigenvalue lambda has z <- (1 - alpha) z + alpha lambda x,
    so that its variance is

        alpha^2 lambda^2 (1 - R^2) V_SGD / (1 - [1 - alpha (1 - lambda R)]^2),    R = (1 - gamma a)^tau,

    and the distance is the sum over all modes but the mean's, whose eigenvalue is 1, divided by n.

    Args:
        gamma_a: fast learning rate x curvature, in (0, 2).
        eigenvalues: of W, (n,), 1 the largest.
        tau: fast steps between gossips.
        alpha: slow step size, 1 for `Copy`.
        noise: sigma.

    Example:
        >>> import torch
        >>> ring = torch.tensor([1.0, 1 / 3, 1 / 3, -1 / 3])
        >>> round(gossip_consensus(0.5, ring, tau=1).item(), 4)
        0.0214
    """
    modes, big_r = eigenvalues.sort().values[:-1], (1 - gamma_a) ** tau
    kept = 1 - alpha * (1 - modes * big_r)
    fresh = (alpha * modes) ** 2 * (1 - big_r**2) * sgd_variance(gamma_a, noise)
    return (fresh / (1 - kept**2)).sum() / len(eigenvalues)


def lookahead_frontier(tau: int, alpha: float) -> float:
    """The least gamma a at which Lookahead around gradient descent grows, 0 < alpha <= 2.

    2 for even tau, as for gradient descent itself; 1 + (2 / alpha - 1)^{1 / tau} for odd tau, where the sign of the
    round's overshoot lets the pull undo it. Condition (13) of the paper is far stricter: 0.4 for tau 5, alpha 0.5.

    Example:
        >>> lookahead_frontier(6, 0.5), round(lookahead_frontier(5, 0.5), 4)
        (2.0, 2.2457)

    Reference: Wang, Tantia, Ballas and Rabbat, ICASSP 2020, condition (13).
    """
    return 2.0 if tau % 2 == 0 else 1 + (2 / alpha - 1) ** (1 / tau)


def biased_fixed_point(gamma_a: Tensor, offsets: Tensor, tau: int) -> Tensor:
    """Where agents that disagree settle: sum_i (1 - r_i^tau) mu_i / sum_i (1 - r_i^tau), whatever alpha and beta.

    For tau = 1 that is the minimiser sum_i a_i mu_i / sum_i a_i of the mean loss. For longer rounds it is biased
    where curvatures differ: with equal curvatures it stays the mean of the offsets.

    Args:
        gamma_a: (n, ...) fast learning rate x curvature of each agent.
        offsets: (n, ...) mu_i, each agent's minimiser.
        tau: fast steps from sync to sync.

    Returns:
        (...) the fixed point of all slow weights.

    Example:
        >>> import torch
        >>> biased_fixed_point(torch.tensor([0.5, 1.0]), torch.tensor([3.0, 0.0]), tau=1)
        tensor(1.)
    """
    weights = 1 - (1 - gamma_a) ** tau
    return (weights * offsets).sum(dim=0) / weights.sum(dim=0)
