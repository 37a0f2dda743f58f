"""Waiting for others with an ear for what makes it useless: one of them is lost, and no connection says so."""

import time
from collections.abc import Callable

import torch.distributed as dist

from dist_lookahead.comm.communicator import Work

GRACE_SECONDS = 0.25  # for a collective that is as good as done: an agent that has ended may have sent all of its part
LOOK_SECONDS = 0.0005


class Alarm:
    """Ends the waits of this process when it rings.

    Unlike a timeout it does not depend on how late an agent may be that is well.

    Args:
        ring: says why it is of no use to wait for the others; "" where nothing is known.

    Attributes:
        left_works: whether a collective has failed or been left: it and others may still be under way.

    Example:
        >>> Alarm(lambda: "").left_works
        False
    """

    def __init__(self, ring: Callable[[], str]) -> None:
        self._ring = ring
        self.left_works = False

    def wait(self, work: Work) -> None:
        """Wait for a work of torch's; another one is several, which wait for themselves.

        Raises:
            RuntimeError: the work has failed, or the alarm has rung for a while.
        """
        try:
            self._until_done(work)
            work.wait()
        except RuntimeError:
            self.left_works = True
            raise

    def _until_done(self, work: Work) -> None:
        rung = 0.0
        while isinstance(work, dist.Work) and not work.is_completed():
            reason, now = self._ring(), time.monotonic()
            rung = (rung or now) if reason else 0.0
            if reason and now > rung + GRACE_SECONDS:
                raise RuntimeError(reason)
            time.sleep(LOOK_SECONDS)
