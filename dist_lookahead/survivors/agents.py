"""A training that goes on without agents that are lost, and takes in new ones, in the same processes.

    agents = Survivors.from_environment()
    optimizer = DistributedLookahead(torch.optim.SGD(..), slowmo(tau=12), model=model, recoverable=True)
    agents.enter(optimizer)
    while optimizer.stack.clock < steps:
        loss(model, batch(agents.rank, agents.size, optimizer.stack.clock)).backward()
        agents.step(optimizer)

`dist-lookahead launch` starts such scripts. It does not end the others when one of them ends, as torchrun does, and
keeps the store by which they agree.
"""

import contextlib
import logging
import os
from collections.abc import Callable

import torch
import torch.distributed as dist

from dist_lookahead.comm.communicator import CollectiveError, Communicator
from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from dist_lookahead.comm.simulated import simulate
from dist_lookahead.failure import SyncError
from dist_lookahead.optimizer import DistributedLookahead
from dist_lookahead.survivors.membership import LeftOut, Membership, connect
from dist_lookahead.survivors.signs_of_life import Generation
from dist_lookahead.survivors.torch_group import TorchGroup

_log = logging.getLogger(__name__)

STORE, TOKEN, NAME, JOINS = (f"DIST_LOOKAHEAD_{what}" for what in ("STORE", "TOKEN", "NAME", "JOINS"))
NEWCOMER = 2**16  # the flag that tells all agents of one


class Survivors:
    """The agents that are there now.

    Args:
        membership: of this agent.
        store: where process groups meet, over a connection of its own.
        timeout: seconds of silence in a collective after which an agent is asked for: more than the slowest is late.
        device: of the parameters: groups are over NCCL on a GPU, over gloo on the CPU.

    Attributes:
        generation: the agents by name, in the order of their ranks; number 0 are those that have begun.
    """

    def __init__(
        self, membership: Membership, store: dist.Store, *, timeout: float, device: torch.device | str = "cpu"
    ) -> None:
        self._membership, self._store, self._timeout = membership, store, timeout
        self._group = TorchGroup(store, torch.device(device), timeout, lambda: membership.alarm)
        self.generation = membership.generation
        if self.generation.members:
            membership.meet()
            self._group.form(self.generation, self.rank)

    @classmethod
    def from_environment(
        cls, *, timeout: float = 20.0, silence: float = 5.0, device: torch.device | str = "cpu"
    ) -> "Survivors":
        """Return the agents that `dist-lookahead launch` has started; one that joins later is alone until `enter`.

        Args:
            timeout: seconds of silence in a collective before agents ask who is left: more than the slowest is late.
            silence: seconds without a sign of life after which an agent is lost; its threads give one each second.
            device: of the parameters: groups are over NCCL on a GPU, over gloo on the CPU.

        Raises:
            ValueError: where something else has started this process.
        """
        missing = [name for name in (STORE, TOKEN, NAME) if name not in os.environ]
        if missing:
            raise ValueError(f"{', '.join(missing)} not set: start this program by `dist-lookahead launch`")
        host, _, port = os.environ[STORE].rpartition(":")
        stores = [connect(host, int(port), os.environ[TOKEN], timeout=timeout) for _ in range(3)]
        members = [] if JOINS in os.environ else [first_name(rank) for rank in range(int(os.environ["WORLD_SIZE"]))]
        membership = Membership(stores[0], stores[1], os.environ[NAME], members, silence=silence)
        return cls(membership, stores[2], timeout=timeout, device=device)

    @property
    def rank(self) -> int:
        """This agent's number among those that are there now."""
        return self.generation.members.index(self._membership.name) if self.generation.members else 0

    @property
    def size(self) -> int:
        """Number of agents that are there now."""
        return max(1, len(self.generation.members))

    def communicator(self) -> Communicator:
        """Return this agent's end of those that are there now; alone, of one that joins later."""
        return simulate(1)[0] if self.joins else self._group.communicator(self.size)

    @property
    def joins(self) -> bool:
        """Whether this agent has come later, and is alone until `enter`."""
        return not self.generation.members

    def leave_note(self, text: str) -> None:
        """Tell agents that join later something about the training."""
        self._store.set("note", text)

    def read_note(self) -> str:
        """Return what has been left for those who join; waits until it is there."""
        return self._store.get("note").decode(errors="replace")

    def enter(self, optimizer: DistributedLookahead) -> None:
        """Before the first step: an agent that joins later waits for the others' next sync, and takes their state.

        Raises:
            ValueError: for levels that cannot go on over these agents' device.
        """
        self._group.check_levels(optimizer.stack.levels)
        if not self.generation.members:
            self._regroup(optimizer, self._membership.join)
        elif isinstance(optimizer.stack.communicator, ProcessGroupCommunicator):
            optimizer.stack.communicator.roll_call = 0  # the members' agreement says who is lost
            optimizer.stack.communicator.alarm = self._group.alarm

    def step(self, optimizer: DistributedLookahead, closure: Callable[[], float] | None = None) -> None:
        """Take a fast step; at a sync, go on without those that are lost, and with those that have come.

        A sync that has failed is done again by those that are left: with their fast weights, as if the lost agents
        had not been there in that round.
        """
        self.through(optimizer, lambda: optimizer.step(closure))

    def through(self, optimizer: DistributedLookahead, take: Callable[[], object]) -> bool:
        """Do what takes a fast step, as `step` does; return whether the agents are others now.

        Args:
            optimizer: of this agent.
            take: takes the step with it.
        """
        stack = optimizer.stack
        if self.rank == 0 and stack.next_due <= stack.clock + 1 and self._membership.somebody_knocks():
            stack.raise_flag(NEWCOMER)
        whole = self.attempt(take)
        told_of_newcomer = NEWCOMER in stack.flags and stack.bound[-1].landed == stack.clock
        if whole and not told_of_newcomer:
            return False
        self.regroup(optimizer, newcomers=whole)
        return True

    def attempt(self, communicate: Callable[[], object]) -> bool:
        """Return whether something came to its end; not, where an agent was lost meanwhile: then `regroup`."""
        try:
            communicate()
        except (CollectiveError, SyncError) as error:
            _log.warning("agent %d of %d: %s", self.rank, self.size, error)
            return False  # the error, and with it what it holds of the group, is gone before anybody recovers
        return True

    def regroup(self, optimizer: DistributedLookahead, *, newcomers: bool = False) -> None:
        """Agree on who is there, and go on with them; all agents that are left come here.

        Args:
            optimizer: of this agent.
            newcomers: whether to take in agents that want to join: not before a sync that has failed is done again,
                in whose round they have taken no steps.
        """
        stack = optimizer.stack

        def agree() -> Generation:
            progress = [sum(bound.rounds for bound in stack.bound), stack.clock]
            return self._membership.agree(progress, newcomers=newcomers, patience=self._timeout)

        self._regroup(optimizer, agree)

    def end(self) -> None:
        """Leave: the others do not wait for this agent any more."""
        with contextlib.suppress(RuntimeError):  # without the store nobody can go on without this agent
            if self._membership.is_left_out:
                _log.warning("the others have gone on without this agent: the weights it ends with are not theirs")
        self._membership.end()
        self._group.close()

    def _regroup(self, optimizer: DistributedLookahead, agree: Callable[[], Generation]) -> None:
        before = self.generation.members
        while True:
            self._let_go(optimizer)
            try:
                self.generation = agree()
            except LeftOut as error:
                _log.warning("%s; it joins them again", error)
                self.generation = self._membership.join()
            if self._meet(optimizer):
                break
        lost = [name for name in before if name not in self.generation.members]
        came = [name for name in self.generation.members if name not in before]
        if self.rank == 0:
            told = "going on after fast step %d with %d agents; lost: %s; new: %s"
            _log.warning(told, optimizer.stack.clock, self.size, ", ".join(lost) or "none", ", ".join(came) or "none")

    def _let_go(self, optimizer: DistributedLookahead) -> None:
        for bound in optimizer.stack.bound:
            bound.flight = None
        if isinstance(optimizer.stack.communicator, ProcessGroupCommunicator):
            optimizer.stack.communicator.let_go()
        self._group.leave()

    def _meet(self, optimizer: DistributedLookahead) -> bool:
        try:
            self._membership.meet()
            self._group.form(self.generation, self.rank)
            end = self.communicator()
        except RuntimeError as error:  # of torch, where one of them is lost by now
            _log.warning("the group of %s was not made: %s", ", ".join(self.generation.members), error)
            return False
        return self.attempt(lambda: optimizer.regroup(end))


def first_name(rank: int) -> str:
    """Return the name of one of the agents that begin a training.

    Example:
        >>> first_name(3)
        'agent-3'
    """
    return f"agent-{rank}"
