"""The section `mesh`: the agents as a grid with named axes, for levels to average along."""

from collections.abc import Iterator, Sequence
from typing import Any

from dist_lookahead.alike import agree, alike_after
from dist_lookahead.fragments import WHOLE
from dist_lookahead.level import Level
from dist_lookahead.mesh import NODES, Mesh
from dist_lookahead.train.config_faults import Faults, shown
from dist_lookahead.train.config_inner import Inner

SOME_NODES = Mesh((2, 2), NODES)  # stands for all that torchrun may start: sizes above 1 make no difference


def read_mesh(plain: Any) -> Mesh | None:
    """Read {axis: number of agents, ..}, the last axis the one along which ranks count first.

    Raises:
        Faults: for what is not such a mapping, and for axes that make no mesh.

    Example:
        >>> read_mesh({"node": 2, "local": 4})
        Mesh(shape=(2, 4), names=('node', 'local'))
    """
    if plain is None or isinstance(plain, Mesh):
        return plain
    whole = isinstance(plain, dict) and all(isinstance(n, int) and not isinstance(n, bool) for n in plain.values())
    if not whole or not plain:
        raise Faults(
            [f"mesh={shown(plain)} must be a mapping of axes to numbers of agents, such as {{node: 2, local: 4}}"]
        )
    try:
        return Mesh(tuple(plain.values()), tuple(plain))
    except ValueError as error:
        raise Faults([f"mesh: {error}"]) from error


def agreeing(levels: Sequence[Level], mesh: Mesh | None, inner: Inner) -> bool:
    """Return whether all agents hold the same weights after a sync of all levels, however many nodes there will be.

    Args:
        levels: innermost first.
        mesh: of the file; None for torchrun's.
        inner: says whether agents share their gradients.
    """
    return agree(levels, mesh or SOME_NODES, shared_axes(inner))


def is_watchable(levels: Sequence[Level], mesh: Mesh, inner: Inner) -> bool:
    """Return whether there is a mean of all weights after a sync, from which it can be told how agents move.

    Args:
        levels: innermost first.
        mesh: of the agents.
        inner: says whether agents share their gradients.
    """
    return agreeing(levels, mesh, inner) and all(level.params == WHOLE for level in levels)


def sharing_faults(levels: Sequence[Level], mesh: Mesh | None, inner: Inner) -> Iterator[str]:
    """Say why agents cannot share their gradients.

    Args:
        levels: innermost first, along axes that are there.
        mesh: of the file; None for torchrun's.
        inner: says whether agents share their gradients.
    """
    crowd = mesh or SOME_NODES
    missing = [axis for axis in shared_axes(inner) if axis not in crowd.names]
    if missing:
        yield f"inner.data_parallel={inner.data_parallel!r} needs the axis {missing[0]!r}, which mesh does not have"
        return
    try:
        alike_after(levels, crowd, shared_axes(inner))
    except ValueError as error:
        yield str(error)


def shared_axes(inner: Inner) -> tuple[str, ...]:
    """Return the axes along which agents share their gradients.

    Example:
        >>> shared_axes(Inner(name="SGD", data_parallel="ddp"))
        ('local',)
    """
    return () if inner.data_parallel == "none" else NODES[-1:]


def write_mesh(mesh: Mesh | None) -> dict[str, int] | None:
    """Write what `read_mesh` reads."""
    return None if mesh is None else dict(zip(mesh.names, mesh.shape, strict=True))
