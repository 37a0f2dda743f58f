"""The averaging weights of all agents, from those of the agents of a group."""

import torch
from torch import Tensor

from dist_lookahead.mesh import Mesh


def within_groups(mesh: Mesh, axis: str, own: Tensor | float) -> Tensor:
    """Return the averaging weights W (n, n), float64, of agents that take from those of their group alone.

    Args:
        mesh: of all n agents.
        axis: along which the agents of a group lie.
        own: weights (m, m) between the m agents of a group, or one for all of them.
    """
    weights = torch.zeros(mesh.size, mesh.size, dtype=torch.float64)
    for ranks in torch.tensor(mesh.groups(axis)):
        weights[ranks[:, None], ranks] = own
    return weights
