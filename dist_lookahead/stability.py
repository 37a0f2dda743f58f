"""A warning at construction: levels that are unstable on quadratics at small learning rates, over this fast optimizer.

What is unstable, from where on, and what to change instead is computed by `theory.stability`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product

from torch.optim import Optimizer

from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.gossip import OnGraph
from dist_lookahead.fragments import Named
from dist_lookahead.level import Level
from dist_lookahead.mesh import WORLD, Mesh
from dist_lookahead.theory.cells import cell_stacks
from dist_lookahead.theory.stability import is_calm, verdict


def instabilities(levels: Sequence[Level], inner: Optimizer, *, agents: int) -> Iterator[str]:
    """Yield a sentence for each momentum of the fast optimizer over which the levels are alarming.

    Nothing is said of optimizers without momentum among their settings, such as Adam: their steps are not linear in
    the gradient. Nor of momentum with dampening, which is another recursion, nor of averages that land later.

    Gossips are taken as exact averages, so that thousands of agents cost as much as two: looked at are the agents'
    mean, which the graph makes no difference to, and disagreement that is gone after a sync. `theory.verdict` looks at
    all that is between.

    Args:
        levels: innermost first; schedules are taken at the first round. Of levels over parts of the parameters each
            part's are looked at; of those over names none are.
        inner: the fast optimizer.
        agents: number of all agents.

    Example:
        >>> import torch
        >>> from dist_lookahead import slowmo
        >>> inner = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        >>> [len(list(instabilities(slowmo(tau, beta=0.8), inner, agents=4))) for tau in (6, 24)]
        [1, 0]
    """
    if any(isinstance(level.params, Named) or level.when.delay or level.local_share for level in levels):
        return
    for stack, (momentum, nesterov) in product(cell_stacks(levels), sorted(set(_momenta(inner)))):
        exact = tuple(_as_exact(level) for level in stack)
        mesh = _mesh(exact, agents)
        try:
            sentence = _sentence(exact, mesh, momentum, nesterov)
        except TypeError:  # a schedule of the user's that has no hash
            sentence = _sentence.__wrapped__(exact, mesh, momentum, nesterov)
        if sentence:
            yield sentence


@lru_cache(maxsize=32)  # simulated agents are constructed one by one, all with the same levels
def _sentence(levels: tuple[Level, ...], mesh: int | Mesh, momentum: float, nesterov: bool) -> str | None:
    if is_calm(levels, agents=mesh, momentum=momentum, nesterov=nesterov):
        return None
    return verdict(levels, agents=mesh, momentum=momentum, nesterov=nesterov).sentence


def _momenta(inner: Optimizer) -> Iterator[tuple[float, bool]]:
    for group in inner.param_groups:
        momentum = group.get("momentum")
        if momentum is not None and 0 <= momentum < 1 and not group.get("dampening"):
            yield float(momentum), bool(momentum and group.get("nesterov"))


def _as_exact(level: Level) -> Level:
    return replace(level, mix=Exact(level.mix.axis)) if isinstance(level.mix, OnGraph) else level


def _mesh(levels: Sequence[Level], agents: int) -> int | Mesh:
    """Two agents along each axis stand for many that are alike: the sizes of the axes make no difference."""
    axes = sorted({level.mix.axis for level in levels if isinstance(level.mix, Exact)} - {WORLD})
    return Mesh((2,) * len(axes), tuple(axes)) if axes else agents
