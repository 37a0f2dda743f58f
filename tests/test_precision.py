"""Mixed precision and compilation: overflowing agents, half precision weights, compiled models."""

import copy
from collections.abc import Callable

import pytest
import torch
from digits_training import Agent, make_agents, make_model, same, train
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from dist_lookahead import DistributedLookahead, local_sgd, lookahead, slowmo


class Overflowing:
    """Agents under a gradient scaler, one of which overflows at chosen steps."""

    def __init__(self, agents: list[Agent], overflows: dict[int, set[int]], *, unscale: bool) -> None:
        self.agents, self.overflows, self.unscale = agents, overflows, unscale
        self.scalers = [torch.amp.GradScaler("cpu", init_scale=4.0) for _ in agents]

    def step(self, k: int) -> None:
        for agent, scaler in zip(self.agents, self.scalers, strict=True):
            agent.optimizer.zero_grad()
            agent.backward(k)
            scaler.scale(torch.zeros(()))  # torch makes the scale at its first use
            torch._foreach_mul_([p.grad for p in agent.model.parameters() if p.grad is not None], scaler.get_scale())
            if k in self.overflows.get(agent.rank, set()):
                next(agent.model.parameters()).grad.fill_(torch.inf)  # pyright: ignore[reportOptionalMemberAccess] - has just been computed
            if self.unscale:
                scaler.unscale_(agent.optimizer)
            scaler.step(agent.optimizer)
            scaler.update()


@pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled by hand"])
@pytest.mark.parametrize("fast", ["momentum", "adam"])
def test_an_agent_that_skips_a_step_keeps_its_clock(fast: str, unscale: bool) -> None:
    """Otherwise it comes to the sync one step later than the others, which wait for ever."""
    agents = make_agents(2, local_sgd(3), fast=fast)
    training = Overflowing(agents, {1: {1}}, unscale=unscale)
    training.step(0)
    before = copy.deepcopy(dict(agents[1].model.named_parameters()))
    training.step(1)
    assert same(dict(agents[1].model.named_parameters()), before)
    assert [agent.optimizer.stack.clock for agent in agents] == [2, 2]
    training.step(2)
    assert [agent.optimizer.stack.bound[0].rounds for agent in agents] == [1, 1]
    assert same([*agents[0].model.parameters()], [*agents[1].model.parameters()])
    assert [scaler.get_scale() for scaler in training.scalers] == [4.0, 2.0]


@pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled by hand"])
@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1), lambda p: SGD(p, lr=0.1, fused=True), lambda p: Adam(p)])
def test_scaling_without_overflow_is_plain_torchs(make: Callable[..., Optimizer], unscale: bool) -> None:
    model, plain_model = make_model(), make_model()
    shell = DistributedLookahead(make(model.parameters()), lookahead(9), model=model)
    plain = make(plain_model.parameters())
    for optimizer, net in ((shell, model), (plain, plain_model)):
        scaler = torch.amp.GradScaler("cpu", init_scale=3.0)
        for k in range(4):
            optimizer.zero_grad()
            scaler.scale(net(torch.linspace(-1, 1, 256).view(4, 64) * (k + 1)).square().mean()).backward()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    assert same(model.state_dict(), plain_model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_nothing_in_the_slow_weights(dtype: torch.dtype) -> None:
    """Slow weights in half precision would swallow pulls below their spacing."""
    w = nn.Parameter(torch.full((1,), 256.0, dtype=dtype))
    optimizer = DistributedLookahead(SGD([w], lr=1.0), lookahead(1, alpha=0.125))
    w.grad = torch.ones(1, dtype=dtype)
    w.grad.fill_(2.0)  # one step is one spacing of bfloat16 at 256
    optimizer.step()
    (slow,) = optimizer.state_dict()["levels"]["levels"][0]["slow"].values()
    assert slow.dtype == torch.float32
    assert slow.item() == 256.0 - 0.125 * 2.0
    assert w.item() == torch.tensor(slow.item()).to(dtype).item()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_trains_like_the_plain_one(backend: str) -> None:
    torch.compiler.reset()
    agents, compiled = make_agents(2, slowmo(2, beta=0.6)), make_agents(2, slowmo(2, beta=0.6))
    for agent in compiled:
        agent.model.compile(backend=backend)
    train(agents, range(5))
    train(compiled, range(5))
    for one, other in zip(agents, compiled, strict=True):
        assert same(one.model.state_dict(), other.model.state_dict(), tolerance=1e-6)
