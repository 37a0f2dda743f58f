"""Child of test_checkpoint: for each line on its input, forks a process that writes checkpoints until killed.

It prints that process's id, and "gone" when it has ended. Forking spares the import of torch in each round.
"""

import os
import signal
import sys

import torch

from dist_lookahead.train.checkpoint import CheckpointStore


def write_until_killed(directory: str) -> None:
    signal.alarm(20)  # should nobody kill it
    store = CheckpointStore(directory, agent=0, agents=2, keep=2)
    step = max(store.steps(), default=0)
    while True:
        step += 1
        store.save(step, {"step": step, "weights": torch.full((100_000,), step)}, common=step)


if __name__ == "__main__":
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            write_until_killed(sys.argv[1])
        print(pid, flush=True)  # noqa: T201 - the answer to the test
        os.waitpid(pid, 0)
        print("gone", flush=True)  # noqa: T201 - the answer to the test
