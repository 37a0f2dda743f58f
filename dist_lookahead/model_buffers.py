"""Model buffers, such as BatchNorm's running statistics.

They are local between syncs. At the outermost sync the floating point ones are averaged over the agents; integers
(BatchNorm's count of batches) are left alone. A copy of the averaged values is kept, so that the slow weights can be
evaluated and exported with their own statistics at any time, without another collective.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dist_lookahead.bucket import staging_dtype
from dist_lookahead.comm.communicator import Communicator, Pending


class ModelBuffers:
    """The floating point buffers of a model that belong to its state dict.

    Args:
        model: the model, or None for none.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self.slow: dict[str, Tensor] = {}
        self.capture()

    @torch.no_grad()
    def capture(self) -> None:
        """Remember the present values as those of the slow weights."""
        self.slow = {name: buffer.clone() for name, buffer in self._live()}

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Write values into the model."""
        for name, buffer in self._live():
            buffer.copy_(values[name])

    @torch.no_grad()
    def mend(self) -> None:
        """Take the slow weights' values where present ones are not finite."""
        for name, buffer in self._live():
            if not bool(buffer.isfinite().all()):
                buffer.copy_(self.slow[name])

    def values(self) -> dict[str, Tensor]:
        """Return copies of the present values."""
        return {name: buffer.clone() for name, buffer in self._live()}

    @torch.no_grad()
    def average(self, communicator: Communicator) -> Pending:
        """Average over the agents."""
        live = dict(self._live())
        if not live or communicator.size == 1:
            return
        flats = {}
        for dtype, device in dict.fromkeys((staging_dtype(b.dtype), b.device) for b in live.values()):
            members = [b for b in live.values() if (staging_dtype(b.dtype), b.device) == (dtype, device)]
            flats[dtype, device] = members, torch.cat([b.reshape(-1).to(dtype) for b in members])
        yield from [communicator.all_reduce(flat) for _, flat in flats.values()]
        for members, flat in flats.values():
            flat.div_(communicator.size)
            for buffer, part in zip(members, flat.split([b.numel() for b in members]), strict=True):
                buffer.copy_(part.view(buffer.shape))

    def _live(self) -> Iterator[tuple[str, Tensor]]:
        """Walk the buffers anew each time: modules may replace them."""
        if self._model is None:
            return
        for prefix, module in self._model.named_modules():
            for name, buffer in module._buffers.items():
                saved = name not in module._non_persistent_buffers_set
                if buffer is not None and saved and buffer.is_floating_point():
                    yield f"{prefix}.{name}" if prefix else name, buffer
