"""What the trainer does at each sync beside the stack, for a rehearsal: it looks how agents move, and sums numbers."""

from dist_lookahead.mesh import Mesh
from dist_lookahead.stack import LevelStack
from dist_lookahead.train.config import Config
from dist_lookahead.train.config_mesh import is_watchable
from dist_lookahead.train.dynamics import Dynamics
from dist_lookahead.train.exchange import sum_over_agents

COUNTED = 2  # the sum of the losses, and their number


class TrainerOnlooker:
    """The metrics of each sync; with `logging.every` above 1 there are fewer of them, and a run costs a little less.

    Args:
        config: the run.
        mesh: of the agents.
    """

    def __init__(self, config: Config, mesh: Mesh) -> None:
        self._watches = config.logging.dynamics and is_watchable(config.levels_stack(), mesh, config.inner)
        self._dynamics: Dynamics | None = None

    def open(self, stack: LevelStack) -> None:
        """Watch the stack as the trainer does."""
        if self._watches:
            self._dynamics = Dynamics(stack)
            self._dynamics.begin(stack.buckets)

    def after_sync(self, stack: LevelStack) -> None:
        """Sum what is reported over the agents."""
        row = [0.0] * COUNTED + (self._dynamics.sums() if self._dynamics else [])
        sum_over_agents([stack.communicator], [row], stack.buckets[0].fast.device)
