"""Where processes that were started by hand meet: one address to listen on, and the same number of agents for all.

Torchrun tells all its processes the same number, and keeps the store itself. Without it each process is told by its
environment (MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE), and gloo waits in vain where these do not fit each other.
"""

import os
import socket
import time
from datetime import timedelta

import torch.distributed as dist

from dist_lookahead.agreement import AgentsDiffer
from dist_lookahead.mail import who_says_what

LAST_READS = 5.0  # seconds that agent 0, which keeps the store, leaves the others to read why nobody can start


def meet(timeout: float) -> dist.Store | None:
    """Return the store of processes that were started by hand; None where torchrun has started them.

    Args:
        timeout: seconds to wait for the others.

    Raises:
        AgentsDiffer: on every agent, where they do not have the same WORLD_SIZE.
        OSError: from agent 0, where it cannot listen at MASTER_ADDR.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or "MASTER_ADDR" not in os.environ:
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    patience = timedelta(seconds=timeout)
    if rank == 0:
        # Torch's own store would listen on every interface of the machine.
        listener = socket.create_server((host, port), family=_family(host, port))
        store = dist.TCPStore(
            host, port, None, True, patience, wait_for_workers=False, master_listen_fd=listener.detach()
        )
    else:
        store = dist.TCPStore(host, port, None, False, patience)
    require_same_size(store, rank, size)
    return store


def require_same_size(store: dist.Store, rank: int, size: int) -> None:
    """Raise on every agent unless all have been told the same number of agents.

    Agent 0 compares, as far as it hears of others, and tells what it has found.

    Args:
        store: to which all of them have come.
        rank: of this agent.
        size: what it was told.
    """
    store.set(f"dist_lookahead/size/{rank}", str(size))
    if rank == 0:
        store.set("dist_lookahead/sizes differ", _difference(store, size))
    if difference := store.get("dist_lookahead/sizes differ").decode():
        heard = store.add("dist_lookahead/heard", 1)
        deadline = time.monotonic() + LAST_READS
        while rank == 0 and heard < size and time.monotonic() < deadline:
            time.sleep(0.05)
            heard = store.add("dist_lookahead/heard", 0)
        raise AgentsDiffer(difference)


def _difference(store: dist.Store, size: int) -> str:
    said: list[str] = []
    for rank in range(size):
        said.append(store.get(f"dist_lookahead/size/{rank}").decode())
        if said[-1] != said[0]:
            return (
                f"agents were told different numbers of agents: WORLD_SIZE={who_says_what(said)}. Start all of them "
                "with the same WORLD_SIZE, and ranks from 0 to WORLD_SIZE - 1"
            )
    return ""


def _family(host: str, port: int) -> socket.AddressFamily:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
