"""How a run ended, as a file in its folder: written once, at the end, so that who finds it need not run it again."""

import json
from collections.abc import Mapping
from typing import Any

from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.trainer import Outcome


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
    unfinished = directory.outcome.with_suffix(".tmp")
    unfinished.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(directory.outcome)  # there is a whole file or none
