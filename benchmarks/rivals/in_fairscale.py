"""fairscale: SlowMo over local SGD, whole and with its slow state split over the agents.

On a machine without CUDA it needs two things, both done here: `torch.cuda.synchronize`, which it calls after each
average, does nothing meanwhile; and its own `_init_global_momentum_buffers` is called before the first step, since it
would take the weights after that step, not those before, for the first slow weights.
"""

import importlib
import warnings
from functools import partial

import torch

from benchmarks.measure import nothing
from benchmarks.rivals.trainer import TAU, Model, Rival, Trainer, sgd, stepping
from dist_lookahead import slowmo

BETA = 0.5


def _build(model: Model, *, split: bool) -> Trainer:
    if not torch.cuda.is_available():
        torch.cuda.synchronize = nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls what torch has deprecated since
        parallel = importlib.import_module("fairscale.experimental.nn.data_parallel")
        wrapped = parallel.SlowMoDistributedDataParallel(
            model,
            nprocs_per_node=1,
            slowmo_momentum=BETA,
            slowmo_memory_efficient=split,
            slowmo_base_algorithm=parallel.SlowMoBaseAlgorithm.LOCALSGD,
            slowmo_frequency=TAU,
            localsgd_frequency=TAU,
        )
    optimizer = sgd(model)
    wrapped._init_global_momentum_buffers(optimizer)

    def step() -> None:
        optimizer.step()
        wrapped.perform_slowmo(optimizer)

    return stepping(model, step)


RIVALS = [
    Rival(
        name="fairscale SlowMo",
        module="fairscale",
        build=partial(_build, split=False),
        levels=lambda: slowmo(TAU, beta=BETA),
        ours="slowmo",
    ),
    Rival(
        name="fairscale SlowMo, split",
        module="fairscale",
        build=partial(_build, split=True),
        levels=lambda: slowmo(TAU, beta=BETA, shard=True),
        ours="slowmo, sharded",
    ),
]
