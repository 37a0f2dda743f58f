"""The factor of the learning rate: equal to torch's own schedulers, and continuous where parts meet."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from dist_lookahead.schedule import Cosine, InverseSqrt, Linear, Piecewise, Schedule, Warmup, value_at
from dist_lookahead.train.config_length import RunLength
from dist_lookahead.train.config_lr import InverseSqrtRate

STEPS = 60


def rates(make: Any) -> list[float]:
    """The learning rates of all steps under a scheduler."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = make(optimizer)
    used = []
    for _ in range(STEPS):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


@pytest.mark.parametrize(
    ("factor", "theirs"),
    [
        (
            Piecewise(values=(1.0, 0.1, 0.01), boundaries=(20, 45)),
            lambda o: lr_scheduler.MultiStepLR(o, [20, 45], gamma=0.1),
        ),
        (Cosine(start=1.0, stop=0.0, steps=STEPS), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS)),
        (Cosine(start=1.0, stop=0.1, steps=STEPS), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.03)),
        (Linear(start=1.0, stop=0.2, steps=STEPS), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, STEPS)),
        (Warmup(steps=10, then=1.0), lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 9)),
    ],
)
def test_a_factor_gives_the_rates_of_torchs_scheduler(factor: Schedule, theirs: Any) -> None:
    ours = rates(lambda optimizer: lr_scheduler.LambdaLR(optimizer, factor))
    assert ours == pytest.approx(rates(theirs), rel=1e-9, abs=1e-12)


def test_decay_after_warmup_equals_torchs_schedulers_one_after_the_other() -> None:
    warmup = rates(lambda optimizer: lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 9))[:10]
    decay = rates(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 10))[: STEPS - 10]
    factor = Warmup(steps=10, then=Cosine(start=1.0, stop=0.0, steps=STEPS - 10, begin=10))
    ours = rates(lambda optimizer: lr_scheduler.LambdaLR(optimizer, factor))
    assert ours == pytest.approx([*warmup, *decay], rel=1e-9, abs=1e-12)


def test_milestones_count_from_the_start_of_the_run_not_from_the_end_of_the_warmup() -> None:
    factor = Warmup(steps=4, then=Piecewise(values=(1.0, 0.5), boundaries=(6,)))
    assert [factor(step) for step in range(8)] == [0.25, 0.5, 0.75, 1, 1, 1, 0.5, 0.5]


def test_the_inverse_square_root_behind_its_warmup_is_the_transformers_schedule() -> None:
    """As its paper writes it: min(step^-1/2, step warmup^-3/2), counted from 1, over its maximum."""
    warmup, factor = 8, Warmup(steps=8, then=InverseSqrt(steps=8))
    theirs = [min(step**-0.5, step * warmup**-1.5) * warmup**0.5 for step in range(1, 100)]
    assert [factor(step) for step in range(99)] == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(("warmup", "hold", "largest"), [(0, 8, (0, 7)), (4, 0, (3, 3)), (4, 4, (3, 7))])
def test_the_inverse_square_root_falls_from_the_end_of_warmup_and_hold(
    warmup: int, hold: int, largest: tuple[int, int]
) -> None:
    """tensor2tensor's schedule without warm-up holds its rate: from step 1 on, 1 / sqrt(step) would fall at once."""
    length = RunLength(samples=100, batch_size=1, agents=1, amount=100, unit="steps")
    rate = InverseSqrtRate(name="inverse_sqrt", warmup=warmup, hold=hold)
    values = [value_at(rate.factor(length), step) for step in range(100)]
    first, last = largest
    assert values[first : last + 1] == [1.0] * (last + 1 - first)
    assert all(value < 1.0 for value in values[:first] + values[last + 1 :])
    assert values[4 * (last + 1) - 1] == pytest.approx(0.5)


@pytest.mark.parametrize("kind", [Cosine, Linear])
def test_a_decay_ends_on_its_floor_and_stays_there(kind: Any) -> None:
    """A trainer that takes a partial last round must never meet a negative or rising rate."""
    factor = kind(start=1.0, stop=0.25, steps=15, begin=5)
    assert factor(0) == factor(5) == 1.0
    assert factor(20) == factor(1000) == pytest.approx(0.25)


def test_the_rate_is_never_zero_in_the_warmup() -> None:
    """The first step would be lost, and torch.distributed.checkpoint's probing step is told by a zero rate."""
    assert min(Warmup(steps=1000, then=1.0)(step) for step in range(1000)) > 0
