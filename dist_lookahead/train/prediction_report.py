"""The end of a run on noisy quadratics: the prediction beside it, as numbers, a picture and words."""

from collections.abc import Iterator

from rich.table import Table

from dist_lookahead.train.config import Config
from dist_lookahead.train.prediction import NoPredictionError, predict
from dist_lookahead.train.prediction_comparison import compare, table, verdict, write
from dist_lookahead.train.prediction_picture import draw_prediction
from dist_lookahead.train.recorder import read_metrics
from dist_lookahead.train.run_directory import RunDirectory


def report(config: Config, directory: RunDirectory, *, agents: int, steps: int) -> Iterator[Table | str]:
    """Write the comparison of a finished run into its folder, and yield what a person wants to read of it.

    Args:
        config: of the run; of one that has no noisy quadratics nothing is said.
        directory: its files.
        agents: n.
        steps: fast steps of the run.
    """
    quadratic = config.quadratic
    if quadratic is None:
        return
    records = list(read_metrics(directory.metrics))
    try:
        trajectory = predict(config, agents=agents, steps=steps, records=records)
    except NoPredictionError as reason:
        yield f"Nothing is predicted: {reason}."
        return
    compared = compare(trajectory, records, quadratic.repetitions)
    write(directory.prediction, compared, quadratic.repetitions)
    if config.logging.plots:
        title = f"{config.run.name}: {agents} agent{'s' * (agents > 1)}, {quadratic.repetitions} repetitions"
        draw_prediction(directory.prediction_picture, title, trajectory, compared, quadratic)
    yield table(compared)
    yield verdict(compared)
