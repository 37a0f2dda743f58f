"""Evaluation: the slow weights, or the agents' mean, in the model for a while."""

import copy
from collections.abc import Sequence

import pytest
import torch
from digits_training import make_agents, same, train

from dist_lookahead import Level, distributed_lookahead, local_sgd, lookahead, slowmo


def test_slow_weights_are_those_of_the_last_sync_and_the_fast_ones_come_back() -> None:
    agents = make_agents(2, distributed_lookahead(3, 0.5))
    train(agents, range(3))
    at_sync = copy.deepcopy(agents[0].model.state_dict())
    train(agents, range(3, 5))
    for agent in agents:
        before = copy.deepcopy(agent.model.state_dict())
        with agent.optimizer.slow_weights():
            for name, value in agent.model.state_dict().items():
                assert torch.equal(value, at_sync[name]) or not value.is_floating_point(), name
        assert same(agent.model.state_dict(), before)


def test_fast_weights_come_back_after_an_exception_in_the_evaluation() -> None:
    (agent,) = make_agents(1, lookahead(3))
    train([agent], range(2))
    before = copy.deepcopy(agent.model.state_dict())
    with pytest.raises(KeyError), agent.optimizer.slow_weights():
        raise KeyError
    assert same(agent.model.state_dict(), before)


def test_slow_weights_never_communicate() -> None:
    """They are used under `if rank == 0`."""
    agents = make_agents(2, slowmo(3, beta=0.6))
    train(agents, range(4))
    sent = agents[0].optimizer.stack.communicator.bytes_sent
    with agents[0].optimizer.slow_weights():
        pass
    assert agents[0].optimizer.stack.communicator.bytes_sent == sent


@pytest.mark.parametrize(
    ("levels", "reason"),
    [(local_sgd(3), "keeps no slow weights"), (slowmo(3, beta=0.6, shard=True), "splits its slow weights")],
)
def test_slow_weights_that_nobody_has_are_refused_in_mid_round(levels: Sequence[Level], reason: str) -> None:
    agents = make_agents(2, levels)
    train(agents, range(3))
    with agents[0].optimizer.slow_weights():  # right after a sync they are in the model
        pass
    train(agents, range(3, 4))
    with pytest.raises(RuntimeError, match=f"{reason}.*averaged_weights"), agents[0].optimizer.slow_weights():
        pass


def test_averaged_weights_are_the_agents_mean() -> None:
    agents = make_agents(2, local_sgd(5))
    train(agents, range(3))
    before = copy.deepcopy([agent.model.state_dict() for agent in agents])
    contexts = [agent.optimizer.averaged_weights() for agent in agents]
    for context in contexts:
        context.__enter__()
    for agent in agents:
        for name, value in agent.model.state_dict().items():
            if value.is_floating_point():
                assert torch.equal(value, (before[0][name] + before[1][name]) / 2), name
    for context in contexts:
        context.__exit__(None, None, None)
    assert same([agent.model.state_dict() for agent in agents], before)
