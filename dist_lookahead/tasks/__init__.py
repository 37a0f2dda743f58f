"""Tasks: what is trained on what. The trainer knows a task only by the protocol `Task`.

`dist_lookahead.tasks.vision` holds image classification; it needs the `train` extra, this module torch alone.
"""

from dist_lookahead.tasks.task import Batch, Key, Task

__all__ = ["Batch", "Key", "Task"]
