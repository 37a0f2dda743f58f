"""Agreement: what must be the same on all agents is compared before anything is summed.

Collectives sum tensors of different sizes or orders silently, hang, or abort the process. So descriptions are
exchanged as text first, and a difference is an error on every agent which names the first difference.
"""

from collections.abc import Generator, Iterable, Sequence

import torch
from torch import Tensor

from dist_lookahead.bucket import Bucket
from dist_lookahead.comm.communicator import Communicator, Pending, Work
from dist_lookahead.mail import who_says_what
from dist_lookahead.move import CHUNK


def exchange(communicator: Communicator, text: str, device: torch.device) -> Generator[Work, None, list[str]]:
    """Collect a text from every agent, in the order of ranks."""
    own = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    lengths = torch.zeros(communicator.size, dtype=torch.int64, device=device)
    yield communicator.all_gather(lengths, torch.tensor([own.numel()], device=device))
    longest = int(lengths.max())
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: own.numel()] = own
    texts = torch.zeros(communicator.size * longest, dtype=torch.uint8, device=device)
    yield communicator.all_gather(texts, padded)
    rows = texts.view(communicator.size, longest).cpu()
    return [bytes(row[:n].tolist()).decode() for row, n in zip(rows, lengths.tolist(), strict=True)]


def require_same(communicator: Communicator, lines: Sequence[str], device: torch.device) -> Pending:
    """Raise on every agent unless all have the same lines.

    Raises:
        ValueError: with the first line that differs, and what each agent says.
    """
    if communicator.size == 1:
        return
    texts = yield from exchange(communicator, "\n".join(lines), device)
    if len(set(texts)) == 1:
        return
    columns = [text.split("\n") for text in texts]
    depth = max(map(len, columns))
    for row in range(depth):
        values = [column[row] if row < len(column) else "nothing" for column in columns]
        if len(set(values)) > 1:
            raise ValueError(
                f"agents differ: {who_says_what(values)}. "
                "Build the same model, optimizer and levels in the same order on every agent"
            )


@torch.no_grad()
def require_same_weights(communicator: Communicator, buckets: Iterable[Bucket], where: str) -> Pending:
    """Raise on every agent unless all hold the same weights, by a checksum of the bits of each parameter.

    Raises:
        RuntimeError: with the first parameter that differs, and on which agents.
    """
    if communicator.size == 1:
        return
    slots = [(bucket, slot) for bucket in buckets for slot in bucket.slots]
    sums = torch.stack([_checksum(bucket.fast[slot.start : slot.stop]) for bucket, slot in slots])
    table = sums.new_zeros(communicator.size * len(slots))
    yield communicator.all_gather(table, sums)
    table = table.view(communicator.size, len(slots))
    wrong = (table != table[0]).any(dim=0).nonzero().flatten().tolist()
    if wrong:
        name = slots[wrong[0]][1].weight.name
        checksums = who_says_what([f"{value:x}" for value in table[:, wrong[0]].tolist()], communicator.members)
        raise RuntimeError(
            f"{where}: agents hold different weights in {len(wrong)} of {len(slots)} parameters, "
            f"first {name!r} (checksums: {checksums}). They must start equal and do the same arithmetic: "
            "load weights on all agents, use the same learning rates, PyTorch and hardware"
        )


def _checksum(flat: Tensor) -> Tensor:
    # Piece by piece: on a CPU a sum of 64 bits first makes a copy of all that it adds, twice as large as the weights.
    pieces = flat.view(torch.int32).split(CHUNK)
    return torch.stack([piece.sum(dtype=torch.int64) for piece in pieces]).sum()
