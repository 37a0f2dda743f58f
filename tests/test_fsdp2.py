"""FSDP2 inside an agent: the weights of a node's agent are split over its processes, and so is all slow state.

Four processes over gloo, two agents of two processes each. An agent's gradient is the mean over its processes, as with
DDP, so that the run must come to the numbers of two agents with larger batches.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from digits_training import batch
from processes import run_processes
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dist_lookahead import (
    Cast,
    DistributedLookahead,
    Every,
    Exact,
    Level,
    Optimal,
    Pull,
    diloco,
    distributed_lookahead,
    dpsgd,
    local_sgd,
    simulate,
    slowmo,
    streaming_diloco,
)

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),  # torch's own use of it
]
NAMES = ("node", "local")
STEPS = 7
METHODS: dict[str, list[Level]] = {
    "slowmo": slowmo(3, 1.0, 0.6),
    "local SGD, momentum averaged": local_sgd(3, fast_buffers="average"),
    "distributed Lookahead, reset": distributed_lookahead(3, 0.5, fast_buffers="reset"),
    "DiLoCo": diloco(3, 0.7, 0.6),
    "DiLoCo in parts": streaming_diloco(3, 2, 0.7, 0.6),
    "gossip": dpsgd(tau=2),
    "none": local_sgd(100),
}
FAST: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.5),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


def make_model(seed: int = 0) -> nn.Sequential:
    """Five rows and one: neither can be split evenly, and of the last layer's bias one process has nothing."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10), nn.Linear(10, 1)).double()


def loss_of(model: nn.Module, rank: int, step: int) -> Tensor:
    images, labels = batch(rank, step, torch.float64)
    return nn.functional.mse_loss(model(images).squeeze(1), labels.double() / 10)


def split_agent(
    levels: Sequence[Level], shape: tuple[int, int] = (2, 2), fast: str = "momentum", seed: int = 0, **options: Any
) -> tuple[nn.Module, DistributedLookahead]:
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=NAMES)
    model = make_model(seed)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh["local"])
    fully_shard(model, mesh=mesh["local"])
    return model, DistributedLookahead(FAST[fast](model.parameters()), levels, model=model, mesh=mesh, **options)


def train(model: nn.Module, optimizer: DistributedLookahead, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, dist.get_rank(), step).backward()
        optimizer.step()


def whole(model: nn.Module) -> list[Tensor]:
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach().clone() for p in model.parameters()]


def by_hand(levels: Sequence[Level], fast: str = "momentum", steps: int = STEPS) -> list[list[Tensor]]:
    """Two agents whose gradient is the mean of two batches: their weights."""
    models = [make_model() for _ in range(2)]
    optimizers = [
        DistributedLookahead(FAST[fast](model.parameters()), levels, model=model, communicator=end)
        for model, end in zip(models, simulate(2), strict=True)
    ]
    for step in range(steps):
        for node, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            optimizer.zero_grad()
            (sum(loss_of(model, rank, step) for rank in (2 * node, 2 * node + 1)) / 2).backward()  # pyright: ignore[reportAttributeAccessIssue] - a sum of tensors
            optimizer.step()
    for optimizer in optimizers:
        optimizer.sync()
    return [whole(model) for model in models]


def all_methods() -> dict[str, Any]:
    results = {}
    for name, levels in METHODS.items():
        for fast in FAST:
            model, optimizer = split_agent(levels, fast=fast)
            train(model, optimizer, range(STEPS))
            optimizer.sync()
            kept = sum(slow.numel() for bound in optimizer.stack.bound for slow in bound.slow)
            results[name, fast] = {"weights": whole(model), "kept": kept}
    return results


def test_fsdp2_inside_is_an_agent_with_the_nodes_batch() -> None:
    results = run_processes(all_methods, 4, timeout=150.0)
    size = sum(p.numel() for p in make_model().parameters())
    for name, levels in METHODS.items():
        for fast in FAST:
            expected = by_hand(levels, fast)
            for rank, own in enumerate(results):
                for weights, reference in zip(own[name, fast]["weights"], expected[rank // 2], strict=True):
                    torch.testing.assert_close(weights, reference, rtol=1e-11, atol=1e-11, msg=f"{name} over {fast}")
    for first in (0, 2):  # the two processes of an agent have its slow weights together, besides tail and alignment
        kept = [results[rank]["slowmo", "momentum"]["kept"] for rank in (first, first + 1)]
        assert size <= sum(kept) <= size + 2 * (10 * 2 + 16 * 8)
        assert max(kept) < 0.75 * size


def evaluating() -> dict[str, Any]:
    """A forward pass without gradients leaves the root's weights whole: what is written then must not be lost."""
    model, optimizer = split_agent(slowmo(3, 1.0, 0.6))
    train(model, optimizer, range(4))
    before, images = whole(model), batch(0, 0, torch.float64)[0]
    with torch.no_grad():
        model(images)
    with optimizer.slow_weights(), torch.no_grad():
        slow, outputs = whole(model), model(images)
    after = whole(model)
    with torch.no_grad():
        model(images)
    with optimizer.averaged_weights(), torch.no_grad():
        averaged, mean_outputs = whole(model), model(images)
    with torch.no_grad():
        model(images)
    train(model, optimizer, range(4, 6))
    return {
        "before": before,
        "after": after,
        "slow": [slow, outputs],
        "averaged": [averaged, mean_outputs],
        "end": whole(model),
    }


def run_with(weights: Sequence[Tensor], images: Tensor) -> Tensor:
    model = make_model()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(value)
        return model(images)


def test_slow_and_averaged_weights_are_seen_by_the_forward_pass_and_put_back() -> None:
    results = run_processes(evaluating, 4)
    images = batch(0, 0, torch.float64)[0]
    slow = by_hand(slowmo(3, 1.0, 0.6), steps=3)[0]
    for own in results:
        for one, other in zip(own["before"], own["after"], strict=True):
            assert torch.equal(one, other)
        for one, other in zip(own["slow"][0], slow, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
        for kind in ("slow", "averaged"):
            torch.testing.assert_close(own[kind][1], run_with(own[kind][0], images), rtol=1e-11, atol=1e-11)
    mean = [(a + b) / 2 for a, b in zip(results[0]["before"], results[2]["before"], strict=True)]
    for one, other in zip(results[0]["averaged"][0], mean, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    undisturbed = by_hand(slowmo(3, 1.0, 0.6), steps=6)
    for one, other in zip(results[0]["end"], undisturbed[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


# --- torch.distributed.checkpoint, on another mesh


# One copy of each name is saved. At a sync the agents hold the same, with averaged buffers those of Adam as well.
SAVED = slowmo(3, 1.0, 0.6, fast_buffers="average")


def parts(model: nn.Module, optimizer: DistributedLookahead) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optim": get_optimizer_state_dict(model, optimizer),
        "levels": optimizer.stack,
    }


def slow_state(optimizer: DistributedLookahead) -> list[Tensor]:
    saved = optimizer.stack.state_dict()["levels"]
    kinds = [level[kind] for level in saved for kind in ("slow", "momentum")]
    return [t.full_tensor() if isinstance(t, DTensor) else t.clone() for kind in kinds for t in kind.values()]


def save(folder: str, steps: int) -> dict[str, Any]:
    model, optimizer = split_agent(SAVED, fast="adam")
    train(model, optimizer, range(steps))
    dcp.save(parts(model, optimizer), checkpoint_id=folder)
    saved = {"weights": whole(model), "slow": slow_state(optimizer)}
    train(model, optimizer, range(steps, steps + 1))
    return {**saved, "next": whole(model)}


def load(folder: str, shape: tuple[int, int]) -> dict[str, Any]:
    model, optimizer = split_agent(SAVED, shape, fast="adam", seed=5)
    loading = parts(model, optimizer)
    dcp.load(loading, checkpoint_id=folder)
    model.load_state_dict(loading["model"])
    set_optimizer_state_dict(model, optimizer, loading["optim"])
    loaded = {"weights": whole(model), "slow": slow_state(optimizer), "clock": optimizer.stack.clock}
    if shape == (2, 2):
        train(model, optimizer, range(3, 4))
    return {**loaded, "next": whole(model)}


@pytest.mark.parametrize("shape", [(2, 2), (1, 4), (4, 1), (2, 1), (1, 1)])
def test_a_checkpoint_loads_on_another_mesh(tmp_path: Path, shape: tuple[int, int]) -> None:
    saved = run_processes(save, 4, str(tmp_path), 3)
    loaded = run_processes(load, shape[0] * shape[1], str(tmp_path), shape)
    for rank, own in enumerate(loaded):
        assert own["clock"] == 3
        for kind in ("weights", "slow"):
            assert len(own[kind]) == len(saved[0][kind]) > 0
            for one, other in zip(own[kind], saved[0][kind], strict=True):
                assert torch.equal(one, other), kind
        if shape == (2, 2):
            for one, other in zip(own["next"], saved[rank]["next"], strict=True):
                assert torch.equal(one, other)


# --- what does not go with it


def refusals() -> list[str]:
    messages = []
    attempts: list[Callable[[], Any]] = [
        lambda: split_agent([Level(Every(2), Exact("local"), Pull(0.5))]),
        lambda: split_agent(slowmo(3, shard=True)),
        lambda: split_agent(slowmo(3, codec=Cast())),
        lambda: split_agent([Level(Every(2), Exact(), Pull(Optimal(0.2, 1.0)))], probe=lambda step: None),
        lambda: split_agent(slowmo(3), data_parallel="local"),
        half_split,
        without_the_mesh,
    ]
    for attempt in attempts:
        try:
            attempt()
        except ValueError as error:
            messages.append(str(error))
        else:
            messages.append("accepted")
    return messages


def half_split() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=NAMES)
    model = make_model()
    fully_shard(model[0], mesh=mesh["local"])
    DistributedLookahead(torch.optim.SGD(model.parameters(), lr=0.1), slowmo(3), model=model, mesh=mesh)


def without_the_mesh() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=NAMES)
    model = make_model()
    fully_shard(model, mesh=mesh["local"])
    DistributedLookahead(torch.optim.SGD(model.parameters(), lr=0.1), slowmo(3), model=model)


def test_what_does_not_go_with_split_weights_is_refused() -> None:
    sentences = [
        "averages along the axis over which the weights are split",
        "leave shard and codec out; slow weights are split as the parameters are",
        "leave shard and codec out",
        "alpha=Optimal needs whole gradients",
        "data_parallel='local' has no effect: fully_shard averages gradients along 'local'",
        "2 of 6 parameters are DTensors: apply fully_shard to the whole model",
        "which is no axis of Mesh(shape=(4,), names=('world',)): give DistributedLookahead the mesh",
    ]
    for messages in run_processes(refusals, 4):
        for message, sentence in zip(messages, sentences, strict=True):
            assert sentence in message
