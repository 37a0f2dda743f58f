"""inner.clip_norm: no fast step is longer than it allows, whatever the precision."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dist_lookahead.train.random_state import RandomState, derive_seed
from tests.training import final_states, folder_of, small_config, train


def step_length(folder: Path, clip_norm: float | None, precision: str) -> float:
    """How far the first fast step goes at a learning rate of 1."""
    config = small_config(
        folder,
        run={"steps": 1},
        inner={"name": "SGD", "lr": 1.0, "clip_norm": clip_norm},
        levels={"recipe": "lookahead", "tau": 1, "alpha": 1.0},
        precision=precision,
    )
    with RandomState(derive_seed(config.run.seed, "model"), torch.device("cpu")).active():
        start: dict[str, Tensor] = dict(config.build_task().model().named_parameters())
    train(config)
    end = final_states(folder_of(config))[0]["model"]
    return torch.cat([(end[name] - start[name]).flatten() for name in start]).norm().item()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_long_gradient_is_brought_to_the_norm_and_a_short_one_left_alone(tmp_path: Path, precision: str) -> None:
    """In fp16 gradients carry the loss's scale of 65536: clipped before it is taken off, a step would go nowhere."""
    free = step_length(tmp_path / "free", None, precision)
    assert free > 0.1
    assert step_length(tmp_path / "long", 0.1, precision) == pytest.approx(0.1, rel=1e-3)
    assert step_length(tmp_path / "short", 2 * free, precision) == pytest.approx(free, rel=1e-6)
