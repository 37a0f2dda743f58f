"""Agents that are late in a run: how long they are waited for, and who says so meanwhile."""

from contextlib import AbstractContextManager

from dist_lookahead.comm.watchdog import Watchdog
from dist_lookahead.train.config import Config
from dist_lookahead.train.world import World

FOR_EVER = 30 * 24 * 3600.0  # seconds; a collective must have some limit


def patience(config: Config) -> float:
    """Return the seconds of silence after which a collective fails."""
    return FOR_EVER if config.faults.on_late == "wait" else config.faults.timeout


def watched(config: Config, world: World) -> AbstractContextManager[object]:
    """Return a context in which nobody is waited for without a message."""
    phase = world.phase
    return Watchdog(
        world.communicators[0], step=lambda: phase.step, doing=phase.doing, report_after=config.faults.report_after
    )
