"""One agent of a run: its model, optimizer, data and random generators."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.guard import Guard
from dist_lookahead.optimizer import DistributedLookahead
from dist_lookahead.sharded import is_sharded
from dist_lookahead.tasks.task import Batch, Game, Minimisation, Pictured, Task
from dist_lookahead.train import split_weights
from dist_lookahead.train.config import Config
from dist_lookahead.train.config_mesh import is_watchable
from dist_lookahead.train.data_parallel import AXIS, count_bytes, shared
from dist_lookahead.train.dynamics import Dynamics
from dist_lookahead.train.eras import Eras
from dist_lookahead.train.fast_step import play
from dist_lookahead.train.inner_loop import InnerLoop, spread_evenly
from dist_lookahead.train.memory import memory_of, memory_restored, remember
from dist_lookahead.train.random_state import RandomState, derive_seed
from dist_lookahead.train.sampler import BatchSampler, evaluation_split, loader

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Agent:
    """Takes fast steps on its own share of the data; its optimizer meets the others at the syncs.

    Args:
        config: the run.
        task: what to train; shared by all agents of a process.
        communicator: this agent's end.
        device: where to train.
    """

    def __init__(self, config: Config, task: Task, communicator: Communicator, device: torch.device) -> None:
        self.config, self.task, self.communicator, self.device = config, task, communicator, device
        self._minimisation = task if isinstance(task, Minimisation) else None
        self._game = task if isinstance(task, Game) else None
        self.random = RandomState(derive_seed(config.run.seed, "agent", communicator.rank), device)
        self.model = self._build_model()
        self.is_split = config.inner.data_parallel == "fsdp2" and split_weights.split(self.model, communicator)
        levels = config.levels_stack()
        self._guard = Guard(config.faults.clip) if config.faults.poison == "leave_out" else None
        self.optimizer = DistributedLookahead(
            config.inner.build(self.model.parameters()),
            levels,
            model=self.model,
            communicator=communicator,
            model_buffers=config.sync.model_buffers,
            check_every=config.sync.check_every,
            offload=config.sync.offload,
            differing=config.faults.differing_weights,
            guard=self._guard,
            probe=self._probe if any(level.move.searches for level in levels) else None,
            data_parallel=AXIS if self.shares_gradients and not self.is_split else None,
            recoverable=config.faults.on_lost_agent == "continue",
        )
        watched = config.logging.dynamics and is_watchable(levels, communicator.mesh, config.inner)
        self.dynamics = Dynamics(self.optimizer.stack) if watched and not self.is_split else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        whole = self.shares_gradients and not self.is_split
        self._forward = shared(self._compiled(), communicator) if whole else self._compiled()
        self.inner_loop: InnerLoop | None = None
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._batches: Iterator[Batch] | None = None
        self._sampler = BatchSampler(
            samples=task.samples,
            batch_size=config.feed.batch_size,
            rank=communicator.rank,
            agents=communicator.size,
            seed=config.run.seed,
            order=task.order,
        )
        self._batch: Batch = ()
        self.step = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.loss_steps = 0

    @property
    def shares_gradients(self) -> bool:
        """Whether gradients are averaged over the agents of a node in each fast step."""
        return self.config.inner.data_parallel != "none"

    @property
    def synced(self) -> bool:
        """Whether a sync of the last level landed after the last fast step."""
        return self.optimizer.stack.bound[-1].landed == self.step > 0

    def begin(self, step: int, eras: Eras) -> None:
        """Prepare the first fast step of this process, with the samples that agents have not read before."""
        self.step = step
        before = eras.turns(eras.since) * self.config.feed.batch_size
        self._sampler = replace(self._sampler, since=eras.since, before=before)
        if step == 0 and self.dynamics:
            self.dynamics.begin(self.optimizer.stack.buckets)
        feed, batches = self.config.feed, replace(self._sampler, start=step)
        self._batches = loader(self.task.train_batch, batches, workers=feed.workers, pin_memory=feed.pin_memory)

    def meet(self, communicator: Communicator, step: int, eras: Eras) -> None:
        """Go on with other agents: share the samples that nobody has read with them.

        Args:
            communicator: this agent's end of those that are there now.
            step: fast steps done.
            eras: how many agents there were, and are.
        """
        self.communicator = communicator
        if self.step == 0:  # it has just come, and begun with the random numbers of a first agent
            self.random = RandomState(derive_seed(self.config.run.seed, "agent", communicator.rank, step), self.device)
        self._sampler = replace(self._sampler, rank=communicator.rank, agents=communicator.size)
        if self.dynamics:
            self.dynamics = Dynamics(self.optimizer.stack)
            self.dynamics.begin(self.optimizer.stack.buckets)
        self.end()
        self.begin(step, eras)

    def end(self) -> None:
        """Let go of the data: its worker processes end with the iterator, and must not outlive the training."""
        self._batches = None

    def train_step(self, factor: float) -> None:
        """Take one fast step with the learning rates at `factor` times their configured values."""
        self.backward(factor)
        self.update()

    def backward(self, factor: float) -> None:
        """Compute the gradients of a fast step; of a game, read the batch that its updates will share."""
        assert self._batches is not None
        self._set_rates(factor)
        with self.random.active():
            self._batch = self._to_device(next(self._batches))
            if self._minimisation:
                loss = self._descend(self._minimisation)
                self._count(loss)
                self.optimizer.report(loss=loss)
        if self.shares_gradients:
            count = split_weights.count_bytes if self.is_split else count_bytes
            count(self.model, self.communicator)
        self.step += 1

    def update(self) -> None:
        """Step with the gradients that are there, and meet the others where a sync is due."""
        if self._game:
            self.optimizer.step(partial(self._play, self._game))  # pyright: ignore[reportArgumentType] - torch's closures return tensors
            return
        if self.config.inner.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.model.parameters(), self.config.inner.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def watch_inner_loop(self, *, start: int, end: int) -> None:
        """Measure within a window of fast steps, on the same test samples on every agent."""
        assert self.config.probe is not None
        chosen = spread_evenly(self.config.probe.samples, of=self.task.test_samples)
        size = self.config.evaluation.batch_size
        split = [chosen[first : first + size] for first in range(0, len(chosen), size)]
        if self.inner_loop is None:  # another window, after the agents have changed, goes on with the same hook
            # Between the fast step and the sync, which follows in the same call.
            self.optimizer.inner.register_step_post_hook(lambda *_: self._look_after_fast_step())
        self.inner_loop = InnerLoop(lambda: self._aside(split), start=start, end=end)

    def _look_after_fast_step(self) -> None:
        if self.inner_loop:
            self.inner_loop.after_fast_step(self.step)

    def look_after_sync(self) -> None:
        """Measure once more where a level fired after the last fast step; all agents have met."""
        if self.inner_loop and any(level.landed == self.step > 0 for level in self.optimizer.stack.bound):
            self.inner_loop.after_sync(self.step)

    def evaluate(self) -> dict[str, float]:
        """Return this agent's share of the sums over the test data, at the weights that the model has now."""
        # Processes that have the weights together go through each batch together, and one of them counts it.
        agents = self.optimizer.stack.communicator if self.is_split else self.communicator
        counts = not self.is_split or self.communicator.axis(AXIS).rank == 0
        split = evaluation_split(
            samples=self.task.test_samples,
            batch_size=self.config.evaluation.batch_size,
            rank=agents.rank,
            agents=agents.size,
        )
        sums = self._measure(split)
        return {name: value * counts for name, value in sums.items()}

    @torch.no_grad()
    def _measure(self, split: Sequence[list[int]]) -> dict[str, float]:
        totals: dict[str, float] = {}
        self.model.eval()
        with memory_restored(self.model):
            for batch in loader(self.task.test_batch, split):
                remember(self.model, ())
                with self._precision():
                    sums = self.task.evaluate(self._forward, self._to_device(batch))
                totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
        self.model.train()
        return totals

    @torch.no_grad()
    def pictures(self) -> Tensor | None:
        """Return images that the model makes at the weights that it has now; None where it makes none."""
        if not isinstance(self.task, Pictured):
            return None
        self.model.eval()
        images = self.task.pictures(self.model)
        self.model.train()
        return images

    def take_loss(self) -> tuple[float, int]:
        """Return the sum of the losses since the last call, and their number: none of an agent that is left out."""
        taken = float(self.loss_sum), self.loss_steps
        if self._guard and not math.isfinite(taken[0]):
            taken = 0.0, 0
        self.loss_sum.zero_()
        self.loss_steps = 0
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides what happens next, in tensors and plain containers."""
        return {
            "model": split_weights.parts_here(self.model.state_dict()),
            "optimizer": split_weights.parts_here(self.optimizer.state_dict()),
            "split": self._splitting() if self.is_split else [],
            "scaler": self.scaler.state_dict(),
            "random": self.random.state_dict(),
            "memory": memory_of(self.model),
            "dynamics": self.dynamics.state_dict() if self.dynamics else {},
            "inner_loop": self.inner_loop.state_dict() if self.inner_loop else {},
            "loss": [float(self.loss_sum), self.loss_steps],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.model.load_state_dict(split_weights.model_state(self.model, state["model"]))
        self.optimizer.load_state_dict(split_weights.optimizer_state(self.optimizer, state["optimizer"]))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.random.load_state_dict(state["random"])
        remember(self.model, tuple(tensor.to(self.device) for tensor in state["memory"]))
        if self.dynamics:
            self.dynamics.load_state_dict(state["dynamics"])
        if self.inner_loop and state["inner_loop"]:  # else the run went on to here without it
            self.inner_loop.load_state_dict(state["inner_loop"])
        loss_sum, self.loss_steps = state["loss"]
        self.loss_sum.fill_(loss_sum)

    def weights(self, which: str) -> AbstractContextManager[None]:
        """Return a context with the "slow" or the "averaged" weights in the model."""
        return self.optimizer.slow_weights() if which == "slow" else self.optimizer.averaged_weights()

    def _aside(self, split: Sequence[list[int]]) -> dict[str, float]:
        """Measure without touching the random numbers of the training."""
        with RandomState(derive_seed(self.config.run.seed, "inner loop"), self.device).active():
            return self._measure(split)

    def _descend(self, task: Minimisation) -> Tensor:
        """Leave the gradients of the loss."""
        self.optimizer.zero_grad()
        with self._precision():
            loss = task.loss(self._forward, self._batch)
        self.scaler.scale(loss).backward()
        return loss

    def _play(self, task: Game) -> Tensor:
        """Take the updates of a fast step, but for the last step.

        Inside the optimizer's step, which notes the slow weights before the first fast step moves any.
        """
        with self.random.active():
            loss = play(task.updates(self.model, self._batch), self.model, self.optimizer.inner, self._precision)
        self._count(loss)
        return loss

    def _count(self, loss: Tensor) -> None:
        """Before the sync, which belongs to this step."""
        self.loss_sum += loss.detach()
        self.loss_steps += 1

    def _probe(self, step: int) -> None:
        """Compute gradients on the samples of the fast step to come, which this round was not trained on."""
        assert self._minimisation is not None, "the settings refuse to measure alpha in a game"
        batch = self._to_device(self.task.train_batch(self._sampler.batch(step)))
        random = RandomState(derive_seed(self.config.run.seed, "probe", self.communicator.rank, step), self.device)
        with random.active(), memory_restored(self.model):
            with self._precision():
                loss = self._minimisation.loss(self._forward, batch)
            # Only the ratio of two sums of these gradients counts, so that a scale for half precision may stay.
            self.scaler.scale(loss).backward()

    def _splitting(self) -> list[Any]:
        """Return how many processes have the weights together, and the names of what is split."""
        names = [name for name, tensor in self.model.state_dict().items() if is_sharded(tensor)]
        return [self.communicator.axis(AXIS).size, names]

    def _build_model(self) -> torch.nn.Module:
        model = initial_model(self.config, self.task).to(self.device)
        return model.to(memory_format=torch.channels_last) if self.config.performance.channels_last else model

    def _compiled(self) -> torch.nn.Module:
        if not self.config.performance.compile:
            return self.model
        compiled = torch.compile(self.model)
        assert isinstance(compiled, torch.nn.Module)
        return compiled

    def _set_rates(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor

    def _to_device(self, batch: Batch) -> Batch:
        return tuple(self._placed(tensor) for tensor in batch)

    def _placed(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device, non_blocking=True)
        images = self.config.performance.channels_last and tensor.dim() == 4
        return tensor.contiguous(memory_format=torch.channels_last) if images else tensor

    def _precision(self) -> AbstractContextManager[Any]:
        dtype = AUTOCAST.get(self.config.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)


def initial_model(config: Config, task: Task) -> torch.nn.Module:
    """Return a new model on the CPU, with the initial weights of the run: all agents draw the same ones."""
    with RandomState(derive_seed(config.run.seed, "model"), torch.device("cpu")).active():
        return task.model()


def all_weights(agents: list[Agent], which: str) -> ExitStack:
    """Enter the slow or averaged weights on all agents of this process together: averaging is a collective."""
    stack = ExitStack()
    for agent in agents:
        stack.enter_context(agent.weights(which))
    return stack
