"""decent-dp: in every step an average over the neighbours, which one backward pass starts and the next one takes up.

All agents are neighbours here. Its wrapper makes the optimizer's steps itself, inside of backward. The clock stops when
what a step has sent has arrived: how much of that a longer backward pass would hide depends on the model.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import nothing
from benchmarks.rivals.trainer import LR, TAU, Model, Rival, Trainer
from dist_lookahead import local_sgd


def _build(model: Model) -> Trainer:
    importlib.import_module("loguru").logger.disable("decent_dp")
    wrapped = importlib.import_module("decent_dp.ddp").DecentralizedDataParallel(model, _sgd, topology="complete")

    def step() -> None:
        wrapped().backward()
        for work in wrapped._comm_ops:
            work.wait()

    # It watches the order of gradients first, and then takes two steps at once; they are no part of what is timed.
    wrapped().backward()
    step()
    return Trainer(sync=step, local=None, prepare=nothing, ahead=2)


def _sgd(named: list[tuple[str, Tensor]]) -> Any:
    return torch.optim.SGD([tensor for _, tensor in named], lr=LR)


RIVALS = [
    Rival(
        name="decent-dp",
        module="decent_dp",
        build=_build,
        levels=lambda: local_sgd(tau=TAU),
        ours="local_sgd",
        in_backward=True,
    )
]
