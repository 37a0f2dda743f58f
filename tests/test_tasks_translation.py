"""Translation: pairs, subwords alike on all agents, what the loss counts, beam search, and BLEU as sums."""

import itertools
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from torch import Tensor, nn
from torch.nn import functional

from dist_lookahead.tasks import subwords as subwords_module
from dist_lookahead.tasks.attention import Past
from dist_lookahead.tasks.bleu import bleu, bleu_counts
from dist_lookahead.tasks.decoding import beam_search
from dist_lookahead.tasks.number_words import english, german
from dist_lookahead.tasks.sentence_pairs import open_pairs
from dist_lookahead.tasks.subwords import BEGIN, END, PAD, Subwords
from dist_lookahead.tasks.task import Task
from dist_lookahead.tasks.transformer import Translator
from dist_lookahead.tasks.translation import TranslationTask

TINY = partial(Translator, width=16, heads=2, layers=1, dropout=0.0)


@pytest.fixture(scope="module")
def numbers() -> TranslationTask:
    return TranslationTask(TINY, source="de", target="en", vocabulary_size=300)


def write_multi30k(folder: Path) -> None:
    """Write a parallel corpus in Multi30k's layout, of 40, 4 and 5 pairs."""
    for part, first, count in (("train", 0, 40), ("val", 50, 4), ("test_2016_flickr", 60, 5)):
        for language, write in (("en", english), ("de", german)):
            lines = "".join(f"{write(first + i)} \n" for i in range(count))
            (folder / f"{part}.{language}").write_text(lines, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_multi30k(tmp_path)
    return tmp_path


def test_numbers_are_written_as_one_says_them() -> None:
    for number, both in {
        0: ("zero", "null"),
        1: ("one", "eins"),
        16: ("sixteen", "sechzehn"),
        31: ("thirty-one", "einunddreißig"),
        101: ("one hundred and one", "einhunderteins"),
        1076: ("one thousand and seventy-six", "eintausendsechsundsiebzig"),
        9900: ("nine thousand nine hundred", "neuntausendneunhundert"),
    }.items():
        assert (english(number), german(number)) == both
    assert len({german(number) for number in range(10_000)}) == 10_000


def test_no_number_of_the_test_is_trained_on() -> None:
    pairs = open_pairs("numbers")
    parts = [set(part) for part in (pairs.train, pairs.valid, pairs.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10_000
    assert min(map(len, parts)) > 400
    assert open_pairs("numbers", source="de", target="en").train == [(b, a) for a, b in pairs.train]


def test_multi30ks_layout_is_read(folder: Path) -> None:
    pairs = open_pairs("multi30k", path=str(folder), source="de", target="en")
    assert (len(pairs.train), len(pairs.valid)) == (40, 4)
    assert pairs.test[1] == ("einundsechzig", "sixty-one")


def test_wmts_layout_is_read(tmp_path: Path) -> None:
    """Its sentences hold characters that Python takes for ends of lines; read as such, the rest would be shifted."""
    for part in ("train", "newstest2013", "newstest2014"):
        (tmp_path / f"{part}.en").write_bytes("one\u2028two\rthree\n\nfour\n".encode())
        (tmp_path / f"{part}.de").write_bytes(b"eins zwei drei\r\nleer\r\nvier\r\n")
    pairs = open_pairs("wmt14", path=str(tmp_path)).train
    assert pairs == [("one\u2028two\rthree", "eins zwei drei"), ("four", "vier")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "multi30"}, "parallel corpus='multi30' is unknown; did you mean 'multi30k'"),
        ({"name": "multi30k"}, "needs path: the folder that holds train.en"),
        ({"name": "numbers", "path": "."}, "is generated: remove path"),
        ({"name": "multi30k", "path": "nowhere"}, "nowhere/train.en, of Multi30k, task 1, .* is missing"),
        ({"name": "numbers", "source": "fr"}, "source='fr' is unknown"),
        ({"name": "numbers", "source": "de"}, "source='de' and target='de' must be two languages"),
    ],
)
def test_what_cannot_be_read_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_pairs(**options)


def test_files_that_do_not_match_are_refused(folder: Path) -> None:
    (folder / "val.de").write_text("eins\n")
    with pytest.raises(ValueError, match=r"val.en has 4 lines and .*val.de 1: line by line they must match"):
        open_pairs("multi30k", path=str(folder))


def test_any_text_comes_back_from_its_subwords() -> None:
    """Also what the training text never had: there is no unknown token."""
    subwords = Subwords(["ein Hund läuft", "eine Katze läuft."] * 3, size=290)
    texts = ["ein Hund läuft.", "Straße, 3 ☃!", "a  b"]
    assert [subwords.decode(numbers) for numbers in subwords.encode(texts)] == texts
    assert max(map(max, subwords.encode(texts))) < len(subwords) <= 290
    assert len(subwords.encode(["läuft"])[0]) < len("läuft"), "frequent words are merged"


def test_every_process_makes_the_same_subwords() -> None:
    """Agents share no vocabulary: were theirs different, the average of their embeddings would mean nothing."""
    program = (
        "from dist_lookahead.tasks.sentence_pairs import open_pairs\n"
        "from dist_lookahead.tasks.subwords import Subwords\n"
        "train = open_pairs('numbers').train\n"
        "subwords = Subwords((text for pair in train for text in pair), size=400)\n"
        "print(hash(tuple(map(tuple, subwords.encode([text for pair in train[::50] for text in pair])))))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True).stdout
        for _ in range(2)
    ]
    assert len(set(runs)) == 1


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=r"needs tokenizers: pip install 'dist-lookahead\[text\]'"):
        subwords_module.Subwords(["a"], size=300)
    with pytest.raises(ValueError, match=r"BLEU needs sacrebleu: pip install 'dist-lookahead\[text\]'"):
        bleu_counts(["a"], ["a"])


def test_a_batch_holds_each_pair_whatever_stands_beside_it(numbers: TranslationTask) -> None:
    task: Task = numbers
    keys = [(0, 9), (3, 4000), (0, 20)]
    source, target = task.train_batch(keys)
    assert source.dtype == target.dtype == torch.int64
    for row, key in enumerate(keys):
        for padded, (alone, *_) in zip((source[row], target[row]), task.train_batch([key]), strict=True):
            assert torch.equal(padded[padded != PAD], alone)
            assert alone[-1] == END
            assert (padded[len(alone) :] == PAD).all()


def test_longer_pairs_are_left_out_of_the_training_alone(folder: Path) -> None:
    full, short = (
        TranslationTask(TINY, corpus="multi30k", path=str(folder), vocabulary_size=259, longest=n) for n in (100, 8)
    )
    texts = [(english(i), german(i)) for i in range(40)]
    # Not merged, each subword is a byte; a space stands before each sentence.
    assert short.samples == sum(max(len(f" {text}".encode()) for text in pair) <= 8 for pair in texts) > 0
    assert (full.samples, full.test_samples, short.test_samples) == (40, 5, 5)


def test_the_loss_is_of_the_targets_tokens_one_by_one(numbers: TranslationTask) -> None:
    """Padding must count neither in the mean nor as what is attended to."""
    torch.manual_seed(0)
    model = numbers.model().eval()
    keys = [(0, 5), (0, 7000)]
    total, count = 0.0, 0
    for key in keys:
        source, target = numbers.train_batch([key])
        given = [BEGIN, *target[0, :-1].tolist()]
        for place, token in enumerate(target[0].tolist()):
            logits, _ = model(source, torch.tensor([given[: place + 1]]))
            total -= logits[0, -1].log_softmax(0)[token].item()
            count += 1
    assert numbers.loss(model, numbers.train_batch(keys)).item() == pytest.approx(total / count, rel=1e-5)


def test_label_smoothing_acts_on_the_training_loss_alone(folder: Path) -> None:
    plain, smooth = (
        TranslationTask(TINY, corpus="multi30k", path=str(folder), vocabulary_size=270, label_smoothing=s)
        for s in (0.0, 0.1)
    )
    model = plain.model().eval()
    batch = plain.train_batch([(0, 1)])
    logits, _ = model(batch[0], functional.pad(batch[1][:, :-1], (1, 0), value=BEGIN))
    spread = -logits[0].log_softmax(1).mean()
    torch.testing.assert_close(smooth.loss(model, batch), 0.9 * plain.loss(model, batch) + 0.1 * spread)
    assert (
        smooth.evaluate(model, smooth.test_batch([0]))["loss"] == plain.evaluate(model, plain.test_batch([0]))["loss"]
    )


class Chain(nn.Module):
    """Next tokens with probabilities that depend on the last one and the source's first token alone."""

    def __init__(self, types: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = torch.randn(types, types, types, generator=generator) * 2
        self.table[:, :, END] += 2.0

    def forward(
        self, source: Tensor, target: Tensor, encoded: Tensor | None = None, *, pasts: object = None
    ) -> tuple[Tensor, Tensor]:
        return self.table[source[:, :1], target], source.float()[:, :, None]


def best_by_trying(model: Chain, start: int, length: int, penalty: float) -> tuple[int, ...]:
    """Try every sentence of up to `length` tokens, END among them."""
    steps = model.table[start].clone()
    steps = steps.log_softmax(1)
    found: dict[tuple[int, ...], float] = {}
    for size in range(length):
        for words in itertools.product(range(3, len(steps)), repeat=size):
            path = (BEGIN, *words, END)
            score = sum(steps[a, b].item() for a, b in itertools.pairwise(path))
            found[path[1:]] = score / ((5 + size + 1) / 6) ** penalty
    return max(found, key=lambda path: found[path])


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
def test_a_wide_beam_finds_the_best_sentence(penalty: float) -> None:
    model = Chain(6)
    source = torch.tensor([[3, END], [4, END], [5, END]])
    found = beam_search(model, source, beam=200, length_penalty=penalty)
    for row, start in zip(found.tolist(), (3, 4, 5), strict=True):
        sentence = tuple(row[: row.index(END) + 1])
        assert set(row[len(sentence) :]) <= {PAD}
        assert sentence == best_by_trying(model, start, 6, penalty)


def test_a_sentence_without_an_end_is_taken_only_where_none_has_one() -> None:
    """A large penalty prefers the longest, and those are cut off."""
    model = Chain(6)
    found = beam_search(model, torch.tensor([[3, END]]), beam=50, length_penalty=20.0)[0].tolist()
    assert END in found
    model.table[:, :, END] = -torch.inf
    assert END not in beam_search(model, torch.tensor([[3, END]]), beam=3)[0].tolist()


def test_a_beam_of_one_takes_the_likeliest_token_each_time() -> None:
    model = Chain(6)
    source = torch.tensor([[3, END], [4, END]])
    found = beam_search(model, source).tolist()
    for row, start in zip(found, (3, 4), strict=True):
        token, expected = BEGIN, []
        while token != END and len(expected) < len(row):
            allowed = model.table[start, token].clone()
            allowed[[PAD, BEGIN]] = -torch.inf
            token = int(allowed.argmax())
            expected.append(token)
        assert row == expected + [PAD] * (len(row) - len(expected))


def test_reading_on_is_reading_anew() -> None:
    """Or a translation would not be the one that the training learns; also where the beam goes on from other rows."""
    torch.manual_seed(0)
    model = Translator(20, width=8, heads=2, layers=2).eval()
    source = torch.tensor([[3, 4, END], [3, 4, END], [5, END, PAD], [5, END, PAD]])
    target = torch.randint(3, 20, (4, 5))
    chosen = torch.tensor([1, 1, 2, 3])  # each from a row of its own sentence
    pasts: list[Past] = []
    _, encoded = model(source, target)
    for place in range(3):
        model(source, target[:, place : place + 1], encoded, pasts=pasts)
    for past in pasts:
        past.choose(chosen)
    grown = torch.cat((target[chosen, :3], target[:, 3:4]), dim=1)
    logits, _ = model(source, grown[:, 3:], encoded, pasts=pasts)
    torch.testing.assert_close(logits[:, 0], model(source, grown)[0][:, -1])


def test_a_translation_does_not_depend_on_its_neighbours(numbers: TranslationTask) -> None:
    """Padding, and sentences that end later, must not change it; nor that others may be longer where none ends."""
    torch.manual_seed(0)
    model = numbers.model().eval()
    source, *_ = numbers.test_batch([0, 300, 20])
    lengths = (source != PAD).sum(1).tolist()
    assert len(set(lengths)) > 1
    together = beam_search(model, source, beam=3)
    for row, length, found in zip(source, lengths, together, strict=True):
        (alone,) = beam_search(model, row[None, :length], beam=3)
        assert torch.equal(found[found != PAD], alone[alone != PAD])
        assert (alone != PAD).sum() <= length * 3 // 2 + 10


def test_bleu_adds_up_over_batches_to_that_of_the_corpus() -> None:
    """A mean of the batches' BLEU is another number, and what papers report is the corpus's."""
    references = [english(number) for number in range(1100, 1160)]
    hypotheses = [english(number + number % 3) for number in range(1100, 1160)]
    whole = sacrebleu.corpus_bleu(hypotheses, [references]).score
    totals: dict[str, float] = {}
    for start, stop in ((0, 7), (7, 8), (8, 60)):
        for name, value in bleu_counts(hypotheses[start:stop], references[start:stop]).items():
            totals[name] = totals.get(name, 0.0) + value
    assert bleu(totals) == pytest.approx(whole, abs=1e-9)
    assert 20 < whole < 100


def test_numbers_are_learnt(numbers: TranslationTask) -> None:
    """Ten of them by heart: greedy decoding writes down what the loss has taught."""
    torch.manual_seed(0)
    model = Translator(300, width=32, heads=2, layers=1, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batch = numbers.train_batch([(0, index) for index in range(5000, 5010)])
    for _ in range(150):
        optimizer.zero_grad()
        numbers.loss(model, batch).backward()
        optimizer.step()
    found = beam_search(model.eval(), batch[0])
    assert [numbers.text(row) for row in found.tolist()] == [numbers.text(row) for row in batch[1].tolist()]


def test_the_report_is_of_the_sums(numbers: TranslationTask) -> None:
    model = numbers.model().eval()
    sums = numbers.evaluate(model, numbers.test_batch(range(20)))
    assert tuple(sums) == numbers.measures
    report = numbers.report(sums)
    assert report["perplexity"] == pytest.approx(math.exp(sums["loss"] / sums["tokens"]))
    assert 0 <= report["bleu"] < 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "longest=100 and beam=0 must be at least 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0 in \[0, 1\)"),
        ({"vocabulary_size": 100}, "vocabulary_size=100 must be at least 259"),
        ({"longest": 1, "vocabulary_size": 259}, "has no pairs of up to longest=1 subwords"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TranslationTask(TINY, **options)
