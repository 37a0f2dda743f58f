"""Where a run keeps its results: a folder of its own, never one that holds another run."""

import re
from pathlib import Path

from dist_lookahead.train.config import Config
from dist_lookahead.train.whole_file import write_whole


class RunDirectory:
    """The files of one run.

    Args:
        path: the folder.
        goes_on: whether the run that is there goes on.
    """

    def __init__(self, path: Path, *, goes_on: bool = False) -> None:
        self.path, self.goes_on = path, goes_on
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

    def open(self, config: Config) -> None:
        """Make the folder, or go on in it: with these settings, and without an outcome so far."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.config, config.to_yaml())
        self.outcome.unlink(missing_ok=True)

    def picture(self, step: int, weights: str) -> Path:
        """Return the file of what a model generated after a fast step, at the weights of that kind."""
        return self.samples / f"step_{step:06d}_{weights}.png"

    @classmethod
    def named(cls, config: Config, name: str, *, goes_on: bool = False) -> "RunDirectory":
        """Return the folder that another agent has chosen by `choose`, among the runs of this agent's file.

        Raises:
            ValueError: for a name that is none of this run's: agents say where others write, and nothing beside it.
        """
        cls.number(config, name)
        return cls(Path(config.run.dir) / name, goes_on=goes_on)

    @staticmethod
    def number(config: Config, name: str) -> int:
        """Return which of the runs of this name a folder's name says: 1 for NAME, 2 for NAME-2, ...

        Raises:
            ValueError: for a name that is none of this run's.
        """
        match = _pattern(config).fullmatch(name)
        if not match:
            raise ValueError(
                f"agent 0 has chosen the folder {name!r}, and those of this run are {config.run.name}, "
                f"{config.run.name}-2, ...: give the same run.name to every agent"
            )
        return int(match[1] or 1)

    @staticmethod
    def found(config: Config) -> dict[int, Path]:
        """Return the folders of all runs of this name by their numbers."""
        base, pattern = Path(config.run.dir), _pattern(config)
        return {
            int(match[1] or 1): folder
            for folder in (base.iterdir() if base.is_dir() else ())
            if (match := pattern.fullmatch(folder.name))
        }

    @classmethod
    def choose(cls, config: Config, *, resume: bool) -> "RunDirectory":
        """Return the newest folder of this name with checkpoints to resume, else a new one: NAME, NAME-2, ..."""
        found = cls.found(config)
        started = [number for number, folder in found.items() if (folder / "checkpoints").is_dir()]
        if resume and started:
            return cls(found[max(started)], goes_on=True)
        number = max(found, default=0) + 1
        return cls(Path(config.run.dir) / (config.run.name if number == 1 else f"{config.run.name}-{number}"))


def _pattern(config: Config) -> re.Pattern[str]:
    return re.compile(re.escape(config.run.name) + r"(?:-(\d+))?")
