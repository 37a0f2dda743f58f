"""Ways to train over a network, behind one interface: those of torch, those of this package, and torchft's."""

import contextlib
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from benchmarks.torchft_diloco import torchft_diloco
from dist_lookahead import (
    Copy,
    DistributedLookahead,
    Every,
    Exact,
    Level,
    Mesh,
    Pull,
    Quantised,
    slowmo,
    streaming_diloco,
)

FAST_MOMENTUM = 0.9
LOOK = 10  # steps from one look at the loss to the next, where gradients are averaged in each step
RANK, FIRST_COMPRESSED = 4, 2  # of PowerSGD, which sends whole gradients before; 2 is the earliest it allows
WHOLE = 10_000  # MB of a bucket that holds any model trained here
TRAVEL = 0.75  # share of a round that an average may travel
PARTS = 4
NOTHING, DDP, TORCHFT = "no communication", "DDP", "torchft DiLoCo"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What is tuned, for the task and not for the link.

    Args:
        averaged: learning rate where gradients are averaged in each step.
        local: learning rate of local steps.
        beta: slow momentum.
    """

    averaged: float
    local: float
    beta: float


@dataclass(kw_only=True, slots=True)
class Contender:
    """A method at work on one agent.

    Args:
        model: called in training.
        optimizer: takes the steps, and communicates where the model does not.
        look: steps from one look at the loss to the next.
        first_look: steps until the first.
        warm_up: steps until all take equally long.
        kept: a context in which the model has the weights that the method would keep.
        close: ends what would outlive the training.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    look: int
    first_look: int = 0
    warm_up: int = 1
    kept: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    close: Callable[[], object] = field(default=lambda: None)

    def step(self, loss: Callable[[nn.Module, Any], Tensor], batch: Any) -> None:
        """Train on a batch."""
        self.optimizer.zero_grad()
        loss(self.model, batch).backward()
        self.optimizer.step()

    def is_due(self, step: int) -> bool:
        """Whether to look at the loss after so many steps."""
        return step >= self.first_look and (step - self.first_look) % self.look == 0


Build = Callable[[nn.Module, Rates, int], Contender]  # from the model, the rates, and the steps of a round


def _alone(model: nn.Module, rates: Rates, tau: int) -> Contender:
    return Contender(model=model, optimizer=_sgd(model, rates.local), look=tau, first_look=tau)


def _data_parallel(hook: str) -> Build:
    def build(model: nn.Module, rates: Rates, _tau: int) -> Contender:
        # All agents have built the same model. PowerSGD starts its later sums from callbacks, whose order over several
        # buckets is not the same on all agents: over gloo they then get each other's. With one bucket they cannot.
        cap = WHOLE if hook == "PowerSGD" else None
        parallel = DistributedDataParallel(model, init_sync=False, bucket_cap_mb=cap)
        warm_up = 1
        if hook == "fp16":
            parallel.register_comm_hook(dist.group.WORLD, fp16_compress_hook)
        elif hook == "PowerSGD":
            state = PowerSGDState(None, matrix_approximation_rank=RANK, start_powerSGD_iter=FIRST_COMPRESSED)
            parallel.register_comm_hook(state, powerSGD_hook)
            warm_up += FIRST_COMPRESSED
        optimizer = _sgd(model, rates.averaged)
        return Contender(model=parallel, optimizer=optimizer, look=LOOK, first_look=LOOK, warm_up=warm_up)

    return build


def _levels(levels: Callable[[int, float], list[Level]], mesh: Callable[[], Mesh | None] = lambda: None) -> Build:
    def build(model: nn.Module, rates: Rates, tau: int) -> Contender:
        stack = levels(tau, rates.beta)
        optimizer = DistributedLookahead(_sgd(model, rates.local), stack, model=model, mesh=mesh())
        landed = tau + stack[-1].when.delay
        return Contender(
            model=model,
            optimizer=optimizer,
            look=tau,
            first_look=landed,
            kept=optimizer.slow_weights,
            close=optimizer.sync,
        )

    return build


def _overlapped(tau: int, beta: float) -> list[Level]:
    return slowmo(tau, beta=beta, delay=int(TRAVEL * tau))


def _overlapped_in_code(tau: int, beta: float) -> list[Level]:
    return slowmo(tau, beta=beta, delay=int(TRAVEL * tau), codec=Quantised(bits=4))


def _in_parts(bits: Literal[4, 8]) -> Callable[[int, float], list[Level]]:
    def levels(tau: int, beta: float) -> list[Level]:
        delay = int(TRAVEL * tau / PARTS)  # one part has landed before the next begins
        return streaming_diloco(tau, PARTS, alpha=1.0, beta=beta, delay=delay, codec=Quantised(bits=bits))

    return levels


def _near_and_far(tau: int, beta: float) -> list[Level]:
    far = Pull(alpha=1.0, beta=beta, follow_lr=beta != 0)
    return [Level(Every(max(tau // PARTS, 1)), Exact("local"), Copy()), Level(Every(tau), Exact("node"), far)]


def _pairs() -> Mesh:
    return Mesh((dist.get_world_size() // 2, 2), ("node", "local"))


CONTENDERS: Mapping[str, Build] = {
    DDP: _data_parallel(""),
    "DDP, fp16": _data_parallel("fp16"),
    "DDP, PowerSGD": _data_parallel("PowerSGD"),
    TORCHFT: lambda model, rates, tau: torchft_contender(model, rates, tau),
    "SlowMo": _levels(lambda tau, beta: slowmo(tau, beta=beta)),
    "SlowMo, 8 bits": _levels(lambda tau, beta: slowmo(tau, beta=beta, codec=Quantised(bits=8))),
    "hierarchical": _levels(_near_and_far, _pairs),
    "SlowMo, overlapped": _levels(_overlapped),
    "SlowMo, 4 bits, overlapped": _levels(_overlapped_in_code),
    f"{PARTS} parts, 8 bits, overlapped": _levels(_in_parts(8)),
    f"{PARTS} parts, 4 bits, overlapped": _levels(_in_parts(4)),
    NOTHING: _alone,
}
AVERAGING_GRADIENTS = (DDP, "DDP, fp16", "DDP, PowerSGD")


def torchft_contender(model: nn.Module, rates: Rates, tau: int) -> Contender:
    """Return torchft's DiLoCo with the same fast and slow rates; its average is not overlapped."""
    optimizer = _sgd(model, rates.local)
    close = torchft_diloco(model, optimizer, tau, beta=rates.beta)
    return Contender(model=model, optimizer=optimizer, look=tau, first_look=tau, close=close)


def chosen(names: list[str] | None, agents: int) -> list[str]:
    """Return who takes part: all that can, or those named.

    Raises:
        ValueError: for one that cannot.
    """
    missing = {
        TORCHFT: "torchft is not installed" if importlib.util.find_spec("torchft") is None else "",
        "hierarchical": "it needs 4 agents: --nodes 4, or --local 2" if agents < 4 or agents % 2 else "",
    }
    for name in names or ():
        if missing.get(name):
            raise ValueError(f"{name} cannot take part: {missing[name]}")
    return names or [name for name in CONTENDERS if not missing.get(name)]


def _sgd(model: nn.Module, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=FAST_MOMENTUM, fused=True)
