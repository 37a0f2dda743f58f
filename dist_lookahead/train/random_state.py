"""An agent's own random generators, so that many agents in one process draw as many processes would."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def derive_seed(seed: int, *purpose: object) -> int:
    """Return a seed for one purpose: unrelated to that of any other purpose.

    Example:
        >>> derive_seed(0, "agent", 1) == derive_seed(1, "agent", 0)
        False
    """
    digest = hashlib.blake2b("/".join(map(str, (seed, *purpose))).encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "little")


class RandomState:
    """The state of torch's global generators as one agent sees it.

    Args:
        seed: what to start from.
        device: whose generator belongs to it besides the CPU's.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        outside = self._read()
        # Not torch.manual_seed, which would seed every accelerator of the process besides.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        self._state = self._read()
        self._write(outside)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make torch's global generators this agent's."""
        outside = self._read()
        self._write(self._state)
        try:
            yield
        finally:
            self._state = self._read()
            self._write(outside)

    def state_dict(self) -> dict[str, Any]:
        """Return the generators' states."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from saved states."""
        self._state = {name: value.cpu() for name, value in state.items()}

    def _read(self) -> dict[str, torch.Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._device)
        return state

    def _write(self, state: dict[str, torch.Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self._device)
