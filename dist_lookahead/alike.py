"""Along which axes of the mesh agents hold the same weights after each level's sync, from descriptions alone.

An exact average makes the agents along its axis alike, a gossip ends that along its own. A level that pulls starts from
its slow weights, which are what a level above has left behind: alike only where that one keeps agents alike too.
"""

from collections.abc import Sequence

from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh, as_mesh


def alike_after(levels: Sequence[Level], mesh: Mesh, shared: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Return for each level the axes along which agents hold the same weights, to the last bit, when it has fired.

    Args:
        levels: innermost first.
        mesh: of all agents.
        shared: axes along which agents share their gradients, and so hold the same weights before any sync.

    Raises:
        ValueError: for a gossip that would end that.

    Example:
        >>> from dist_lookahead import Copy, Every, Exact, Gossip, Pull
        >>> mesh, gossip = Mesh((4, 2), ("node", "local")), Level(Every(4), Gossip("world"), Copy())
        >>> alike_after([Level(Every(1), Exact("local"), Copy()), gossip], mesh)
        [('local',), ()]
        >>> alike_after([Level(Every(1), Exact("local"), Pull(0.5)), gossip], mesh)
        [(), ()]
    """
    found = [mesh.names] * len(levels)
    while (narrower := _narrowed(levels, mesh, found, shared)) != found:
        found = narrower
    for index, (level, alike) in enumerate(zip(levels, found, strict=True)):
        if not set(shared) <= set(alike):
            raise ValueError(
                f"levels[{index}].mix={level.mix} gives different weights to agents that share their gradients along "
                f"{', '.join(shared)}: gossip along another axis"
            )
    return found


def agree(levels: Sequence[Level], agents: int | Mesh, shared: Sequence[str] = ()) -> bool:
    """Return whether all agents hold the same weights after a sync of the outermost level.

    Args:
        levels: innermost first.
        agents: n, or a mesh of agents.
        shared: axes along which agents share their gradients.

    Example:
        >>> from dist_lookahead import dpsgd, local_sgd
        >>> agree(local_sgd(), agents=4), agree(dpsgd(), agents=4), agree(dpsgd(), agents=1)
        (True, False, True)
    """
    mesh = as_mesh(agents)
    outermost = alike_after(levels, mesh, shared)[-1]
    return all(size == 1 or name in outermost for name, size in zip(mesh.names, mesh.shape, strict=True))


def _narrowed(
    levels: Sequence[Level], mesh: Mesh, found: Sequence[tuple[str, ...]], shared: Sequence[str]
) -> list[tuple[str, ...]]:
    below = tuple(shared)  # before the first average all others differ
    narrower = []
    for index, level in enumerate(levels):
        below = level.mix.alike(mesh, below)
        if level.move.keeps_slow_weights:
            below = tuple(name for name in below if all(name in above for above in found[index + 1 :]))
        narrower.append(below)
    return narrower
