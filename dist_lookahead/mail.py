"""Mail: a few small numbers from every agent that travel with a sync, at no extra round trip.

The tail of the first bucket has one row per agent. Each agent fills its own row and leaves the others 0, so that the
sum over the agents is the table of all rows. Numbers up to 2^24 arrive exactly, also in float32.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dist_lookahead.comm.communicator import Communicator, Work

FIELDS = ("clock", "joining", "buffers", "flag")
_NUMBERS = ("lr", "loss", "speed", "way")  # as they are; all others are whole
_LIMIT = 2**24
_MUST_AGREE = {
    "lr": (  # first: else agents are at different steps, and it is not said why
        "agents have different learning rates: {}, and tau depends on it, in the fast optimizer's first parameter "
        "group. Set the same on all agents"
    ),
    "clock": "agents are at different fast steps: {}. All agents must call step() equally often",
    "joining": (
        "parameters joined on some agents only (fingerprints: {}): call add_param_group, or unfreeze, on all agents "
        "between the same two syncs, in the same order"
    ),
    "buffers": (
        "fast_buffers='average' needs the same optimizer buffers on all agents (fingerprints: {}): some parameter "
        "had no gradient on some agent. Use fast_buffers='keep'"
    ),
}


class Mail:
    """This agent's row, and the table that arrived with the last sync.

    Args:
        rank: this agent's row.
        agents: number of rows.
        more: fields beside those that every sync has.
    """

    def __init__(self, rank: int, agents: int, more: Sequence[str] = ()) -> None:
        self._rank = rank
        self._agents = agents
        self._fields = (*FIELDS, *more)
        self.outgoing: dict[str, Any] = dict.fromkeys(self._fields, 0)
        self.received: dict[str, tuple[Any, ...]] = {field: (0,) * agents for field in self._fields}

    @property
    def length(self) -> int:
        """Elements that the table takes; a single agent writes to nobody."""
        return len(self._fields) * self._agents if self._agents > 1 else 0

    def write(self, tail: Tensor) -> None:
        """Fill the table before the sum."""
        own = slice(self._rank * len(self._fields), (self._rank + 1) * len(self._fields))
        tail.zero_()[own] = tail.new_tensor([self._said(field) for field in self._fields])

    def send(self, tail: Tensor, hearing: Communicator, *, with_weights: bool) -> tuple[Tensor, list[Work]]:
        """Return where the mail is, and how it travels if not with the weights: all at once, to be waited for later.

        Args:
            tail: of the first bucket.
            hearing: the agents that hear it.
            with_weights: whether the tail is summed as it is.
        """
        letter = tail if with_weights else torch.empty_like(tail)
        self.write(letter)
        return letter, [] if with_weights else [hearing.all_reduce(letter)]

    def read(self, tail: Tensor, members: Sequence[int]) -> None:
        """Take the table after a sum over some agents, the rows of others being empty.

        Raises:
            RuntimeError: for numbers that no agent sends; and where agents are not at the same point.
        """
        numbers = tail.tolist()
        rows = {field: numbers[index :: len(self._fields)] for index, field in enumerate(self._fields)}
        self.deliver(
            {field: tuple(row if field in _NUMBERS else _whole(field, row)) for field, row in rows.items()}, members
        )

    def tells_of_joining(self) -> bool:
        """Return whether the last mail spoke of the parameters that the next one would speak of."""
        return self.received["joining"][self._rank] == self.outgoing["joining"]

    def read_own(self) -> None:
        """Take this agent's own row for the table of a single agent."""
        self.deliver({field: (self._said(field),) for field in self._fields}, members=(0,))

    def deliver(self, table: dict[str, tuple[Any, ...]], members: Sequence[int]) -> None:
        """Accept the members' rows of a table.

        A flag stays in its place until all agents hear of it in the same sync: they must act on it together.

        Raises:
            RuntimeError: where agents are not at the same point of the same training.
        """
        complete = len(members) == self._agents
        self.received = table if complete else {**table, "flag": (0,) * self._agents}
        # A flag that was raised while this mail was under way has not been sent yet.
        if complete and table["flag"][self._rank] == self.outgoing["flag"]:
            self.outgoing["flag"] = 0
        for field, complaint in _MUST_AGREE.items():
            said = [table[field][member] for member in members] if field in table else []
            if len(set(said)) > 1:
                raise RuntimeError(complaint.format(who_says_what(said, members)))

    def _said(self, field: str) -> float:
        return self.outgoing[field] if field in _NUMBERS else self.outgoing[field] % _LIMIT


def _whole(field: str, row: Sequence[float]) -> list[int]:
    for agent, number in enumerate(row):
        if not (0 <= number < _LIMIT and number == int(number)):  # not a number is neither
            raise RuntimeError(
                f"the mail of this sync says {field}={number} of agent {agent}, and agents send whole numbers from "
                f"0 to {_LIMIT - 1}: it was damaged on its way, or another program takes part. Go on from a checkpoint"
            )
    return [int(number) for number in row]


def who_says_what(values: Sequence[object], members: Sequence[int] | None = None) -> str:
    """Group agents by what they say.

    Args:
        values: what each of them says.
        members: their numbers; 0, 1, .. by default.

    Example:
        >>> who_says_what([3, 3, 5])
        '3 on agents [0, 1]; 5 on agents [2]'
    """
    agents: dict[object, list[int]] = {}
    for agent, value in zip(members or range(len(values)), values, strict=True):
        agents.setdefault(value, []).append(agent)
    return "; ".join(f"{value} on agents {who}" for value, who in agents.items())


def fingerprint(text: str) -> int:
    """Return a number that fits a mail field and is 0 for the empty text only.

    Example:
        >>> fingerprint(""), fingerprint("a") == fingerprint("b")
        (0, False)
    """
    return zlib.crc32(text.encode()) % (_LIMIT - 1) + 1 if text else 0
