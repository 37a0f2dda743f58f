"""The other agents of a run: those that are there for good, and those without which it goes on when they are lost."""

from collections.abc import Callable

from dist_lookahead.optimizer import DistributedLookahead
from dist_lookahead.survivors.agents import Survivors


class Company:
    """The agents that have begun a run, without any of which it ends.

    Attributes:
        on_change: called when the agents are others.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None

    @property
    def joins(self) -> bool:
        """Whether this agent has come later, and is alone until `enter`."""
        return False

    def enter(self, optimizer: DistributedLookahead) -> bool:
        """Before the first fast step; return whether this agent has joined others that are under way."""
        return False

    def leave_note(self, text: str) -> None:
        """Tell agents that join later something about the run."""

    def read_note(self) -> str:
        """Return what has been left for those who join."""
        raise NotImplementedError("nobody joins this run")

    def through(self, optimizer: DistributedLookahead, take: Callable[[], object]) -> bool:
        """Take fast steps or a sync; return whether the agents are others now."""
        take()
        return False

    def together(self, work: Callable[[], object]) -> bool:
        """Do something with the others that is no sync; return whether it was done."""
        work()
        return True

    def regroup(self, optimizer: DistributedLookahead) -> None:
        """Find out who is left, in the way of those that can."""
        raise NotImplementedError("the agents of this run stay as they are")


class Surviving(Company):
    """The agents that are there now: what needs all of them is done again, or left out, when one is lost.

    Only syncs find out who is left. What else agents do together, such as a report, is given up with an agent, and
    nothing of that kind is tried before the next sync: there all agents are at the same fast step, wherever each of
    them was when it heard of the fault.

    Args:
        survivors: by whom the agents agree.
    """

    def __init__(self, survivors: Survivors) -> None:
        super().__init__()
        self._survivors = survivors
        self._incomplete = False

    @property
    def joins(self) -> bool:
        """Whether this agent has come later, and is alone until `enter`."""
        return self._survivors.joins

    def enter(self, optimizer: DistributedLookahead) -> bool:
        """Before the first fast step; return whether this agent has joined others that are under way."""
        joins = self.joins
        self._survivors.enter(optimizer)
        return joins

    def leave_note(self, text: str) -> None:
        """Tell agents that join later something about the run."""
        self._survivors.leave_note(text)

    def read_note(self) -> str:
        """Return what has been left for those who join."""
        return self._survivors.read_note()

    def through(self, optimizer: DistributedLookahead, take: Callable[[], object]) -> bool:
        """Take fast steps or a sync; return whether the agents are others now."""
        others = self._survivors.through(optimizer, take)
        self._incomplete = self._incomplete and not others
        return others

    def together(self, work: Callable[[], object]) -> bool:
        """Do something with the others that is no sync; return whether it was done."""
        if self._incomplete:
            return False
        self._incomplete = not self._survivors.attempt(work)
        return not self._incomplete

    def regroup(self, optimizer: DistributedLookahead) -> None:
        """Find out who is left, where no sync follows."""
        self._survivors.regroup(optimizer)
        self._incomplete = False
