"""Tasks: what is trained on what. The trainer knows a task only by the protocol `Task`.

`dist_lookahead.tasks.vision` holds image classification, `dist_lookahead.tasks.language` language modelling,
`dist_lookahead.tasks.translation` translation, `dist_lookahead.tasks.gan` generative adversarial networks,
`dist_lookahead.tasks.quadratic` the noisy quadratics that theory predicts; they need the `train` extra, translation
`text` too, this module torch alone.
"""

from dist_lookahead.tasks.task import (
    Batch,
    Game,
    Key,
    Memory,
    Minimisation,
    Order,
    Pictured,
    Remembering,
    Task,
    Update,
)

__all__ = ["Batch", "Game", "Key", "Memory", "Minimisation", "Order", "Pictured", "Remembering", "Task", "Update"]
