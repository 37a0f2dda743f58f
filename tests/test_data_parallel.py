"""Large mini-batches as fast steps: gradients averaged inside a node in each step, slow levels across the nodes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from digits_training import batch, make_model
from launching import train_in_processes
from processes import run_processes
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from dist_lookahead import DistributedLookahead, Exact, Mesh, distributed_lookahead, simulate, slowmo
from dist_lookahead.comm.communicator import ring_bytes
from dist_lookahead.level import Level
from tests.training import differences, final_states, folder_of, records, small_config, train

NAMES = ("node", "local")
LEVELS = slowmo(3, 1.0, 0.6)
STEPS = 7


def with_ddp() -> list[Tensor]:
    """Four processes on two nodes, in a loop of a user's own."""
    mesh, rank = init_device_mesh("cpu", (2, 2), mesh_dim_names=NAMES), dist.get_rank()
    model = make_model(dtype=torch.float64)
    wrapped = DistributedDataParallel(model, process_group=mesh.get_group("local"))
    optimizer = DistributedLookahead(
        torch.optim.SGD(model.parameters(), lr=0.1),
        LEVELS,
        model=model,
        mesh=mesh,
        data_parallel="local",
        check_every=1,
    )
    for step in range(STEPS):
        optimizer.zero_grad()
        images, labels = batch(rank, step, torch.float64)
        nn.functional.cross_entropy(wrapped(images), labels).backward()
        optimizer.step()
    optimizer.sync()
    return [p.detach().clone() for p in model.parameters()]


def by_hand() -> list[Tensor]:
    """Two agents whose gradient is the mean of two batches."""
    models = [make_model(dtype=torch.float64) for _ in range(2)]
    optimizers = [
        DistributedLookahead(torch.optim.SGD(model.parameters(), lr=0.1), LEVELS, model=model, communicator=end)
        for model, end in zip(models, simulate(2), strict=True)
    ]
    for step in range(STEPS):
        for node, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            optimizer.zero_grad()
            for rank in (2 * node, 2 * node + 1):
                images, labels = batch(rank, step, torch.float64)
                (nn.functional.cross_entropy(model(images), labels) / 2).backward()
            optimizer.step()
    for optimizer in optimizers:
        optimizer.sync()
    return [p.detach() for p in models[0].parameters()]


@pytest.mark.timeout(120)
def test_ddp_inside_a_node_is_an_agent_with_the_nodes_batch() -> None:
    expected = by_hand()
    for weights in run_processes(with_ddp, 4):
        for own, reference in zip(weights, expected, strict=True):
            torch.testing.assert_close(own, reference, rtol=1e-12, atol=1e-12)


class Crowd:
    """Simulated agents on a mesh with one weight vector each, and gradients of one's choice."""

    def __init__(self, levels: Sequence[Level], shape: tuple[int, int], *, check_every: int = 0) -> None:
        self.weights = [nn.Parameter(torch.zeros(16, dtype=torch.float64)) for _ in range(shape[0] * shape[1])]
        self.optimizers = [
            DistributedLookahead(
                torch.optim.SGD([w], lr=0.1), levels, communicator=end, data_parallel="local", check_every=check_every
            )
            for w, end in zip(self.weights, simulate(Mesh(shape, NAMES)), strict=True)
        ]

    def step(self, gradients: Sequence[float]) -> None:
        for w, optimizer, gradient in zip(self.weights, self.optimizers, gradients, strict=True):
            w.grad = torch.full_like(w, gradient)
            optimizer.step()


@pytest.mark.parametrize("axis", ["node", "world"])
def test_agents_that_share_gradients_send_their_weights_far_once(axis: str) -> None:
    crowd = Crowd([Level(LEVELS[0].when, Exact(axis), LEVELS[0].move)], (2, 4))
    end = crowd.optimizers[0].stack.communicator
    for _ in range(3):
        crowd.step([1.0] * 4 + [2.0] * 4)
    far = end.bytes_along["node"]
    bucket = crowd.optimizers[0].stack.buckets[0].fast.nbytes
    checksum = 8 if axis == "node" else 0  # after the first sync, along the level's own axis
    assert far == ring_bytes("all_reduce", bucket // 4, 2) + checksum
    assert all(torch.equal(w, crowd.weights[0]) for w in crowd.weights)


@pytest.mark.parametrize("check_every", [0, 1])
def test_weights_that_differ_though_gradients_are_said_to_be_shared_are_found(check_every: int) -> None:
    """A sync that relies on equal weights would put parts of different ones together, the same on all agents."""
    crowd = Crowd(distributed_lookahead(2, 0.5), (2, 2), check_every=check_every)
    crowd.step([1.0, 1.0, 2.0, 2.0])
    with pytest.raises(RuntimeError, match="before the sync after fast step 2, along the axis of data_parallel"):
        crowd.step([1.0, 3.0, 2.0, 2.0])


SECTIONS: dict[str, Any] = {
    "mesh": {"node": 2, "local": 2},
    "model": {"name": "cnn", "width": 4},
    "inner": {"name": "SGD", "lr": 0.05, "momentum": 0.9, "data_parallel": "ddp"},
    "levels": {"recipe": "slowmo", "tau": 4, "beta": 0.2},
}


@pytest.mark.timeout(120)
def test_processes_with_ddp_end_with_the_bits_of_simulated_agents(tmp_path: Path) -> None:
    simulated, real = (small_config(tmp_path / name, **SECTIONS) for name in ("simulated", "real"))
    train(simulated)
    assert "Warning" not in train_in_processes(real, processes=4)
    for one, other in zip(final_states(folder_of(simulated), 4), final_states(folder_of(real), 4), strict=True):
        differing = list(differences(one["model"], other["model"]))
        assert all("running" in name for name in differing), "four agents' statistics add up in another order"
        for name in differing:
            torch.testing.assert_close(one["model"][name[1:]], other["model"][name[1:]])
    sent = [[r["bytes_sent"] for r in records(folder_of(c)) if r["kind"] == "sync"] for c in (simulated, real)]
    assert sent[0] == sent[1], "what DDP sends is counted too"


@pytest.mark.timeout(120)
def test_another_way_to_share_gradients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"inner\.data_parallel='dpp' is unknown; did you mean 'ddp'\?"):
        small_config(tmp_path, inner={"name": "SGD", "lr": 0.1, "data_parallel": "dpp"})
