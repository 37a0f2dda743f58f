"""Looking on while levels fire: for metrics, without a word of them in the stack."""

from typing import Protocol

from dist_lookahead.bound_level import BoundLevel


class Observer(Protocol):
    """Looks on while a level fires. Its buckets hold x before, the sum over the agents (owned part) then, z after."""

    def before(self, bound: BoundLevel) -> None:
        """The fast weights are still the agent's own."""

    def averaged(self, bound: BoundLevel) -> None:
        """The agents' sum has arrived; slow weights have not moved."""

    def after(self, bound: BoundLevel) -> None:
        """The level has fired."""
