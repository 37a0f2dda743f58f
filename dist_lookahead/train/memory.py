"""What a model remembers from batch to batch, kept apart where it meets other batches than those of its training."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dist_lookahead.tasks.task import Memory, Remembering


def memory_of(model: nn.Module) -> Memory:
    """Return what a model remembers: () for one that does not."""
    return model.memory if isinstance(model, Remembering) else ()


def remember(model: nn.Module, memory: Memory) -> None:
    """Let a model remember this instead; one that does not remember stays as it is."""
    if isinstance(model, Remembering):
        model.memory = memory


@contextmanager
def memory_restored(model: nn.Module) -> Iterator[None]:
    """Give a model back, at the end, what it remembers now."""
    memory = memory_of(model)
    try:
        yield
    finally:
        remember(model, memory)
