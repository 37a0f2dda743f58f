"""Before a run starts: all agents have the same run file, and its folder is theirs alone."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from dist_lookahead.train.config import Config
from dist_lookahead.train.config_file import flat
from dist_lookahead.train.exchange import fail_together, require_same_lines, texts_of_agents
from dist_lookahead.train.restart import Launcher, known_run, run_to_go_on
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.run_lock import RunLock
from dist_lookahead.train.world import World

_log = logging.getLogger(__name__)

ADVICE = "Give the same file and --set to every agent"
OWN = (  # settings that each node may have of its own: where its files are, and who reads them
    "run.dir",
    "data.path",
    "data.download",
    "data.workers",
    "data.pin_memory",
    "corpus.path",
    "parallel_corpus.path",
    "parallel_corpus.workers",
    "parallel_corpus.pin_memory",
    "images.path",
    "images.download",
    "images.judge_dir",
    "checkpoint.keep",
    "checkpoint.grace",
    "logging.tensorboard",
    "logging.plots",
    "logging.progress",
)


def require_same_run(config: Config, world: World) -> None:
    """Raise on every agent unless all train the same run.

    Agents that evaluate, log or end at different steps would add up different things.

    Raises:
        AgentsDiffer: with the first setting that differs, and what each agent has.
    """
    require_same_lines(world.communicators, _lines(config), world.device, ADVICE)


def _lines(config: Config) -> list[str]:
    return [f"{path}: {value!r}" for path, value in flat(config.resolved()) if path not in OWN]


@contextmanager
def own_folder(config: Config, world: World, *, resume: bool) -> Iterator[RunDirectory]:
    """Enter the folder of the run, locked: that in which torchrun starts agents again, else the one agent 0 chooses.

    Others may already see what agent 0 has made.

    Raises:
        ValueError: on every agent, where another process trains there.
    """
    if world.company.joins:
        yield _folder_of_those_under_way(config, world)
        return
    directory = _agreed(config, world, resume=resume)
    lock = RunLock(directory.path, agent=world.communicators[0].rank)
    held_by = lock.acquire()
    try:
        if not held_by and (launcher := Launcher.of_this_agent()):
            launcher.leave_mark(directory.path)
        fault = f"another run trains in {directory.path}: {held_by}. Wait for it, end it, or start a new run"
        faults = [fault if held_by else "", *[""] * (len(world.communicators) - 1)]
        fail_together(world.communicators, faults, world.device)
        if world.leads:
            world.company.leave_note(json.dumps({"folder": directory.path.name, "lines": _lines(config)}))
        yield directory
    finally:
        lock.release()


def _folder_of_those_under_way(config: Config, world: World) -> RunDirectory:
    """Return the folder of the run that this agent joins, which those lock who have begun it."""
    note = json.loads(world.company.read_note())
    theirs, own = note["lines"], _lines(config)
    if differing := [line for line in own if line not in theirs]:
        raise ValueError(
            f"the run that this agent would join has other settings; of this agent: {'; '.join(differing[:3])}. "
            f"{ADVICE}"
        )
    return RunDirectory.named(config, str(note["folder"]))


def _agreed(config: Config, world: World, *, resume: bool) -> RunDirectory:
    own = RunDirectory.choose(config, resume=resume)
    says = f"{own.path.name} {int(own.goes_on)} {known_run(config)}"
    texts = texts_of_agents(world.communicators, [says] * len(world.communicators), world.device)
    told = [text.partition(" ") for text in texts]
    if name := run_to_go_on(config, [rest.partition(" ")[2] for _, _, rest in told]):
        if world.leads:
            _log.warning("torchrun has started this run again: it goes on in %s", own.path.parent / name)
        return RunDirectory.named(config, name, goes_on=True)
    chosen, _, rest = told[0]
    return RunDirectory.named(config, chosen, goes_on=rest.partition(" ")[0] == "1")
