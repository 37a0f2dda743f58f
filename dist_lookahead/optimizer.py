"""The optimizer shell: a torch optimizer made of a fast optimizer and a stack of levels."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dist_lookahead import swap
from dist_lookahead.agreement import refused_together
from dist_lookahead.comm.communicator import CollectiveError, Communicator
from dist_lookahead.comm.process_group import default_communicator
from dist_lookahead.failure import SyncError
from dist_lookahead.filling_step import is_filling
from dist_lookahead.guard import Guard
from dist_lookahead.join import join
from dist_lookahead.level import Level
from dist_lookahead.offload import Offload
from dist_lookahead.recovery import rebound, why_not_recoverable
from dist_lookahead.replicas import everybody_in, replicas
from dist_lookahead.same_weights import DIFFERING, Differing
from dist_lookahead.scaled_step import closure_after, scaled_step
from dist_lookahead.stability import instabilities
from dist_lookahead.stack import LevelStack


class DistributedLookahead(torch.optim.Optimizer):
    """Fast steps of any optimizer, and slow updates by a stack of levels, behind the interface of one optimizer.

    Each `step` is a step of `inner`. Where a level is due, the agents communicate and the slow update follows:
    z <- z + alpha (mean_i x_i - z), x_i <- z, or what the levels say. Nothing else communicates. No model wrapper is
    needed: leave DistributedDataParallel out.

    At construction all agents compare parameters and levels and take the weights of agent 0.

    Args:
        inner: the fast optimizer, before its first step.
        levels: from a recipe such as `slowmo(tau=12)`, or a list of `Level`, innermost first.
        model: gives parameters their names, and the buffers to average; all its weights are taken from agent 0.
            Without it only the optimizer's parameters are looked after.
        mesh: of all processes, a `Mesh` or torch's own `DeviceMesh`, whose axes levels may average along; by default
            "node" and "local", torchrun's nodes and the processes on each of them. Parameters may be split along one of
            them by `fully_shard`: an agent is then all processes along it, and levels average along the others.
        communicator: this agent's end, for simulated agents; by default that of the default process group over the
            mesh, or of a single agent.
        data_parallel: axis of the mesh along which agents average their gradients in each fast step already, by DDP
            over that axis's process group for instance. They hold the same weights, which go far once for all of them.
        model_buffers: "average" floating point buffers (BatchNorm statistics) over the agents at the outermost
            sync, or leave them "local".
        check_every: compare a checksum of the weights between agents after every so many syncs; 0 for the first
            sync only.
        differing: what to do where they differ, "stop" with an error, or repair the parameter from the "majority" of
            the agents; without one that stops too, and "lowest" takes the lowest rank's.
        offload: "cpu" keeps slow weights and slow momentum in page-locked host memory, and streams them through the
            GPU at each sync, with the same numbers; without effect for parameters on the CPU.
        guard: `Guard()` leaves agents whose weights are not finite out of the means, at no further message: they take
            the slow weights, and their fast optimizer begins anew. It can also clip outlying ones.
        recoverable: averages work on copies of the weights, one more copy of the model, so that agents go on without
            those that are lost, with nothing else lost (`regroup`, and `Survivors` for a whole training).
        probe: for levels with alpha=Optimal, a function that computes a loss at the model's present weights and calls
            backward(). It is called twice at each sync of such a level with the number of fast steps done, which must
            decide its samples: the same both times, and none of those that the round was trained on. Gradients, model
            buffers and random generators are put back afterwards.

    Raises:
        ValueError: for levels that do not fit together, parameters that cannot be averaged, and agents that differ.
        SyncError: from `step`, where agents are lost or late.
        PoisonedError: from `step`, with a guard, where no agent has finite weights.

    Example:
        >>> from dist_lookahead import lookahead
        >>> w = nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = DistributedLookahead(torch.optim.SGD([w], lr=0.25), lookahead(tau=2, alpha=0.5))
        >>> for _ in range(2):
        ...     w.grad = torch.ones(1)
        ...     optimizer.step()
        >>> w.item()
        0.75

    Reference: Wang, Tantia, Ballas and Rabbat, ICASSP 2020; arXiv 1907.08610; arXiv 1910.00643.
    """

    # GradScaler skips the step of other optimizers after an overflow. Agents overflow at different steps, and a step
    # that one of them skips would leave the others waiting at the next sync, so that skipping is done here.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        levels: Sequence[Level],
        *,
        model: nn.Module | None = None,
        mesh: Any = None,
        communicator: Communicator | None = None,
        data_parallel: str | None = None,
        model_buffers: Literal["average", "local"] = "average",
        check_every: int = 0,
        differing: Differing = "stop",
        offload: Offload | None = None,
        guard: Guard | None = None,
        recoverable: bool = False,
        probe: Callable[[int], object] | None = None,
    ) -> None:
        if mesh is not None and communicator is not None:
            raise ValueError(
                f"mesh={mesh} has no effect beside a communicator, which has its own: leave one of them out"
            )
        everybody = everybody_in(mesh) if communicator is None else communicator
        with refused_together(everybody):
            if not isinstance(inner, torch.optim.Optimizer) or isinstance(inner, DistributedLookahead):
                raise ValueError(
                    f"inner={type(inner).__name__}: give a plain torch optimizer, and all levels in one list (wrapping "
                    "a wrapper leaves the inner slow weights stale)"
                )
            if model_buffers not in ("average", "local"):
                raise ValueError(f"model_buffers={model_buffers!r} must be 'average' or 'local'")
            if check_every < 0:
                raise ValueError(f"check_every={check_every} must be at least 0")
            if differing not in DIFFERING:
                raise ValueError(f"differing={differing!r} must be one of {', '.join(map(repr, DIFFERING))}")
            if recoverable and (fault := why_not_recoverable(levels)):
                raise ValueError(fault)
            agents = replicas(inner, levels, everybody, data_parallel)
        self.inner = inner
        self.__setstate__({})
        with refused_together(agents):
            self.stack = LevelStack(
                inner,
                levels,
                communicator=agents,
                everybody=everybody,
                model=model,
                average_buffers=model_buffers == "average",
                check_every=check_every,
                differing=differing,
                offload=offload,
                guard=guard,
                recoverable=recoverable,
                probe=probe,
                data_parallel=data_parallel,
            )
        for sentence in instabilities(levels, inner, agents=self.stack.communicator.size):
            warnings.warn(sentence, stacklevel=2)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride] - live view
        """The inner optimizer's parameter groups themselves."""
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride] - a live view, never an alias
        """The inner optimizer's state itself."""
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride] - a live view
        """The inner optimizer's defaults themselves."""
        return self.inner.defaults

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride] - torch overloads it
        """Take a fast step, and fire the levels that are due.

        Args:
            closure: reevaluates the model and returns the loss, for inner optimizers that take one.
        """
        for before in self._optimizer_step_pre_hooks.values():
            closure = closure_after(before(self, (self, closure), {}), closure)
        if closure is None and is_filling(self.inner):
            return self.inner.step(closure)
        self.stack.begin_step()
        try:
            loss = self._fast_step(closure)
        except BaseException:
            self.stack.masses.take_out()
            raise
        if closure is not None:
            self.report(loss=loss)
        self.stack.end_step()
        for after in self._optimizer_step_post_hooks.values():
            after(self, (self, closure), {})
        return loss

    # Torch would wrap the step of every optimizer class to run hooks inside a profiler record, which takes longer than
    # a fast step of a small model. The inner step is wrapped so already, and runs the hooks common to all optimizers.
    step.hooked = True  # pyright: ignore[reportFunctionMemberAccess] - torch's own mark for "wrapped already"

    def report(self, *, loss: Tensor | float | None = None, samples: int | None = None) -> None:
        """Tell of the fast step to come, before `step`, what levels may want to know: it goes with their next sync.

        Where gradients of several batches add up, call it for each of them. It costs nothing where no level asks.

        Args:
            loss: mean training loss of the batch, for tau=AdaComm; a closure that is given to `step` tells it as well.
            samples: of the batch, >= 1, for Exact(weighted="samples"); or tokens, or what else the loss is a mean of.

        Raises:
            ValueError: for no samples; from `step`, where a level asks and was not told.

        Example:
            >>> from dist_lookahead import AdaComm, local_sgd
            >>> w = nn.Parameter(torch.tensor([2.0]))
            >>> levels = local_sgd(tau=AdaComm(start=4, interval=1))
            >>> optimizer = DistributedLookahead(torch.optim.SGD([w], lr=0.1), levels)
            >>> for _ in range(5):
            ...     optimizer.zero_grad()
            ...     loss = w.square().sum()
            ...     loss.backward()
            ...     optimizer.report(loss=loss)
            ...     optimizer.step()
            >>> optimizer.stack.bound[0].last, optimizer.stack.bound[0].due
            (4, 8)
        """
        if samples is not None and samples < 1:
            raise ValueError(f"samples={samples} of a batch must be at least 1: take no step without samples")
        for bound in self.stack.bound:
            bound.pace.report(loss=loss, samples=samples)

    def join(self) -> AbstractContextManager[None]:
        """Return a context for a loop over batches of which agents do not have equally many.

        An agent that leaves it early goes on meeting the others at their syncs, with weight 0, and takes what they
        agree on. When all have come to its end there is a last sync, and all hold the same weights. Nothing is sent
        besides the syncs: agents know how long a round is, and whose work is done comes with the mail of a sync.

        Outside of it, an agent that takes fewer steps than the others leaves them waiting until their timeout.

        Raises:
            ValueError: for levels at which an agent cannot stand still: those that average need Exact(weighted="steps")
                or "samples" over all agents, and nothing may depend on the fast learning rate.

        Example:
            >>> from dist_lookahead import Copy, Every, Exact, Level
            >>> w = nn.Parameter(torch.zeros(1))
            >>> levels = [Level(Every(2), Exact(weighted="steps"), Copy())]
            >>> optimizer = DistributedLookahead(torch.optim.SGD([w], lr=1.0), levels)
            >>> with optimizer.join():
            ...     for gradient in (1.0, 1.0, 4.0):  # this agent's batches
            ...         w.grad = torch.tensor([gradient])
            ...         optimizer.step()
            >>> optimizer.stack.clock  # the last round ended where it would have for others
            4
        """
        return join(self.stack)

    def sync(self) -> None:
        """Fire all levels now, on all agents: for the last, partial round of a training."""
        self.stack.flush()

    def regroup(self, communicator: Communicator | None = None) -> None:
        """Go on with the agents that are there now, on all of them, after others were lost or have come.

        Whoever has not landed a sync that agent 0 has takes its state; a sync that has failed is done again.

        Args:
            communicator: this agent's end; by default that of the default process group.

        Raises:
            SyncError: an agent is lost meanwhile; regroup once more.
            ValueError: for an optimizer that is not `recoverable`.
        """
        if not self.stack.recoverable:
            raise ValueError("regroup() needs DistributedLookahead(.., recoverable=True)")
        try:
            self.stack = rebound(self.stack, communicator or default_communicator())
        except CollectiveError as error:
            raise SyncError(f"agents were lost while others regrouped: {error.who}. Cause: {error}") from error
        self.stack.catch_up()

    def slow_weights(self) -> AbstractContextManager[None]:
        """Return a context with the outermost slow weights, and their BatchNorm statistics, in the model.

        It never communicates, so that one agent alone may evaluate.

        Raises:
            RuntimeError: in the middle of a round where nobody has all slow weights (`Copy`, or a sharded level).

        Example:
            >>> from dist_lookahead import lookahead
            >>> w = nn.Parameter(torch.tensor([1.0]))
            >>> optimizer = DistributedLookahead(torch.optim.SGD([w], lr=0.25), lookahead(tau=2))
            >>> w.grad = torch.ones(1)
            >>> optimizer.step()
            >>> with optimizer.slow_weights():
            ...     print(w.item())
            1.0
            >>> w.item()
            0.75
        """
        return swap.slow_weights(self.stack)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Return a context with the mean of all agents' fast weights in the model; a collective to enter."""
        return swap.averaged_weights(self.stack)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as the inner optimizer does it."""
        self.inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer; at the next sync it takes the agents' mean and joins all levels.

        Call it on all agents between the same two syncs.
        """
        self.inner.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state in the standard form, and the levels' under "levels"."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state: dict[str, Any] = {**self.inner.state_dict(), "levels": self.stack.state_dict()}
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Without "levels" (from a plain optimizer, or through `torch.distributed.checkpoint`, which carries the two
        standard keys only) the levels stay as they are: load `optimizer.stack` as well.
        """
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        if "levels" in state_dict:
            self.stack.load_state_dict(state_dict["levels"])
        self.inner.load_state_dict({key: value for key, value in state_dict.items() if key != "levels"})
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _fast_step(self, closure: Callable[[], float] | None) -> float | None:
        if closure is not None and self.stack.masses:
            raise ValueError(
                "step(closure) with mix=PushSum: the closure would see weights times their mass during the step; "
                "compute loss and gradients before step(), and give it no closure"
            )
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is None:
            return self.inner.step(closure)
        return scaled_step(self.inner, closure, found_inf, getattr(self, "grad_scale", None))

    def __getstate__(self) -> dict[str, Any]:
        # Not __dict__: learning rate schedulers store a bound `step` there, and a copy would step the original.
        return {"inner": self.inner, "stack": self.stack}

    def __repr__(self) -> str:
        levels = "\n".join(f"    {level}" for level in self.stack.levels)
        return f"DistributedLookahead(\n{levels}\n) around {self.inner!r}"
