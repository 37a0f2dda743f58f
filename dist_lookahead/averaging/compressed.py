"""The mixer whose values travel in a code: the equations are in `codec.py`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dist_lookahead.averaging.codec import Codec
from dist_lookahead.averaging.mixer import Memory
from dist_lookahead.averaging.reduction import part_of
from dist_lookahead.comm.communicator import Communicator, Pending


class Compressed:
    """Every agent has the mean, through codes: an all-to-all of parts, and an all-gather of the owners' means.

    Residuals move when everything has arrived: a sync that fails leaves them as they were.

    Args:
        across: the agents to average over.
        group: all agents of the level.
        codec: the code.
        summed: near agents over whom the tensors have been summed already, so that the reference counts as often.
    """

    agents = 1  # in the sum that it leaves: that is the mean already
    communicates = True
    sums_tails = False  # numbers in a code are not exact
    compares = True
    shards = 1

    def __init__(self, across: Communicator, group: Communicator, codec: Codec, summed: int = 1) -> None:
        self.group = group
        self.parts = across.size
        self._across, self._codec, self._summed = across, codec, summed

    def owned(self, length: int) -> slice:
        """Return all of it."""
        return slice(0, length)

    def residuals(self, length: int) -> tuple[slice, ...]:
        """Return all of it, for the agent's own code, and its part, for that of the mean; none without feedback."""
        return (slice(0, length), part_of(self._across, length)) if self._codec.error_feedback else ()

    def collect(self, tensors: Sequence[Tensor], turn: int, memory: Sequence[Memory]) -> Pending:
        """Average the tensors over the agents, in place."""
        sent = [self._encode_ways(x, own) for x, own in zip(tensors, memory, strict=True)]
        received = [torch.empty_like(code) for code in sent]
        yield from [self._across.all_to_all(output, code) for output, code in zip(received, sent, strict=True)]
        del sent
        means = [self._mean(codes, own) for codes, own in zip(received, memory, strict=True)]
        yield from [
            self._across.all_gather(output, self._encode_mean(mean, own))
            for output, mean, own in zip(received, means, memory, strict=True)
        ]
        for x, mean, codes, own in zip(tensors, means, received, memory, strict=True):
            self._remember(own, (x, mean))
            torch.mul(own.reference, self._summed, out=x)
            self._add(codes, x.view(self.parts, -1))

    def phases(self, tensors: int) -> list[int]:
        """Return the parts on their way to the owners, and the owners' means."""
        return [tensors, tensors]

    def distribute(self, tensors: Sequence[Tensor]) -> Pending:
        """Nothing is left to be distributed."""
        yield from ()

    def _encode_ways(self, x: Tensor, own: Memory) -> Tensor:
        """Return the code of the way from the reference to x, for each owner its part; x keeps what that has lost."""
        x.sub_(own.reference, alpha=self._summed)
        for residual in own.residuals[:1]:
            x.add_(residual)
        return self._encode(x.view(self.parts, -1), own, phase=0)

    def _mean(self, codes: Tensor, own: Memory) -> Tensor:
        """Return the mean of all agents' ways in the part owned here, and what was lost of earlier means."""
        length = len(own.reference) // self.parts
        mean = own.reference.new_zeros(length)
        for code in codes.view(self.parts, -1):  # one at a time: the order is that of ranks, and memory is spared
            self._add(code, mean.view(1, -1))
        mean.div_(self.parts)
        for residual in own.residuals[1:]:
            mean.add_(residual)
        return mean

    def _encode_mean(self, mean: Tensor, own: Memory) -> Tensor:
        """Return the code of the mean, which keeps what that has lost."""
        return self._encode(mean.view(1, -1), own, phase=1)

    def _encode(self, rows: Tensor, own: Memory, phase: int) -> Tensor:
        agent = self._across.members[self._across.rank]
        code = self._codec.encode(rows, (*own.draw, agent, phase))
        self._codec.accumulate(code, rows, sign=-1)
        return code.flatten()

    def _add(self, codes: Tensor, rows: Tensor) -> None:
        """Add decoded rows to others."""
        self._codec.accumulate(codes.view(len(rows), -1), rows)

    def _remember(self, own: Memory, lost: Sequence[Tensor]) -> None:
        for residual, tensor in zip(own.residuals, lost, strict=False):
            residual.copy_(tensor)
