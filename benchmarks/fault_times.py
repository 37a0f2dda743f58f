"""Seconds until a run has said or done something about a fault: the times of docs/faults.md.

Three agents over gloo train a small network on the digits, as `dist-lookahead train` does. After their first syncs,
or their first checkpoint, agent 2 is killed or stopped, in one case with the process that keeps the store, in another
with its node.
"""

import argparse
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks import picture, report
from benchmarks.faulty_runs import (
    Files,
    Run,
    Start,
    by_hand,
    by_hand_with_store,
    by_launch,
    by_nodes,
    by_torchrun,
    lives,
    until,
)

TAU = 4
NEVER = 1_000_000
TIMES = ("first word", "end", "next average", "loaded again")
ABOUT = (
    "Three agents; seconds from the fault, medians. first word: until somebody says who is late; end: until all "
    "others have ended; next average: until those that are left have synced again; loaded again: until agents that "
    "torchrun has started again have loaded their checkpoint. What the fault is waited for by setting is included: "
    "report_after and timeout as in the column fault."
)
PICTURE = picture.Bars(panels=[TIMES], by=["fault"], log=False)
RUN = """\
run: {{name: run, dir: {folder}, steps: 1000000, device: cpu}}
data: {{name: digits, batch_size: 8}}
model: {{name: mlp, width: 16}}
inner: {{name: SGD, lr: 0.02, momentum: 0.9}}
levels: {{recipe: slowmo, tau: {tau}, beta: 0.2}}
evaluation: {{every: null}}
checkpoint: {{every: {checkpoint}}}
logging: {{progress: plain, tensorboard: false, plots: false}}
faults: {{{faults}}}
"""


@dataclass(frozen=True)
class Case:
    """A fault, and how the run is told to deal with it.

    Args:
        start: who starts the agents, and whom the fault strikes.
        signum: what those are sent.
        faults: settings.
        awaited: of the times, in the order in which they come about.
        checkpoint: fast steps until there is one; the fault comes after it.
    """

    start: Start
    signum: signal.Signals
    faults: str
    awaited: Sequence[str]
    checkpoint: int = NEVER


STOPS, GOES_ON, AGAIN = ("first word", "end"), ("next average",), ("loaded again",)
LATE, ELASTIC = "report_after: 3, timeout: 6", "agents: elastic"
CONTINUE = f"{ELASTIC}, on_lost_agent: continue"
CASES = {
    "killed": Case(by_hand, signal.SIGKILL, "report_after: 30, timeout: 60", STOPS),
    "stopped, report_after 3, timeout 6": Case(by_hand, signal.SIGSTOP, LATE, STOPS),
    "stopped with the store, report_after 3, timeout 6": Case(by_hand_with_store, signal.SIGSTOP, LATE, STOPS),
    "killed, others go on": Case(by_launch, signal.SIGKILL, f"{CONTINUE}, timeout: 60", GOES_ON),
    "stopped, others go on": Case(by_launch, signal.SIGSTOP, f"{CONTINUE}, timeout: 60", GOES_ON),
    "killed, RESTARTS=3": Case(by_torchrun, signal.SIGKILL, "on_lost_agent: restart", AGAIN, checkpoint=200),
    "node killed, NODES=2:4": Case(by_nodes, signal.SIGKILL, ELASTIC, AGAIN, checkpoint=200),
}


def said(files: Files, run: Run) -> bool:
    """Return whether somebody has said who is late or lost."""
    output = files.output.read_text()
    return "waited for" in output or "failed on agent" in output


def ended(files: Files, run: Run) -> bool:
    """Return whether all others have ended."""
    return not any(map(lives, run.others))


def averaged(files: Files, run: Run) -> bool:
    """Return whether those that are left have synced again."""
    return '"sync"' in files.metrics.read_text().partition('"kind": "agents"')[2]


def loaded(files: Files, run: Run) -> bool:
    """Return whether agents have been started again, and have loaded their checkpoint."""
    return "going on after step" in files.output.read_text()


CONDITIONS: Mapping[str, Callable[[Files, Run], bool]] = dict(zip(TIMES, (said, ended, averaged, loaded), strict=True))


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Run once; return the seconds from the fault to each of the awaited times."""
    files = Files(folder)
    settings = RUN.format(folder=folder, tau=TAU, faults=case.faults, checkpoint=case.checkpoint)
    files.settings.write_text(settings, encoding="utf-8")
    syncs = 4 + (case.checkpoint // TAU if case.checkpoint < NEVER else 0)
    with case.start(files) as run:
        until(lambda: files.metrics.exists() and files.metrics.read_text().count('"sync"') > syncs)
        begun = time.monotonic()
        for process in run.struck:
            os.kill(process, case.signum)
        return {name: until(lambda name=name: CONDITIONS[name](files, run)) - begun for name in case.awaited}


def row(name: str, done: Sequence[Mapping[str, float]]) -> list[report.Cell]:
    """Return the medians of a case."""
    columns = [[times[column] for times in done if column in times] for column in TIMES]
    return [name, len(done), *(statistics.median(column) if column else "-" for column in columns)]


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
        table.append(row(name, done))
    load = before, report.load_average()
    report.publish(
        report.Report(
            name="fault_times", about=ABOUT, columns=("fault", "runs", *TIMES), rows=table, load=load, picture=PICTURE
        ),
        options,
    )


if __name__ == "__main__":
    main()
