"""Restarts by torchrun: all agents are started again after a fault, and go on in the folder where they were.

Torchrun's own process outlives its agents. Each agent leaves a mark of it in the run's folder, and one that finds the
mark of the process that has started it knows that it is started again. Torchrun counts restarts itself, but not in the
same way on all nodes. Ranks may move between nodes and nodes may be new, so that one agent which knows is enough.
"""

import hashlib
import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dist_lookahead.train.config import Config
from dist_lookahead.train.outcome import read_outcome, state_of
from dist_lookahead.train.run_directory import RunDirectory

PROC = Path("/proc")
FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Launcher:
    """The process of torchrun that has started an agent, told apart from all others there have been.

    Attributes:
        job: torchrun's name of the job.
        host: its machine.
        boot: of the machine, which counts its processes anew after each.
        process: its number.
        started: when, in ticks since the boot; numbers of processes come again.
    """

    job: str
    host: str
    boot: str
    process: int
    started: str

    @classmethod
    def of_this_agent(cls) -> "Launcher | None":
        """Return who has started this process; None where it was not torchrun, or the system does not tell."""
        job, process = os.environ.get("TORCHELASTIC_RUN_ID"), os.getppid()
        started, boot = _start_of(process), _boot()
        if job is None or started is None or boot is None:
            return None
        return cls(job, socket.gethostname(), boot, process, started)

    @property
    def mark(self) -> str:
        """Name of the file that it leaves in a folder."""
        return f"torchrun-{hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]}.json"

    def leave_mark(self, folder: Path) -> None:
        """Say in a run's folder that agents of this process train there, and remove marks that say nothing any more."""
        for path in folder.glob("torchrun-*.json"):
            if path.name != self.mark and self._outlived(path):
                path.unlink(missing_ok=True)
        (folder / self.mark).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    def _outlived(self, path: Path) -> bool:
        """Return whether the other process was one of this machine, and has ended."""
        with suppress(OSError, ValueError, TypeError):  # half written by another agent just now, or removed
            other = Launcher(**json.loads(path.read_text(encoding="utf-8")))
            gone = other.boot != self.boot or _start_of(other.process) != other.started
            return other.host == self.host and gone
        return False


def require_restarts(config: Config) -> None:
    """Refuse to begin where agents are to be started again, and nobody would.

    Raises:
        ValueError: without torchrun, and for one that has not been told to.
    """
    if config.faults.on_lost_agent == "restart" and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) < 1:
        raise ValueError(
            "faults.on_lost_agent='restart' needs torchrun with --max-restarts of at least 1, such as "
            "`RESTARTS=3 launch/local.sh N FILE`"
        )


def known_run(config: Config) -> str:
    """Return what this agent knows of the run that its launcher has begun: its folder's name and state, "" for nothing.

    Args:
        config: of the run.
    """
    launcher = Launcher.of_this_agent()
    if launcher is None:
        return ""
    marked = [folder for _, folder in sorted(RunDirectory.found(config).items()) if (folder / launcher.mark).exists()]
    return f"{marked[-1].name} {state_of(read_outcome(RunDirectory(marked[-1])))}" if marked else ""


def run_to_go_on(config: Config, told: Sequence[str]) -> str:
    """Return the name of the folder in which all agents go on, "" where they were not started again.

    A run that has come to its end is not gone on with: who starts agents once more then wants another one.

    Args:
        config: of the run.
        told: what `known_run` has returned on each agent.

    Raises:
        ValueError: for a name that is none of this run's.
    """
    known = [text.partition(" ") for text in told if text]
    numbers = {name: RunDirectory.number(config, name) for name, _, _ in known}
    newest = max(numbers, key=numbers.__getitem__, default="")
    return "" if any(name == newest and state == FINISHED for name, _, state in known) else newest


def _start_of(process: int) -> str | None:
    """Return when a process was started; None where there is none, or no /proc."""
    try:
        stat = (PROC / str(process) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # Behind the program's name, which may hold spaces and parentheses, the third field follows; the time is the 22nd.
    return stat.rpartition(")")[2].split()[22 - 3]


def _boot() -> str | None:
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None
