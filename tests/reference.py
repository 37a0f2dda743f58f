"""Each method as its paper writes it: the loops that the package must reproduce.

Nothing of the package is used here. Every function yields the fast weights of all agents (n, D) after each fast step.
The names are the papers'; where a paper counts rounds t of tau steps, so does the loop.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from noisy_quadratic import Problem
from torch import Tensor

Trajectory = Iterator[Tensor]
Buffers = Literal["keep", "reset", "average"]


class Fast:
    """One agent: its fast weights x and its fast optimizer, A in the papers."""

    def __init__(self, problem: Problem, agent: int) -> None:
        self._problem = problem
        self._agent = agent
        self.x = problem.start.clone().requires_grad_()
        self.reset()

    def reset(self) -> None:
        self._optimizer = self._problem.fast([self.x])

    def step(self, k: int) -> None:
        self._optimizer.param_groups[0]["lr"] = self._problem.rate(k)
        self.x.grad = self._problem.gradient(self.x.detach(), self._agent, k)
        self._optimizer.step()

    def step_from(self, k: int, mass: Tensor) -> None:
        """A step of x with the gradient at x / mass."""
        self._optimizer.param_groups[0]["lr"] = self._problem.rate(k)
        self.x.grad = self._problem.gradient(self.x.detach() / mass, self._agent, k)
        self._optimizer.step()

    def buffers(self) -> dict[str, Tensor]:
        return self._optimizer.state[self.x]

    def become(self, weights: Tensor) -> None:
        with torch.no_grad():
            self.x.copy_(weights)


def crowd(problem: Problem) -> list[Fast]:
    return [Fast(problem, agent) for agent in range(problem.agents)]


def mean(agents: Sequence[Fast]) -> Tensor:
    return torch.stack([agent.x.detach() for agent in agents]).mean(dim=0)


def now(agents: Sequence[Fast]) -> Tensor:
    return torch.stack([agent.x.detach().clone() for agent in agents])


def lookahead(problem: Problem, k: int, alpha: float) -> Trajectory:
    """arXiv 1907.08610, Algorithm 1; every agent for itself."""
    agents = crowd(problem)
    phi = [problem.start.clone() for _ in agents]
    for t in range(problem.steps // k):
        for i in range(k):
            for agent in agents:
                agent.step(t * k + i)
            if i < k - 1:
                yield now(agents)
        for n, agent in enumerate(agents):
            phi[n] = phi[n] + alpha * (agent.x.detach() - phi[n])
            agent.become(phi[n])
        yield now(agents)


def multilayer_lookahead(problem: Problem, k: Sequence[int], alpha: Sequence[float]) -> Trajectory:
    """arXiv 2110.14254, two layers: layer 2 pulls every k[1] pulls of layer 1 and overwrites all below."""
    (agent,) = crowd(problem)
    slow1, slow2 = problem.start.clone(), problem.start.clone()
    for step in range(problem.steps):
        agent.step(step)
        if (step + 1) % k[0] == 0:
            slow1 = slow1 + alpha[0] * (agent.x.detach() - slow1)
            if (step + 1) % (k[0] * k[1]) == 0:
                slow2 = slow2 + alpha[1] * (slow1 - slow2)
                slow1 = slow2.clone()
            agent.become(slow1)
        yield now([agent])


def local_sgd(problem: Problem, tau: int) -> Trajectory:
    """arXiv 1805.09767, Algorithm 1."""
    agents = crowd(problem)
    for t in range(problem.steps):
        for agent in agents:
            agent.step(t)
        if (t + 1) % tau == 0:
            average = mean(agents)
            for agent in agents:
                agent.become(average)
        yield now(agents)


def rounds_of(problem: Problem, length: Callable[[int, Sequence[Sequence[float]]], int]) -> Trajectory:
    """Local SGD with rounds of `length(steps done, losses of the last round by step)`."""
    agents, k, losses = crowd(problem), 0, []
    while k < problem.steps:
        tau, losses = length(k, losses), []
        for i in range(min(tau, problem.steps - k)):
            losses.append([problem.loss(agent.x.detach(), n) for n, agent in enumerate(agents)])
            for agent in agents:
                agent.step(k)
            k += 1
            if i == tau - 1:
                average = mean(agents)
                for agent in agents:
                    agent.become(average)
            yield now(agents)


def qsr(problem: Problem, base: int, coefficient: float) -> Trajectory:
    """arXiv 2310.14423: H = max(H_base, floor((c / eta)^2)) with eta of the first step of the round."""
    return rounds_of(problem, lambda k, _: max(base, int((coefficient / problem.rate(k)) ** 2)))


def adacomm(problem: Problem, start: int, interval: int, decay: float) -> Trajectory:
    """arXiv 1810.08313: tau_l = ceil(sqrt(F_l / F_0) tau_0), or decay tau_{l-1} where that is no less."""
    tau, look, first, since = start, 0, 0.0, []

    def length(k: int, losses: Sequence[Sequence[float]]) -> int:
        nonlocal tau, look, first, since
        since += [sum(step) / len(step) for step in losses]
        if not since or k < look:
            return tau
        value, since, look = sum(since) / len(since), [], k + interval
        if not first:
            first = value
            return tau
        fallen = math.ceil(math.sqrt(value / first) * start)
        tau = fallen if fallen < tau else max(math.floor(decay * tau), 1)
        return tau

    return rounds_of(problem, length)


def overlapped_local_sgd(problem: Problem, tau: int, delay: int) -> Trajectory:
    """arXiv 1906.12043, Algorithm 1, whose delay is tau: the average of the snapshots, and the steps made since."""
    agents, sent = crowd(problem), None
    for k in range(1, problem.steps + 1):
        for agent in agents:
            agent.step(k - 1)
        if k % tau == 0:
            sent = now(agents)
        if sent is not None and k >= tau and k % tau == delay:
            for agent, snapshot in zip(agents, sent, strict=True):
                agent.become(sent.mean(dim=0) + (agent.x.detach() - snapshot))
        yield now(agents)


def overlapped(problem: Problem, tau: int, delay: int, outer: Callable[[float, Tensor], Tensor]) -> Trajectory:
    """Any outer step on a mean that arrives late: it returns z from the step size and mean of where the round ended."""
    agents = crowd(problem)
    gamma, sent = problem.rate(0), now(agents)
    for k in range(1, problem.steps + 1):
        for agent in agents:
            agent.step(k - 1)
        if k % tau == 0:
            gamma, sent = problem.rate(k - 1), now(agents)
        if k >= tau and k % tau == delay:
            z = outer(gamma, sent.mean(dim=0))
            for agent, snapshot in zip(agents, sent, strict=True):
                agent.become(z + (agent.x.detach() - snapshot))
        yield now(agents)


def overlapped_slowmo(problem: Problem, tau: int, delay: int, alpha: float, beta: float) -> Trajectory:
    """SlowMo's slow step, arXiv 1910.00643, on a mean that arrives late."""
    x0, u = problem.start.clone(), torch.zeros_like(problem.start)

    def outer(gamma: float, average: Tensor) -> Tensor:
        nonlocal x0, u
        u = beta * u + (x0 - average) / gamma
        x0 = x0 - alpha * gamma * u
        return x0

    return overlapped(problem, tau, delay, outer)


def overlapped_diloco(problem: Problem, h: int, delay: int, alpha: float, beta: float) -> Trajectory:
    """DiLoCo's outer step, arXiv 2311.08105, on a mean that arrives late."""
    theta = problem.start.clone().requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=alpha, momentum=beta, nesterov=True)

    def outer(_: float, average: Tensor) -> Tensor:
        theta.grad = theta.detach() - average
        optimizer.step()
        return theta.detach().clone()

    return overlapped(problem, h, delay, outer)


def post_local_sgd(problem: Problem, tau: int, start: int) -> Trajectory:
    """arXiv 1808.07217: average after each of the first `start` steps, every tau steps from there on."""
    agents = crowd(problem)
    for t in range(1, problem.steps + 1):
        for agent in agents:
            agent.step(t - 1)
        if t <= start or (t - start) % tau == 0:
            average = mean(agents)
            for agent in agents:
                agent.become(average)
        yield now(agents)


def hierarchical_local_sgd(problem: Problem, groups: Sequence[Sequence[int]], near: int, far: int) -> Trajectory:
    """arXiv 1808.07217: average within each group every `near` steps, and over all groups every `far` steps."""
    agents = crowd(problem)
    for k in range(problem.steps):
        for agent in agents:
            agent.step(k)
        for group in groups if (k + 1) % near == 0 else ():
            own = mean([agents[i] for i in group])
            for i in group:
                agents[i].become(own)
        if (k + 1) % far == 0:
            everybody = mean(agents)
            for agent in agents:
                agent.become(everybody)
        yield now(agents)


def distributed_lookahead(problem: Problem, tau: int, alpha: float) -> Trajectory:
    """Wang, Tantia, Ballas and Rabbat, ICASSP 2020, eq. 4: X <- [X - gamma G] P, here with n fast columns.

    X = [x_1 .. x_n, z]; at a sync P = a 1^T with a = [alpha/n, .., alpha/n, 1 - alpha]^T, else P = I.
    """
    agents, n = crowd(problem), problem.agents
    z = problem.start.clone()
    a = torch.tensor([alpha / n] * n + [1 - alpha], dtype=torch.float64)
    for k in range(problem.steps):
        for agent in agents:
            agent.step(k)
        if (k + 1) % tau == 0:
            x = torch.stack([*now(agents), z], dim=1)
            *columns, z = (x @ torch.outer(a, torch.ones(n + 1, dtype=torch.float64))).unbind(dim=1)
            for agent, column in zip(agents, columns, strict=True):
                agent.become(column)
        yield now(agents)


def slowmo(problem: Problem, tau: int, alpha: float, beta: float) -> Trajectory:
    """arXiv 1910.00643, Algorithm 1: u in units of gradients; gamma_t is constant within round t."""
    agents = crowd(problem)
    x0, u = problem.start.clone(), torch.zeros_like(problem.start)
    for k in range(problem.steps):
        for agent in agents:
            agent.step(k)
        if (k + 1) % tau == 0:
            gamma = problem.rate(k)
            u = beta * u + (x0 - mean(agents)) / gamma
            x0 = x0 - alpha * gamma * u
            for agent in agents:
                agent.become(x0)
        yield now(agents)


def bmuf(problem: Problem, tau: int, zeta: float, eta: float) -> Trajectory:
    """Chen and Huo, ICASSP 2016: Delta <- eta Delta + zeta G, W <- W + Delta."""
    agents = crowd(problem)
    w, delta = problem.start.clone(), torch.zeros_like(problem.start)
    for k in range(problem.steps):
        for agent in agents:
            agent.step(k)
        if (k + 1) % tau == 0:
            g = mean(agents) - w
            delta = eta * delta + zeta * g
            w = w + delta
            for agent in agents:
                agent.become(w)
        yield now(agents)


def diloco(problem: Problem, h: int, alpha: float, beta: float) -> Trajectory:
    """arXiv 2311.08105, Algorithm 1: torch's own Nesterov SGD steps on the average of theta - theta_i."""
    agents = crowd(problem)
    theta = problem.start.clone().requires_grad_()
    outer = torch.optim.SGD([theta], lr=alpha, momentum=beta, nesterov=True)
    for step in range(problem.steps):
        for agent in agents:
            agent.step(step)
        if (step + 1) % h == 0:
            theta.grad = theta.detach() - mean(agents)
            outer.step()
            for agent in agents:
                agent.become(theta.detach())
        yield now(agents)


def streaming_diloco(
    problem: Problem,
    h: int,
    fragments: Sequence[slice],
    alpha: float,
    beta: float,
    delay: int = 0,
    share: float | None = None,
) -> Trajectory:
    """arXiv 2501.18512: the mean of fragment p of P is taken after steps t with t mod H = (p+1) H/P, and is there
    `delay` steps later. Each agent then keeps `share` of its own weights and takes the rest of the new ones; None: it
    keeps what it has done meanwhile.
    """
    agents = crowd(problem)
    thetas = [problem.start[part].clone().requires_grad_() for part in fragments]
    outers = [torch.optim.SGD([theta], lr=alpha, momentum=beta, nesterov=True) for theta in thetas]
    sent: dict[tuple[int, int], Tensor] = {}
    for t in range(1, problem.steps + 1):
        for agent in agents:
            agent.step(t - 1)
        for p, (part, theta, outer) in enumerate(zip(fragments, thetas, outers, strict=True)):
            if t % h == (p + 1) * h // len(fragments) % h:
                sent[p, t + delay] = now(agents)[:, part]
            if (p, t) in sent:
                theta.grad = theta.detach() - sent[p, t].mean(dim=0)
                outer.step()
                for agent, q in zip(agents, sent[p, t], strict=True):
                    whole = agent.x.detach().clone()
                    if share is None:
                        whole[part] += theta.detach() - q
                    else:
                        whole[part] = share * whole[part] + (1 - share) * theta.detach()
                    agent.become(whole)
        yield now(agents)


def polyak(problem: Problem, alpha: float) -> Trajectory:
    """A running mean that nobody trains with: the fast weights are those of SGD alone."""
    agents = crowd(problem)
    for k in range(problem.steps):
        for agent in agents:
            agent.step(k)
        yield now(agents)


def osgp(problem: Problem, shares: Tensor, tau: int, delay: int) -> Trajectory:
    """arXiv 1811.10792 with messages that arrive `delay` steps later, in place of what was sent; yields x / w."""
    agents = crowd(problem)
    w = torch.ones(len(agents), dtype=torch.float64)
    sent: dict[int, Tensor] = {}
    for k in range(1, problem.steps + 1):
        for agent, own in zip(agents, w, strict=True):
            agent.step_from(k - 1, own)
        if k in sent:
            x = now(agents) + shares.T @ sent[k] - sent[k]
            w = shares.T @ w
            for agent, own in zip(agents, x, strict=True):
                agent.become(own)
        if k % tau == 0:
            sent[k + delay] = now(agents)
        yield now(agents) / w[:, None]


def snoo(problem: Problem, k: int, eta: float, mu: float) -> Trajectory:
    """arXiv 2510.15830: s = w - w_K, b <- mu b + s, w <- w - eta (mu b + s); a single agent."""
    (agent,) = crowd(problem)
    w, b = problem.start.clone(), torch.zeros_like(problem.start)
    for step in range(problem.steps):
        agent.step(step)
        if (step + 1) % k == 0:
            s = w - agent.x.detach()
            b = mu * b + s
            w = w - eta * (mu * b + s)
            agent.become(w)
        yield now([agent])


def hear_neighbours(agents: Sequence[Fast]) -> None:
    """D-PSGD on a ring, x_i <- (x_{i-1} + x_i + x_{i+1}) / 3; of two agents the mean."""
    n, x = len(agents), now(agents)
    for i, agent in enumerate(agents):
        hears = sorted({(i - 1) % n, i, (i + 1) % n})
        agent.become(sum((x[j] for j in hears), torch.zeros_like(x[i])) / len(hears))


def dpsgd(problem: Problem, tau: int) -> Trajectory:
    """arXiv 1705.09056, Algorithm 1, on its ring; the average after the step, as arXiv 1910.00643 has it."""
    agents = crowd(problem)
    for k in range(problem.steps):
        for agent in agents:
            agent.step(k)
        if (k + 1) % tau == 0:
            hear_neighbours(agents)
        yield now(agents)


def slowmo_over_dpsgd(problem: Problem, tau: int, alpha: float, beta: float) -> Trajectory:
    """arXiv 1910.00643, Algorithm 1, with a gossip on the ring in each step of the base optimizer."""
    agents = crowd(problem)
    x0, u = problem.start.clone(), torch.zeros_like(problem.start)
    for k in range(problem.steps):
        for agent in agents:
            agent.step(k)
        hear_neighbours(agents)
        if (k + 1) % tau == 0:
            gamma = problem.rate(k)
            u = beta * u + (x0 - mean(agents)) / gamma
            x0 = x0 - alpha * gamma * u
            for agent in agents:
                agent.become(x0)
        yield now(agents)


@dataclass(frozen=True)
class Layer:
    """A layer of any stack: who is averaged, how z moves (not at all without alpha), what becomes of buffers."""

    tau: int
    averages: bool
    alpha: float | None
    beta: float = 0.0
    nesterov: bool = False
    buffers: Buffers = "keep"

    def pull(self, below: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next z and v."""
        if self.alpha is None:
            return below, v
        delta = below - z
        v = self.beta * v + delta
        return z + self.alpha * (delta + self.beta * v if self.nesterov else v), v


def average_buffers(agents: Sequence[Fast]) -> None:
    states = [agent.buffers() for agent in agents]
    for key in states[0]:
        average = torch.stack([state[key] for state in states]).mean(dim=0)
        for state in states:
            state[key].copy_(average)


def stack(problem: Problem, layers: Sequence[Layer]) -> Trajectory:
    """Any stack of layers, innermost first: what fires overwrites everything below it."""
    agents, n = crowd(problem), problem.agents
    z = [[problem.start.clone() for _ in agents] for _ in layers]
    v = [[torch.zeros_like(problem.start) for _ in agents] for _ in layers]
    for k in range(1, problem.steps + 1):
        for agent in agents:
            agent.step(k - 1)
        for m, layer in enumerate(layers):
            if k % layer.tau:
                break
            below = [mean(agents)] * n if layer.averages else list(now(agents))
            for i, agent in enumerate(agents):
                z[m][i], v[m][i] = layer.pull(below[i], z[m][i], v[m][i])
                agent.become(z[m][i])
                for lower in range(m):
                    z[lower][i] = z[m][i]
                    v[lower][i] = v[lower][i] * (layer.buffers != "reset")
                if layer.buffers == "reset":
                    agent.reset()
            if layer.buffers == "average":
                average_buffers(agents)
        yield now(agents)


def sgp(problem: Problem, shares: Tensor, tau: int = 1, slow: tuple[int, float, float] | None = None) -> Trajectory:
    """arXiv 1811.10792, Algorithm 1: gradients at z = x / w, steps of x, then x_j <- sum_i p_ji x_i, and w alike.

    Yields z. `shares` has p_ji in row i and column j. With slow = (tau, alpha, beta) SlowMo's exact average over it,
    arXiv 1910.00643, Algorithm 1, of the x, after which all weights w are 1.
    """
    agents = crowd(problem)
    w = torch.ones(len(agents), dtype=torch.float64)
    x0, u = problem.start.clone(), torch.zeros_like(problem.start)
    for k in range(problem.steps):
        for agent, own in zip(agents, w, strict=True):
            agent.step_from(k, own)
        if (k + 1) % tau == 0:
            x = shares.T @ now(agents)
            w = shares.T @ w
            for agent, own in zip(agents, x, strict=True):
                agent.become(own)
        if slow and (k + 1) % slow[0] == 0:
            gamma = problem.rate(k)
            u = slow[2] * u + (x0 - mean(agents)) / gamma
            x0 = x0 - slow[1] * gamma * u
            w = torch.ones_like(w)
            for agent in agents:
                agent.become(x0)
        yield now(agents) / w[:, None]
