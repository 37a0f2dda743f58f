"""The section `mesh`: the agents as a grid with named axes, for levels to average along."""

from collections.abc import Sequence
from typing import Any

from dist_lookahead.alike import agree
from dist_lookahead.level import Level
from dist_lookahead.mesh import NODES, Mesh
from dist_lookahead.train.config_faults import Faults, shown
from dist_lookahead.train.config_inner import Inner


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
    shared = () if inner.data_parallel == "none" else ("local",)
    return agree(levels, mesh or Mesh((2, 2), NODES), shared)


def write_mesh(mesh: Mesh | None) -> dict[str, int] | None:
    """Write what `read_mesh` reads."""
    return None if mesh is None else dict(zip(mesh.names, mesh.shape, strict=True))
