"""Seconds until a run has said or done something about a fault: the times of docs/faults.md.

Three agents over gloo train a small network on the digits, as `dist-lookahead train` does. After their first syncs
agent 2 is killed or stopped, in one case with the process that keeps the store.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import track

from benchmarks import picture, report

AGENTS, LONGEST = 3, 90.0
COLUMNS = ("fault", "runs", "first word", "end", "next average")
ABOUT = (
    "Three agents; seconds from the fault, medians. first word: until somebody says who is late; end: until all "
    "others have ended; next average: until those that are left have synced again. What the fault is waited for by "
    "setting is included: report_after and timeout as in the column fault."
)
PICTURE = picture.Bars(panels=[["first word", "end", "next average"]], by=["fault"], log=False)
KEEPER = [
    sys.executable,
    "-c",
    "import sys, torch.distributed as dist; "
    "store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False); "
    "print(store.port, flush=True); sys.stdin.read()",
]
RUN = """\
run: {{name: run, dir: {folder}, steps: 1000000, device: cpu}}
data: {{name: digits, batch_size: 8}}
model: {{name: mlp, width: 16}}
inner: {{name: SGD, lr: 0.02, momentum: 0.9}}
levels: {{recipe: slowmo, tau: 4, beta: 0.2}}
evaluation: {{every: null}}
checkpoint: {{every: 1000000}}
logging: {{progress: "off", tensorboard: false, plots: false}}
faults: {{{faults}}}
"""


@dataclass(frozen=True)
class Case:
    """A fault, and how the run is told to deal with it.

    Args:
        signum: what agent 2 is sent.
        faults: settings.
        goes_on: whether the others go on, started by `dist-lookahead launch`.
        store: whether the process that keeps the store is stopped too.
    """

    signum: signal.Signals
    faults: str
    goes_on: bool = False
    store: bool = False


GOES_ON = "agents: elastic, on_lost_agent: continue"
CASES = {
    "killed": Case(signal.SIGKILL, "report_after: 30, timeout: 60"),
    "stopped, report_after 3, timeout 6": Case(signal.SIGSTOP, "report_after: 3, timeout: 6"),
    "stopped with the store, report_after 3, timeout 6": Case(
        signal.SIGSTOP, "report_after: 3, timeout: 6", store=True
    ),
    "killed, others go on": Case(signal.SIGKILL, f"{GOES_ON}, timeout: 60", goes_on=True),
    "stopped, others go on, timeout 3": Case(signal.SIGSTOP, f"{GOES_ON}, timeout: 3", goes_on=True),
}


def measure(case: Case, folder: Path) -> tuple[float | None, float | None, float | None]:
    """Run once; return the seconds to the first word, the end, and the next average, None for what is not there."""
    file, output, metrics = folder / "run.yaml", folder / "output", folder / "run" / "metrics.jsonl"
    file.write_text(RUN.format(folder=folder, faults=case.faults), encoding="utf-8")
    with output.open("w") as written, _started(case, file, written) as (agents, keeper):
        _until(lambda: metrics.exists() and metrics.read_text().count('"sync"') > 4)
        begun = time.monotonic()
        os.kill(agents[-1], case.signum)
        if keeper and case.store:
            os.kill(keeper, signal.SIGSTOP)
        if case.goes_on:
            _until(lambda: '"kind": "agents"' in metrics.read_text())
            return None, None, _until(lambda: '"sync"' in metrics.read_text().split('"kind": "agents"')[1]) - begun
        said = _until(lambda: "waited for" in output.read_text() or "failed on agent" in output.read_text()) - begun
        return said, _until(lambda: not any(map(_lives, agents[:-1]))) - begun, None


@contextmanager
def _started(case: Case, file: Path, output: IO[str]) -> Iterator[tuple[list[int], int | None]]:
    """Start the agents; yield their processes, and that which keeps the store."""
    train = [sys.executable, "-m", "dist_lookahead", "train", str(file)]
    launch = [sys.executable, "-m", "dist_lookahead", "launch", "--agents", str(AGENTS), *train[1:]]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes: list[subprocess.Popen[str]] = []

    def start(command: Sequence[str], more: dict[str, str]) -> int:
        environment = {**shared, **more}
        processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output, text=True))
        return processes[-1].pid

    own: list[int] = []
    try:
        if case.goes_on:
            launcher = start(launch, {})
            _until(lambda: len(_children(launcher)) == AGENTS)
            own = _children(launcher)
            yield own, None
        else:
            keeper = subprocess.Popen(KEEPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes.append(keeper)
            assert keeper.stdout
            port = keeper.stdout.readline().strip()
            yield [start(train, _place(rank, port)) for rank in range(AGENTS)], keeper.pid
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for agent in own:
            if _lives(agent):
                os.kill(agent, signal.SIGKILL)


def _place(rank: int, port: str) -> dict[str, str]:
    """Return what torchrun would tell an agent."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": AGENTS, "LOCAL_WORLD_SIZE": AGENTS}
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "faults"}
    told["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    return {**{name: str(number) for name, number in numbers.items()}, **told}


def _children(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _lives(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def _until(condition: Callable[[], bool]) -> float:
    """Wait until something holds; return when it did."""
    deadline = time.monotonic() + LONGEST
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not happen within {LONGEST:.0f} s")
        time.sleep(0.005)
    return time.monotonic()


def row(name: str, runs: int, done: Sequence[tuple[float | None, float | None, float | None]]) -> list[report.Cell]:
    """Return the medians of a case."""
    columns = [[value for value in column if value is not None] for column in zip(*done, strict=True)]
    return [name, runs, *(statistics.median(column) if column else "-" for column in columns)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the cases, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each case (%(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="; ".join(CASES))
    report.add_options(parser)
    options = parser.parse_args(arguments)
    before, table = report.load_average(), []
    for name in track(options.cases, "fault_times", console=Console(stderr=True)):
        done = []
        for _ in range(options.runs):
            with tempfile.TemporaryDirectory() as folder:
                done.append(measure(CASES[name], Path(folder)))
        table.append(row(name, options.runs, done))
    load = before, report.load_average()
    report.publish(
        report.Report(name="fault_times", about=ABOUT, columns=COLUMNS, rows=table, load=load, picture=PICTURE), options
    )


if __name__ == "__main__":
    main()
