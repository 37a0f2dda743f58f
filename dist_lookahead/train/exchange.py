"""Small collectives of the trainer over all agents, wherever they live."""

from collections.abc import Sequence

import torch

from dist_lookahead.agreement import exchange, require_same
from dist_lookahead.comm.communicator import Communicator, Pending
from dist_lookahead.mail import who_says_what


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


def require_same_lines(
    communicators: Sequence[Communicator], lines: Sequence[str], device: torch.device, advice: str
) -> None:
    """Raise on every agent unless all have the same lines.

    Args:
        communicators: of the agents in this process.
        lines: what must be the same.
        device: where the backend works.
        advice: what to change.

    Raises:
        AgentsDiffer: with the first line that differs, and what each agent says.
    """
    for communicator in communicators:
        communicator.run(require_same(communicator, lines, device, advice))


def fail_together(communicators: Sequence[Communicator], faults: Sequence[str], device: torch.device) -> None:
    """Raise on every agent where some of them have a fault: the others would wait for those until their timeout.

    Args:
        communicators: of the agents in this process.
        faults: what is wrong with each of them, "" for nothing.
        device: where the backend works.

    Raises:
        ValueError: with all faults, and who has them.
    """
    told = texts_of_agents(communicators, faults, device)
    faulty = [agent for agent, fault in enumerate(told) if fault]
    if faulty:
        raise ValueError(who_says_what([told[agent] for agent in faulty], faulty))


def _sum(communicator: Communicator, tensor: torch.Tensor) -> Pending:
    if communicator.size > 1:
        yield communicator.all_reduce(tensor)
