"""Which parameters are averaged, and where they lie: new, frozen, tied, shared, re-pointed and replaced ones."""

import copy

import pytest
import torch
from digits_training import Agent, make_agents, make_model, same, train
from torch import nn
from torch.optim import SGD

from dist_lookahead import DistributedLookahead, distributed_lookahead, local_sgd, lookahead, simulate, slowmo

# --- parameters that come, go, and have no gradient


def add_vector(agent: Agent, value: float) -> nn.Parameter:
    vector = nn.Parameter(torch.full((3,), value))
    agent.optimizer.add_param_group({"params": [vector], "lr": 1.0, "momentum": 0.0})
    return vector


def step_with(agent: Agent, vector: nn.Parameter, gradient: float, step: int) -> None:
    agent.backward(step)
    vector.grad = torch.full((3,), gradient)
    agent.optimizer.step()


def test_a_new_group_joins_at_the_next_sync_with_the_agents_mean() -> None:
    agents = make_agents(2, slowmo(3, beta=0.6))
    train(agents, range(1))
    vectors = [add_vector(agent, value) for agent, value in zip(agents, (0.0, 2.0), strict=True)]
    for step in range(1, 3):
        for agent, vector in zip(agents, vectors, strict=True):
            step_with(agent, vector, 1.0, step)
    assert [vector.tolist() for vector in vectors] == [[-1.0] * 3] * 2  # the mean of 0 - 2 and 2 - 2
    for step in range(3, 9):  # two rounds, in each of which the agents move by 0 and by -3
        for gradient, agent, vector in zip((0.0, 1.0), agents, vectors, strict=True):
            step_with(agent, vector, gradient, step)
    expected = -1.0 - 1.5 - (0.6 * 1.5 + 1.5)  # with slow momentum, which began at zero
    for vector in vectors:
        torch.testing.assert_close(vector.detach(), torch.full((3,), expected))


def test_a_group_that_joins_survives_a_resume() -> None:
    def grown(seed: int) -> tuple[Agent, nn.Parameter]:
        (agent,) = make_agents(1, slowmo(3, beta=0.6), seed=seed)
        extra = nn.Parameter(torch.full((3,), float(seed)))
        return agent, extra

    def go(agent: Agent, extra: nn.Parameter, steps: range) -> None:
        for step in steps:
            agent.backward(step)
            extra.grad = torch.full((3,), step + 1.0)
            agent.optimizer.step()

    agent, extra = grown(0)
    train([agent], range(1))
    agent.optimizer.add_param_group({"params": [extra]})
    go(agent, extra, range(1, 5))
    saved, weight = copy.deepcopy(agent.state()), extra.detach().clone()
    go(agent, extra, range(5, 8))

    resumed, other = grown(3)
    resumed.optimizer.add_param_group({"params": [other]})
    resumed.load(saved)
    with torch.no_grad():
        other.copy_(weight)
    go(resumed, other, range(5, 8))
    assert same(resumed.state(), agent.state())
    assert torch.equal(other, extra)


def test_a_group_added_on_one_agent_only_is_refused_with_whole_weights_left() -> None:
    """Collectives of different sizes would sum the wrong elements, silently."""
    agents = make_agents(2, slowmo(3, beta=0.6))
    start = copy.deepcopy(dict(agents[0].model.named_parameters()))
    agents[0].optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    with pytest.raises(RuntimeError, match=r"parameters joined on some agents only.*on agents \[0\].*add_param_group"):
        train(agents, range(3))
    assert same(dict(agents[0].model.named_parameters()), start)


def test_parameters_that_are_frozen_later_keep_their_weights() -> None:
    agents = make_agents(2, distributed_lookahead(3, 0.5))
    train(agents, range(3))
    for agent in agents:
        agent.model.get_submodule("3").requires_grad_(False)
    before = agents[0].model.get_parameter("3.weight").detach().clone()
    train(agents, range(3, 6))
    for agent in agents:
        torch.testing.assert_close(agent.model.get_parameter("3.weight").detach(), before)


def test_parameters_frozen_at_construction_join_once_they_are_trained() -> None:
    agents = []
    for rank, end in enumerate(simulate(2)):
        model = make_model(rank)
        model.get_submodule("3").requires_grad_(False)
        inner = SGD(model.parameters(), lr=0.1)
        agents.append(Agent(rank, model, DistributedLookahead(inner, local_sgd(2), model=model, communicator=end)))
    train(agents, range(3))
    held = [weight.name for bucket in agents[0].optimizer.stack.buckets for weight in (s.weight for s in bucket.slots)]
    assert "3.weight" not in held
    for agent in agents:
        agent.model.requires_grad_(True)
    train(agents, range(3, 5))
    assert not torch.equal(*(agent.model.get_parameter("3.weight") for agent in agents))
    train(agents, range(5, 6))
    assert same([*agents[0].model.parameters()], [*agents[1].model.parameters()])


def test_a_parameter_without_gradient_on_one_agent_is_averaged_like_the_others() -> None:
    agents = make_agents(2, local_sgd(1))
    for agent in agents:
        agent.backward(0)
    lonely = agents[1].model.get_parameter("3.bias")
    lonely.grad = None
    for agent in agents:
        agent.optimizer.step()
    assert torch.equal(lonely, agents[0].model.get_parameter("3.bias"))


# --- where parameters lie


class Odd(nn.Module):
    """Convolution in channels_last, tied weights, and two parameters in one storage."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.first = nn.Linear(5, 5, bias=False)
        self.tied = nn.Linear(5, 5, bias=False)
        self.tied.weight = self.first.weight
        block = torch.randn(12)
        self.left, self.right = nn.Parameter(block[:6].view(2, 3)), nn.Parameter(block[6:])
        self.twin = nn.Parameter(self.right.data)  # another parameter in the same memory
        self.empty = nn.Parameter(torch.zeros(0))
        self.turned = nn.Parameter(torch.randn(4, 2).t())

    def set_gradients(self, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            gradient = torch.randn(parameter.shape, generator=random)
            parameter.grad = None if name == "twin" else gradient.to(memory_format=torch.preserve_format)


def odd_models(*seeds: int) -> list[Odd]:
    models = []
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(Odd())
    return models


def odd_pair() -> tuple[list[Odd], list[DistributedLookahead]]:
    models = odd_models(0, 1)
    optimizers = [
        DistributedLookahead(SGD(m.parameters(), lr=0.1), distributed_lookahead(2, 0.5), model=m, communicator=end)
        for m, end in zip(models, simulate(2), strict=True)
    ]
    return models, optimizers


def step_odd(models: list[Odd], optimizers: list[DistributedLookahead], steps: range) -> None:
    for k in steps:
        for rank, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            model.set_gradients(2 * k + rank)
            optimizer.step()


def pulled(models: list[Odd], start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    means = [dict(model.named_parameters()) for model in models]
    return {name: z + 0.5 * ((means[0][name] + means[1][name]) / 2 - z) for name, z in start.items()}


def test_odd_memory_is_averaged_like_any_other() -> None:
    """Breaks if strides are mixed up (the elements of a channels_last weight permuted), or an alias pulled twice."""
    models, optimizers = odd_pair()
    start = copy.deepcopy({name: p.detach() for name, p in models[0].named_parameters()})
    plain = odd_models(0, 0)
    sgd = [SGD(model.parameters(), lr=0.1) for model in plain]
    for k in range(2):
        for rank, (model, inner) in enumerate(zip(plain, sgd, strict=True)):
            model.set_gradients(2 * k + rank)
            inner.step()
    step_odd(models, optimizers, range(2))
    for name, expected in pulled(plain, start).items():
        for model in models:
            parameter = model.get_parameter(name)
            torch.testing.assert_close(parameter, expected, msg=lambda text, name=name: f"{name}: {text}")
    for model in models:
        assert model.convolution.weight.is_contiguous(memory_format=torch.channels_last)
        assert model.tied.weight is model.first.weight
        assert model.twin.data_ptr() == model.right.data_ptr()
        assert model.turned.stride() == (1, 2)


REPOINT = {
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "contiguous": lambda model: model.to(memory_format=torch.contiguous_format),
    "shared memory": lambda model: model.share_memory(),
    "round trip through double": lambda model: model.double().float(),
}


@pytest.mark.parametrize("steps_before", [0, 1, 2])
@pytest.mark.parametrize("repoint", REPOINT.values(), ids=REPOINT)
def test_parameters_re_pointed_by_others_cost_no_correctness(repoint, steps_before: int) -> None:
    """A bucket that keeps averaging the memory it once had would leave the model untouched."""
    (models, optimizers), (others, their_optimizers) = odd_pair(), odd_pair()
    step_odd(models, optimizers, range(steps_before))
    step_odd(others, their_optimizers, range(steps_before))
    for model in models:
        repoint(model)
    step_odd(models, optimizers, range(steps_before, 5))
    step_odd(others, their_optimizers, range(steps_before, 5))
    for model, other in zip(models, others, strict=True):
        for name in ("convolution.weight", "first.weight", "left", "right", "turned"):
            assert torch.equal(model.get_parameter(name), other.get_parameter(name)), name


def test_a_parameter_transposed_in_place_is_not_averaged_as_it_was() -> None:
    """It begins at the same address with other strides: silently, row and column would be exchanged."""
    models, optimizers = odd_pair()
    step_odd(models, optimizers, range(1))
    for model in models:
        model.first.weight.data = model.first.weight.data.t()
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        step_odd(models, optimizers, range(1, 2))


def test_weights_loaded_before_the_first_step_become_the_slow_weights() -> None:
    """Slow weights from before the load would pull the model back to its random initialisation."""
    agents = make_agents(2, distributed_lookahead(3, 0.5))
    loaded = make_model(7).state_dict()
    for agent in agents:
        agent.model.load_state_dict(loaded)
    train(agents, range(2))
    for agent in agents:
        with agent.optimizer.slow_weights():
            assert same(dict(agent.model.state_dict())["0.weight"], loaded["0.weight"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_converted_before_the_first_step_is_trained_in_its_new_dtype(dtype: torch.dtype) -> None:
    agents, expected = make_agents(2, slowmo(3, beta=0.6)), make_agents(2, slowmo(3, beta=0.6), dtype=dtype)
    for agent in agents:
        agent.model.to(dtype)
    train(agents, range(4))
    train(expected, range(4))
    assert same([agent.state() for agent in agents], [agent.state() for agent in expected])


@pytest.mark.parametrize("steps_before", [0, 1])
def test_weights_assigned_instead_of_copied_are_refused(steps_before: int) -> None:
    """The optimizer would go on to train tensors that are no longer in the model."""
    agents = make_agents(1, lookahead(2))
    train(agents, range(steps_before))
    agents[0].model.load_state_dict(make_model(7).state_dict(), assign=True)
    with pytest.raises(RuntimeError, match=r"'0\.weight' .* no longer in the model.*assign=True.*assign=False"):
        train(agents, range(steps_before, 2))
