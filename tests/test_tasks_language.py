"""Language modelling: windows that follow each other, perplexity as the papers count it, what a model remembers."""

import math
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dist_lookahead.tasks.gpt import TransformerLanguageModel
from dist_lookahead.tasks.language import LanguageTask
from dist_lookahead.tasks.lstm import LstmLanguageModel
from dist_lookahead.tasks.task import Remembering, Task

SMALL = partial(LstmLanguageModel, embedding=6, hidden=8, layers=2)
WORDS = [f"w{number * number % 11}" for number in range(101)]


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text("\n".join(WORDS))
    return str(file)


def make(text: str, network: Any = SMALL, **options: Any) -> LanguageTask:
    return LanguageTask(network, corpus="text", path=text, **{"window": 5, "test_streams": 2, **options})


def test_windows_follow_each_other(text: str) -> None:
    task: Task = make(text)
    tokens, following, first = task.train_batch([(3, i) for i in range(task.samples)])
    assert torch.equal(tokens.flatten()[1:], following.flatten()[:-1])
    assert first.tolist() == [True] + [False] * (task.samples - 1)
    assert isinstance(pickle.loads(pickle.dumps(task)), LanguageTask), "loaders send it to other processes"


@pytest.mark.parametrize("streams", [1, 2, 3, 7])
def test_every_token_of_the_test_is_predicted_once(text: str, streams: int) -> None:
    """A window too many or too few changes the perplexity that papers are compared by."""
    task = make(text, test_streams=streams)
    tokens, following, _ = task.test_batch(range(streams))
    pieces = [(t[f >= 0], f[f >= 0]) for t, f in zip(tokens, following, strict=True)]
    whole = torch.cat([pieces[0][0][:1], *(targets for _, targets in pieces)])
    (one,), _, _ = make(text, test_streams=1).test_batch([0])
    assert torch.equal(whole[:-1], one)
    sums = task.evaluate(task.model().eval(), task.test_batch(range(streams)))
    assert sums["tokens"] == len(whole) - 1


def test_perplexity_is_that_of_the_whole_text_read_at_once(text: str) -> None:
    """The hidden state goes on from window to window, so that their length makes no difference."""
    torch.manual_seed(0)
    model = SMALL(len(make(text).types)).eval()
    nn.init.normal_(model.embedding)
    reports = []
    for window in (2, 3, 64):
        task = make(text, window=window, test_streams=1)
        reports.append(task.report(task.evaluate(model, task.test_batch([0]))))
    tokens, following, first = make(text, test_streams=1).test_batch([0])
    model.memory = ()
    logits, _ = model(tokens, first)
    loss = functional.cross_entropy(logits[0], following[0]).item()
    for report in reports:
        assert report["loss"] == pytest.approx(loss, rel=1e-5)
        assert report["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_the_memory_is_what_was_read_before() -> None:
    """In two halves or in one: the same logits; and nothing of it where a text begins."""
    torch.manual_seed(0)
    model = SMALL(9).eval()
    assert isinstance(model, Remembering)
    tokens = torch.randint(9, (2, 10))
    begin, go_on = torch.tensor([True, True]), torch.tensor([False, False])
    whole, _ = model(tokens, begin)
    halves = [model(tokens[:, :4], begin)[0], model(tokens[:, 4:], go_on)[0]]
    torch.testing.assert_close(torch.cat(halves, 1), whole)
    mixed, _ = model(tokens, torch.tensor([False, True]))
    torch.testing.assert_close(mixed[1], whole[1])
    assert not torch.allclose(mixed[0], whole[0])
    assert all(not part.requires_grad for part in model.memory)
    with pytest.raises(ValueError, match="3 rows in the middle of their texts, but the model remembers 2 rows"):
        model(tokens[[0, 1, 1]], torch.tensor([False, True, True]))


def test_without_regularisation_it_is_torchs_lstm() -> None:
    torch.manual_seed(0)
    model = SMALL(9)
    tokens, first = torch.randint(9, (2, 10)), torch.tensor([True, True])
    x: Tensor = model.embedding[tokens]
    for layer in model.layers:
        x, _ = layer(x)
    logits, penalty = model(tokens, first)
    torch.testing.assert_close(logits, x @ model.embedding.T + model.bias)
    assert penalty.item() == 0.0


def test_dropped_weights_are_hidden_to_hidden_and_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    lstm = torch.lstm

    def watched(x: Tensor, before: Any, weights: Any, *rest: Any) -> Any:
        seen.extend(weights)
        return lstm(x, before, weights, *rest)

    monkeypatch.setattr(torch, "lstm", watched)
    torch.manual_seed(0)
    model = LstmLanguageModel(9, embedding=6, hidden=8, layers=1, dropout_weights=0.25)
    tokens, first = torch.randint(9, (2, 10)), torch.tensor([True, True])
    model(tokens, first)[0].sum().backward()
    (layer,) = model.layers
    inputs, hidden, *_ = layer.parameters()
    kept = seen[1] != 0
    assert 0.1 < 1 - kept.float().mean() < 0.4
    torch.testing.assert_close(seen[1][kept], hidden[kept] / 0.75)
    assert hidden.grad is not None, "the parameter itself is trained"
    assert not hidden.grad[~kept].any(), "a weight that was dropped had no part in the loss"
    assert hidden.grad[kept].any()
    assert torch.equal(seen[0], inputs)
    seen.clear()
    model.eval()(tokens, first)
    assert torch.equal(seen[1], hidden)


def test_a_word_is_dropped_wherever_it_stands() -> None:
    torch.manual_seed(0)
    model = LstmLanguageModel(40, embedding=6, hidden=8, layers=1, dropout_embedding=0.5)
    tokens = torch.arange(40).repeat(2, 2)
    embedded = model._embedded(tokens)
    gone = ~embedded.any(2)
    assert torch.equal(gone[0], gone[1])
    assert torch.equal(gone[0, :40], gone[0, 40:])
    assert 5 < gone[0, :40].sum() < 35
    torch.testing.assert_close(embedded[~gone], 2 * model.embedding[tokens][~gone])


def test_dropout_is_locked_over_the_window_and_differs_between_rows() -> None:
    torch.manual_seed(0)
    dropped = SMALL(9)._locked(torch.ones(2, 7, 50), 0.5)
    assert all(torch.equal(dropped[:, t], dropped[:, 0]) for t in range(7))
    assert not torch.equal(dropped[0], dropped[1])
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_the_penalty_is_in_the_training_loss_alone(text: str) -> None:
    task = make(text)
    torch.manual_seed(0)
    plain = SMALL(len(task.types))
    penalised = LstmLanguageModel(len(task.types), embedding=6, hidden=8, layers=2, activation=2.0, slowness=1.0)
    penalised.load_state_dict(plain.state_dict())
    batch = task.train_batch([(0, 0)])
    tokens, _, _ = batch
    x: Tensor = plain.embedding[tokens]
    for layer in plain.layers:
        x, _ = layer(x)
    expected = 2 * x.square().mean() + (x[:, 1:] - x[:, :-1]).square().mean()
    torch.testing.assert_close(task.loss(penalised, batch) - task.loss(plain, batch), expected)
    test = task.test_batch([0])
    assert task.evaluate(penalised.eval(), test) == task.evaluate(plain.eval(), test)


def test_the_transformer_sees_no_token_that_comes_later() -> None:
    torch.manual_seed(0)
    model = TransformerLanguageModel(9, width=8, heads=2, layers=2).eval()
    first = torch.tensor([True])
    tokens = torch.randint(9, (1, 10))
    changed = tokens.clone()
    changed[0, 6] = (tokens[0, 6] + 1) % 9
    one, other = model(tokens, first)[0], model(changed, first)[0]
    torch.testing.assert_close(one[:, :6], other[:, :6])
    assert not torch.isclose(one[:, 6:], other[:, 6:]).all(2).any(), "all later ones see it"
    assert not isinstance(model, Remembering)


@pytest.mark.parametrize(
    "network",
    [
        partial(LstmLanguageModel, embedding=64, hidden=64, layers=1),
        partial(TransformerLanguageModel, width=16, heads=2, layers=1, dropout=0.0),
    ],
    ids=["lstm", "gpt"],
)
def test_a_periodic_text_is_learnt(network: Any, tmp_path: Path) -> None:
    """Words and ends of lines take turns, and the words repeat after 11: nothing is left to chance but the first."""
    file = tmp_path / "text.txt"
    file.write_text("\n".join(f"w{number % 11}" for number in range(600)))
    task = make(str(file), network, window=10, test_streams=1)
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for step in range(200):
        optimizer.zero_grad()
        task.loss(model, task.train_batch([(0, (row + step) % task.samples) for row in (0, 25, 50, 75)])).backward()
        optimizer.step()
    if isinstance(model, Remembering):
        model.memory = ()
    assert task.report(task.evaluate(model.eval(), task.test_batch([0])))["perplexity"] < 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window=1 must be at least 2"),
        ({"window": 5000}, "window=5000 must be below the"),
        ({"test_streams": 5000}, "test_streams=5000 must be below the"),
    ],
)
def test_numbers_out_of_range_are_refused(text: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(text, **options)
