"""Runs whose agents are split over the processes of a node: as with DDP, and each process has a part of the weights."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launching import train_in_processes
from processes import run_processes
from torch import Tensor

from dist_lookahead import Mesh
from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from dist_lookahead.train.agent import Agent
from dist_lookahead.train.config import Config
from dist_lookahead.train.export import export
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.trainer import Trainer
from dist_lookahead.train.world import World
from tests.training import differences, final_states, folder_of, records, small_config, train

pytestmark = pytest.mark.timeout(180)
SECTIONS: dict[str, Any] = {
    "mesh": {"node": 2, "local": 2},
    "model": {"name": "cnn", "width": 4},
    "inner": {"name": "AdamW", "lr": 0.01, "data_parallel": "fsdp2"},
    "levels": {"recipe": "slowmo", "tau": 4, "beta": 0.2},
}


def exported(config: Config) -> dict[str, Tensor]:
    out = folder_of(config) / "model.pt"
    export(folder_of(config), out)
    return torch.load(out, weights_only=True)


def test_processes_come_to_the_numbers_of_simulated_agents_with_whole_weights(tmp_path: Path) -> None:
    simulated, real = (small_config(tmp_path / name, **SECTIONS) for name in ("simulated", "real"))
    train(simulated)
    assert "Warning" not in train_in_processes(real, processes=4)
    whole, joined = exported(simulated), exported(real)
    assert whole.keys() == joined.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(joined[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    evaluations = [[r for r in records(folder_of(c)) if r["kind"] == "evaluation"] for c in (simulated, real)]
    for one, other in zip(*evaluations, strict=True):
        assert other["accuracy"] == pytest.approx(one["accuracy"], abs=0.01)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
    parts = final_states(folder_of(real), 4)
    sizes = [sum(t.numel() for t in part["optimizer"]["levels"]["levels"][0]["slow"].values()) for part in parts]
    total = sum(t.numel() for name, t in whole.items() if "running" not in name and "num_batches" not in name)
    assert sizes[0] + sizes[1] == sizes[2] + sizes[3] == total


def a_process(
    folder: str, *, steps: int = 13, resume: bool = False, signalled: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The trainer in this process; (rank, step) says who gets a signal and when."""
    config = small_config(Path(folder), **SECTIONS, run={"steps": steps})
    world = World([ProcessGroupCommunicator(Mesh((2, 2), ("node", "local")))], torch.device("cpu"))
    original = Agent.backward

    def backward(agent: Agent, factor: float) -> None:
        if signalled == (dist.get_rank(), agent.step):
            os.kill(os.getpid(), signal.SIGTERM)
        original(agent, factor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Agent, "backward", backward)
        outcome = Trainer(config, config.build_task(), world, RunDirectory(folder_of(config)), resume=resume).run()
    return {"signal": outcome.signal, "step": outcome.step}


def stopped_and_resumed(folder: str) -> list[dict[str, Any]]:
    return [a_process(folder, signalled=(1, 5)), a_process(folder, resume=True)]


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Breaks if the processes that have its part hear of it and the others of the same node do not: they would hang."""
    run_processes(a_process, 4, str(tmp_path / "whole"), timeout=90.0)
    for stopped, resumed in run_processes(stopped_and_resumed, 4, str(tmp_path / "stopped"), timeout=120.0):
        assert stopped == {"signal": signal.SIGTERM, "step": 8}
        assert resumed == {"signal": None, "step": 13}
    folders = [tmp_path / name / "small" for name in ("whole", "stopped")]
    for one, other in zip(*(final_states(folder, 4) for folder in folders), strict=True):
        assert not list(differences(one, other))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"levels": {"recipe": "slowmo", "tau": 4, "shard": True}}, "leave shard and codec out"),
        ({"levels": {"recipe": "hierarchical_local_sgd", "taus": [2, 4]}}, "along the axis over which the weights are"),
        ({"precision": "fp16"}, "use bf16, or data_parallel: ddp"),
        ({"performance": {"compile": True}}, "performance.compile=true with inner.data_parallel='fsdp2'"),
        ({"mesh": {"rack": 2, "gpu": 2}}, "needs the axis 'local', which mesh does not have"),
    ],
)
def test_what_does_not_go_with_it_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        small_config(tmp_path, **{**SECTIONS, **changes})
