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
        self.outcome = path / "outcome.json"
        self.curves = path / "curves.png"
        self.prediction = path / "prediction.json"
        self.prediction_picture = path / "prediction.png"
        self.inner_loop = path / "inner_loop.png"
        self.tensorboard = path / "tensorboard"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"

    def picture(self, step: int, weights: str) -> Path:
        """Return the file of what a model generated after a fast step, at the weights of that kind."""
        return self.samples / f"step_{step:06d}_{weights}.png"

    @classmethod
    def named(cls, config: Config, name: str) -> "RunDirectory":
        """Return the folder that another agent has chosen by `choose`, among the runs of this agent's file.

        Raises:
            ValueError: for a name that is none of this run's: agents say where others write, and nothing beside it.
        """
        if not _pattern(config).fullmatch(name):
            raise ValueError(
                f"agent 0 has chosen the folder {name!r}, and those of this run are {config.run.name}, "
                f"{config.run.name}-2, ...: give the same run.name to every agent"
            )
        return cls(Path(config.run.dir) / name)

    @classmethod
    def choose(cls, config: Config, *, resume: bool) -> "RunDirectory":
        """Return the newest folder of this name with checkpoints to resume, else a new one: NAME, NAME-2, ..."""
        base = Path(config.run.dir)
        pattern = _pattern(config)
        found = {
            int(match[1] or 1): folder
            for folder in (base.iterdir() if base.is_dir() else ())
            if (match := pattern.fullmatch(folder.name))
        }
        started = [number for number, folder in found.items() if (folder / "checkpoints").is_dir()]
        if resume and started:
            return cls(found[max(started)])
        number = max(found, default=0) + 1
        return cls(base / (config.run.name if number == 1 else f"{config.run.name}-{number}"))


def _pattern(config: Config) -> re.Pattern[str]:
    return re.compile(re.escape(config.run.name) + r"(?:-(\d+))?")
