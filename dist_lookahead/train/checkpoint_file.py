"""Files of checkpoints: their names, whether they are whole, and how they come to be so.

    directory/step-00000120/agent-0-of-2-8d969eef6ecad3c2.pt

The last part of the name is the beginning of the SHA-256 of the file's bytes.
"""

import hashlib
import io
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_FOLDER = re.compile(r"step-(\d{8,})")
_WHOLE = re.compile(r"agent-(\d+)-of-(\d+)-([0-9a-f]{16})\.pt")
_UNFINISHED = re.compile(r"step-(\d{8,})-agent-(\d+)-of-(\d+)\.tmp")


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One file of an agent; one that has no checksum yet is unfinished.

    Attributes:
        step: fast steps done.
        path: of the file.
        checksum: that its bytes must have.
        agent: whose it is.
        agents: how many agents there were.
    """

    step: int
    path: Path
    checksum: str | None
    agent: int
    agents: int

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

    def remove(self) -> None:
        """Remove it, if nobody else has."""
        self.path.unlink(missing_ok=True)


def step_folders(directory: Path) -> Iterator[tuple[int, Path]]:
    """Yield the folders of a directory that hold files of a fast step, with that."""
    if directory.exists():
        for path in directory.iterdir():
            if match := _FOLDER.fullmatch(path.name):
                yield int(match[1]), path


def files_in(directory: Path) -> Iterator[CheckpointFile]:
    """Yield the finished files of all agents, whole or damaged."""
    for step, folder in step_folders(directory):
        with suppress(FileNotFoundError):  # another agent has just removed the empty folder
            for path in folder.iterdir():
                if match := _WHOLE.fullmatch(path.name):
                    yield CheckpointFile(step, path, match[3], int(match[1]), int(match[2]))


def unfinished_in(directory: Path) -> Iterator[CheckpointFile]:
    """Yield the files of all agents that are being written, or have been given up."""
    for path in directory.glob("step-*.tmp"):
        if match := _UNFINISHED.fullmatch(path.name):
            yield CheckpointFile(int(match[1]), path, None, int(match[2]), int(match[3]))


def read_state(source: Path | io.BytesIO, name: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read the state in a file.

    Args:
        source: the file, or its bytes.
        name: what to call it in errors.
        map_location: device to put the tensors on.

    Raises:
        ValueError: if it holds more than tensors and plain containers, or is something else.
    """
    try:
        return torch.load(source, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name} holds more than tensors and plain containers; it is refused, because "
            "loading it could run any code. Use a checkpoint that this package has written"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{name} is no checkpoint of this package: {error}") from error


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


def write_durably(path: Path, state: Mapping[str, Any]) -> str:
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


def refuse_objects(path: Path) -> None:
    """Refuse a file that `read_state` would refuse.

    Raises:
        ValueError: with what it holds.
    """
    if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(path):
        raise ValueError(
            f"the state holds {', '.join(sorted(unsafe))}, which could run code when it is loaded: "
            "a checkpoint takes tensors, numbers, strings, lists, tuples and dicts only"
        )


def sync_directory(path: Path) -> None:
    """Wait until a directory's names are on the disk, which a file's own fsync does not include."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
