"""Going on without agents that are lost, and with new ones, in the same processes."""

from dist_lookahead.survivors.agents import Survivors

__all__ = ["Survivors"]
