"""Training on a GPU: the same as on a CPU, over NCCL, in CUDA graphs, compiled, and with slow state on the host."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_training import Agent, batch, make_agent, make_agents, make_model, mesh_for, same, train
from launching import train_in_processes
from processes import ON_A_GPU, run_processes
from test_contracts import ALL, TAU, Row
from test_training_resume import compare
from torch import nn
from training import small_config

from dist_lookahead import DistributedLookahead, Level, Mesh, diloco, local_sgd, simulate, slowmo
from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from dist_lookahead.train.config import Config

pytestmark = ON_A_GPU
STEPS = 2 * TAU + 1


def on_gpu(agents: list[Agent]) -> list[Agent]:
    for agent in agents:
        agent.model.cuda()
    return agents


def to_cpu(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {key: to_cpu(value) for key, value in state.items()}
    return type(state)(map(to_cpu, state)) if isinstance(state, list | tuple) else state


@pytest.mark.parametrize("row", ALL.values(), ids=ALL)
def test_every_recipe_ends_where_it_does_on_a_cpu(row: Row) -> None:
    here = make_agents(2, row.levels, dtype=torch.float64)
    there = on_gpu(make_agents(2, row.levels, dtype=torch.float64))
    for agents in (here, there):
        train(agents, range(STEPS))
    at_random = any(getattr(getattr(level.mix, "codec", None), "rounding", "") == "stochastic" for level in row.levels)
    tolerance = 2e-3 if at_random else 1e-7  # a GPU's generator draws other numbers
    for one, other in zip(here, there, strict=True):
        assert next(other.model.parameters()).is_cuda
        assert same(dict(one.model.state_dict()), to_cpu(dict(other.model.state_dict())), tolerance=tolerance)


def test_single_precision_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from dist_lookahead import slow_kernel

    launches = []
    kernel = slow_kernel.slow_step
    monkeypatch.setattr(
        "dist_lookahead.move.kernel_for",
        lambda fast: (lambda *a, **k: (launches.append(1), kernel(*a, **k))) if fast.is_cuda else None,
    )
    agents = on_gpu(make_agents(2, slowmo(TAU, beta=0.6)))
    here = make_agents(2, slowmo(TAU, beta=0.6))
    train(agents, range(STEPS))
    train(here, range(STEPS))
    assert launches
    assert same(dict(here[0].model.state_dict()), to_cpu(dict(agents[0].model.state_dict())), tolerance=1e-3)


@pytest.mark.parametrize(
    "levels",
    [slowmo(TAU, beta=0.6), diloco(TAU), slowmo(TAU, beta=0.6, shard=True)],
    ids=["slowmo", "diloco", "sharded"],
)
def test_slow_state_on_the_host_changes_no_bit(levels: list[Level]) -> None:
    def trained(offload: Any) -> list[DistributedLookahead]:
        ends = simulate(mesh_for(levels, 2))
        models = [make_model(rank).cuda() for rank in range(2)]
        optimizers = [
            DistributedLookahead(
                torch.optim.SGD(m.parameters(), lr=0.1), levels, model=m, communicator=e, offload=offload
            )
            for m, e in zip(models, ends, strict=True)
        ]
        train([Agent(rank, models[rank], optimizers[rank]) for rank in range(2)], range(STEPS))
        return optimizers

    plain, away = trained(None), trained("cpu")
    for one, other in zip(plain, away, strict=True):
        kept = [*other.stack.bound[-1].slow, *other.stack.bound[-1].momentum]
        assert kept
        assert all(tensor.is_pinned() for tensor in kept)
        assert same(to_cpu(one.state_dict()), to_cpu(other.state_dict()))
        restored = copy.deepcopy(other)
        restored.load_state_dict(other.state_dict())
        assert same(to_cpu(restored.state_dict()), to_cpu(one.state_dict()))


def test_slow_state_on_the_host_leaves_the_gpu_its_memory() -> None:
    def used(offload: Any) -> int:
        weight = nn.Parameter(torch.zeros(8_000_000, device="cuda"))
        before = torch.cuda.memory_allocated()
        kept = DistributedLookahead(torch.optim.SGD([weight], lr=0.1), slowmo(TAU, beta=0.6), offload=offload)
        after = torch.cuda.memory_allocated()
        assert kept.stack.bound[0].slow
        return after - before

    assert used(None) - used("cpu") == pytest.approx(2 * 4 * 8_000_000, rel=0.01)


def test_forward_and_backward_in_a_cuda_graph() -> None:
    """A graph reads and writes fixed addresses: syncs change weights in place, and never move them."""
    levels = slowmo(TAU, beta=0.6)

    def trained(*, graphed: bool) -> dict[str, Any]:
        model = make_model().cuda()
        optimizer = DistributedLookahead(torch.optim.SGD(model.parameters(), lr=0.1), levels, model=model)
        images, labels = batch(0, 0, torch.float32, "cuda")

        def backward() -> None:
            optimizer.zero_grad(set_to_none=False)
            nn.functional.cross_entropy(model(images), labels).backward()

        graph = torch.cuda.CUDAGraph()
        kept = copy.deepcopy(model.state_dict())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                backward()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            backward()
        model.load_state_dict(kept)
        for step in range(STEPS):
            new_images, new_labels = batch(0, step, torch.float32)
            images.copy_(new_images)
            labels.copy_(new_labels)
            graph.replay() if graphed else backward()
            optimizer.step()
        return to_cpu(dict(model.state_dict()))

    assert same(trained(graphed=False), trained(graphed=True), tolerance=1e-5)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
def test_a_compiled_model(mode: str) -> None:
    def trained(*, compiled: bool) -> dict[str, Any]:
        model = make_model().cuda()
        optimizer = DistributedLookahead(
            torch.optim.SGD(model.parameters(), lr=0.1), slowmo(TAU, beta=0.6), model=model
        )
        forward = torch.compile(model, mode=mode) if compiled else model
        for step in range(STEPS):
            images, labels = batch(0, step, torch.float32, "cuda")
            optimizer.zero_grad()
            nn.functional.cross_entropy(forward(images), labels).backward()
            optimizer.step()
        return to_cpu(dict(model.state_dict()))

    assert same(trained(compiled=False), trained(compiled=True), tolerance=1e-4)


def trained_agents(stacks: Mapping[str, Sequence[Level]], steps: int) -> dict[str, Any]:
    """What this process's agent of each training ends as, over the default process group."""
    states = {}
    for name, levels in stacks.items():
        mesh = mesh_for(levels, torch.distributed.get_world_size())
        communicator = ProcessGroupCommunicator(Mesh((mesh,)) if isinstance(mesh, int) else mesh)
        agent = make_agent(communicator.rank, communicator, levels, dtype=torch.float64, device="cuda")
        train([agent], range(steps))
        states[name] = to_cpu(dict(agent.model.state_dict()))
    return states


def test_nccl_with_one_process() -> None:
    (states,) = run_processes(trained_agents, 1, {"slowmo": slowmo(TAU, beta=0.6)}, STEPS, backend="nccl")
    alone = on_gpu(make_agents(1, slowmo(TAU, beta=0.6), dtype=torch.float64))
    train(alone, range(STEPS))
    assert same(states["slowmo"], to_cpu(dict(alone[0].model.state_dict())))


def test_nccl_with_two_processes_that_share_a_gpu() -> None:
    """Every collective of every recipe; summed as in the simulation, since of two numbers there is one sum."""
    stacks = {name: row.levels for name, row in ALL.items()}
    states = run_processes(trained_agents, 2, stacks, STEPS, backend="nccl", timeout=110)
    for name, row in ALL.items():
        simulated = on_gpu(make_agents(2, row.levels, dtype=torch.float64))
        train(simulated, range(STEPS))
        for own, agent in zip(states, simulated, strict=True):
            assert same(own[name], to_cpu(dict(agent.model.state_dict())), tolerance=1e-9), name


def small(folder: Path, **sections: Any) -> Config:
    return small_config(folder, **{"run": {"device": "cuda", "deterministic": True}, **sections})


@pytest.fixture
def reproducible(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    precision = torch.get_float32_matmul_precision()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(precision)


@pytest.mark.usefixtures("reproducible")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_run_is_resumed_to_the_bit(tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"device": "cuda", "deterministic": True}
    compare(tmp_path, 7, monkeypatch, run=run, precision=precision, data={"pin_memory": True})


@pytest.mark.parametrize("sections", [{}, {"sync": {"offload": "cpu"}}, {"performance": {"compile": True}}], ids=str)
def test_the_command_trains(tmp_path: Path, sections: dict[str, Any]) -> None:
    output = train_in_processes(small(tmp_path, logging={"progress": "plain"}, **sections), 1)
    assert "1 agent on cuda" in output


def test_the_command_trains_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    config = small(tmp_path, logging={"progress": "plain"}, levels={"recipe": "local_sgd", "tau": 4})
    output = train_in_processes(config, 2)
    assert "2 agents on cuda" in output


def test_half_precision_parameters_are_averaged_in_single() -> None:
    ends = simulate(2)
    models = [make_model(rank, torch.bfloat16).cuda() for rank in range(2)]
    optimizers = [
        DistributedLookahead(torch.optim.SGD(m.parameters(), lr=0.1), local_sgd(TAU), model=m, communicator=e)
        for m, e in zip(models, ends, strict=True)
    ]
    train([Agent(rank, models[rank], optimizers[rank]) for rank in range(2)], range(TAU))
    assert same(dict(models[0].named_parameters()), dict(models[1].named_parameters()))
