"""Writing metrics: one JSON object a line, and TensorBoard's event files."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from dist_lookahead.train.whole_file import write_whole

_log = logging.getLogger(__name__)


class Recorder:
    """Appends records to a run's metrics.

    Args:
        metrics: the JSON lines file.
        tensorboard: folder of the event files; None for none.
        start: fast step at which this process starts; what an earlier one recorded after it is dropped, so that
            a resumed run leaves the file of one that never stopped.
    """

    def __init__(self, metrics: Path, tensorboard: Path | None, *, start: int) -> None:
        if start:
            kept = [record for record in read_metrics(metrics) if record["step"] <= start]
            write_whole(metrics, "".join(map(_line, kept)))
        self._file = metrics.open("a" if start else "w", encoding="utf-8")
        self._events = SummaryWriter(str(tensorboard), purge_step=start + 1) if tensorboard else None

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write one record: its kind ("sync", "evaluation"), the fast step, and the values."""
        self._file.write(_line({"kind": kind, "step": step, **values}))
        self._file.flush()
        if self._events:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Finish the files."""
        self._file.close()
        if self._events:
            self._events.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Read the records of a run; a last line that was cut off by a crash is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            _log.warning("%s: an unfinished record is left out", path)
