"""Agents that are late in a run: how long they are waited for, and who says so meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

from dist_lookahead.comm.watchdog import Watchdog
from dist_lookahead.train.config import Config
from dist_lookahead.train.world import World

FOR_EVER = 30 * 24 * 3600.0  # seconds; a collective must have some limit


def patience(config: Config) -> float:
    """Return the seconds of silence after which a collective fails."""
    return FOR_EVER if config.faults.on_late == "wait" else config.faults.timeout


@contextmanager
def watched(config: Config, world: World) -> Iterator[None]:
    """Enter a context in which nobody is waited for without a message, also when the agents change."""
    phase, after = world.phase, config.faults.report_after
    watchdog = Watchdog(world.communicators[0], step=lambda: phase.step, doing=phase.doing, report_after=after)
    world.company.on_change = lambda: watchdog.follow(world.communicators[0])
    with watchdog:
        yield
