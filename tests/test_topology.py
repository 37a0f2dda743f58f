"""Topologies: doubly stochastic weights, who hears whom, and what a period leaves of the disagreement."""

import math

import pytest
import torch

from dist_lookahead import BipartiteExponential, Complete, Gossip, Graph, OnePeerExponential, Ring, StaticExponential
from dist_lookahead.comm.topology import Topology
from dist_lookahead.mesh import Mesh
from dist_lookahead.notation import from_plain, to_plain

EYE = [[1.0, 0.0], [0.0, 1.0]]
OWN = Graph([[[0.5, 0.5], [0.5, 0.5]], EYE])
ALL: list[Topology] = [Ring(), Complete(), StaticExponential(), OnePeerExponential(), BipartiteExponential()]
each = pytest.mark.parametrize("topology", ALL, ids=lambda topology: type(topology).__name__)


@each
@pytest.mark.parametrize("agents", [1, 2, 3, 4, 6, 7, 8, 12, 33])
def test_rows_and_columns_sum_to_1_in_every_turn_and_everybody_is_reached(topology: Topology, agents: int) -> None:
    """Breaks if the mean could move, or if some agents would never hear of others."""
    if isinstance(topology, BipartiteExponential) and agents % 2 and agents > 1:
        pytest.skip("pairs need an even number")
    reached = torch.eye(agents, dtype=torch.float64)
    for turn in range(topology.period(agents)):
        weights = topology.weights(agents, turn)
        assert weights.dtype == torch.float64
        assert (weights >= 0).all()
        for dim in (0, 1):
            torch.testing.assert_close(weights.sum(dim=dim), torch.ones(agents, dtype=torch.float64))
        assert torch.equal(topology.weights(agents, turn + topology.period(agents)), weights)
        reached = reached @ weights
    assert (torch.linalg.matrix_power(reached, agents) > 0).all()


def test_what_an_agent_sends_does_not_grow_with_the_agents_but_by_their_logarithm_at_most() -> None:
    def hearers(topology: Topology) -> int:
        return int((topology.weights(256)[0] > 0).sum()) - 1

    assert [hearers(topology) for topology in ALL] == [2, 255, 8, 1, 1]


@pytest.mark.parametrize("agents", [2, 4, 16])
def test_one_peer_is_exact_after_a_period_where_n_is_a_power_of_2(agents: int) -> None:
    graph = OnePeerExponential()
    assert graph.period(agents) == math.log2(agents)
    product = torch.linalg.multi_dot([torch.eye(agents).double(), *(graph.weights(agents, t) for t in range(4))])
    torch.testing.assert_close(product, torch.full_like(product, 1 / agents))


def test_ring_has_the_eigenvalues_of_its_closed_form() -> None:
    found = torch.linalg.eigvalsh(Ring().weights(7))
    expected = torch.tensor([1 / 3 + 2 / 3 * math.cos(2 * math.pi * k / 7) for k in range(7)], dtype=torch.float64)
    torch.testing.assert_close(found, expected.sort().values)


def test_pairs_of_the_bipartite_graph_are_of_an_even_and_an_odd_rank() -> None:
    for turn, distance in enumerate((1, 3, 5, 9)):
        weights = BipartiteExponential().weights(16, turn)
        assert torch.equal(weights, weights.T)
        assert (weights[torch.arange(0, 16, 2), torch.arange(distance, 16 + distance, 2) % 16] == 0.5).all()


@pytest.mark.parametrize("topology", [*ALL, OWN], ids=lambda topology: type(topology).__name__)
def test_topologies_are_written_and_read_back(topology: Topology) -> None:
    mix = Gossip("node", topology, rounds=2)
    assert from_plain(to_plain(mix)) == mix
    assert hash(from_plain(to_plain(mix))) == hash(mix)


def test_weights_of_ones_own_are_given_as_a_matrix_a_tensor_or_one_for_each_turn() -> None:
    assert Graph(torch.tensor(EYE)) == Graph(EYE) == Graph([EYE])
    assert OWN.period(2) == 2
    assert OWN.weights(2, 3).tolist() == EYE


@pytest.mark.parametrize(
    ("rounds", "period"), [(1, 3), (2, 3), (3, 1), (6, 1)], ids=["one", "two", "a period", "two periods"]
)
def test_rounds_take_the_next_turns(rounds: int, period: int) -> None:
    mix, mesh, graph = Gossip(topology=OnePeerExponential(), rounds=rounds), Mesh((6,)), OnePeerExponential()
    assert mix.period(mesh) == period
    for turn in range(4):
        expected = torch.eye(6, dtype=torch.float64)
        for r in range(rounds):
            expected = expected @ graph.weights(6, turn * rounds + r)
        torch.testing.assert_close(mix.weights(mesh, turn), expected)


def test_a_gossip_along_an_axis_stays_in_its_groups() -> None:
    mesh = Mesh((3, 2), ("node", "local"))
    weights = Gossip("node", Ring()).weights(mesh)
    assert weights[0].tolist() == [1 / 3, 0, 1 / 3, 0, 1 / 3, 0]
    assert weights[1].tolist() == [0, 1 / 3, 0, 1 / 3, 0, 1 / 3]


UNEVEN = [[1.0, 0.5], [0.0, 0.5]]
REFUSED = [
    (lambda: Gossip(topology=Graph([[0.5, 0.5], [0.4, 0.6]])), r"columns of the weights sum to \[0.9, 1.1\]"),
    (lambda: Graph([[0.5, 0.5]]), r"shape \(1, 2\); give a square matrix"),
    (lambda: Graph([[1.5, 0.0], [-0.5, 1.0]]), "at least 0, the least one is -0.5"),
    (lambda: Graph([EYE, [[1.0]]]), "of one size"),
    (lambda: Graph("ring"), "give a matrix"),
    (lambda: Gossip(topology=Graph(UNEVEN)), r"rows of the weights sum to \[1.5, 0.5\]"),
    (lambda: Gossip(rounds=0), "rounds=0 must be a whole number"),
    (lambda: OWN.weights(3), "weights for 2 agents, and there are 3"),
    (lambda: BipartiteExponential().period(5), "over 5 agents: pairs need an even number"),
    (lambda: Ring().weights(0), "at least 1 agent"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_weights_that_make_no_sense_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
