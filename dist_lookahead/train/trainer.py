"""The training loop: fast steps of the agents of this process, syncs, evaluations, checkpoints, and the way out."""

import math
import time
from collections.abc import Callable, Sequence

from dist_lookahead.comm.communicator import CollectiveError
from dist_lookahead.failure import SyncError
from dist_lookahead.guard import PoisonedError
from dist_lookahead.same_weights import WeightsDifferError
from dist_lookahead.tasks.task import Task
from dist_lookahead.train.agent import Agent, all_weights
from dist_lookahead.train.config import Config
from dist_lookahead.train.course import Course
from dist_lookahead.train.eras import Eras
from dist_lookahead.train.exchange import sum_over_agents
from dist_lookahead.train.history import History
from dist_lookahead.train.inner_loop import as_record, window
from dist_lookahead.train.outcome import Outcome, gradient_bytes, longest_tau
from dist_lookahead.train.picture_grid import write_grid
from dist_lookahead.train.progress import ProgressDisplay
from dist_lookahead.train.recorder import Recorder
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.signals import STOPPING, StopRequest
from dist_lookahead.train.stopwatch import Spent, Stopwatch
from dist_lookahead.train.turns import take_steps
from dist_lookahead.train.world import World

STRETCH = 16  # fast steps of a simulated agent at most: a signal and the progress bar wait for those of all agents


class DivergedError(RuntimeError):
    """The training loss is not a number any more."""


class Trainer:
    """A run: the agents of this process and its files.

    Args:
        config: the run.
        task: what to train.
        world: the agents' communicators and the device.
        directory: where the results go.
        resume: go on from the newest checkpoint in the directory, if there is one.
    """

    def __init__(
        self, config: Config, task: Task, world: World, directory: RunDirectory, *, resume: bool = False
    ) -> None:
        config.check(device=world.device.type, samples=task.samples, agents=world.agents)
        self.config, self.world, self.directory = config, world, directory
        self.agents = [Agent(config, task, c, world.device) for c in world.communicators]
        self.history = History(config, directory, self.agents)
        self.step = self.start = self.history.restore(self._plan) if resume else self.history.begin(self._plan)
        self.progress = self._open_progress()
        self.recorder = self._open_recorder() if world.leads else None
        self.watch = Stopwatch(world.communicators)  # of a round; evaluations and checkpoints belong to none

    def _open_progress(self) -> ProgressDisplay:
        mode = self.config.logging.progress if self.world.leads else "off"
        return ProgressDisplay(self.config.run.name, total=self.course.total, start=self.step, mode=mode)

    def _plan(self, eras: Eras) -> Course:
        """Find out how far the run is when, before the state of agents is loaded."""
        self.course = Course(self.config, samples=self.agents[0].task.samples, eras=eras)
        if probe := self.config.probe:
            start, end = window(probe.start, probe.end, self.config.levels_stack()[-1].when, self.course.total)
            for agent in self.agents:
                agent.watch_inner_loop(start=start, end=end)
        return self.course

    def run(self) -> Outcome:
        """Train to the end, or to the sync after a signal.

        Raises:
            SyncError: an agent was lost or late.
            DivergedError: the loss is not finite.
        """
        begun = time.perf_counter()
        self._say_where_it_starts()
        for agent in self.agents:
            agent.begin(self.step, self.course.eras)
        self.watch.start()
        self.world.phase.step, self.world.phase.usual = self.step, "computing"
        try:
            with StopRequest(grace=self.config.checkpoint.grace, on_expire=self._too_late) as stop:
                signum = self._loop(stop)
                stop.done()  # what is left takes the time that it needs
                if signum is None:
                    self._finish()
                self._save()
        except CollectiveError as error:  # of the metrics: those of a sync come as SyncError
            raise SyncError(
                f"a sum over the agents after fast step {self.step} failed: {error.who}. "
                f"{self.history.where_to_go_on()}. Cause: {error}",
                error.absent,
            ) from error
        except (SyncError, WeightsDifferError, PoisonedError, OSError) as error:  # of a full disk
            error.add_note(self.history.where_to_go_on())
            raise
        finally:
            for agent in self.agents:
                agent.end()
            self.progress.close()
            if self.recorder:
                self.recorder.close()
        return self._outcome(signum, time.perf_counter() - begun)

    def _loop(self, stop: StopRequest) -> int | None:
        """Take fast steps until the end, or until agents have told each other of a signal; return that."""
        joined = self.world.company.enter(self.agents[0].optimizer)
        signum = self._arrive(self.step, stop, others=True) if joined else 0
        while self.step < self.course.total and not signum:
            until = self._pause()
            others = self._through(lambda until=until: self._train(until))
            signum = self._arrive(until, stop, others=others)
        return signum or None

    def _arrive(self, step: int, stop: StopRequest, *, others: bool) -> int:
        """Do what is due after fast steps, at their sync or not; return the signal at which all stop here, or 0."""
        self.step = self.world.phase.step = self.agents[0].optimizer.stack.clock if others else step
        if others:
            self._go_on_with_others()
        for agent in self.agents:
            agent.look_after_sync()
        if self.agents[0].synced:
            self.world.company.together(self._after_sync)
        if self.history.is_due(self.step):
            self._count_round()
            self._save()
            self.watch.start()
        self.progress.step(self.step)
        if self.history.may_save and (signum := self._agreed_signal()):
            return signum
        if stop.signal is not None:
            for agent in self.agents:
                agent.optimizer.stack.raise_flag(stop.signal)
        return 0

    def _save(self) -> None:
        with self.world.phase("saving a checkpoint"):
            self.history.save(self.step)

    def _agreed_signal(self) -> int:
        """Return the signal that all agents have heard of with the last sync, 0 without one."""
        stack = self.agents[0].optimizer.stack
        if not self.agents[0].is_split or stack.bound[0].landed != self.step:
            return max(stack.flags)
        # A signal has travelled among the processes with the same part of the weights; all must stop together.
        heard = [[float(signum in stack.flags) for signum in STOPPING]]
        counts = sum_over_agents(self.world.communicators, heard, self.world.device)
        return next((int(signum) for signum, count in zip(STOPPING, counts, strict=True) if count), 0)

    def _train(self, until: int) -> None:
        factors = [self.course.rate_factor(step) for step in range(self.step, until)]
        take_steps(self.agents, self.world.communicators, factors)

    def _pause(self) -> int:
        """Return the fast step up to which agents train before anything else happens.

        Simulated agents take several steps each before the next one has its turn: what one works on stays in the
        processor's cache. They meet at the sync only, so that the order makes no difference.
        """
        if len(self.agents) == 1:
            return self.step + 1
        checkpoint = self.config.checkpoint.every
        due = max(self.agents[0].optimizer.stack.next_due, self.step + 1)
        return min(due, (self.step // checkpoint + 1) * checkpoint, self.course.total, self.step + STRETCH)

    def _after_sync(self) -> None:
        spent = self._count_round()
        self.history.all_agents_passed()
        syncs = self.agents[0].optimizer.stack.bound[-1].rounds
        if syncs % self.config.logging.every == 0:
            self._report_sync(syncs, spent)
        self._report_inner_loop()
        if self.course.period and self.history.next_evaluation <= self.step < self.course.total:
            self._evaluate()
            self.history.next_evaluation = self.course.next_evaluation(self.step)
        self.watch.start()

    def _finish(self) -> None:
        """Synchronise the last, partial round, or land what is in flight, and evaluate."""
        if not self.agents[0].optimizer.stack.settled:
            while self._through(lambda: [agent.optimizer.sync() for agent in self.agents]):
                self._go_on_with_others()
            for agent in self.agents:
                agent.look_after_sync()
            self.world.company.together(self._after_sync)
        while not self.world.company.together(self._evaluate):
            self.world.company.regroup(self.agents[0].optimizer)
            self._go_on_with_others()

    def _through(self, take: Callable[[], object]) -> bool:
        """Take fast steps or a sync; return whether the agents are others now."""
        return self.world.company.through(self.agents[0].optimizer, take)

    def _go_on_with_others(self) -> None:
        """Share the work anew with the agents that are there now."""
        while not self.world.company.together(self._meet_others):
            self.world.company.regroup(self.agents[0].optimizer)

    def _meet_others(self) -> None:
        self._count_round()
        (agent,), before = self.agents, self.world.agents
        communicator = agent.optimizer.stack.communicator
        eras = self.history.meet(communicator, self.step)
        self.world.communicators[0] = communicator
        self._plan(eras)
        agent.meet(communicator, self.step, eras)
        self.world.company.on_change()
        self.watch.start()
        self._hand_over_records()
        if self.recorder:
            self.recorder.record("agents", self.step, {"agents": eras.agents, "before": before})

    def _hand_over_records(self) -> None:
        """Keep the records where this is the first agent now; one that was, and was left out, keeps them no more."""
        if self.recorder and not self.world.leads:
            self.recorder.close()
            self.recorder = None
        elif self.world.leads and not self.recorder:
            self.recorder = self._open_recorder()
        self.progress.close()
        self.progress = self._open_progress()

    def _report_sync(self, syncs: int, spent: Spent) -> None:
        """Sum over the agents what they measured since the last report, and write it down."""
        rows = [[*a.take_loss(), *(a.dynamics.sums() if a.dynamics else ())] for a in self.agents]
        loss_sum, steps, *moved = self._reported(rows)
        if not steps:  # what was under way has landed at the end, after a report of the same fast step
            return
        if not math.isfinite(loss_sum):
            raise DivergedError(
                f"the loss is {loss_sum / steps} in the round before fast step {self.step}: lower inner.lr or "
                f"levels.beta. {self.history.where_to_go_on()}"
            )
        lead = self.agents[0]
        alpha, beta = lead.optimizer.stack.bound[-1].coefficients
        values = {
            **self._spent(),
            "syncs": syncs,
            "loss": loss_sum / steps,
            "lr": lead.optimizer.param_groups[0]["lr"],
            "alpha": alpha,
            "beta": beta,
            "seconds_compute": spent.seconds - spent.syncing,
            "seconds_sync": spent.syncing,
            "seconds_exposed": spent.exposed,
            **(lead.dynamics.report(moved, self.world.agents) if lead.dynamics else {}),
        }
        self.progress.values({"loss": values["loss"]})
        if self.recorder:
            self.recorder.record("sync", self.step, values)

    def _reported(self, rows: Sequence[Sequence[float]]) -> list[float]:
        """Sum over the agents; their waiting for it belongs to the training."""
        watch = Stopwatch(self.world.communicators)
        sums = sum_over_agents(self.world.communicators, rows, self.world.device)
        self.history.count(watch.spent)
        return sums

    def _report_inner_loop(self) -> None:
        """Sum over the agents what they measured within the round, and write it down."""
        if not (watches := [agent.inner_loop for agent in self.agents if agent.inner_loop]):
            return
        task = self.agents[0].task
        moments, rows = watches[0].moments(self.step), [watch.take(self.step, task.measures) for watch in watches]
        if not moments:
            return
        totals = sum_over_agents(self.world.communicators, rows, self.world.device)
        if self.recorder:
            self.recorder.record("probe", self.step, as_record(moments, totals, task.measures, task.report))

    def _evaluate(self) -> None:
        """Measure at all weights that are asked for, then record: an agent that is lost meanwhile leaves no half."""
        with self.world.phase("evaluating"):
            found = {which: self._metrics_at(which) for which in self.config.evaluation.weights}
        self.history.metrics.update(found)
        for which, metrics in found.items():
            self.progress.tested(metrics)
            if self.recorder:
                self.recorder.record("evaluation", self.step, {"weights": which, **self._spent(), **metrics})

    def _metrics_at(self, which: str) -> dict[str, float]:
        with all_weights(self.agents, which):
            sums = [agent.evaluate() for agent in self.agents]
            self._draw_pictures(which)
        names = self.agents[0].task.measures
        rows = [[own.get(name, 0.0) for name in names] for own in sums]
        totals = sum_over_agents(self.world.communicators, rows, self.world.device)
        return self.agents[0].task.report(dict(zip(names, totals, strict=True)))

    def _spent(self) -> dict[str, float]:
        """What the run has cost so far: curves are drawn against it."""
        return {
            "epoch": self.course.epochs(self.step),
            "seconds": self.history.seconds,
            "bytes_sent": self.history.bytes_sent(),
        }

    def _count_round(self) -> Spent:
        """Count what has passed since the watch was started, once: what follows may be given up with an agent."""
        self.watch.leave_out(sum(agent.inner_loop.take_seconds() for agent in self.agents if agent.inner_loop))
        self.history.count(spent := self.watch.spent)
        self.watch.start()
        return spent

    def _draw_pictures(self, which: str) -> None:
        if self.world.leads and (images := self.agents[0].pictures()) is not None:
            write_grid(images, self.directory.picture(self.step, which))

    def _open_recorder(self) -> Recorder:
        self.directory.open(self.config)
        events = self.directory.tensorboard if self.config.logging.tensorboard else None
        return Recorder(self.directory.metrics, events, start=self.step)

    def _say_where_it_starts(self) -> None:
        agents = f"{self.world.agents} agent{'s' if self.world.agents > 1 else ''}"
        self.progress.say(
            f"{self.config.run.name}: {agents} on {self.world.device}, {self.course.total} fast steps"
            + (f", going on after step {self.start}" if self.start else "")
            + f"; results in {self.directory.path}"
        )

    def _too_late(self, signum: int) -> None:
        if self.world.leads:
            print(  # noqa: T201 - the console may be locked by the thread that is blocked
                f"\nSignal {signum}: no sync within checkpoint.grace={self.config.checkpoint.grace} s of it, so this "
                f"run ends without saving fast step {self.step}. {self.history.where_to_go_on()}",
                flush=True,
            )

    def _outcome(self, signum: int | None, seconds: float) -> Outcome:
        stack = self.agents[0].optimizer.stack
        return Outcome(
            signal=signum,
            step=self.step,
            metrics=self.history.metrics,
            seconds=seconds,
            steps_here=self.step - self.start,
            syncs=stack.bound[-1].rounds,
            total_seconds=self.history.seconds,
            exposed_seconds=self.history.exposed_seconds,
            tau=longest_tau(self.config.levels_stack()),
            bytes_sent=self.history.bytes_sent(),
            ddp_bytes=self.course.ddp_bytes(self.step, gradient_bytes(stack)),
        )
