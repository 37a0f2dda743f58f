"""What is said when agents are lost or late in a sync."""

from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.comm.communicator import CollectiveError, Communicator


class SyncError(RuntimeError):
    """A sync failed because agents were lost or late; `absent` are their ranks, () where that is not known."""

    def __init__(self, message: str, absent: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.absent = absent


def lost(bound: BoundLevel, communicator: Communicator, error: CollectiveError, *, step: int, left: str) -> SyncError:
    """Return the error of a level whose collective has failed.

    Args:
        bound: the level.
        communicator: this agent's end.
        error: the failure.
        step: fast steps done.
        left: which weights the model has now.
    """
    axis = getattr(bound.level.mix, "axis", "world")
    return SyncError(
        f"the sync of levels[{bound.index}] over axis {axis!r} after fast step {step} failed on agent "
        f"{communicator.rank} of {communicator.size}: {error.who}; {left}. Cause: {error}",
        error.absent,
    )
