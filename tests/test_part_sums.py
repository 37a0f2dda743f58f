"""Reduce-scatter and all-gather over gloo in pieces, the first as an all-to-all, summed where the parts belong."""

import pytest
import torch
from processes import run_processes

from dist_lookahead.comm import part_sums, process_group
from dist_lookahead.comm.process_group import ProcessGroupCommunicator


def sum_of_parts(piece: int) -> list[torch.Tensor]:
    """Reduce-scatter in place, in pieces of so many elements."""
    part_sums.PIECE = piece
    communicator = ProcessGroupCommunicator()
    tensor = torch.arange(5 * communicator.size, dtype=torch.float64) * (communicator.rank + 1)
    own = tensor[5 * communicator.rank : 5 * (communicator.rank + 1)]
    communicator.reduce_scatter(own, tensor).wait()
    return [own.clone(), tensor]


@pytest.mark.parametrize("piece", [1, 6, 100])
def test_a_large_tensor_is_reduced_and_scattered_in_pieces(piece: int) -> None:
    """Pieces of the whole tensor must be told from pieces of a part, and the last one is shorter."""
    results = run_processes(sum_of_parts, 3, piece)
    for rank, (own, tensor) in enumerate(results):
        assert torch.equal(own, torch.arange(5 * rank, 5 * rank + 5, dtype=torch.float64) * 6)
        others = [place for place in range(15) if place // 5 != rank]
        assert torch.equal(tensor[others], (torch.arange(15, dtype=torch.float64) * (rank + 1))[others])


def gathered_parts(piece: int) -> list[torch.Tensor]:
    """Gather in place, and from elsewhere, in pieces of so many elements."""
    part_sums.PIECE = process_group.PIECE = piece
    communicator = ProcessGroupCommunicator()
    tensor = torch.full((5 * communicator.size,), -1.0)
    own = tensor[5 * communicator.rank : 5 * (communicator.rank + 1)]
    own.copy_(torch.arange(5) + 10 * communicator.rank)
    elsewhere = torch.empty_like(tensor)
    communicator.all_gather(elsewhere, own.clone()).wait()
    communicator.all_gather(tensor, own).wait()
    return [tensor, elsewhere]


@pytest.mark.parametrize("piece", [1, 6, 100])
def test_a_large_tensor_is_gathered_in_pieces(piece: int) -> None:
    """Pieces of the whole tensor must be told from pieces of a part, and the last one is shorter."""
    expected = torch.cat([torch.arange(5.0) + 10 * rank for rank in range(3)])
    for gathered in run_processes(gathered_parts, 3, piece):
        assert all(torch.equal(tensor, expected) for tensor in gathered)
