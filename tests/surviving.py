"""Agents of a training that goes on without those that are lost: each descends a quadratic of its own."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from processes import CONTEXT, share_a_gpu
from torch import Tensor, nn

from dist_lookahead import DistributedLookahead, Level
from dist_lookahead.survivors.agents import JOINS, NAME, STORE, TOKEN, Survivors, first_name
from dist_lookahead.survivors.membership import connect, serve

LR, WIDTH, LIMIT, TOKEN_HERE = 0.1, 5, 60.0, "test"
Event = Callable[[Survivors, DistributedLookahead], None]


def target(name: str) -> Tensor:
    """The minimum of an agent, by its own name."""
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(sum(name.encode())), dtype=torch.float64)


def descend(levels: Sequence[Level], steps: int, log: Path, event: Event | None, options: Mapping[str, Any]) -> None:
    """Train to the end, and write what every sync has left: clock, members and weights.

    Args:
        levels: of the stack.
        steps: of each agent.
        log: folder of the agents' logs.
        event: happens before each fast step.
        options: of `Survivors.from_environment`.
    """
    agents = Survivors.from_environment(**options)
    device = options.get("device", "cpu")
    weights = nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64, device=device))
    optimizer = DistributedLookahead(torch.optim.SGD([weights], lr=LR), levels, recoverable=True)
    agents.enter(optimizer)
    name, rounds = os.environ[NAME], optimizer.stack.bound[-1].rounds
    with (log / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        while optimizer.stack.clock < steps:
            if event:
                event(agents, optimizer)
            weights.grad = weights.detach() - target(name).to(device)
            agents.step(optimizer)
            if optimizer.stack.bound[-1].rounds > rounds:
                rounds = optimizer.stack.bound[-1].rounds
                row = {"clock": optimizer.stack.clock, "rounds": rounds, "members": agents.generation.members}
                print(json.dumps({**row, "weights": weights.tolist()}), file=file, flush=True)
    agents.end()


def dies(name: str, *, before: int) -> Event:
    """An agent kills itself before its fast step of that number."""

    return partial(_die, name, before)


def _die(name: str, before: int, agents: Survivors, optimizer: DistributedLookahead) -> None:
    if os.environ[NAME] == name and optimizer.stack.clock == before - 1:
        os.kill(os.getpid(), signal.SIGKILL)


def rows(log: Path, name: str) -> list[dict[str, Any]]:
    """What an agent has written."""
    file = log / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@contextmanager
def started(work: Callable[..., None], agents: int, *arguments: Any) -> Iterator["Started"]:
    """Start agents, of which some may be lost; all have ended afterwards."""
    kept, port = serve("127.0.0.1", 0)
    begun = Started(work, arguments, port)
    try:
        for rank in range(agents):
            begun.start(first_name(rank), {"RANK": str(rank), "WORLD_SIZE": str(agents)})
        yield begun
    finally:
        begun.kill()
        del kept


class Started:
    """Processes by name."""

    def __init__(self, work: Callable[..., None], arguments: Sequence[Any], port: int) -> None:
        self._work, self._arguments, self._address = work, arguments, ("127.0.0.1", port)
        self.processes: dict[str, BaseProcess] = {}

    def start(self, name: str, place: Mapping[str, str]) -> None:
        """Start one more."""
        address = ":".join(map(str, self._address))
        environment = {STORE: address, TOKEN: TOKEN_HERE, NAME: name, "GLOO_SOCKET_IFNAME": "lo", **share_a_gpu(name)}
        self.processes[name] = CONTEXT.Process(
            target=_enter, args=({**environment, **place}, self._work, self._arguments)
        )
        self.processes[name].start()

    def join_later(self, name: str) -> None:
        """Start one that joins those that are under way."""
        self.start(name, {JOINS: "1"})

    def end(self) -> dict[str, int | None]:
        """Wait for all, and return how they ended; of those that are killed the others are told, as by the launcher."""
        store, deadline = connect(*self._address, TOKEN_HERE, timeout=LIMIT), time.monotonic() + LIMIT
        while any(process.exitcode is None for process in self.processes.values()):
            assert time.monotonic() < deadline, "agents hang"
            for name, process in self.processes.items():
                if process.exitcode:
                    store.set(f"gone/{name}", "1")
            time.sleep(0.02)
        return {name: process.exitcode for name, process in self.processes.items()}

    def kill(self) -> None:
        """End all that are left."""
        for process in self.processes.values():
            if process.pid is not None:
                process.kill()
                process.join()


def _enter(environment: Mapping[str, str], work: Callable[..., None], arguments: Sequence[Any]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    os.chdir(tempfile.gettempdir())
    work(*arguments)
