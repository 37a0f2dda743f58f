"""The noisy quadratics: their draws, the fast step that each repetition takes, and what is measured of them."""

import pickle

import pytest
import torch
from torch import Tensor

from dist_lookahead.tasks import Task
from dist_lookahead.tasks.quadratic import QuadraticTask
from dist_lookahead.train.sampler import BatchSampler

CURVATURE = torch.tensor([[1.0, 0.3, 0.1], [0.2, 0.5, 2.0]], dtype=torch.float64)
OFFSETS = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]], dtype=torch.float64)
NOISE = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def two_kinds(**changes: object) -> QuadraticTask:
    settings = {"curvature": CURVATURE, "noise": NOISE, "offsets": OFFSETS, "repetitions": 1000, "seed": 3}
    return QuadraticTask(**{**settings, **changes})  # pyright: ignore[reportArgumentType] - settings of several types


def weights_of(task: Task) -> tuple[torch.nn.Module, torch.nn.Parameter]:
    model = task.model()
    (weights,) = model.parameters()
    with torch.no_grad():
        weights.normal_(generator=torch.Generator().manual_seed(1))
    return model, weights


def test_draws_are_a_function_of_seed_and_key_alone() -> None:
    """A resumed run, another process or another order must see the same noise, and no two steps the same."""
    task, before = two_kinds(), torch.get_rng_state()
    keys = [(0, 0), (0, 1), (7, 0), (7, 1)]
    together, curvature = task.train_batch(keys)
    again: Task = pickle.loads(pickle.dumps(two_kinds()))
    for place in (3, 0, 2, 1):
        alone, own = again.train_batch([keys[place]])
        assert torch.equal(alone[0], together[place])
        assert torch.equal(own[0], curvature[place])
    assert torch.equal(torch.get_rng_state(), before)
    noise = [two_kinds(offsets=0.0, noise=1.0, seed=s).train_batch([key])[0] for s in (3, 4) for key in keys]
    assert len({float(draws[0, 0, 0]) for draws in noise}) == 8


def test_draws_have_the_minima_and_the_noise_of_their_kind() -> None:
    count = 20_000
    draws, curvature = two_kinds(repetitions=count).train_batch([(5, 1), (5, 0)])
    assert torch.equal(curvature, CURVATURE.flip(0)[:, None])
    assert ((draws.mean(dim=1) - OFFSETS.flip(0)).abs() < 5 * NOISE / count**0.5).all()
    assert ((draws.var(dim=1) / NOISE**2 - 1).abs() < 5 * (2 / count) ** 0.5).all()


def test_each_repetition_takes_the_fast_step_that_it_would_take_alone() -> None:
    """Breaks if the gradient is divided by the number of repetitions, as that of the mean would be."""
    task = two_kinds()
    model, weights = weights_of(task)
    batch = task.train_batch([(0, 1)])
    loss = task.loss(model, batch)
    loss.backward()
    away = weights.detach() - batch[0][0]
    torch.testing.assert_close(weights.grad, CURVATURE[1] * away)
    torch.testing.assert_close(loss.detach(), (CURVATURE[1] * away**2 / 2).sum(dim=1).mean())


def test_a_batch_of_two_has_the_mean_of_their_losses() -> None:
    task = two_kinds()
    model, weights = weights_of(task)
    losses = [task.loss(model, task.train_batch(keys)) for keys in ([(0, 0)], [(0, 1)], [(0, 0), (0, 1)])]
    gradients = [torch.autograd.grad(loss, weights)[0] for loss in losses]
    torch.testing.assert_close(losses[2], (losses[0] + losses[1]) / 2)
    torch.testing.assert_close(gradients[2], (gradients[0] + gradients[1]) / 2)


def test_an_agent_keeps_its_kind() -> None:
    """The sampler hands sample r mod m to agent r in every step, with draws of its own each time."""
    task, agents = two_kinds(), 4
    seen: list[Tensor] = []
    for rank in range(agents):
        sampler = BatchSampler(samples=task.samples, batch_size=1, rank=rank, agents=agents, seed=0, order=task.order)
        for step in range(5):
            draws, curvature = task.train_batch(sampler.batch(step))
            assert torch.equal(curvature[0, 0], CURVATURE[rank % 2])
            seen.append(draws)
    assert len({float(draws[0, 0, 0]) for draws in seen}) == agents * 5


def test_the_reported_loss_is_the_expected_one_of_all_kinds() -> None:
    task = two_kinds()
    model, weights = weights_of(task)
    sums = task.evaluate(model, task.test_batch([0]))
    assert tuple(sums) == task.measures
    away = weights.detach()[:, None] - OFFSETS
    expected = (CURVATURE * (away**2 + NOISE**2) / 2).sum(dim=-1).mean()
    assert task.report(sums)["loss"] == pytest.approx(float(expected), rel=1e-12)
    with torch.no_grad():
        drawn = [task.loss(model, task.train_batch([(epoch, 0), (epoch, 1)])) for epoch in range(400)]
    losses = torch.stack(drawn)
    assert (losses.mean() - expected).abs() < 5 * losses.std() / len(losses) ** 0.5


def test_mean_and_variance_are_those_over_the_repetitions() -> None:
    task = two_kinds()
    model, weights = weights_of(task)
    report = task.report(task.evaluate(model, task.test_batch([0])))
    for j, sample in enumerate(weights.detach().T):
        assert report[f"mean_{j}"] == pytest.approx(float(sample.mean()), rel=1e-9)
        assert report[f"variance_{j}"] == pytest.approx(float(sample.var()), rel=1e-9)


def test_all_repetitions_start_together() -> None:
    task = QuadraticTask(curvature=torch.ones(2), start=torch.tensor([1.0, -2.0]), repetitions=3)
    (weights,) = task.model().parameters()
    assert weights.tolist() == [[1.0, -2.0]] * 3
    report = task.report(task.evaluate(task.model(), task.test_batch([0])))
    assert (report["mean_1"], report["variance_1"]) == (-2.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curvature": torch.tensor([1.0, 0.0, 1.0])}, "curvature=.* must be above 0"),
        ({"noise": -1.0}, r"noise=-1.0 at least 0"),
        ({"noise": torch.ones(2)}, r"\(2,\).* of curvature, noise, offsets, start must be \(\), \(d,\) or \(m, d\)"),
        ({"offsets": torch.ones(1, 2, 3)}, r"\(1, 2, 3\).* must be \(\), \(d,\) or \(m, d\)"),
        ({"start": torch.ones(2, 3)}, r"start has the shape \(2, 3\), but all agents begin alike"),
        ({"repetitions": 1}, "repetitions=1 must be at least 2"),
    ],
)
def test_impossible_quadratics_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_kinds(**changes)
