"""Reduce-scatter over gloo as an all-to-all, summed where the parts belong."""

import pytest
import torch
from processes import run_processes

from dist_lookahead.comm import part_sums
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
