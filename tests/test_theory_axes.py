"""Mixing matrices of levels that average along the axes of a mesh, and of averages that are not exact."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from hypothesis import given, settings
from noisy_quadratic import Problem
from states import gossiping_stacks, gradients_at, meshed_stacks, trajectory
from torch import Tensor

from dist_lookahead import Copy, Every, Exact, Level, Pull, theory
from dist_lookahead.mesh import Mesh


def assert_equal(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=150)
@given(stack=meshed_stacks())
def test_a_real_run_over_the_axes_of_a_mesh_is_the_product_of_its_matrices(stack: tuple[list[Level], Mesh]) -> None:
    """Breaks if an axis means other agents to the code than to the mathematics, or if agents wrongly share a column."""
    assert_follows(*stack)


@settings(deadline=None, max_examples=80)
@given(stack=gossiping_stacks())
def test_a_real_run_that_gossips_is_the_product_of_its_matrices(stack: tuple[list[Level], Mesh]) -> None:
    """Breaks if a turn is lost, if a gossip sent displacements, or if agents were taken to be alike that are not."""
    assert_follows(*stack)


def assert_follows(levels: list[Level], mesh: Mesh) -> None:
    problem, rate = Problem(mesh.size, steps=12), 0.05
    states, _ = trajectory(levels, problem, [rate] * 12, mesh)
    X = states[0]
    for k, P in enumerate(theory.mixing_matrices(levels, mesh, 12)):
        G = torch.zeros_like(X)
        G[:, : mesh.size] = gradients_at(X, problem, k)
        X = (X - rate * G) @ P
        assert_equal(states[k + 1], X)


def test_agents_of_a_group_share_a_column_until_an_axis_tells_them_apart() -> None:
    mesh = Mesh((2, 2), ("node", "local"))
    local, node = Level(Every(2), Exact("local"), Pull(0.5)), Level(Every(4), Exact("node"), Pull(0.5, 0.5))
    assert theory.columns([local, node], mesh)[4:] == ("z0@0,1", "z0@2,3", "z1", "v1")
    above = Level(Every(8), Exact("local"), Copy())
    assert theory.columns([node, above], mesh)[4:] == ("z0@0,2", "z0@1,3", "v0@0,2", "v0@1,3")
    assert theory.columns([local], mesh)[4:] == ("z0@0,1", "z0@2,3")


@dataclass(frozen=True)
class OnePeer:
    """Gossip with one peer, at distance 1 and 2 in turn: over four agents two turns are the exact mean."""

    shard: bool = False
    communicates: bool = True
    weighted: None = None

    def period(self, mesh: Mesh) -> int:
        return 2

    def weights(self, mesh: Mesh, turn: int = 0) -> Tensor:
        peers = torch.arange(4) ^ (1 << turn)
        return (torch.eye(4, dtype=torch.float64) + torch.eye(4, dtype=torch.float64)[peers]) / 2


def test_the_seam_for_gossip_is_a_mix_with_weights_that_may_change_from_sync_to_sync() -> None:
    """Breaks if a decentralised average could not bring its own W, or if the turn were lost on the way to P_k."""
    mix, alpha, eye = cast(Any, OnePeer()), 0.6, torch.eye(4, dtype=torch.float64)
    levels = [Level(Every(3), mix, Pull(alpha))]
    assert theory.columns(levels, 4)[4:] == ("z0@0", "z0@1", "z0@2", "z0@3")
    for turn, step in enumerate((3, 6, 9)):
        W = OnePeer().weights(Mesh((4,)), turn % 2)
        moved = torch.cat((alpha * W, (1 - alpha) * eye))  # z_j <- (1 - alpha) z_j + alpha sum_i W_ij x_i, x_j <- z_j
        assert_equal(theory.mixing_matrix(levels, 4, step), torch.cat((moved, moved), dim=1))
    assert_equal(theory.fixed_vector(levels, 4), [alpha / 4] * 4 + [(1 - alpha) / 4] * 4)
    first, second = (theory.mixing_matrix([Level(Every(1), mix, Copy())], 4, step) for step in (1, 2))
    assert_equal(first @ second, torch.full((4, 4), 0.25))
