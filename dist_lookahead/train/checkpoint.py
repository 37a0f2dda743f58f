"""Checkpoints on disk: each agent writes files of its own, whole or not at all.

    directory/step-00000120/agent-0-of-2-8d969eef6ecad3c2.pt

The last part of the name is the beginning of the SHA-256 of the file's bytes. A file gets this name only
when all its bytes are on the disk, so a file whose bytes agree with its name is whole, and anything else is
not a checkpoint. Agents need neither a collective nor a common file system; they agree on a step by
`newest_common`.
"""

import hashlib
import io
import logging
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_lookahead.train.checkpoint_survey import Survey

_log = logging.getLogger(__name__)

_FOLDER = re.compile(r"step-(\d{8,})")
_WHOLE = re.compile(r"agent-(\d+)-of-(\d+)-([0-9a-f]{16})\.pt")


def newest_common(steps_by_agent: Sequence[Sequence[int]]) -> int | None:
    """Return the newest step of which every agent has a checkpoint, or None.

    Args:
        steps_by_agent: what `CheckpointStore.steps` returned on each of the agents.

    Example:
        >>> newest_common([[100, 120, 140], [100, 120]])
        120
    """
    return max(set.intersection(*map(set, steps_by_agent)), default=None)


def agents_in(directory: str | Path) -> int:
    """Return the number of agents whose checkpoints a directory holds.

    Raises:
        ValueError: if there is none.
    """
    for path in sorted(Path(directory).glob("step-*/agent-*.pt")):
        if match := _WHOLE.fullmatch(path.name):
            return int(match[2])
    raise ValueError(f"{directory} holds no checkpoints: give the folder of a run, such as runs/digits-slowmo")


@dataclass(frozen=True, slots=True)
class _File:
    """One file of this agent; one that has no checksum yet is unfinished."""

    step: int
    path: Path
    checksum: str | None

    def fault(self) -> str | None:
        """Return why it cannot be used, or None if it is whole; reads all of it."""
        if self.checksum is None:
            return "unfinished, its writer was stopped"
        try:
            with self.path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:  # a bad sector, for example
            return f"unreadable, {error.strerror}"
        return None if actual.startswith(self.checksum) else "damaged, its bytes do not have the checksum in its name"


class CheckpointStore:
    """The checkpoints of one agent.

    Args:
        directory: where they are; made by the first `save`. Agents may share it, or have one each.
        agent: number of this agent, from 0 to `agents` - 1.
        agents: number of agents of the run.
        keep: how many of the newest are kept, at least 1.

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

    def __init__(self, directory: str | Path, agent: int, agents: int, keep: int = 3) -> None:
        if not 0 <= agent < agents:
            raise ValueError(f"agent must be from 0 to agents - 1 = {agents - 1}; got {agent}")
        if keep < 1:
            raise ValueError(f"keep must be at least 1, or there is nothing to resume from; got {keep}")
        self.directory = Path(directory)
        self.agent = agent
        self.agents = agents
        self.keep = keep

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
                file.path.unlink(missing_ok=True)
        path = self._write(step, state)
        for file in files:
            if file.step == step and file.path != path:
                file.path.unlink(missing_ok=True)
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
        """Return `steps`, and which others are damaged; warns as `steps` does."""
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
        return Survey(sorted(set(whole)), sorted(set(damaged) - set(whole)))

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
                try:
                    return torch.load(file.path, map_location=map_location, weights_only=True)
                except pickle.UnpicklingError as error:
                    raise ValueError(
                        f"{file.path} holds more than tensors and plain containers; it is refused, because "
                        "loading it could run any code. Use a checkpoint that this package has written"
                    ) from error
                except (RuntimeError, EOFError) as error:
                    raise ValueError(f"{file.path} is no checkpoint of this package: {error}") from error
        raise ValueError(
            f"agent {self.agent} has no whole checkpoint of step {step} in {self.directory}; "
            f"it has those of steps {self.steps()}"
        )

    def drop_after(self, step: int) -> None:
        """Remove this agent's checkpoints of later steps, as every agent must when it resumes at `step`.

        Otherwise a later resume could put together a step from two lives of the run: one agent's checkpoint
        from before this resume, and another's from after it.
        """
        for file in self._files():
            if file.step > step:
                file.path.unlink(missing_ok=True)

    def _write(self, step: int, state: Mapping[str, Any]) -> Path:
        folder = self.directory / f"step-{step:08d}"
        unfinished = self.directory / f"step-{step:08d}-{self._name}.tmp"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            checksum = _write_durably(unfinished, state)
            _refuse_objects(unfinished)
            folder.mkdir(exist_ok=True)
            path = unfinished.replace(folder / f"{self._name}-{checksum[:16]}.pt")
            _sync_directory(folder)
            _sync_directory(self.directory)
        except OSError as error:
            problem = f"cannot write a checkpoint ({error.strerror}); earlier ones are untouched"
            raise OSError(error.errno, problem, str(unfinished)) from error
        finally:
            with suppress(OSError):  # it was renamed, or never made
                unfinished.unlink()
        return path

    def _prune(self, common: int) -> None:
        files = self._files()
        steps = sorted({file.step for file in files}, reverse=True)
        kept = {*steps[: self.keep], *[step for step in steps if step <= common][:1]}
        for file in files:
            if file.step not in kept:
                file.path.unlink(missing_ok=True)
        for step, folder in self._folders():
            if step <= common:  # nobody is about to write there any more
                with suppress(OSError):  # other agents' files are still in it
                    folder.rmdir()

    @property
    def _name(self) -> str:
        return f"agent-{self.agent}-of-{self.agents}"

    def _folders(self) -> Iterator[tuple[int, Path]]:
        if self.directory.exists():
            for path in self.directory.iterdir():
                if match := _FOLDER.fullmatch(path.name):
                    yield int(match[1]), path

    def _files(self) -> list[_File]:
        """Return this agent's files, newest first, and of one step the unfinished one first."""
        files = [
            _File(int(path.name.split("-")[1]), path, None) for path in self.directory.glob(f"step-*-{self._name}.tmp")
        ]
        for step, folder in self._folders():
            with suppress(FileNotFoundError):  # another agent has just removed the empty folder
                files += self._whole_files(step, folder)
        return sorted(files, key=lambda file: (file.step, file.checksum is None), reverse=True)

    def _whole_files(self, step: int, folder: Path) -> Iterator[_File]:
        for path in folder.iterdir():
            match = _WHOLE.fullmatch(path.name)
            if match and int(match[2]) != self.agents:
                raise ValueError(
                    f"{path} was written by a run of {match[2]} agents, and this run has {self.agents}: "
                    f"start it with {match[2]} agents, or give it another directory for its checkpoints"
                )
            if match and int(match[1]) == self.agent:
                yield _File(step, path, match[3])


class _HashingWriter(io.BufferedWriter):
    """A file that hashes what is written to it, and remembers why it could not be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.sha256 = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:  # torch hands over views of the tensors' own memory
        self.sha256.update(data)
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def _write_durably(path: Path, state: Mapping[str, Any]) -> str:
    """Write the state, wait until it is on the disk, and return the SHA-256 of the file in hexadecimal."""
    with _HashingWriter(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError:
            if file.failure is None:
                raise
            # torch reports a full disk as a wrong position in its archive
            raise file.failure from None
        file.flush()
        os.fsync(file.fileno())
        return file.sha256.hexdigest()


def _refuse_objects(path: Path) -> None:
    if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(path):
        raise ValueError(
            f"the state holds {', '.join(sorted(unsafe))}, which could run code when it is loaded: "
            "a checkpoint takes tensors, numbers, strings, lists, tuples and dicts only"
        )


def _sync_directory(path: Path) -> None:
    """Wait until a directory's names are on the disk, which a file's own fsync does not include."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _warn(skipped: list[str], instead: str) -> None:
    for message in skipped:
        _log.warning("%s; %s", message, instead)
