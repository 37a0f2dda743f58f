"""Signs of life of agents that agree on who is left, by name; and the call to agree, which interrupts who waits."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

BEAT_SECONDS, LISTEN_SECONDS = 1.0, 0.25


@dataclass(frozen=True)
class Generation:
    """Agents that are a group, in the order of their ranks."""

    number: int
    members: tuple[str, ...]


class SignsOfLife(threading.Thread):
    """Gives a sign of life each second, notes when the last one of each other agent came, and hears what they call.

    Args:
        store: a connection of its own.
        name: of this agent.
        generation: whom to look at.
        silence: seconds without a sign after which an agent is lost.
    """

    def __init__(self, store: dist.Store, name: str, generation: Generation, silence: float) -> None:
        super().__init__(name="signs of life", daemon=True)
        self._store, self._own, self._silence = store, name, silence
        self._heard: dict[str, tuple[int, float]] = {}
        self._alarm = generation, ""
        self._looked = time.monotonic()
        self._ended = threading.Event()
        self.watch(generation)
        self.start()

    def watch(self, generation: Generation) -> None:
        """Look at these agents from now on."""
        self._heard = {member: self._heard.get(member, (-1, time.monotonic())) for member in generation.members}
        self._generation = generation

    @property
    def alarm(self) -> str:
        """Who of the agents is lost, or that some agree on who is left; "" while all is well."""
        generation, text = self._alarm
        return text if generation is self._generation else ""

    def silent(self, members: Sequence[str]) -> list[str]:
        """Return which of some agents have given no sign for long, up to the last time that this one could look.

        After a cut it may be this agent's own connection that is not back yet: then nothing is known of the others.
        """
        heard = self._heard  # of one generation, also where another one is watched meanwhile
        return [member for member in members if member in heard and self._looked - heard[member][1] > self._silence]

    def end(self) -> None:
        """Give no more signs."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Give, look and listen, until it is ended or the store is."""
        due = 0.0
        while not self._ended.wait(LISTEN_SECONDS):
            try:
                if time.monotonic() >= due:
                    due = time.monotonic() + BEAT_SECONDS
                    self._beat()
                self._listen()
            except RuntimeError:  # a connection that has not outlived a cut; without a store nobody agrees on anything
                try:
                    self._store = self._store.clone()
                except RuntimeError:
                    return

    def _beat(self) -> None:
        self._store.add(f"beat/{self._own}", 1)
        for member, (beats, _) in list(self._heard.items()):
            now = self._store.add(f"beat/{member}", 0)
            if now != beats and member in self._heard:
                self._heard[member] = now, time.monotonic()
        self._looked = time.monotonic()

    def _listen(self) -> None:
        generation = self._generation
        if silent := self.silent([member for member in generation.members if member != self._own]):
            self._alarm = generation, f"no sign of life of {', '.join(silent)} for {self._silence:g} s"
        elif self._store.check([call_key(generation.number + 1)]):
            self._alarm = generation, "others have lost an agent, and agree on who is left"
        elif self._alarm[1]:  # a silent one has come back in time
            self._alarm = generation, ""


def call_key(number: int) -> str:
    """Return where agents say that they agree on the generation of that number."""
    return f"{number}/called"
