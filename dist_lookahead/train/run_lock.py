"""A lock on the folder of a run: two runs that write there would remove each other's checkpoints."""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO


class RunLock:
    """The lock of one agent's process; the operating system lets go of it when the process ends, however it ends.

    A lock of POSIX's kind: processes that read data, forked from this one, do not hold it on.

    Args:
        folder: of the run; made if it is not there.
        agent: whose process it is: those of one run lock a file each, and those of two runs the same ones.
    """

    def __init__(self, folder: Path, agent: int) -> None:
        self.path = folder / f"agent-{agent}.lock"
        self._file: IO[str] | None = None

    def acquire(self) -> str:
        """Take it, and return ""; or return who holds it, as a sentence."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = self.path.open("a+", encoding="utf-8")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                with file:
                    file.seek(0)
                    return f"{self.path} is held by {file.read(200) or 'another process'}"
            if self.path.exists() and os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                break
            file.close()  # its holder has removed it meanwhile
        self._file = file
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        return ""

    def release(self) -> None:
        """Let go of it, if it was taken."""
        if self._file:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
