"""Fast steps of the agents of one process."""

from collections.abc import Sequence

from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.train.agent import Agent
from dist_lookahead.train.data_parallel import average_simulated


def take_steps(agents: Sequence[Agent], communicators: Sequence[Communicator], factors: Sequence[float]) -> None:
    """Take fast steps with all of them.

    Args:
        agents: of this process.
        communicators: their ends.
        factors: of the learning rates, one for each fast step.
    """
    if not agents[0].shares_gradients:
        for agent in agents:
            for factor in factors:
                agent.train_step(factor)
        return
    for factor in factors:
        for agent in agents:
            agent.backward(factor)
        average_simulated([agent.model for agent in agents], communicators)
        for agent in agents:
            agent.update()
