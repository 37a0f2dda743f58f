"""The command line in processes of torchrun's, one of which kills itself once, in the middle of a run.

    python -m tests.restarting PROCESSES RESTARTS MARK RANK STEP train FILE ..

Torchrun's own machinery, but for its command line: that would start processes which import torch anew in each life.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dist_lookahead.train.agent import Agent
from dist_lookahead.train.command import main


def work(mark: Path, rank: int, step: int, arguments: Sequence[str]) -> None:
    """Be one agent, which dies before a fast step unless it has died before."""
    backward = Agent.backward

    def die_once(self: Agent, factor: float) -> None:
        if self.step == step and self.communicator.rank == rank and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        backward(self, factor)

    Agent.backward = die_once
    if status := main(arguments):
        raise SystemExit(status)


if __name__ == "__main__":
    processes, restarts, mark, rank, step, *arguments = sys.argv[1:]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(processes),
        run_id="a job",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=int(restarts),
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(config, work)(Path(mark), int(rank), int(step), arguments)
