"""What a run has left in its folder, finished or not: its configuration, its records, its last values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_lookahead.train.config_file import flat, read_yaml
from dist_lookahead.train.outcome import read_outcome, state_of
from dist_lookahead.train.progress import headlines
from dist_lookahead.train.recorder import read_metrics
from dist_lookahead.train.run_directory import RunDirectory

LAST_PART = 0.1  # of the run, whose mean is its final training loss: that of a single round is noisy
SPENT = ("epoch", "seconds", "bytes_sent")
OWN_NAMES = ("run.name", "run.dir", "run.seed")  # in which repetitions of one run may differ


@dataclass(frozen=True)
class RunResult:
    """A run as its files tell.

    Args:
        folder: of the run.
        settings: its resolved configuration by path.
        records: its metrics.
        outcome: how it ended; None where it has not.
    """

    folder: Path
    settings: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    outcome: Mapping[str, Any] | None

    @classmethod
    def read(cls, folder: Path) -> "RunResult":
        """Read the files of a run.

        Raises:
            ValueError: the folder holds no run.
        """
        directory = RunDirectory(folder)
        if not directory.config.exists():
            raise ValueError(f"{folder} holds no run: there is no {directory.config.name} in it")
        return cls(
            folder=folder,
            settings=dict(flat(read_yaml(directory.config))),
            records=list(read_metrics(directory.metrics)),
            outcome=read_outcome(directory),
        )

    @property
    def state(self) -> str:
        """Return "finished", "diverged" or "unfinished"."""
        return state_of(self.outcome)

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """Return the records of syncs, evaluations or probes."""
        return [record for record in self.records if record["kind"] == kind]

    def final(self) -> dict[str, float]:
        """Return the values at the end of a finished run: training loss, test metrics, and what they cost."""
        if self.outcome is None or self.state != "finished":
            return {}
        metrics = self.outcome["metrics"]
        tested = {
            name_of_test(name, which if len(metrics) > 1 else None): value
            for which, values in metrics.items()
            for name, value in headlines(values).items()
        }
        cost = {name: self.outcome[name] for name in ("steps", "syncs", "bytes_sent", "seconds")}
        return {**self._training_loss(), **tested, **cost}

    def _training_loss(self) -> dict[str, float]:
        """Mean over the rounds that end in the last part of the run; none where there are no records of syncs."""
        syncs = self.of_kind("sync")
        begins = [0, *(record["step"] for record in syncs)]
        rounds = [(record["step"] - begin, record) for begin, record in zip(begins, syncs, strict=False)]
        last = [(length, r["loss"]) for length, r in rounds if r["step"] > (1 - LAST_PART) * begins[-1]]
        steps = sum(length for length, _ in last)
        return {"loss": sum(length * loss for length, loss in last) / steps} if steps else {}


def name_of_test(metric: str, weights: str | None = None) -> str:
    """Return what a test metric is called beside those of the training.

    Example:
        >>> name_of_test("accuracy"), name_of_test("loss", "averaged")
        ('test_accuracy', 'test_loss_averaged')
    """
    return "_".join(filter(None, ("test", metric, weights)))
