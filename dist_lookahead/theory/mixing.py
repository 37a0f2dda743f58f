"""A method as a product of matrices: X_{k+1} = (X_k - gamma_k G_k) P_k.

The columns of the state X are all copies of the weights that a method keeps, innermost level first:

    X = [x_1 .. x_n | z_1, v_1 | z_2, v_2 | ...]

x_i are the fast weights of agent i, z and v the slow weights and the slow momentum of a level that keeps them. G has
the agents' gradients in the columns of x and zeros elsewhere. After fast step k the levels that are due fire, and P_k
is the product of their matrices: every new column is a combination of old ones, with the weights in a column of P_k.

Agents that always hold the same z share its column. Below the first average each agent is for itself: one z and one v
for each agent. A level that averages over all agents has one z and one v, and so has each level above it; one that
averages along an axis of a mesh has one for each group (`layout`).

The weights of the columns of x and z sum to 1 in each new x and z, and to 0 in each new v: 1^T P = 1^T without slow
momentum. With agents as columns, multiplied from the right, this "column stochastic" says that new weights are
weighted means of old ones. What push-sum calls column stochastic is written for multiplication from the left and says
that mass is conserved, P 1 = 1 here: the transposed property.

Source: Wang, Tantia, Ballas and Rabbat, ICASSP 2020, eq. 4, for one fast and one slow agent without momentum; here
for n agents and any stack of levels.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh
from dist_lookahead.move import Pull
from dist_lookahead.theory.calendar import Firing, firings, syncs
from dist_lookahead.theory.constants import require_constants
from dist_lookahead.theory.eigenvalues import eigenvalues
from dist_lookahead.theory.layout import Layout, layout_of

ROUNDING = 1e-9  # what P a may differ from a, for weights a of order 1


def columns(levels: Sequence[Level], agents: int | Mesh) -> tuple[str, ...]:
    """Return the names of the state's S columns.

    Args:
        levels: innermost first.
        agents: n >= 1, or a mesh of agents.

    Returns:
        "x0" .. for the agents' fast weights, then for each level "z0" and "v0" with the level's index; where agents
        are for themselves "z0@0", "z0@1", .. "v0@0", .. with the agent's number, or with those of a group that shares.

    Example:
        >>> from dist_lookahead import lookahead, slowmo
        >>> columns(slowmo(), agents=2)
        ('x0', 'x1', 'z0', 'v0')
        >>> columns(lookahead(), agents=2)
        ('x0', 'x1', 'z0@0', 'z0@1')
    """
    return layout_of(levels, agents).names


def level_matrix(
    levels: Sequence[Level], index: int, agents: int | Mesh, *, step: int = 0, ratio: float = 1.0
) -> Tensor:
    """Return the matrix of one level's firing, (S, S) in float64.

    With the mean over the agents (the agent's own column for a level that is `Alone`) as m:

        v <- beta ratio v + (m - z),  z <- z + alpha v    (Nesterov: z <- z + alpha (m - z + beta v)),

    and everything below takes z: all x and the z of lower levels. The v of lower levels is kept, or set to 0 with
    fast_buffers="reset". Closed forms of one averaging level, in the columns [x_1 .. x_n, z, v]:

        local SGD           P = 1 1^T / n, without column z
        distributed         P = a 1^T,  a = [alpha/n, .., alpha/n, 1 - alpha]^T, P^2 = P, spectrum {1, 0 (n times)};
          Lookahead         doubly stochastic if and only if alpha = n / (n + 1), for one agent alpha = 1/2
        slow momentum       P = [b, .., b, c],  b = [alpha/n, .., alpha/n, 1 - alpha, alpha beta]^T,
                            c = [1/n, .., 1/n, -1, beta]^T, spectrum {1, beta, 0 (n times)}
        Nesterov            b = [alpha (1 + beta)/n, .., 1 - alpha (1 + beta), alpha beta^2]^T and the same c,
                            with the same spectrum

    A nested level m < M of M levels without momentum leaves the columns of the levels above alone: its matrix is
    idempotent, with an eigenvalue 1 for each of them and one more for itself. A level above the first never fires by
    itself: what has a common fixed vector are the products of the levels 0 .. m, which `mixing_matrix` returns.

    Args:
        levels: innermost first.
        index: of the level that fires.
        agents: n >= 1, or a mesh of agents.
        step: fast steps done, for schedules of alpha and beta.
        ratio: gamma_t / gamma_prev, for a level with follow_lr.

    Example:
        >>> from dist_lookahead import distributed_lookahead
        >>> level_matrix(distributed_lookahead(alpha=0.5), 0, agents=2)
        tensor([[0.2500, 0.2500, 0.2500],
                [0.2500, 0.2500, 0.2500],
                [0.5000, 0.5000, 0.5000]], dtype=torch.float64)

    Reference: Wang, Tantia, Ballas and Rabbat, ICASSP 2020, eq. 4 (n = 1); arXiv 1910.00643, Algorithm 1;
    arXiv 2311.08105, Algorithm 1; arXiv 2110.14254 (nested).
    """
    layout = layout_of(levels, agents)
    if not 0 <= index < len(levels):
        raise ValueError(f"index={index} must be that of one of {len(levels)} levels: 0 to {len(levels) - 1}")
    return product(layout, [Firing(index, step, ratio)])


def mixing_matrix(
    levels: Sequence[Level], agents: int | Mesh, step: int, *, rates: Sequence[float] | None = None
) -> Tensor:
    """Return P_k, (S, S) in float64: what all levels that fire after fast step k do, the identity where none does.

    Args:
        levels: innermost first.
        agents: n >= 1, or a mesh of agents.
        step: k, counted from 1.
        rates: fast learning rates of steps 1 .. k, which slow momentum with follow_lr depends on; None for a
            constant one.

    Example:
        >>> from dist_lookahead import lookahead
        >>> mixing_matrix(lookahead(tau=5, alpha=0.8), agents=1, step=5)
        tensor([[0.8000, 0.8000],
                [0.2000, 0.2000]], dtype=torch.float64)

    Reference: Wang, Tantia, Ballas and Rabbat, ICASSP 2020, eq. 4.
    """
    if step < 1:
        raise ValueError(f"step={step} must be at least 1: the first fast step is step 1")
    last = deque(syncs(levels, step, rates=rates), maxlen=1)
    return product(layout_of(levels, agents), [firing for fired in last for firing in fired if firing.step == step])


def mixing_matrices(
    levels: Sequence[Level], agents: int | Mesh, steps: int, *, rates: Sequence[float] | None = None
) -> Iterator[Tensor]:
    """Yield P_1 .. P_steps, each (S, S): what `mixing_matrix` returns, in one pass.

    Args:
        levels: innermost first.
        agents: n >= 1, or a mesh of agents.
        steps: number of fast steps.
        rates: fast learning rates of the steps; None for a constant one.

    Example:
        >>> from dist_lookahead import local_sgd
        >>> [P.trace().item() for P in mixing_matrices(local_sgd(tau=2), agents=4, steps=4)]
        [4.0, 1.0, 4.0, 1.0]
    """
    layout = layout_of(levels, agents)
    for fired in firings(levels, steps, rates=rates):
        yield product(layout, fired)


def spectrum(P: Tensor) -> Tensor:
    """Return the eigenvalues of P, (S,) complex, by decreasing modulus.

    Example:
        >>> from dist_lookahead import slowmo
        >>> spectrum(level_matrix(slowmo(beta=0.5), 0, agents=1)).abs().round(decimals=6)
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    found = eigenvalues(P)
    return found[found.abs().argsort(descending=True, stable=True)]


def fixed_vector(levels: Sequence[Level], agents: int | Mesh) -> Tensor:
    """Return the weights a with P_k a = a for every k, (S,) in float64; those of the x and z sum to 1.

    Therefore y_k = X_k a is changed by gradients only, never by a sync: y_{k+1} = y_k - gamma_k G_k a. In closed form

        distributed Lookahead   y = alpha mean(x) + (1 - alpha) z
        slow momentum           y = A mean(x) + (1 - A) z + A beta v,    A = alpha / (1 - beta)
        Nesterov                y = A mean(x) + (1 - A) z + A beta^2 v
        M levels                y = A_M mean(x) + sum_m (1 - alpha_m) A_M / A_m z_m,    A_m = alpha_1 .. alpha_m

    Agents that never average have a y each; the vector is then that of their mean.

    Slow momentum in units of gradients (follow_lr) keeps y at syncs with a constant fast learning rate only: a change
    of it scales v, and y with it.

    Args:
        levels: innermost first, with constant alpha and beta.
        agents: n >= 1, or a mesh of agents.

    Raises:
        ValueError: for a schedule of alpha or beta; and where there is no such vector, which is so where a level
            resets slow momentum below it.

    Example:
        >>> from dist_lookahead import distributed_lookahead
        >>> fixed_vector(distributed_lookahead(alpha=0.5), agents=2)
        tensor([0.2500, 0.2500, 0.5000], dtype=torch.float64)

    Reference: Wang, Tantia, Ballas and Rabbat, ICASSP 2020, P_k a = a and y_k = X_k a for n = 1 without momentum.
    """
    layout = layout_of(levels, agents)
    require_constants(levels, ("alpha", "beta"), "weights which outlast one sync do not outlast the next")
    kinds = torch.stack([product(layout, [Firing(m, 0) for m in range(top + 1)]) for top in _outermost_fired(levels)])
    must_stay = (kinds - _identity(layout)).flatten(0, 1)
    equations = torch.cat((must_stay, layout.mask()[None]))
    right = torch.zeros(len(equations), 1, dtype=torch.float64)
    right[-1] = 1.0
    # The shortest of all solutions: the one that is the same for all agents.
    a = torch.linalg.lstsq(equations, right, driver="gelsd").solution
    if (equations @ a - right).abs().max() > ROUNDING:
        resets = [index for index, level in enumerate(levels) if level.fast_buffers == "reset"]
        raise ValueError(
            f"no weighted mean of the columns outlasts every sync: levels{resets} with fast_buffers='reset' forget the "
            "slow momentum of levels below. Use fast_buffers='keep', or no slow momentum below"
        )
    return a.squeeze(1)


def effective_lr(levels: Sequence[Level], agents: int | Mesh) -> float:
    """Return the factor on gamma with which y = X a moves: y_{k+1} = y_k - factor gamma_k mean_i g_i.

    It is the product of alpha / (1 - beta) over all levels, with 1 for `Copy`: alpha for Lookahead,
    alpha / (1 - beta) for slow momentum, heavy ball and Nesterov alike, the product of all alpha for nested layers.

    Args:
        levels: innermost first, with constant alpha and beta.
        agents: n >= 1, or a mesh of agents.

    Raises:
        ValueError: where `fixed_vector` does.

    Example:
        >>> from dist_lookahead import diloco
        >>> round(effective_lr(diloco(alpha=0.7, beta=0.9), agents=8), 9)
        7.0

    Reference: Wang, Tantia, Ballas and Rabbat, ICASSP 2020, for n = 1 without momentum: alpha.
    """
    layout = layout_of(levels, agents)
    return float(fixed_vector(levels, agents)[layout.fast].sum())


def _fire(layout: Layout, state: Tensor, firing: Firing) -> Tensor:
    """Return the state X, (.., S), after a level has fired; every agent's numbers are (.., n)."""
    level, place = layout.levels[firing.index], layout.places[firing.index]
    new = state.clone()
    below = state[..., layout.fast] @ layout.average(firing.index, firing.turn)
    z = below
    if isinstance(level.move, Pull):
        alpha, beta = level.move.coefficients(firing.step)
        own_z = state[..., place.slow][..., place.holders]
        v = delta = below - own_z
        if level.move.keeps_momentum:
            v = beta * firing.ratio * state[..., place.momentum][..., place.holders] + delta
            new[..., place.momentum] = v[..., place.first]
        z = own_z + alpha * (delta + beta * v if level.move.nesterov else v)
        new[..., place.slow] = z[..., place.first]
    new[..., layout.fast] = z
    for lower in layout.places[: firing.index]:
        if lower.keeps_slow_weights:
            new[..., lower.slow] = z[..., lower.first]
        if level.fast_buffers == "reset":
            new[..., lower.momentum] = 0.0
    return new


def product(layout: Layout, fired: Sequence[Firing]) -> Tensor:
    """Return the matrix of levels that fire one after the other, (S, S): what they make of unit vectors.

    Args:
        layout: of the stack.
        fired: the levels, as `firings` yields them.

    Example:
        >>> from dist_lookahead import local_sgd
        >>> product(layout_of(local_sgd(tau=2), agents=2), [Firing(0, step=2)])
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    return reduce(lambda state, firing: _fire(layout, state, firing), fired, _identity(layout))


def _identity(layout: Layout) -> Tensor:
    return torch.eye(len(layout.names), dtype=torch.float64)


def _outermost_fired(levels: Sequence[Level]) -> list[int]:
    """Return the levels that can be the outermost to fire: not one whose upper neighbour always fires with it."""
    taus = [level.when.tau for level in levels]
    return [m for m in range(len(levels)) if m + 1 == len(levels) or taus[m] != taus[m + 1]]
