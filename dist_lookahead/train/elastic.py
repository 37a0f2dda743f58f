"""Going on with another number of agents: from a sync of all levels, where every agent holds the slow weights.

The slow state is then the same in the files of all agents, so that one file is enough for everybody: an agent that can
see none is sent one. What agents have of their own, such as the fast optimizer's momentum, agent r takes from the old
agent r where it sees its file, and begins anew elsewhere.
"""

import hashlib
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_lookahead.comm.communicator import Pending
from dist_lookahead.slow_state import for_other_agents
from dist_lookahead.train.agent import Agent
from dist_lookahead.train.checkpoint import CheckpointStore, newest_common
from dist_lookahead.train.checkpoint_file import CheckpointFile, files_in, read_state
from dist_lookahead.train.checkpoint_survey import Survey
from dist_lookahead.train.eras import Eras
from dist_lookahead.train.exchange import fail_together, texts_of_agents
from dist_lookahead.train.random_state import RandomState, derive_seed

_log = logging.getLogger(__name__)

PIECE = 2**24  # bytes of a file that are sent at once
_SAYS = re.compile(r"([0-9a-f]{64}) ([01]) (\d{1,15})")  # checksum, whether the file is one's own, bytes of it


@dataclass(frozen=True, slots=True)
class Legacy:
    """What an agent takes over.

    Attributes:
        state: of the checkpoint.
        own: whether it is that of the old agent of this number.
        keepers: agents of which that is so.
        agents: how many there were.
    """

    state: Mapping[str, Any]
    own: bool
    keepers: tuple[int, ...]
    agents: int

    @property
    def eras(self) -> Eras:
        """How many agents the run has had."""
        return eras_of(self.state, self.agents)

    def for_agent(self, agent: Agent, step: int) -> dict[str, Any]:
        """Return the state that an agent loads in its place."""
        saved = self.state["agent"]
        stack = saved["optimizer"]["levels"]
        levels = for_other_agents(agent.optimizer.stack.bound, stack["levels"])
        optimizer = {**saved["optimizer"], "levels": {**stack, "levels": levels}}
        adopted = {**saved, "optimizer": optimizer, "memory": [], "inner_loop": {}}
        if self.own:
            return adopted
        seed = derive_seed(agent.config.run.seed, "agent", agent.communicator.rank, step)
        random = RandomState(seed, agent.device).state_dict()
        return {**adopted, "optimizer": {**optimizer, "state": {}}, "random": random, "loss": [0.0, 0]}


def eras_of(state: Mapping[str, Any], agents: int) -> Eras:
    """Return how many agents a run has had, from the state of one; files from before it could change do not say."""
    return Eras.read(state.get("eras", [[0, agents]]))


def chosen(surveys: Sequence[Survey], agents: int) -> tuple[int, int] | None:
    """Return (step, number of agents) of the checkpoint from which agents that have not all their own file go on.

    None where the newest step of which all have their own is no older, as where nothing has changed.

    Args:
        surveys: of all agents.
        agents: their number.

    Example:
        >>> chosen([Survey([10], [], [[20, 3]]), Survey([10], [])], agents=2)
        (20, 3)
        >>> chosen([Survey([10, 20], []), Survey([10], [], [[20, 2]])], agents=2)
    """
    own = newest_common([survey.whole for survey in surveys])
    seen = {(step, number) for survey in surveys for step, number in survey.seen}
    others = [step for step, number in seen if number != agents]
    if own is not None and own >= max(others, default=-1):
        return None
    return max(seen | {(step, agents) for survey in surveys for step in survey.whole}, default=None)


def inherit(agent: Agent, store: CheckpointStore, step: int, agents: int) -> Legacy:
    """Return what this agent takes over from the checkpoint of a step, when all have.

    Args:
        agent: of this process.
        store: where it looks for files.
        step: of the checkpoint.
        agents: how many agents there were.

    Raises:
        ValueError: on every agent, where none can read it, or it is none to go on from.
    """
    communicator, rank = agent.communicator, agent.communicator.rank
    file, state, fault = _look(store.directory, step, agents, rank)
    fail_together([communicator], [fault], agent.device)
    own = file is not None and file.agent == rank
    says = f"{_digest(state)} {int(own)} {file.path.stat().st_size}" if file is not None and state is not None else ""
    told = [_SAYS.fullmatch(text) for text in texts_of_agents([communicator], [says], agent.device)]
    leader = next((number for number, words in enumerate(told) if words), None)
    first = told[leader] if leader is not None else None
    if first is None:
        raise ValueError(f"no agent can read its checkpoint of fast step {step} any more: begin anew without --resume")
    same = [words is not None and words[1] == first[1] for words in told]
    if not all(same):
        buffer = io.BytesIO()
        path = file.path if file is not None and rank == leader else None
        communicator.run(_send(agent, path, int(first[3]), None if same[rank] else buffer))
        state = state if same[rank] else read_state(buffer, f"what agent {leader} has sent")
    assert state is not None
    keepers = tuple(number for number, words in enumerate(told) if words and same[number] and words[2] == "1")
    return Legacy(state, rank in keepers, keepers, agents)


def say_so(legacy: Legacy, agent: Agent, step: int) -> None:
    """Warn what is exact and what is not, where agents go on from a legacy."""
    new = [number for number in range(agent.communicator.size) if number not in legacy.keepers]
    lost = any(bound.residuals for bound in agent.optimizer.stack.bound)
    _log.warning(
        "going on with %d agents in place of %d from fast step %d: slow weights, slow momentum and counters are those "
        "of the checkpoint, and no sample is left out or read twice. Of fast optimizer and random numbers: agents "
        "%s have their own, agents %s begin anew%s",
        agent.communicator.size,
        legacy.agents,
        step,
        list(legacy.keepers),
        new,
        "; what codes have lost is dropped" if lost else "",
    )


def _look(
    directory: Path, step: int, agents: int, rank: int
) -> tuple[CheckpointFile | None, dict[str, Any] | None, str]:
    """Return a whole file, its state and what is wrong with that; the file of the old agent of this number first."""
    files = [file for file in files_in(directory) if (file.step, file.agents) == (step, agents)]
    for file in sorted(files, key=lambda file: (file.agent != rank, file.agent)):
        if file.fault() is None:
            try:
                state = read_state(file.path, file.path)
            except ValueError as error:
                return file, None, str(error)
            return file, state, _unsettled(file, state)
    return None, None, ""


def _unsettled(file: CheckpointFile, state: Mapping[str, Any]) -> str:
    """Say that a state is from the middle of a round, "" where it is not."""
    stack = state["agent"]["optimizer"]["levels"]
    if all(level["last"] == stack["clock"] and not level.get("flight") for level in stack["levels"]):
        return ""
    return (
        f"{file.path} was saved in the middle of a round, where agents hold weights of their own: start the run with "
        f"{file.agents} agents and --set faults.agents=elastic, and end it after its next checkpoint"
    )


def _digest(state: Mapping[str, Any]) -> str:
    """Return a checksum of what must be the same on all agents."""
    saved = state["agent"]
    stack = saved["optimizer"]["levels"]
    digest = hashlib.sha256(str([stack["clock"], stack["parameters"], state.get("eras")]).encode())
    for level in stack["levels"]:
        digest.update(str([level["due"], level["rounds"], level["gammas"]]).encode())
    for tensor in _slow_tensors(saved["model"], stack):
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _slow_tensors(model: Mapping[str, Tensor], stack: Mapping[str, Any]) -> Iterator[Tensor]:
    for name in (name for names in stack["parameters"] for name in names):
        yield model[name]
    for level in stack["levels"]:
        for kind in ("slow", "momentum"):
            yield from (level[kind][name] for name in sorted(level[kind]))


def _send(agent: Agent, path: Path | None, size: int, buffer: io.BytesIO | None) -> Pending:
    """Send a file in pieces, as a sum to which one agent alone adds something.

    Args:
        agent: of this process.
        path: of the file, on the agent that sends it.
        size: of the file in bytes.
        buffer: where an agent that has none puts it.
    """
    for begin in range(0, size, PIECE):
        piece = torch.zeros(min(PIECE, size - begin), dtype=torch.uint8)
        if path:
            with path.open("rb") as file:
                file.seek(begin)
                piece = torch.frombuffer(bytearray(file.read(piece.numel())), dtype=torch.uint8)
        piece = piece.to(agent.device)
        yield agent.communicator.all_reduce(piece)
        if buffer is not None:
            buffer.write(piece.cpu().numpy().data)
    if buffer is not None:
        buffer.seek(0)
