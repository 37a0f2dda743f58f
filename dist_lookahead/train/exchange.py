"""Small collectives of the trainer over all agents, wherever they live."""

from collections.abc import Sequence

import torch

from dist_lookahead.agreement import exchange
from dist_lookahead.comm.communicator import Communicator, Pending


def sum_over_agents(
    communicators: Sequence[Communicator], rows: Sequence[Sequence[float]], device: torch.device
) -> list[float]:
    """Sum a row of numbers over the agents, in float64.

    Args:
        communicators: of the agents in this process.
        rows: the row of each of them.
        device: where the backend works.
    """
    tensors = [torch.tensor(row, dtype=torch.float64, device=device) for row in rows]
    for communicator, tensor in zip(communicators, tensors, strict=True):
        communicator.run(_sum(communicator, tensor))
    return tensors[0].tolist()


def texts_of_agents(communicators: Sequence[Communicator], texts: Sequence[str], device: torch.device) -> list[str]:
    """Collect a text from every agent, in the order of ranks.

    Args:
        communicators: of the agents in this process.
        texts: what each of them says.
        device: where the backend works.
    """
    collected: list[list[str]] = []

    def gather(communicator: Communicator, text: str) -> Pending:
        collected.append((yield from exchange(communicator, text, device)))

    for communicator, text in zip(communicators, texts, strict=True):
        communicator.run(gather(communicator, text))
    return collected[0]


def _sum(communicator: Communicator, tensor: torch.Tensor) -> Pending:
    if communicator.size > 1:
        yield communicator.all_reduce(tensor)
