"""Along which axes of the mesh agents hold the same weights after each level's sync, from descriptions alone.

An exact average makes the agents along its axis alike, a gossip ends that along its own. A level that pulls starts from
its slow weights, which are what a level above has left behind: alike only where that one keeps agents alike too. All
that is asked for each cell, the parameters that the same levels act on: what holds in all of a level's holds for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dist_lookahead.fragments import possible_cells
from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh, as_mesh


@dataclass(frozen=True)
class Alike:
    """Axes along which agents hold the same weights before a level averages, and after it has fired."""

    before: tuple[str, ...]
    after: tuple[str, ...]


def likeness(
    levels: Sequence[Level], mesh: Mesh, shared: Sequence[str] = (), cells: Sequence[Sequence[int]] = ()
) -> list[Alike]:
    """Return for each level the axes along which agents hold the same weights.

    Args:
        levels: innermost first.
        mesh: of all agents.
        shared: axes along which agents share their gradients, and so hold the same weights before any sync.
        cells: the levels that act on the same parameters, innermost first; by default those that there can be.

    Raises:
        ValueError: for a gossip that would end that.
    """
    found: list[list[Alike]] = [[] for _ in levels]
    for cell in cells or possible_cells([level.params for level in levels]):
        after = _in_cell([levels[index] for index in cell], cell, mesh, shared)
        for index, before, own in zip(cell, [tuple(shared), *after], after, strict=False):
            found[index].append(Alike(before, own))
    return [Alike(_common([one.before for one in own]), _common([one.after for one in own])) for own in found]


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
    return [alike.after for alike in likeness(levels, mesh, shared)]


def agree(levels: Sequence[Level], agents: int | Mesh, shared: Sequence[str] = ()) -> bool:
    """Return whether all agents hold the same slow weights after a sync of the outermost level.

    Args:
        levels: innermost first. What agents keep of their own weights at the outermost level is no slow weight.
        agents: n, or a mesh of agents.
        shared: axes along which agents share their gradients.

    Example:
        >>> from dist_lookahead import dpsgd, local_sgd
        >>> agree(local_sgd(), agents=4), agree(dpsgd(), agents=4), agree(dpsgd(), agents=1)
        (True, False, True)
    """
    mesh = as_mesh(agents)
    differing = {name for name, size in zip(mesh.names, mesh.shape, strict=True) if size > 1}
    outermost = {cell[-1] for cell in possible_cells([level.params for level in levels])}
    levels = [replace(level, local_share=0.0) if i in outermost else level for i, level in enumerate(levels)]
    after = alike_after(levels, mesh, shared)
    return all(differing <= set(after[cell[-1]]) for cell in possible_cells([level.params for level in levels]))


def _in_cell(
    levels: Sequence[Level], indices: Sequence[int], mesh: Mesh, shared: Sequence[str]
) -> list[tuple[str, ...]]:
    """Return for each level of a cell the axes along which agents are alike after it."""
    found = [mesh.names] * len(levels)
    while (narrower := _narrowed(levels, mesh, found, shared)) != found:
        found = narrower
    for index, level, alike in zip(indices, levels, found, strict=True):
        if not set(shared) <= set(alike):
            raise ValueError(
                f"levels[{index}].mix={level.mix} gives different weights to agents that share their gradients along "
                f"{', '.join(shared)}: gossip along another axis"
            )
    return found


def _common(axes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return what is in all of them."""
    return tuple(name for name in axes[0] if all(name in others for others in axes)) if axes else ()


def _narrowed(
    levels: Sequence[Level], mesh: Mesh, found: Sequence[tuple[str, ...]], shared: Sequence[str]
) -> list[tuple[str, ...]]:
    below = tuple(shared)  # before the first average all others differ
    narrower = []
    for index, level in enumerate(levels):
        if level.local_share:  # what agents keep of their own weights is as different as it was
            narrower.append(below)
            continue
        below = level.mix.alike(mesh, below)
        if level.move.keeps_slow_weights:
            below = tuple(name for name in below if all(name in above for above in found[index + 1 :]))
        narrower.append(below)
    return narrower
