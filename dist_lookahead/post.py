"""What a sync says besides the weights: its mail, and what of it is for the stack, the level and the trainer."""

from torch import Tensor

from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.comm.communicator import Communicator, Work
from dist_lookahead.fast_buffers import FastBuffers
from dist_lookahead.mail import Mail, fingerprint


class Post:
    """Sends and reads the mail of a stack's syncs.

    Args:
        mail: of this agent.
        communicator: this agent's end.
        fast_buffers: agents must have the same ones before they average them.
    """

    def __init__(self, mail: Mail, communicator: Communicator, fast_buffers: FastBuffers) -> None:
        self.mail = mail
        self.flags = (0,) * communicator.size
        self._communicator = communicator
        self._fast_buffers = fast_buffers

    def begin(self, joining: str) -> None:
        """Begin a sync, with a description of the parameters that would join."""
        self.mail.outgoing["joining"] = fingerprint(joining)
        self.flags = (0,) * self._communicator.size

    def send(self, bound: BoundLevel, clock: int) -> tuple[Tensor, list[Work]]:
        """Return where the mail is, and what is under way of it besides the weights.

        Args:
            bound: the level that fires.
            clock: fast steps done.
        """
        tail = bound.buckets[0].tail
        self.mail.outgoing.update(bound.says(clock - bound.last))
        if not bound.hearing:
            return tail, []
        self.mail.outgoing["clock"] = bound.rounds if bound.pace.timed else clock
        if bound.level.fast_buffers == "average":
            self.mail.outgoing["buffers"] = fingerprint(self._fast_buffers.signature(bound.buckets))
        return self.mail.send(tail, bound.hearing, with_weights=bound.sums_mail)

    def read(self, bound: BoundLevel, tail: Tensor, clock: int) -> None:
        """Read what has come.

        Args:
            bound: the level whose average has landed.
            tail: where the mail is.
            clock: fast steps done.
        """
        if bound.hearing:
            self.mail.read(tail, bound.hearing.members)
        elif self._communicator.size == 1:
            self.mail.read_own()
        members = bound.hearing.members if bound.hearing else (self._communicator.rank,)
        bound.hear(self.mail.received, members, clock)
        if bound.hearing or self._communicator.size == 1:
            self.flags = tuple(map(max, self.flags, self.mail.received["flag"]))
