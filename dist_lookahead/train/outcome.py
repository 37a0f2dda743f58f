"""How a run ended, as a file in its folder: written once, at the end, so that who finds it need not run it again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_lookahead.level import Level
from dist_lookahead.stack import LevelStack
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.whole_file import write_whole


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        signal: that stopped it early; None for a run that came to its end.
        step: fast steps done.
        metrics: of the last evaluation, per kind of weights.
        seconds: of training in this process.
        steps_here: fast steps done in this process.
        syncs: of the outermost level, in the whole run.
        total_seconds: of training in the whole run, without evaluations and checkpoints.
        exposed_seconds: of them, in which an agent was blocked by collectives; of the host's time on CUDA.
        tau: the longest of the levels; None where it changes in the course of the run.
        bytes_sent: by one agent in the whole run.
        ddp_bytes: what one agent would have sent to average its gradients after every step.
    """

    signal: int | None
    step: int
    metrics: dict[str, dict[str, float]]
    seconds: float
    steps_here: int
    syncs: int
    total_seconds: float
    exposed_seconds: float
    tau: int | None
    bytes_sent: int
    ddp_bytes: int


def write_outcome(directory: RunDirectory, outcome: Outcome) -> None:
    """Say that the run came to its end, with its last metrics and what they cost."""
    values = {
        "state": "finished",
        "steps": outcome.step,
        "syncs": outcome.syncs,
        "bytes_sent": outcome.bytes_sent,
        "ddp_bytes": outcome.ddp_bytes,
        "seconds": outcome.total_seconds,
        "exposed_seconds": outcome.exposed_seconds,
        "metrics": outcome.metrics,
    }
    _write(directory, values)


def write_divergence(directory: RunDirectory, reason: str) -> None:
    """Say that the loss is not a number any more: a run that would only end so again."""
    _write(directory, {"state": "diverged", "reason": reason})


def read_outcome(directory: RunDirectory) -> dict[str, Any] | None:
    """Return what was written; None for a run that has not come to its end."""
    if not directory.outcome.exists():
        return None
    return json.loads(directory.outcome.read_text(encoding="utf-8"))


def state_of(outcome: Mapping[str, Any] | None) -> str:
    """Return "finished", "diverged" or "unfinished"."""
    return "unfinished" if outcome is None else outcome["state"]


def _write(directory: RunDirectory, values: Mapping[str, Any]) -> None:
    write_whole(directory.outcome, json.dumps(values, indent=1) + "\n")


def longest_tau(levels: Sequence[Level]) -> int | None:
    """Return the longest of the levels' rounds; None where one changes in the course of the run."""
    taus = [level.when.constant for level in levels]
    constant = [tau for tau in taus if tau is not None]
    return max(constant) if len(constant) == len(taus) else None


def gradient_bytes(stack: LevelStack) -> int:
    """Return the bytes of the gradients of a fast step."""
    return sum(slot.weight.parameter.nbytes for bucket in stack.buckets for slot in bucket.slots)
