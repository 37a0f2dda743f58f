"""Where a run keeps its results: a folder of its own, never one that holds another run."""

import re
from pathlib import Path

from dist_lookahead.train.config import Config


class RunDirectory:
    """The files of one run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.curves = path / "curves.png"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"

    @classmethod
    def choose(cls, config: Config, *, resume: bool) -> "RunDirectory":
        """Return the newest folder of this name to resume, else a new one: NAME, NAME-2, NAME-3, ..."""
        base = Path(config.run.dir)
        pattern = re.compile(re.escape(config.run.name) + r"(?:-(\d+))?")
        numbers = [
            int(match[1] or 1)
            for folder in (base.iterdir() if base.is_dir() else ())
            if (match := pattern.fullmatch(folder.name))
        ]
        newest = max(numbers, default=0)
        number = newest if resume and newest else newest + 1
        return cls(base / (config.run.name if number == 1 else f"{config.run.name}-{number}"))
