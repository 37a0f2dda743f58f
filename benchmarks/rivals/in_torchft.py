"""torchft: LocalSGD and DiLoCo, which ask a server before each sync who takes part, and afterwards whether it counts.

Each process is a replica of its own, as an agent is here. Peers that come and go, which this package does not do, are
what the questions are for; their time belongs to the method.
"""

import importlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.rivals.trainer import TAU, Model, Rival, Trainer, sgd, stepping
from dist_lookahead import diloco, local_sgd

os.environ.setdefault("RUST_LOG", "error")  # its servers tell of every request
HOST = "127.0.0.1"
ALPHA, BETA = 0.7, 0.9


def _build(model: Model, wrap: Callable[[Any, Model, torch.optim.Optimizer], Any]) -> Trainer:
    closing = ExitStack()
    optimizer = sgd(model)
    closing.enter_context(wrap(_manager(closing), model, optimizer))
    return stepping(model, optimizer.step, closing.close)


def _local_sgd(manager: Any, model: Model, optimizer: torch.optim.Optimizer) -> Any:
    return importlib.import_module("torchft.local_sgd").LocalSGD(manager, model, optimizer, sync_every=TAU)


def _diloco(manager: Any, model: Model, optimizer: torch.optim.Optimizer, *, buckets: bool) -> Any:
    outer = torch.optim.SGD(model.parameters(), lr=ALPHA, momentum=BETA, nesterov=True)
    return importlib.import_module("torchft.local_sgd").DiLoCo(
        manager, [model], optimizer, outer, sync_every=TAU, use_bucketization=buckets
    )


def _manager(closing: ExitStack) -> Any:
    """Start the server that all ask, on agent 0, and this agent's manager."""
    minute = timedelta(seconds=60)
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    group = importlib.import_module("torchft.process_group").ProcessGroupGloo(timeout=minute)
    manager = importlib.import_module("torchft.manager").Manager(
        pg=group,
        load_state_dict=None,  # nobody comes back in this benchmark
        state_dict=None,
        min_replica_size=dist.get_world_size(),
        use_async_quorum=False,
        rank=0,
        world_size=1,
        store_addr=HOST,
        store_port=store.port,
        lighthouse_addr=_lighthouse(closing),
        replica_id=f"agent{dist.get_rank()}",
        hostname=HOST,
        init_sync=False,
    )
    closing.callback(_keep, store)
    closing.callback(group.shutdown)
    closing.callback(partial(manager.shutdown, wait=False))
    closing.callback(dist.barrier)  # nobody leaves while others are in a sync
    return manager


def _lighthouse(closing: ExitStack) -> str:
    addresses = [""]
    if dist.get_rank() == 0:
        server = importlib.import_module("torchft.coordination").LighthouseServer(
            bind=f"{HOST}:0", min_replicas=dist.get_world_size(), join_timeout_ms=1000, quorum_tick_ms=10
        )
        closing.callback(server.shutdown)
        port = server.address().rpartition(":")[2]  # under a host name that need not resolve
        addresses = [f"http://{HOST}:{port}"]
    dist.broadcast_object_list(addresses)
    return addresses[0]


def _keep(store: dist.TCPStore) -> None:
    """Hold the store to the end: the manager has a client of it only."""


RIVALS = [
    Rival(
        name="torchft LocalSGD",
        module="torchft.local_sgd",
        build=partial(_build, wrap=_local_sgd),
        levels=lambda: local_sgd(tau=TAU),
        ours="local_sgd",
    ),
    Rival(
        name="torchft DiLoCo",
        module="torchft.local_sgd",
        build=partial(_build, wrap=partial(_diloco, buckets=False)),
        levels=lambda: diloco(TAU, ALPHA, BETA),
        ours="diloco",
    ),
    Rival(
        name="torchft DiLoCo, buckets",
        module="torchft.local_sgd",
        build=partial(_build, wrap=partial(_diloco, buckets=True)),
        levels=lambda: diloco(TAU, ALPHA, BETA),
        ours="diloco",
    ),
]
