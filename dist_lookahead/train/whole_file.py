"""Text files that are there whole, or as they were before."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file, or write it anew; a kill or a full disk meanwhile leaves what was there.

    Args:
        path: the file; beside it there is meanwhile one whose name ends in ".tmp".
        text: all that it will hold.

    Raises:
        OSError: where the text cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder) / "a.txt", "b")
        ...     [(file.name, file.read_text()) for file in Path(folder).iterdir()]
        [('a.txt', 'b')]
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else the name may reach the disk before the text does
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    unfinished.replace(path)
