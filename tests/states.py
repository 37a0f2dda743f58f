"""Random stacks of levels, and the whole state of agents that train with one: fast and slow weights, slow momentum."""

import warnings
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from noisy_quadratic import Problem
from torch import Tensor, nn

from dist_lookahead import (
    Alone,
    Complete,
    Copy,
    Cosine,
    DistributedLookahead,
    Every,
    Exact,
    Gossip,
    Level,
    Linear,
    OnePeerExponential,
    Piecewise,
    Pull,
    Ring,
    StaticExponential,
    simulate,
    theory,
)
from dist_lookahead.mesh import Mesh, as_mesh
from dist_lookahead.schedule import Scheduled


class Crowd:
    """n agents trained by the package, whose whole state can be read and overwritten: X (D, S)."""

    def __init__(self, levels: Sequence[Level], start: Tensor, agents: int | Mesh) -> None:
        self.names = theory.columns(levels, agents)
        # Two gossips of the same mean may have other summands, or another order: alike in theory, and up to rounding.
        self._rounding = 1e-12 if any(isinstance(level.mix, Gossip) for level in levels) else 0.0
        self.weights = [nn.Parameter(start.clone()) for _ in range(as_mesh(agents).size)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # random stacks may well be unstable, and some steps show it yet
            self.optimizers = [
                DistributedLookahead(torch.optim.SGD([w], lr=1.0), levels, communicator=end)
                for w, end in zip(self.weights, simulate(agents), strict=True)
            ]

    def step(self, gradients: Tensor | None, rate: float) -> None:
        """Take a fast step with gradients (D, n)."""
        for agent, (weight, optimizer) in enumerate(zip(self.weights, self.optimizers, strict=True)):
            weight.grad = None if gradients is None else gradients[:, agent].clone()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()

    def read(self) -> Tensor:
        return torch.stack([self._read(name) for name in self.names], dim=1)

    @torch.no_grad()
    def write(self, state: Tensor) -> None:
        for column, name in zip(state.unbind(dim=1), self.names, strict=True):
            letter, index, agents = self._place(name)
            for agent in agents:
                stack = self.optimizers[agent].stack
                bound, bucket = stack.bound[index], stack.buckets[0]
                if letter == "x":
                    self.weights[agent].copy_(column)
                    continue
                whole = torch.zeros_like(bucket.fast)
                whole[: len(column)] = column
                (bound.slow if letter == "z" else bound.momentum)[0].copy_(whole[bound.owned(bucket)])

    def _read(self, name: str) -> Tensor:
        letter, index, agents = self._place(name)
        if letter == "x":
            return self.weights[agents[0]].detach().clone()
        wholes = [torch.zeros_like(self.optimizers[agent].stack.buckets[0].fast) for agent in agents]
        for agent in agents:
            stack = self.optimizers[agent].stack
            bound, own = stack.bound[index], stack.bound[index].owned(stack.buckets[0])
            part = (bound.slow if letter == "z" else bound.momentum)[0]
            sharing = bound.hearing.members if bound.hearing and bound.mixer.shards > 1 else (agent,)
            for whole, holder in zip(wholes, agents, strict=True):
                if holder in sharing:
                    whole[own] = part
        size = len(self.weights[0])
        assert all(self._alike(whole[:size], wholes[0][:size]) for whole in wholes), f"agents differ in {name}"
        return wholes[0][:size].clone()

    def _alike(self, one: Tensor, other: Tensor) -> bool:
        return torch.equal(one, other) or bool(((one - other).abs() <= self._rounding).all())

    def _place(self, name: str) -> tuple[str, int, list[int]]:
        """The letter of a column, its level (0 for x), and the agents that hold it."""
        letter, (index, _, agents) = name[0], name[1:].partition("@")
        if letter == "x":
            return letter, 0, [int(index)]
        return letter, int(index), [int(a) for a in agents.split(",")] if agents else list(range(len(self.weights)))


def trajectory(
    levels: Sequence[Level], problem: Problem, rates: Sequence[float], mesh: Mesh | None = None
) -> tuple[Tensor, Tensor]:
    """The states X_0 .. X_K (K + 1, D, S) of a real run, and its gradients (K, D, n)."""
    crowd = Crowd(levels, problem.start, mesh or problem.agents)
    states, all_gradients = [crowd.read()], []
    for k, rate in enumerate(rates):
        gradients = gradients_at(states[-1], problem, k)
        crowd.step(gradients, rate)
        states.append(crowd.read())
        all_gradients.append(gradients)
    return torch.stack(states), torch.stack(all_gradients)


def gradients_at(state: Tensor, problem: Problem, k: int) -> Tensor:
    return torch.stack([problem.gradient(state[:, i], i, k) for i in range(problem.agents)], dim=1)


@st.composite
def moves(draw: st.DrawFn, *, may_copy: bool, schedules: bool) -> Copy | Pull:
    if may_copy and draw(st.integers(0, 3)) == 0:
        return Copy()
    alphas: list[Scheduled] = [0.3, 0.5, 1.0, 1.2]
    betas: list[Scheduled] = [0.0, 0.4, 0.7]
    if schedules:
        alphas += [Linear(0.4, 1.0, 9), Piecewise((1.0, 0.6), (5,))]
        betas += [Cosine(0.6, 0.1, 12), Piecewise((0.5, 0.0), (6,))]
    alpha, beta = draw(st.sampled_from(alphas)), draw(st.sampled_from(betas))
    return Pull(alpha, beta, nesterov=beta != 0 and draw(st.booleans()), follow_lr=beta != 0 and draw(st.booleans()))


@st.composite
def stacks(draw: st.DrawFn, *, schedules: bool = True) -> list[Level]:
    """1 to 3 levels: all mixes and moves, shards, resets, and with `schedules` all that may change with the step."""
    levels, tau = [], 1
    for _ in range(draw(st.integers(1, 3))):
        tau *= draw(st.integers(1, 3))
        averages = draw(st.booleans())
        move = draw(moves(may_copy=averages, schedules=schedules))
        mix = Exact(shard=move.keeps_slow_weights and draw(st.booleans())) if averages else Alone()
        when = Every(Piecewise((1, tau, 2), (3, 11)) if schedules and draw(st.booleans()) else tau)
        levels.append(Level(when, mix, move, draw(st.sampled_from(("keep", "reset")))))
    return levels


AXES = ("node", "local")
TOPOLOGIES = (Ring(), OnePeerExponential(), StaticExponential(), Complete())


@st.composite
def meshed_stacks(draw: st.DrawFn) -> tuple[list[Level], Mesh]:
    """2 or 3 levels over the axes of a mesh, and the mesh."""
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    levels, tau = [], 1
    for _ in range(draw(st.integers(2, 3))):
        tau *= draw(st.integers(1, 3))
        axis = draw(st.sampled_from([None, *AXES, "world"]))
        move = draw(moves(may_copy=axis is not None, schedules=False))
        mix = Exact(axis, shard=move.keeps_slow_weights and draw(st.booleans())) if axis else Alone()
        levels.append(Level(Every(tau), mix, move, draw(st.sampled_from(("keep", "reset")))))
    return levels, Mesh(shape, AXES)


@st.composite
def gossiping_stacks(draw: st.DrawFn) -> tuple[list[Level], Mesh]:
    """1 to 3 levels over the axes of a mesh, gossips among them, and the mesh."""
    shape = draw(st.sampled_from([(1, 3), (2, 2), (3, 2), (5, 1)]))
    levels, tau = [], 1
    for _ in range(draw(st.integers(1, 3))):
        tau *= draw(st.integers(1, 2))
        axis = draw(st.sampled_from([None, *AXES, "world"]))
        move = draw(moves(may_copy=axis is not None, schedules=False))
        mix: Alone | Exact | Gossip = Alone() if axis is None else Exact(axis)
        if axis and draw(st.integers(0, 2)):
            mix = Gossip(axis, draw(st.sampled_from(TOPOLOGIES)), rounds=draw(st.integers(1, 2)))
        levels.append(Level(Every(tau), mix, move, draw(st.sampled_from(("keep", "reset")))))
    return levels, Mesh(shape, AXES)
