"""accelerate: LocalSGD, around a model that DistributedDataParallel wraps."""

import importlib
import os

import torch
import torch.distributed as dist

from benchmarks.rivals.trainer import TAU, Model, Rival, Trainer, sgd, stepping
from dist_lookahead import local_sgd


def _build(model: Model) -> Trainer:
    accelerate = importlib.import_module("accelerate")
    # It asks the environment, not the process group, whether there are several processes.
    here = {"RANK": dist.get_rank(), "LOCAL_RANK": dist.get_rank(), "WORLD_SIZE": dist.get_world_size()}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # never opened: the group exists
    for name, value in {**here, **address}.items():
        os.environ.setdefault(name, str(value))
    accelerator = accelerate.Accelerator(cpu=not torch.cuda.is_available())
    assert accelerator.num_processes == dist.get_world_size()
    wrapped, optimizer = accelerator.prepare(model, sgd(model))
    local_steps = importlib.import_module("accelerate.local_sgd").LocalSGD(
        accelerator=accelerator, model=wrapped, local_sgd_steps=TAU
    )
    local_steps.__enter__()

    def step() -> None:
        optimizer.step()
        local_steps.step()

    return stepping(model, step)


RIVALS = [
    Rival(
        name="accelerate LocalSGD",
        module="accelerate.local_sgd",
        build=_build,
        levels=lambda: local_sgd(tau=TAU),
        ours="local_sgd",
    )
]
