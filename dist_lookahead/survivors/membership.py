"""Who takes part: agents agree on it through a store that none of them keeps, generation after generation.

    generation g       a process group of some agents, in the order of their ranks
    g -> g + 1         every member that lives signs in, with how far it has come; so do those that want to join.
                       When no member is missing, one of them writes the list, and the first list counts.

Who has ended says so, or whoever started it does. Who says nothing, though it lives, is taken for lost after a time
without any sign of life: each agent gives one every second, from a thread and over a connection of its own. The same
thread hears when others have begun to agree on who is left: an agent that waits in a collective need not wait on.
"""

import contextlib
import json
import logging
import socket
import time
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from dist_lookahead.survivors.signs_of_life import Generation, SignsOfLife, call_key

LOOK_SECONDS = 0.02
MEETING_SECONDS = 30.0  # between those that have agreed to meet
SAY_SECONDS = 10.0  # after which it is said who is waited for, and again after twice that
BEGINNING_SECONDS = 600.0  # between the first agent that begins and the last one: nodes are started one by one
MOST, LONGEST = 4096, 200  # members, and characters of a name
Progress = Sequence[int]

_log = logging.getLogger(__name__)


class LeftOut(RuntimeError):
    """The others have gone on without this agent, which they took for lost."""


class Membership:
    """This agent's part in the agreement.

    Args:
        store: that no agent keeps; this connection is used for nothing else.
        beats: another connection to it, for signs of life: the first one may be blocked.
        name: of this agent, of at most 200 characters, unique for all times.
        members: of generation 0, in the order of their ranks; () for an agent that joins later.
        silence: seconds without a sign of life after which another agent is taken for lost.

    Example:
        >>> store = dist.HashStore()
        >>> alone = Membership(store, store, "a", ["a"], silence=5)
        >>> alone.agree([3]), alone.agree([4]).number
        (Generation(number=1, members=('a',)), 2)
        >>> alone.end()
    """

    def __init__(
        self, store: dist.Store, beats: dist.Store, name: str, members: Sequence[str], *, silence: float
    ) -> None:
        self.name = name
        self._store = store
        self.generation = Generation(0, tuple(members))
        self._signs = SignsOfLife(beats, name, self.generation, silence)
        self._knocks_heard = self._knocks()
        if members:
            self._store.compare_set(_list(0), "", json.dumps(list(members)))

    def meet(self) -> None:
        """Wait until all members of this generation are here: a group of theirs waits long for one that is lost.

        Raises:
            RuntimeError: one of them is lost, or does not come.
        """
        number, missing = self.generation.number, list(self.generation.members)
        self._store.set(f"{number}/meets/{self.name}", "1")
        patience = MEETING_SECONDS if number else BEGINNING_SECONDS
        deadline = time.monotonic() + patience
        while missing := [member for member in missing if not self._store.check([f"{number}/meets/{member}"])]:
            if ended := [member for member in missing if self._store.check([f"gone/{member}"])]:
                when = "" if number else " before the training began: see what was said there"
                raise RuntimeError(f"{', '.join(ended)} ended{when}")
            if number and self.alarm:  # at the beginning nobody gives signs of life before it is here
                raise RuntimeError(self.alarm)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{', '.join(missing)} did not come within {patience:.0f} s: do all nodes run?")
            time.sleep(LOOK_SECONDS)

    def agree(self, progress: Progress, *, newcomers: bool = False, patience: float = BEGINNING_SECONDS) -> Generation:
        """Return the next generation; all members come here, and those that want to join are in `join`.

        Args:
            progress: how far this agent has come; who has come furthest is first.
            newcomers: whether those that want to join are taken in.
            patience: seconds after which a member that lives, but does not come, is taken for lost.

        Raises:
            LeftOut: the others have agreed without this agent.
        """
        number = self.generation.number + 1
        since = self._knocks_heard
        if newcomers:  # who is too late for this list knocks again
            self._knocks_heard = self._knocks()
        else:  # with newcomers all know it by their last sync, which some may not have come out of yet
            self._store.set(call_key(number), "1")
        self._sign_in(number, progress)
        waiting = _Waiting(patience)
        while not self._store.check([_list(number)]):
            here = self._here(number, self.generation.members)
            missing = [name for name in self.generation.members if name not in here and not self._is_gone(name)]
            if not missing or waiting.was_long_enough(missing):
                self._propose(number, {**here, **self._here(number, self._newcomers(since) if newcomers else [])})
            time.sleep(LOOK_SECONDS)
        return self._enter(number)

    def join(self) -> Generation:
        """Return the first generation that has taken this agent in; waits until the members come to agree.

        Raises:
            LeftOut: there are no members any more.
        """
        while True:
            number = self._number() + 1
            members = _read_list(self._store.get(_list(number - 1)))
            self._signs.watch(Generation(number - 1, members))
            self._sign_in(number, [-1])
            self._knocks_heard = self._store.add("newcomers", 1)
            self._store.set(f"newcomer/{self._knocks_heard}", self.name)
            while not self._store.check([_list(number)]):
                if all(map(self._is_gone, members)):
                    raise LeftOut(
                        f"nobody is left whom agent {self.name!r} could join: {members} have ended, or are lost"
                    )
                time.sleep(LOOK_SECONDS)
            with contextlib.suppress(LeftOut):  # it came while the list was written
                return self._enter(number)

    @property
    def alarm(self) -> str:
        """Why it is of no use to wait for all the others: one is lost, or they agree on who is left; "" elsewhere."""
        return self._signs.alarm

    @property
    def is_left_out(self) -> bool:
        """Whether the others have agreed without this agent since it was with them last."""
        number = self.generation.number + 1
        return self._store.check([_list(number)]) and self.name not in _read_list(self._store.get(_list(number)))

    def somebody_knocks(self) -> bool:
        """Return whether an agent wants to join."""
        return self._knocks() > self._knocks_heard

    def end(self) -> None:
        """Say that this agent is gone."""
        with contextlib.suppress(RuntimeError):  # the store may have ended before
            self._store.set(f"gone/{self.name}", "1")
        self._signs.end()

    def _enter(self, number: int) -> Generation:
        members = _read_list(self._store.get(_list(number)))
        self._store.set("number", str(number))
        if self.name not in members:
            raise LeftOut(f"agent {self.name!r} was taken for lost, and the others go on without it: {members}")
        self.generation = Generation(number, members)
        self._signs.watch(self.generation)
        return self.generation

    def _propose(self, number: int, here: dict[str, Progress]) -> None:
        before = self.generation.members
        order = sorted(here, key=lambda name: before.index(name) if name in before else len(before))
        order.sort(key=lambda name: list(here[name]), reverse=True)  # stable
        self._store.compare_set(_list(number), "", json.dumps(order))

    def _sign_in(self, number: int, progress: Progress) -> None:
        self._store.set(f"{number}/here/{self.name}", json.dumps(list(progress)))

    def _here(self, number: int, names: Sequence[str]) -> dict[str, Progress]:
        signed = [name for name in names if self._store.check([f"{number}/here/{name}"])]
        return {name: _read_progress(self._store.get(f"{number}/here/{name}")) for name in signed}

    def _newcomers(self, since: int) -> list[str]:
        keys = [f"newcomer/{place}" for place in range(since, self._knocks() + 1)][-MOST:]
        # Who knocks counts itself first, and says its name then.
        names = [self._store.get(key).decode(errors="replace") for key in keys if self._store.check([key])]
        return [name for name in dict.fromkeys(names) if not self._store.check([f"gone/{name}"])]

    def _is_gone(self, member: str) -> bool:
        return self._store.check([f"gone/{member}"]) or bool(self._signs.silent([member]))

    def _number(self) -> int:
        return int(self._store.get("number")) if self._store.check(["number"]) else 0

    def _knocks(self) -> int:
        return self._store.add("newcomers", 0)


class _Waiting:
    """For members that live, but do not come: says so now and then, and when it has been long enough."""

    def __init__(self, patience: float) -> None:
        self._since, self._patience, self._due = time.monotonic(), patience, SAY_SECONDS

    def was_long_enough(self, missing: Sequence[str]) -> bool:
        waited, names = time.monotonic() - self._since, ", ".join(missing)
        if waited >= self._patience:
            _log.warning("%s gave signs of life, but did not come for %.0f s: going on without", names, waited)
            return True
        if waited >= self._due:
            self._due *= 2
            _log.warning("%s: signs of life, but not there for %.0f s; waiting", names, waited)
        return False


def serve(host: str, port: int) -> tuple[dist.Store, int]:
    """Keep the store of a training, for those who come to this address and no other; return its port too.

    Args:
        host: address of this machine to listen at.
        port: 0 for a free one.

    Raises:
        OSError: where nobody can listen there.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.create_server((host, port), family=family)
    port = listener.getsockname()[1]
    # Torch's own socket would listen on every interface of the machine.
    store = dist.TCPStore(host, port, None, True, wait_for_workers=False, master_listen_fd=listener.detach())
    return store, port


def connect(host: str, port: int, token: str, *, timeout: float) -> dist.Store:
    """Return a connection to the store of a training.

    Args:
        host: where it listens.
        port: where it listens.
        token: that those have who may take part; whoever does not know it looks at other keys.
        timeout: seconds to wait for it.
    """
    store = dist.TCPStore(host, port, None, False, timedelta(seconds=timeout))
    return dist.PrefixStore(f"dist_lookahead/{token}", store)


def _list(number: int) -> str:
    return f"{number}/members"


def _read_list(raw: bytes) -> tuple[str, ...]:
    """Read the members that another agent has written.

    Raises:
        RuntimeError: for anything else.

    Example:
        >>> _read_list(b'["a", "b"]')
        ('a', 'b')
    """
    try:
        names = json.loads(raw)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not 0 < len(names) <= MOST or len(set(map(str, names))) < len(names):
        raise RuntimeError(f"an agent says that the members are {raw[:80]!r}")
    if not all(isinstance(name, str) and 0 < len(name) <= LONGEST for name in names):
        raise RuntimeError(f"an agent says that the members are {raw[:80]!r}")
    return tuple(names)


def _read_progress(raw: bytes) -> Progress:
    try:
        numbers = json.loads(raw)
    except (ValueError, RecursionError):
        numbers = None
    if not isinstance(numbers, list) or len(numbers) > MOST or any(type(number) is not int for number in numbers):
        raise RuntimeError(f"an agent says that it has come as far as {raw[:80]!r}")
    return numbers
