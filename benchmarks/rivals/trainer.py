"""What every rival is measured with: weights with given gradients, a local step, and a step that syncs."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.measure import nothing
from benchmarks.sync import Weights
from dist_lookahead import DistributedLookahead, Level

TAU = 2  # steps of a round: a local one, then one that syncs
LR = 0.1


class Model(Weights):
    """Weights whose gradients are given: each agent has a number of its own, and computes nothing.

    Args:
        elements: of all parameters together.
        tensors: how many parameters.
        device: where they are.
    """

    def __init__(self, elements: int, tensors: int, device: torch.device) -> None:
        super().__init__(elements, tensors, torch.float32, device)
        self.gradient = 0.01 * (1 + dist.get_rank())  # no buffer: those become alike on all agents

    def forward(self) -> Tensor:
        """Return a loss of zero, with the given gradients."""
        return _Given.apply(self.gradient, *self.weights)

    def set_gradients(self) -> None:
        """Give gradients to the parameters that have none."""
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = torch.full_like(weight, self.gradient)

    def clear_gradients(self) -> None:
        """Take the gradients away, as `zero_grad` does."""
        self.zero_grad(set_to_none=True)


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: float, *weights: Tensor) -> Tensor:
        ctx.gradient, ctx.shapes = weights[0].new_tensor(gradient), [weight.shape for weight in weights]
        return weights[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return None, *(ctx.gradient.expand(shape) for shape in ctx.shapes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """A method at work on a model; a local step and one that syncs are called in turn.

    Args:
        sync: a fast step and a sync.
        local: a fast step alone; None where every step communicates.
        prepare: before each step, not timed.
        close: at the end.
        ahead: fast steps taken before the first call.
    """

    sync: Callable[[], object]
    local: Callable[[], object] | None
    prepare: Callable[[], object]
    close: Callable[[], object] = nothing
    ahead: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rival:
    """Another package's method.

    Args:
        name: of the method.
        module: that it is imported from.
        build: starts it on a model; a collective.
        levels: the same method here.
        ours: its name.
        in_backward: it acts in the backward pass, which then belongs to the steps of all that it is compared with.
    """

    name: str
    module: str
    build: Callable[[Model], Trainer]
    levels: Callable[[], list[Level]]
    ours: str
    in_backward: bool = False

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return importlib.util.find_spec(self.module.partition(".")[0]) is not None

    def build_ours(self, model: Model) -> Trainer:
        """Start our method on a model; a collective."""
        return self._steps(model, DistributedLookahead(sgd(model), self.levels(), model=model))

    def build_inner(self, model: Model) -> Trainer:
        """Start the fast optimizer alone."""
        return self._steps(model, sgd(model))

    def _steps(self, model: Model, optimizer: torch.optim.Optimizer) -> Trainer:
        if not self.in_backward:
            return stepping(model, optimizer.step)

        def step() -> None:
            model().backward()
            optimizer.step()

        return Trainer(sync=step, local=step, prepare=model.clear_gradients)


def stepping(model: Model, step: Callable[[], object], close: Callable[[], object] = nothing) -> Trainer:
    """Return a trainer whose steps find their gradients there, and count for themselves when to sync."""
    return Trainer(sync=step, local=step, prepare=model.set_gradients, close=close)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Return the fast optimizer of all."""
    return torch.optim.SGD(model.parameters(), lr=LR)
