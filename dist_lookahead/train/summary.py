"""What a person wants to read at the end of a run."""

from collections.abc import Iterator

from rich.table import Table

from dist_lookahead.planner.advice import exposed_after, stretch
from dist_lookahead.train.outcome import Outcome
from dist_lookahead.train.progress import headlines
from dist_lookahead.train.run_directory import RunDirectory


def summary(outcome: Outcome, directory: RunDirectory, *, name: str, agents: int) -> Table:
    """Return the table of a finished run."""
    table = Table(
        title=f"{name}: {outcome.step} fast steps of {agents} agent{'s' if agents > 1 else ''}", show_header=False
    )
    for what, value in (*_metrics(outcome), *_cost(outcome, agents), *_files(directory)):
        table.add_row(what, value)
    return table


def _metrics(outcome: Outcome) -> Iterator[tuple[str, str]]:
    for which, metrics in outcome.metrics.items():
        for name, value in headlines(metrics).items():
            shown = f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.4f}"
            yield f"test {name} ({which} weights)", shown


def _cost(outcome: Outcome, agents: int) -> Iterator[tuple[str, str]]:
    yield "speed", f"{outcome.steps_here / outcome.seconds:.1f} fast steps per second and agent"
    yield "syncs", str(outcome.syncs)
    if agents > 1:
        ratio = outcome.ddp_bytes / outcome.bytes_sent
        yield "sent per agent", f"{size(outcome.bytes_sent)}, where DDP sends {size(outcome.ddp_bytes)} ({ratio:.1f} x)"
    if outcome.exposed_seconds:  # agents of one process have nobody to wait for
        yield "waiting for others", _waiting(outcome)


def _waiting(outcome: Outcome) -> str:
    """Say how much of the time was exposed communication, and what the planner makes of it."""
    seconds, exposed = outcome.total_seconds, outcome.exposed_seconds
    times = stretch(seconds, exposed)
    share = f"{exposed / seconds:.1%} of the time"
    if times == 1:
        return f"{share}; rounds are long enough"
    rounds = f"rounds {times} x as long" if outcome.tau is None else f"tau={times * outcome.tau}"
    return f"{share}; {rounds} would leave {exposed_after(seconds, exposed, times):.1%}"


def _files(directory: RunDirectory) -> Iterator[tuple[str, str]]:
    for what, path in (
        ("curves", directory.curves),
        ("prediction", directory.prediction_picture),
        ("inside rounds", directory.inner_loop),
        ("samples", directory.samples),
        ("metrics", directory.metrics),
        ("TensorBoard", directory.tensorboard),
        ("checkpoints", directory.checkpoints),
    ):
        if path.exists():
            yield what, str(path)


def size(count: float) -> str:
    """Write a number of bytes with a unit.

    Example:
        >>> size(999), size(20_530_000)
        ('999 B', '20.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
