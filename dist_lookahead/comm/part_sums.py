"""Reduce-scatter and all-gather on a CPU, in pieces: gloo's own need a copy of all that is sent or arrives.

gloo's reduce-scatter also sends as many bytes as an all-reduce. Here each part goes where it belongs, in an all-to-all,
and is summed there in the order of ranks: half the bytes, and less than half the time.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PIECE = 2**21  # elements of all parts together: 8 MB that leave and 8 MB that arrive
FLYING = 2  # pieces under way: one is summed while the next one travels


class PartSums:
    """The work of a reduce-scatter: afterwards process r has the sum of all parts r.

    Args:
        output: (D,), where the sum goes; may be a part of `tensor`.
        tensor: (size * D,).
        size: number of processes.
        group: of them.
    """

    def __init__(self, output: Tensor, tensor: Tensor, size: int, group: Any) -> None:
        self._group = group
        self._flying: deque[tuple[dist.Work, Tensor, Tensor, Tensor]] = deque()
        width = max(PIECE // size, 1)
        self._pieces: Iterator[tuple[Tensor, Tensor]] = zip(
            output.split(width), tensor.view(size, -1).split(width, dim=1), strict=True
        )
        for _ in range(FLYING):
            self._start()

    @torch.no_grad()
    def wait(self) -> None:
        """Wait for all pieces, and sum each as it arrives."""
        while self._flying:
            work, output, _, arrived = self._flying[0]
            work.wait()
            self._flying.popleft()
            output.copy_(arrived[0])
            for part in arrived[1:]:
                output.add_(part)
            self._start()

    def _start(self) -> None:
        for output, parts in self._pieces:
            sent = parts.contiguous()
            arrived = torch.empty_like(sent)
            work = dist.all_to_all_single(arrived, sent, group=self._group, async_op=True)
            assert work is not None
            self._flying.append((work, output, sent, arrived))  # what is sent must stay until it has left
            return


class PartCopies:
    """The work of an all-gather: afterwards part r of the output is what process r has sent.

    Args:
        output: (size * D,).
        tensor: (D,), what this process sends; may be its part of `output`.
        size: number of processes.
        gather: starts an all-gather of one piece.
    """

    def __init__(
        self, output: Tensor, tensor: Tensor, size: int, gather: Callable[[Tensor, Tensor], dist.Work]
    ) -> None:
        self._gather = gather
        self._flying: deque[tuple[dist.Work, Tensor, Tensor]] = deque()
        width = max(PIECE // size, 1)
        self._pieces: Iterator[tuple[Tensor, Tensor]] = zip(
            output.view(size, -1).split(width, dim=1), tensor.split(width), strict=True
        )
        for _ in range(FLYING):
            self._start()

    @torch.no_grad()
    def wait(self) -> None:
        """Wait for all pieces, and put each in its place as it arrives."""
        while self._flying:
            work, places, arrived = self._flying[0]
            work.wait()
            self._flying.popleft()
            places.copy_(arrived.view(places.shape))
            self._start()

    def _start(self) -> None:
        for places, sent in self._pieces:
            arrived = sent.new_empty(places.numel())
            self._flying.append((self._gather(arrived, sent), places, arrived))
            return
