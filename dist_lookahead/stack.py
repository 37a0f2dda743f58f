"""The stack: levels bound to weights and a communicator.

One stack owns all slow weights, so that a level which fires can overwrite those of every level below it. (Wrapping
one Lookahead optimizer in another does not do that: the inner slow weights go stale when the outer ones move.)
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from dist_lookahead import overlap, slow_state
from dist_lookahead.agreement import described_training
from dist_lookahead.binding import bind_levels
from dist_lookahead.bound_level import BoundLevel
from dist_lookahead.bucket import Bucket
from dist_lookahead.comm.communicator import CollectiveError, Communicator, Pending
from dist_lookahead.failure import lost
from dist_lookahead.fast_buffers import FastBuffers, fast_rates
from dist_lookahead.flight import Flight
from dist_lookahead.guard import Guard
from dist_lookahead.inventory import Inventory
from dist_lookahead.level import Level, check_levels
from dist_lookahead.line_search import LineSearch, Probe
from dist_lookahead.mail import Mail
from dist_lookahead.mass import Masses
from dist_lookahead.model_buffers import ModelBuffers
from dist_lookahead.observer import Observer
from dist_lookahead.offload import check_offload
from dist_lookahead.one_pass import way
from dist_lookahead.pace import mail_fields
from dist_lookahead.post import Post
from dist_lookahead.roster import describe
from dist_lookahead.same_weights import Differing, require_same_weights, settle_weights

FORMAT = 1  # of the state dict


class LevelStack:
    """Levels, innermost first, over the parameters of an optimizer.

    `DistributedLookahead` calls `begin_step` and `end_step` around each fast step. The stack is a `Stateful`
    (`state_dict`, `load_state_dict`) for `torch.distributed.checkpoint`.

    Args:
        inner: the fast optimizer; its trainable parameters are averaged.
        levels: innermost first.
        communicator: this agent's end.
        model: gives names, buffers to average, and all weights that agents take from agent 0 at construction.
        average_buffers: average the model's floating point buffers at the outermost sync.
        check_every: compare a checksum of the weights between agents after every so many syncs of a level (always
            after its first); 0 for never again.
        differing: what to do where they differ: "stop", or repair from the "majority" or, without one, the "lowest".
        probe: computes gradients for levels with alpha=Optimal.
        data_parallel: axis along which agents share their gradients in each fast step, and so their weights.
        everybody: this process's end of all processes, where an agent is several, over which buffers are averaged.
        offload: "cpu" keeps slow weights and slow momentum in host memory.
        guard: leaves weights that are not finite out of means.
        recoverable: averages work on copies, so that the fast weights are whole where one fails.
        take: start from the weights of agent 0, else from this agent's own.
    """

    def __init__(
        self,
        inner: Optimizer,
        levels: Sequence[Level],
        *,
        communicator: Communicator,
        model: nn.Module | None = None,
        average_buffers: bool = True,
        check_every: int = 0,
        differing: Differing = "stop",
        probe: Probe | None = None,
        data_parallel: str | None = None,
        everybody: Communicator | None = None,
        offload: str | None = None,
        guard: Guard | None = None,
        recoverable: bool = False,
        take: bool = True,
    ) -> None:
        levels = check_levels(levels)
        check_offload(offload, levels)
        self.inner = inner
        # A compiled module wraps the model; what is saved must not depend on that.
        self.model = model = getattr(model, "_orig_mod", model)
        self.communicator = communicator
        self.everybody = everybody or communicator
        self.average_buffers = average_buffers
        self.check_every = check_every
        self.differing: Differing = differing
        self.clock = 0
        self.observer: Observer | None = None
        self.mail = Mail(communicator.rank, communicator.size, mail_fields(levels, guard))
        self.offload, self.guard, self.recoverable = offload, guard, recoverable
        self._near = communicator.axis(data_parallel) if data_parallel else None
        self.bound: list[BoundLevel] = []
        self.inventory = Inventory(inner, model, communicator, self.bound, self.mail.length)
        cells = self.inventory.cells(levels)
        kept = {"offload": bool(offload), "guard": guard, "recoverable": recoverable}
        self.bound += bind_levels(check_levels(levels, cells), communicator, data_parallel, cells, **kept)
        self.masses = Masses([(bound.mass, bound.buckets) for bound in self.bound if bound.mass])
        self.fast_buffers = FastBuffers(
            inner, remember=any(b.watch or b.level.fast_buffers == "reset" for b in self.bound)
        )
        self.post = Post(self.mail, communicator, self.fast_buffers)
        self.model_buffers = ModelBuffers(model)
        self.line_search = LineSearch(levels, probe, model)
        self._follows_lr = any(level.move.follow_lr for level in levels)
        self._rates: list[Any] = []
        communicator.run(self._open(take))

    @property
    def levels(self) -> tuple[Level, ...]:
        """The descriptions."""
        return tuple(bound.level for bound in self.bound)

    @property
    def buckets(self) -> list[Bucket]:
        """The weights of all levels."""
        return self.inventory.buckets

    @property
    def flags(self) -> tuple[int, ...]:
        """What each agent has said by `raise_flag`, in the last sync."""
        return self.post.flags

    @property
    def next_due(self) -> int:
        """The fast step before which no level fires, and nothing under way is waited for."""
        return overlap.next_stop(self.bound)

    @property
    def settled(self) -> bool:
        """Whether all levels have fired after the last fast step."""
        return all(bound.last == self.clock for bound in self.bound)

    @property
    def rates(self) -> list[float | None]:
        """Fast learning rates of the last fast step, per parameter group; [] where no level follows them."""
        return [None if rate is None else float(rate) for rate in self._rates]

    def begin_step(self) -> None:
        """Before a fast step: note the learning rates; before the first one, capture the slow weights."""
        self.refresh()
        for bound in self.bound:
            bound.begin_round(self.clock, self.inner.param_groups[0].get("lr"))
        if self._follows_lr:
            self._rates = fast_rates(self.inner)
        self.masses.put_in()

    def end_step(self) -> None:
        """After a fast step: fire the levels that are due."""
        self.clock += 1
        for bound in self.bound:
            bound.pace.step()
        if self.clock >= self.next_due and ((due := self._due()) or overlap.is_awaited(self.bound, self.clock)):
            self.communicator.run(self._sync(due))
        else:
            self.masses.take_out()

    def end_round(self) -> Pending:
        """Come to the next sync without a fast step, and fire the levels that are due."""
        self.begin_step()
        self.clock = max(self.next_due, self.clock + 1)
        yield from self._sync(self._due())

    def flush(self) -> None:
        """Land what is under way, and fire every level that has not fired after the last fast step, out of turn."""
        self.masses.put_in()
        due = [bound for bound in self.bound if bound.fired != self.clock]
        self.communicator.run(self._sync(due, at_once=True))

    def catch_up(self) -> None:
        """Fire the levels whose sync has failed since the last fast step."""
        if due := [bound for bound in self._due() if bound.fired < self.clock]:
            self.communicator.run(self._sync(due))

    def raise_flag(self, value: int) -> None:
        """Tell all agents a small number, at most 2^24 - 1, with the next sync; they find it in `flags`.

        It goes with the mail of exact averages: where all levels gossip it reaches nobody.
        """
        self.mail.outgoing["flag"] = value

    def _due(self) -> list[BoundLevel]:
        """The levels that fire now: a level can only fire on the result of those below that share its weights."""
        due: list[BoundLevel] = []
        for bound in self.bound:
            below = [lower for lower in self.bound[: bound.index] if lower not in due]
            if self.clock >= bound.due and not any(lower.shares(bound) for lower in below):
                due.append(bound)
        return due

    def _sync(self, due: Sequence[BoundLevel], at_once: bool = False) -> Pending:
        self.inventory.require_live()
        joining = self.inventory.joining()
        self.post.begin("\n".join(describe(joining)))
        buckets = self.inventory.of([*due, *(bound for bound in self.bound if bound.flight)])
        self.inventory.gather(buckets)
        yield from self._check_shared_gradients(due)
        landed = []
        for bound, stage in self._stages(due, at_once):
            try:
                yield from stage
            except CollectiveError as error:
                raise lost(bound, self.communicator, error, step=self.clock, left=self._fall_back(bound)) from error
            except Exception:  # agents that differ, where all of them come here; or a probe that fails
                self._fall_back(bound)
                raise
            landed += [bound] * (bound.flight is None)
        self.inventory.scatter(buckets)
        self.masses.take_out()
        # Parameters join with mail that speaks of them, and never under an average that has begun without them.
        if not any(bound.flight or (bound.hearing and not self.mail.tells_of_joining()) for bound in self.bound):
            yield from self.inventory.join(joining, landed)

    def _stages(self, due: Sequence[BoundLevel], at_once: bool) -> Iterator[tuple[BoundLevel, Pending]]:
        """What happens at a sync: averages under way go on or land, then levels fire, each on what is below it."""
        for bound, flight, lands in overlap.under_way(self.bound, self.clock, at_once):
            yield bound, self._land(bound, flight) if lands else self._go_on(bound, flight)
        for bound in due:
            below = any(bound.shares(other) for other in due if other.index > bound.index)
            yield bound, self._fire(bound, at_once or below)

    def _fire(self, bound: BoundLevel, at_once: bool) -> Pending:
        self._observe("before", bound)
        flight = overlap.depart(bound, self.clock, self.rates, at_once)
        yield from self._go_on(bound, flight) if flight.delayed else self._land(bound, flight)

    def _go_on(self, bound: BoundLevel, flight: Flight) -> Pending:
        if not flight.begun:
            overlap.begin(bound, *self.post.send(bound, self.clock))
        yield from flight.go_on(self.clock)

    def _land(self, bound: BoundLevel, flight: Flight) -> Pending:
        yield from self._go_on(bound, flight)
        yield from overlap.arrive(bound)
        # A sharded sum holds this agent's part of the tail only: the rest comes with the other parts.
        if bound.reads_first:
            self.post.read(bound, flight.tail, self.clock)
        self._observe("averaged", bound)
        bound.coefficients = yield from self.line_search.coefficients(bound, flight.step)
        bound.move(flight.rates)
        yield from bound.mixer.distribute(bound.fast)
        if not bound.reads_first:
            self.post.read(bound, flight.tail, self.clock)
        bound.commit(self.clock)
        if bound.alike and self._checks(bound.rounds):
            where = f"levels[{bound.index}] after fast step {self.clock}"
            yield from settle_weights(bound, where, self.differing)
        ways = overlap.ways(bound, self.clock)
        yield from self._settle_below(bound, ways)
        if bound is self.bound[-1]:
            yield from self._settle_buffers(bound)
        self._observe("after", bound)
        overlap.settle(bound, ways)

    def _settle_below(self, bound: BoundLevel, ways: Sequence[Tensor] | None) -> Pending:
        """All below the level take its weights, or move as it has; fast buffers are kept, reset or averaged."""
        reset = bound.left_out or bound.level.fast_buffers == "reset"
        bound.lead(self.bound[: bound.index], ways, reset_momentum=reset)
        if reset:
            self.fast_buffers.reset([bucket for bucket in self.buckets if bucket not in bound.buckets])
        elif bound.level.fast_buffers == "average" and bound.mixer.group:
            yield from self.fast_buffers.average(bound.mixer.group, bound.buckets)

    def _settle_buffers(self, bound: BoundLevel) -> Pending:
        if any(below.watch for below in self.bound):  # an agent may have been poisoned since a level looked
            self.model_buffers.mend()
        if (bound.mixer.group or self.everybody.size > self.communicator.size) and self.average_buffers:
            yield from self.model_buffers.average(self.everybody)
        self.model_buffers.capture()

    def _check_shared_gradients(self, due: Sequence[BoundLevel]) -> Pending:
        """Weights that differ where gradients are said to be shared would be mixed up by a sync that relies on it."""
        if self._near and any(self._checks(bound.rounds + 1) for bound in due):
            where = f"before the sync after fast step {self.clock}, along the axis of data_parallel"
            yield from require_same_weights(self._near, self.buckets, where)

    def _checks(self, rounds: int) -> bool:
        return rounds == 1 or (self.check_every > 0 and rounds % self.check_every == 0)

    def _observe(self, moment: Literal["before", "averaged", "after"], bound: BoundLevel) -> None:
        if self.observer:
            getattr(self.observer, moment)(bound)

    def _open(self, take: bool) -> Pending:
        """Agree on levels and weights, and capture the slow weights."""
        names = ("average_buffers", "check_every", "differing", "recoverable")
        rest = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        devices = {parameter.device for group in self.inner.param_groups for parameter in group["params"]}
        lines = [*described_training(self.communicator.mesh, self.levels, self.inner), rest, way(devices)]
        yield from self.inventory.open(lines, take=take)
        self._capture()

    def refresh(self) -> None:
        """Before the first fast step: capture the slow weights again, weights may have been loaded or moved."""
        if self.clock > 0:
            return
        self.inventory.require_live()
        self.inventory.refit()
        self._capture()

    def _capture(self) -> None:
        for bound in self.bound:
            bound.follow(bound.buckets)
        self.model_buffers.capture()

    def _fall_back(self, bound: BoundLevel) -> str:
        """Leave whole weights in the model where an average has failed, if there are any; say which."""
        moved, mixed = bound.landed == self.clock, bound.flight is not None and bound.flight.arrived
        bound.flight = None
        if bound.recoverable and not (moved or mixed):
            return "the model has its fast weights still"
        if not bound.slow or bound.mixer.shards > 1:
            return "the model's weights may be partly summed: go on from a checkpoint"
        for bucket, slow in zip(bound.buckets, bound.slow, strict=True):
            bucket.fast.copy_(slow)
            bucket.scatter()
        bound.lead(self.bound[: bound.index] if moved else [])
        return f"the model is back at the slow weights of fast step {bound.last}"

    def state_dict(self) -> dict[str, Any]:
        """Return clock, slow weights, slow momentum and counters, in tensors and plain containers."""
        return {
            "format": FORMAT,
            "clock": self.clock,
            "rates": self.rates,
            "parameters": self.inventory.names,
            "covers": self.inventory.covers,
            "levels": slow_state.save(self.bound),
            "buffers": dict(self.model_buffers.slow),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned. Load the model's weights too: the fast weights are there.

        Raises:
            ValueError: for another format, other levels, unknown parameters, or another agent's part.
        """
        if state_dict.get("format") != FORMAT:
            raise ValueError(f"state of format {state_dict.get('format')!r}; this version reads format {FORMAT}")
        slow_state.require_levels(self.bound, state_dict["levels"])
        everywhere = [list(range(len(self.bound)))] * len(state_dict["parameters"])  # before there were fragments
        self.inventory.restore(state_dict["parameters"], state_dict.get("covers", everywhere))
        slow_state.load(self.bound, state_dict["levels"])
        self.clock, self._rates = state_dict["clock"], list(state_dict["rates"])
        self.model_buffers.slow = {name: tensor.clone() for name, tensor in state_dict["buffers"].items()}
