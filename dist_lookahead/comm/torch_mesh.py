"""Meshes of processes: those that torchrun has started, and torch's own in this package's words."""

import os

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from dist_lookahead.mesh import NODES, Mesh


def mesh_of_nodes() -> Mesh:
    """Return the axes "node" and "local" that torchrun has started: nodes, and processes on each of them."""
    size, local = dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    return Mesh((size // local, local), NODES) if local and size % local == 0 else Mesh((size,))


def described(mesh: DeviceMesh) -> Mesh:
    """Describe torch's mesh; names are what levels average along."""
    if not mesh.mesh_dim_names:
        raise ValueError(f"{mesh} has no names: give mesh_dim_names, such as {NODES}, for levels to average along")
    if mesh.mesh.flatten().tolist() != list(range(dist.get_world_size())):
        raise ValueError(f"{mesh} must hold all ranks from 0 to {dist.get_world_size() - 1} in their order")
    return Mesh(tuple(mesh.mesh.shape), mesh.mesh_dim_names)
