"""DiLoCo of torchft, on the agents of this process group. Its own group is set up beside it, over the same network."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

SECONDS = 600  # that a collective may take on a slow link


def torchft_diloco(model: nn.Module, inner: torch.optim.Optimizer, tau: int, *, beta: float) -> Callable[[], object]:
    """Let the inner optimizer's steps communicate; return what ends it.

    Args:
        model: all of it is one fragment.
        inner: each agent's own.
        tau: steps of a round.
        beta: Nesterov momentum of the outer SGD, whose learning rate is 1.
    """
    from torchft import Manager, ProcessGroupGloo  # pyright: ignore[reportMissingImports] - optional
    from torchft.coordination import LighthouseServer  # pyright: ignore[reportMissingImports] - optional
    from torchft.local_sgd import DiLoCo  # pyright: ignore[reportMissingImports] - optional

    address, rank, n = _own_address(), dist.get_rank(), dist.get_world_size()
    lighthouse = LighthouseServer(bind="[::]:0", min_replicas=n, join_timeout_ms=10_000) if rank == 0 else None
    where = [lighthouse.address() if lighthouse else None]
    dist.broadcast_object_list(where)
    store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
    wait = timedelta(seconds=SECONDS)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=wait),
        load_state_dict=lambda _: None,
        state_dict=dict,
        min_replica_size=n,
        use_async_quorum=False,
        timeout=wait,
        quorum_timeout=wait,
        rank=0,
        world_size=1,
        store_addr=address,
        store_port=store.port,
        lighthouse_addr=where[0],
        replica_id=f"agent{rank}",
        hostname=address,
        init_sync=False,
    )
    outer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=beta, nesterov=beta > 0)
    work = DiLoCo(manager, [model], inner, outer, sync_every=tau, pin_memory=False)
    work.__enter__()

    def close() -> None:
        work.__exit__(None, None, None)
        dist.barrier()  # the first one's lighthouse serves all
        manager.shutdown(wait=False)
        if lighthouse:
            lighthouse.shutdown()

    return close


def _own_address() -> str:
    """Return the address from which this node reaches the first agent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 1))
        return probe.getsockname()[0]
