"""What a run has behind it: its checkpoints, and the counts that go on when it is resumed."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dist_lookahead.comm.communicator import Communicator
from dist_lookahead.train.agent import Agent
from dist_lookahead.train.checkpoint import CheckpointStore, newest_common
from dist_lookahead.train.checkpoint_survey import Survey, passed_over, read_survey
from dist_lookahead.train.config import Config
from dist_lookahead.train.config_file import flat
from dist_lookahead.train.course import Course
from dist_lookahead.train.elastic import Legacy, chosen, eras_of, inherit, say_so
from dist_lookahead.train.eras import Eras
from dist_lookahead.train.exchange import fail_together, texts_of_agents
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.stopwatch import Spent

_log = logging.getLogger(__name__)

FORMAT = 1
FREE = (  # settings that may differ when a run goes on: they do not change what is computed, or on purpose
    "run.name",
    "run.dir",
    "run.device",
    "run.timeout",  # which older checkpoints have
    "run.epochs",
    "run.steps",
    "data.path",
    "corpus.path",
    "parallel_corpus.path",
    "parallel_corpus.workers",
    "parallel_corpus.pin_memory",
    "data.download",
    "images.path",
    "images.download",
    "images.judge_dir",
    "data.workers",
    "data.pin_memory",
    "evaluation",
    "probe",
    "checkpoint",
    "logging",
    "sync.check_every",
    "sync.offload",
    "faults",
)


class History:
    """Saves and restores the agents of this process.

    Args:
        config: the run.
        directory: its files.
        agents: of this process.
    """

    def __init__(self, config: Config, directory: RunDirectory, agents: Sequence[Agent]) -> None:
        self.metrics: dict[str, dict[str, float]] = {}
        self.next_evaluation = 0
        self.seconds = 0.0  # of training, without evaluations and checkpoints
        self.exposed_seconds = 0.0  # of them, blocked by collectives
        self._config = config
        self._agents = agents
        self._elastic = config.faults.agents == "elastic"
        self._directory = directory
        self._open_stores([agent.communicator for agent in agents])
        self._eras = Eras(((0, self._size),))
        self._last: int | None = None
        self._common = -1
        self._bytes_before = -agents[0].communicator.bytes_sent  # what the construction sent does not count

    def _open_stores(self, communicators: Sequence[Communicator]) -> None:
        self._size, checkpoint = communicators[0].size, self._config.checkpoint
        self._stores = [
            CheckpointStore(
                self._directory.checkpoints, end.rank, self._size, keep=checkpoint.keep, elastic=self._elastic
            )
            for end in communicators
        ]

    def meet(self, communicator: Communicator, step: int) -> Eras:
        """Take up what agent 0 has counted, where agents are others now; return how many there were, and are.

        Args:
            communicator: this agent's end of those that are there now.
            step: fast steps done.

        Raises:
            CollectiveError: an agent is lost.
        """
        own = json.dumps({**self._counts(), "last": self._last})
        told = json.loads(texts_of_agents([communicator], [own], self._agents[0].device)[0])
        self._eras = Eras.read(told["eras"]).then(step, communicator.size)
        self.next_evaluation, self._last = told["next_evaluation"], told["last"]
        self._take_up(told, communicator)
        self.all_agents_passed()
        self._open_stores([communicator])
        return self._eras

    @property
    def may_save(self) -> bool:
        """Whether this is a moment to save at, and so to stop: where the number of agents may change, a settled one."""
        return not self._elastic or self._agents[0].optimizer.stack.settled

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after so many fast steps."""
        every = self._config.checkpoint.every
        if not self._elastic:
            return step % every == 0
        return self.may_save and step // every > (self._last or 0) // every

    def begin(self, plan: Callable[[Eras], Course]) -> int:
        """Begin the run anew: plan it, and return fast step 0."""
        self.next_evaluation = plan(self._eras).next_evaluation(0)
        return 0

    def restore(self, plan: Callable[[Eras], Course]) -> int:
        """Load the newest checkpoint that all agents have, and return its fast step: 0 where there never was one.

        Where the number of agents may change, one that has none of its own takes over what another has.

        Args:
            plan: finds out how far the run is when, before agents load what they have measured.

        Raises:
            ValueError: on every agent, where one cannot go on: no whole checkpoint of a common step is left, or it is
                of another run.
        """
        surveys = [store.survey() for store in self._stores]
        everybody = [read_survey(text) for text in self._exchange([json.dumps(asdict(own)) for own in surveys])]
        if self._elastic and (found := chosen(everybody, self._size)):
            return self._take_over(*found, plan)
        step = newest_common([survey.whole for survey in everybody])
        if step is None:
            self._fail_together(map(_what_is_lost, self._stores, surveys))
            self._drop_after(0)
            return self.begin(plan)
        later = passed_over(everybody, step)
        if later and self._agents[0].communicator.rank == 0:
            _log.warning("going on from fast step %d, the last one of which all agents have it; later %s", step, later)
        states = self._load(step, plan)
        self.next_evaluation = states[0]["next_evaluation"]
        return self._go_on(step, states[0])

    def save(self, step: int) -> None:
        """Save all agents of this process, unless this step is saved already."""
        if step == self._last:
            return
        for agent, store in zip(self._agents, self._stores, strict=True):
            state = {
                "format": FORMAT,
                "common": self._common,
                "config": self._config.resolved(),
                "agent": agent.state_dict(),
                **self._counts(),
            }
            store.save(step, state, common=self._common)
        self._last = step

    def count(self, spent: Spent) -> None:
        """Count time of training."""
        self.seconds += spent.seconds
        self.exposed_seconds += spent.exposed

    def all_agents_passed(self) -> None:
        """After a sync every agent has finished the saves before it."""
        self._common = -1 if self._last is None else self._last

    def bytes_sent(self) -> int:
        """Bytes that one agent has sent in the whole run."""
        return self._bytes_before + self._agents[0].communicator.bytes_sent

    def where_to_go_on(self) -> str:
        """Say which checkpoint a resumed run starts from."""
        if self._last is None:
            return "There is no checkpoint yet"
        return (
            f"The last checkpoint is of fast step {self._last} in {self._stores[0].directory}: "
            "go on with the same command and --resume"
        )

    def _go_on(self, step: int, state: Mapping[str, Any]) -> int:
        """Take up the counts, and let go of checkpoints of later steps."""
        self._drop_after(step)
        self._take_up(state, self._agents[0].communicator)
        self._last = self._common = step
        return step

    def _counts(self) -> dict[str, Any]:
        """Return what is the same for all agents: what the run has cost, and how far it is."""
        return {
            "metrics": self.metrics,
            "next_evaluation": self.next_evaluation,
            "bytes_sent": self.bytes_sent(),
            "seconds": self.seconds,
            "exposed_seconds": self.exposed_seconds,
            "eras": self._eras.plain(),
        }

    def _take_up(self, counts: Mapping[str, Any], communicator: Communicator) -> None:
        """Count on from there what the run has cost, with what this end sends from now on."""
        self.metrics, self.seconds = counts["metrics"], counts["seconds"]
        self.exposed_seconds = counts.get("exposed_seconds", 0.0)  # runs from before did not count them
        self._bytes_before = counts["bytes_sent"] - communicator.bytes_sent

    def _drop_after(self, step: int) -> None:
        for store in self._stores:
            store.drop_after(step)
        self._exchange(["dropped"] * len(self._stores))  # nobody saves anew beside what another has not removed yet

    def _take_over(self, step: int, agents: int, plan: Callable[[Eras], Course]) -> int:
        """Go on from the checkpoint of so many agents, of which this process need not have one."""
        agent = self._agents[0]
        legacy, fault = inherit(agent, self._stores[0], step, agents), ""
        try:
            _require_same_run(legacy.state["config"], self._config.resolved())
            self._adopt(legacy, step, plan)
        except ValueError as error:
            fault = str(error)
        self._fail_together([fault])
        if agent.communicator.rank == 0:
            say_so(legacy, agent, step)
        return self._go_on(step, legacy.state)

    def _adopt(self, legacy: Legacy, step: int, plan: Callable[[Eras], Course]) -> None:
        self._eras = legacy.eras.then(step, self._size)
        self.next_evaluation = plan(self._eras).next_evaluation(step)
        self._agents[0].load_state_dict(legacy.for_agent(self._agents[0], step))

    def _load(self, step: int, plan: Callable[[Eras], Course]) -> list[dict[str, Any]]:
        """Load the agents of this process; where one of the run cannot, no other goes on without it."""
        states, faults = [], []
        for agent, store in zip(self._agents, self._stores, strict=True):
            fault = ""
            try:
                states.append(store.load(step))
                _require_same_run(states[-1]["config"], self._config.resolved())
                if len(states) == 1:
                    self._eras = eras_of(states[0], self._size)
                    plan(self._eras)
                agent.load_state_dict(states[-1]["agent"])
            except (ValueError, OSError) as error:
                fault = str(error)
            faults.append(fault)
        self._fail_together(faults)
        return states

    def _exchange(self, texts: Sequence[str]) -> list[str]:
        return texts_of_agents([agent.communicator for agent in self._agents], texts, self._agents[0].device)

    def _fail_together(self, faults: Iterable[str]) -> None:
        fail_together([agent.communicator for agent in self._agents], list(faults), self._agents[0].device)


def _what_is_lost(store: CheckpointStore, survey: Survey) -> str:
    """Say of an agent of a run without a common checkpoint what there has been, "" where nothing is missing.

    Before their first common checkpoint some agents may have one and others not.
    """
    advice = "restore the files, or begin anew without --resume"
    if survey.damaged:
        return f"of the checkpoints in {store.directory} those of steps {survey.damaged} are damaged: {advice}"
    if survey.whole and store.load(survey.whole[-1]).get("common", -1) >= 0:
        return (
            f"there are checkpoints of steps {survey.whole} in {store.directory}, and other agents have none of these, "
            f"though they have had: {advice}"
        )
    return ""


def _require_same_run(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse to go on with another training than the one that was saved."""
    before, now = dict(flat(saved)), dict(flat(here))
    changed = [
        f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    fatal = [line for line in changed if not line.startswith(FREE)]
    if fatal:
        raise ValueError(
            "this is not the run that was saved; changed since: " + "; ".join(fatal) + ". Restore these values to "
            "resume it, or start a new run without --resume"
        )
    if changed:
        _log.warning("resumed with other settings: %s", "; ".join(changed))
