"""A fast step of several updates: the players of a game, one after the other or with a look ahead."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dist_lookahead.tasks.task import Losses, Update

Precision = Callable[[], AbstractContextManager[Any]]
"""The context in which losses are computed."""


def play(updates: Sequence[Update], model: nn.Module, inner: Optimizer, precision: Precision) -> Tensor:
    """Take all updates but the last, and leave the gradients of that one: its step is the caller's.

    Levels count the last update alone, so that tau counts fast steps however many updates they have. Parameters of
    players that stand still have no gradient, and torch's optimizers pass over them.

    Args:
        updates: of one fast step.
        model: its submodules are the players.
        inner: steps all of their parameters.
        precision: the context in which losses are computed.

    Returns:
        The sum over the players of their last losses, without a graph.
    """
    latest: dict[str, Tensor] = {}
    for index, update in enumerate(updates):
        if index:
            inner.step()
        latest |= _leave_gradients(update, model, inner, precision)
    return torch.stack(list(latest.values())).sum()


def _leave_gradients(update: Update, model: nn.Module, inner: Optimizer, precision: Precision) -> Mapping[str, Tensor]:
    if not update.extrapolation:
        return _backward(update.losses, model, inner, precision)
    before = [(p, p.detach().clone()) for p in model.parameters()]
    _backward(update.extrapolation, model, inner, precision)
    inner.step()
    losses = _backward(update.losses, model, inner, precision)
    with torch.no_grad():
        for parameter, value in before:
            parameter.copy_(value)
    return losses


def _backward(losses: Losses, model: nn.Module, inner: Optimizer, precision: Precision) -> Mapping[str, Tensor]:
    """Give each player the gradient of its own loss: `inputs` keeps it from the others."""
    inner.zero_grad()
    values = {}
    for name, loss in losses.items():
        with precision():
            value = loss()
        value.backward(inputs=list(model.get_submodule(name).parameters()))
        values[name] = value.detach()
    return values
