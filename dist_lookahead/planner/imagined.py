"""A communicator whose other agents are imagined: nothing is sent, and what would have been is noted on a tape.

The others do what this agent does. A sum is n times its own tensor, gathered parts are all its own, and the mail says
of everybody what it says of itself. So one process goes through the syncs of any number of agents, with the real code
and the real arithmetic; the weights that come out mean nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dist_lookahead.comm.communicator import Communicator, Letter, Pending, Work, letter_bytes
from dist_lookahead.mail import Mail
from dist_lookahead.mesh import WORLD, Mesh
from dist_lookahead.planner.link import EXCHANGE, Transfer
from dist_lookahead.planner.tape import Tape


class ImaginedCommunicator:
    """Agent 0 of a mesh, or its end of the group along an axis.

    Args:
        mesh: of all agents.
        tape: what is started and waited for.
        axis: along which the group lies.
    """

    rank = 0

    def __init__(self, mesh: Mesh, tape: Tape, axis: str = WORLD) -> None:
        self.mesh, self.tape, self._axis = mesh, tape, axis
        self.members = mesh.group(axis, 0)
        self.size = len(self.members)
        self.bytes_sent = 0
        self.bytes_along: Mapping[str, int] = {}
        self.seconds_syncing = self.seconds_waiting = 0.0

    def axis(self, name: str) -> Communicator:
        """Return the agent's end of its group along an axis; one of all agents is the world."""
        along = WORLD if len(self.mesh.group(name, 0)) == self.mesh.size else name
        return ImaginedCommunicator(self.mesh, self.tape, along)

    @torch.no_grad()
    def all_reduce(self, tensor: Tensor) -> Work:
        """Multiply the tensor by the number of agents."""
        return self._start("all_reduce", tensor, lambda: tensor.mul_(self.size))

    @torch.no_grad()
    def reduce_scatter(self, output: Tensor, tensor: Tensor) -> Work:
        """Take this agent's part as often as there are agents."""
        return self._start("reduce_scatter", tensor, lambda: output.copy_(tensor.chunk(self.size)[0]).mul_(self.size))

    @torch.no_grad()
    def all_gather(self, output: Tensor, tensor: Tensor) -> Work:
        """Repeat this agent's tensor."""
        return self._start("all_gather", output, lambda: output.copy_(tensor.repeat(self.size)))

    @torch.no_grad()
    def all_to_all(self, output: Tensor, tensor: Tensor) -> Work:
        """Repeat the part that this agent keeps."""
        return self._start("all_to_all", tensor, lambda: output.copy_(tensor.chunk(self.size)[0].repeat(self.size)))

    def broadcast(self, tensor: Tensor) -> Work:
        """Leave the tensor, which is agent 0's."""
        return self._start("broadcast", tensor, lambda: tensor)

    @torch.no_grad()
    def exchange(self, sends: Sequence[Letter], receives: Sequence[Letter]) -> Work:
        """Receive zeros."""
        work = _NotedWork(self.tape, self.tape.start(self._transfer(EXCHANGE, letter_bytes(sends))))
        for _, output in receives:
            output.zero_()
        self.tape.resume()
        return work

    def run(self, pending: Pending) -> None:
        """Note each wait of the generator."""
        self.tape.resume()
        for work in pending:
            work.wait()
        self.tape.pause()

    def _start(self, kind: str, whole: Tensor, imagine: Callable[[], object]) -> Work:
        number = self.tape.start(self._transfer(kind, whole.numel() * whole.element_size()))
        imagine()
        self.tape.resume()  # what the network would have done is no arithmetic of this agent
        return _NotedWork(self.tape, number)

    def _transfer(self, kind: str, nbytes: int) -> Transfer:
        return Transfer(axis=self._axis, collective=kind, nbytes=nbytes, agents=self.size)


class EchoedMail(Mail):
    """Mail of agents that all say what this one says."""

    def read(self, tail: Tensor, members: Sequence[int]) -> None:
        """Take this agent's own row for each."""
        self.deliver({field: (self._said(field),) * self._agents for field in self._fields}, members)


@dataclass(frozen=True)
class _NotedWork:
    tape: Tape
    number: int

    def wait(self) -> None:
        self.tape.wait(self.number)
