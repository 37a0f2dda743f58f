"""Checkpoints on disk: each agent writes files of its own, whole or not at all.

    directory/step-00000120/agent-0-of-2-8d969eef6ecad3c2.pt

The last part of the name is the beginning of the SHA-256 of the file's bytes. A file gets this name only
when all its bytes are on the disk, so a file whose bytes agree with its name is whole, and anything else is
not a checkpoint. Agents need neither a collective nor a common file system; they agree on a step by
`newest_common`.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dist_lookahead.train.checkpoint_file import (
    CheckpointFile,
    files_in,
    read_state,
    refuse_objects,
    step_folders,
    sync_directory,
    unfinished_in,
    write_durably,
)
from dist_lookahead.train.checkpoint_survey import Survey

_log = logging.getLogger(__name__)


def newest_common(steps_by_agent: Sequence[Sequence[int]]) -> int | None:
    """Return the newest step of which every agent has a checkpoint, or None.

    Args:
        steps_by_agent: what `CheckpointStore.steps` returned on each of the agents.

    Example:
        >>> newest_common([[100, 120, 140], [100, 120]])
        120
    """
    return max(set.intersection(*map(set, steps_by_agent)), default=None)


def agents_in(directory: str | Path, step: int | None = None) -> int:
    """Return the number of agents of the checkpoint of a fast step in a directory, without such a one of the newest.

    Raises:
        ValueError: if there is none.
    """
    found = [(file.step == step, file.step, file.agents) for file in files_in(Path(directory))]
    if found:
        return max(found)[2]
    raise ValueError(f"{directory} holds no checkpoints: give the folder of a run, such as runs/digits-slowmo")


class CheckpointStore:
    """The checkpoints of one agent.

    Args:
        directory: where they are; made by the first `save`. Agents may share it, or have one each.
        agent: number of this agent, from 0 to `agents` - 1.
        agents: number of agents of the run.
        keep: how many of the newest are kept, at least 1.
        elastic: whether there may be checkpoints of other numbers of agents beside these.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     store = CheckpointStore(directory, agent=0, agents=1)
        ...     path = store.save(120, {"weights": torch.ones(2)}, common=120)
        ...     store.steps(), store.load(120)
        ([120], {'weights': tensor([1., 1.])})
    """

    def __init__(self, directory: str | Path, agent: int, agents: int, keep: int = 3, *, elastic: bool = False) -> None:
        if not 0 <= agent < agents:
            raise ValueError(f"agent must be from 0 to agents - 1 = {agents - 1}; got {agent}")
        if keep < 1:
            raise ValueError(f"keep must be at least 1, or there is nothing to resume from; got {keep}")
        self.directory = Path(directory)
        self.agent = agent
        self.agents = agents
        self.keep = keep
        self.elastic = elastic

    def save(self, step: int, state: Mapping[str, Any], *, common: int) -> Path:
        """Write a checkpoint, then remove those that are no longer needed.

        Tensors that are views of one storage share it in the file too, and no copy is made of tensors in
        main memory; of those on another device one storage at a time is copied. But each view takes its
        whole storage along: clone a small part of something that is not saved. What `load` returns shares
        storages in the same way.

        The last `keep` checkpoints are kept, and besides them the newest one whose step is at most
        `common`: agents may be some steps apart between syncs, and when one crashes there must be a step
        that every one has.

        Args:
            step: fast steps done so far.
            state: tensors and plain containers of them, nothing else.
            common: a step such that every agent is known to have finished its saves up to and including it.
                After the sync at step k that is the last step before k at which checkpoints were due; -1 if
                there is none.

        Raises:
            OSError: if it cannot be written (disk full, no permission); names the file. Earlier checkpoints
                stay.
            ValueError: if the state holds what `load` would refuse, or the directory belongs to another
                number of agents.
        """
        files = self._files()
        for file in files:
            if file.checksum is None:
                file.remove()
        path = self._write(step, state)
        for file in files:
            if file.step == step and file.path != path:
                file.remove()
        self._prune(common)
        return path

    def steps(self) -> list[int]:
        """Return the steps of which this agent has a whole checkpoint, in ascending order.

        Every file is read. Unfinished or damaged ones are skipped, with a warning in the log that names the
        file and says what there is instead.

        Raises:
            ValueError: if the directory belongs to a run with another number of agents.
        """
        return self.survey().whole

    def survey(self) -> Survey:
        """Return `steps`, which others are damaged, and what else there is to go on from; warns as `steps` does."""
        whole: list[int] = []
        damaged: list[int] = []
        skipped: list[str] = []
        for file in self._files():
            if fault := file.fault():
                damaged += [file.step] * (file.checksum is not None)
                skipped.append(f"checkpoint {file.path} is skipped ({fault})")
                continue
            _warn(skipped, f"the newest whole one before it is of step {file.step}")
            skipped = []
            whole.append(file.step)
        _warn(skipped, "there is no whole one before it")
        seen = self._seen(after=max(whole, default=-1)) if self.elastic else []
        return Survey(sorted(set(whole)), sorted(set(damaged) - set(whole)), seen)

    def load(self, step: int, map_location: str | torch.device = "cpu") -> dict[str, Any]:
        """Return the state saved at `step`.

        Args:
            step: one of `steps()`.
            map_location: device to put the tensors on.

        Raises:
            ValueError: if there is no whole checkpoint of this step, or it holds more than tensors and
                plain containers.
        """
        for file in self._files():
            if file.step == step and file.fault() is None:
                return read_state(file.path, file.path, map_location)
        raise ValueError(
            f"agent {self.agent} has no whole checkpoint of step {step} in {self.directory}; "
            f"it has those of steps {self.steps()}"
        )

    def drop_after(self, step: int) -> None:
        """Remove this agent's checkpoints of later steps, as every agent must when it resumes at `step`.

        And those of other numbers of agents, where there may be some, with what these have left unfinished.
        Otherwise a later resume could put together a step from two lives of the run: one agent's checkpoint
        from before this resume, and another's from after it.
        """
        for file in [*self._files(), *self._others()]:
            if file.step > step:
                file.remove()
        for file in unfinished_in(self.directory) if self.elastic else ():
            if file.agents != self.agents:
                file.remove()

    def _write(self, step: int, state: Mapping[str, Any]) -> Path:
        folder = self.directory / f"step-{step:08d}"
        unfinished = self.directory / f"step-{step:08d}-{self._name}.tmp"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            checksum = write_durably(unfinished, state)
            refuse_objects(unfinished)
            folder.mkdir(exist_ok=True)
            path = unfinished.replace(folder / f"{self._name}-{checksum[:16]}.pt")
            sync_directory(folder)
            sync_directory(self.directory)
        except OSError as error:
            problem = f"cannot write a checkpoint ({error.strerror}); earlier ones are untouched"
            raise OSError(error.errno, problem, str(unfinished)) from error
        finally:
            with suppress(OSError):  # it was renamed, or never made
                unfinished.unlink()
        return path

    def _prune(self, common: int) -> None:
        files, others = self._files(), self._others()
        steps = sorted({file.step for file in [*files, *others]}, reverse=True)
        own = [file.step for file in files if file.step <= common]
        kept = {*steps[: self.keep], *own[:1]}
        # Of another number of agents there is no need any more where all of this number have gone on.
        for file in [*files, *(file for file in others if file.step <= common)]:
            if file.step not in kept:
                file.remove()
        for step, folder in step_folders(self.directory):
            if step <= common:  # nobody is about to write there any more
                with suppress(OSError):  # other agents' files are still in it
                    folder.rmdir()

    @property
    def _name(self) -> str:
        return f"agent-{self.agent}-of-{self.agents}"

    def _files(self) -> list[CheckpointFile]:
        """Return this agent's files, newest first, and of one step the unfinished one first."""
        files = [*unfinished_in(self.directory), *files_in(self.directory)]
        for file in files:
            if file.checksum and file.agents != self.agents and not self.elastic:
                raise ValueError(
                    f"{file.path} was written by a run of {file.agents} agents, and this run has {self.agents}: "
                    f"start it with {file.agents} agents, or let it go on with others by faults.agents: elastic, "
                    "or give it another directory for its checkpoints"
                )
        own = [file for file in files if (file.agent, file.agents) == (self.agent, self.agents)]
        return sorted(own, key=lambda file: (file.step, file.checksum is None), reverse=True)

    def _others(self) -> list[CheckpointFile]:
        """Return the files that agents of other numbers of agents have finished."""
        return [file for file in files_in(self.directory) if file.agents != self.agents] if self.elastic else []

    def _seen(self, after: int) -> list[list[int]]:
        """Return (step, number of agents) of the newest whole file of this number, and of another, after a step."""
        found: dict[bool, list[int]] = {}
        for file in sorted(files_in(self.directory), key=lambda file: (file.step, file.agents), reverse=True):
            if file.step > after and (same := file.agents == self.agents) not in found and file.fault() is None:
                found[same] = [file.step, file.agents]
        return list(found.values())


def _warn(skipped: list[str], instead: str) -> None:
    for message in skipped:
        _log.warning("%s; %s", message, instead)
