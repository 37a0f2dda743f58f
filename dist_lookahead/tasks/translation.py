"""Translation: sentence pairs in subwords, a Transformer, BLEU."""

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dist_lookahead.tasks.bleu import COUNTS, bleu, bleu_counts
from dist_lookahead.tasks.decoding import beam_search
from dist_lookahead.tasks.sentence_pairs import Pairs, open_pairs
from dist_lookahead.tasks.subwords import BEGIN, PAD, Subwords
from dist_lookahead.tasks.task import Batch, Key, Order

CHUNK = 10_000  # sentences that are lists of Python's own, large numbers at the same time


class Sentences:
    """Sentences as numbers, one behind the other in one tensor, so that millions of them fit into memory.

    Args:
        sentences: numbers of subwords of each.
    """

    def __init__(self, sentences: Iterable[Sequence[int]]) -> None:
        tokens, ends = array("i"), [0]
        for sentence in sentences:
            tokens.extend(sentence)
            ends.append(len(tokens))
        self._tokens, self._ends = torch.tensor(np.asarray(tokens)), torch.tensor(ends)

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self._ends) - 1

    def take(self, indices: Sequence[int]) -> Tensor:
        """Return sentences, int64 of shape (len(indices), longest), filled up with PAD."""
        rows = [self._tokens[self._ends[i] : self._ends[i + 1]].to(torch.int64) for i in indices]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


class TranslationTask:
    """Minimise -log p(target token | those before it, source), report it with BLEU. A `Task`.

    A batch is (source, target): int64, as long as the longest sentence of the batch and filled up with 0; with test
    sentences comes their number, (batch,), by which the reference is found as text. The vocabulary of subwords is made
    of the training sentences of both languages, the same one on every agent.

    Args:
        network: builds the model from the number of types, such as `functools.partial(Translator, width=64)`.
        corpus: "numbers", which needs no files, "multi30k" or "wmt14".
        path: of the files, see `open_pairs`.
        source: language to translate from.
        target: language to translate to.
        vocabulary_size: subwords at most, >= 259.
        longest: training pairs with a sentence of more subwords are left out, >= 1.
        label_smoothing: share of the target spread evenly over all subwords, in [0, 1); in the training loss only.
        held_out: which pairs are evaluated, "valid" or "test".
        beam: partial translations that are kept in decoding, >= 1; 1 is greedy.
        length_penalty: how much longer translations are preferred, see `beam_search`.

    Raises:
        ValueError: a name is unknown, a number out of range, or a file or a package missing.

    Example:
        >>> from functools import partial
        >>> from dist_lookahead.tasks.transformer import Translator
        >>> task = TranslationTask(partial(Translator, width=16, layers=1), vocabulary_size=300)
        >>> source, target = task.train_batch([(0, 0), (0, 4217)])
        >>> task.samples + task.test_samples < 10_000, source.shape[0], task.text(target[0].tolist())
        (True, 2, 'null')

    Reference: arXiv 1706.03762.
    """

    def __init__(
        self,
        network: Callable[[int], nn.Module],
        *,
        corpus: str = "numbers",
        path: str | None = None,
        source: str = "en",
        target: str = "de",
        vocabulary_size: int = 400,
        longest: int = 100,
        label_smoothing: float = 0.0,
        held_out: Literal["valid", "test"] = "test",
        beam: int = 1,
        length_penalty: float = 0.6,
    ) -> None:
        if longest < 1 or beam < 1 or not 0 <= label_smoothing < 1:
            raise ValueError(
                f"longest={longest} and beam={beam} must be at least 1, label_smoothing={label_smoothing} in [0, 1)"
            )
        pairs = open_pairs(corpus, path=path, source=source, target=target)
        test = pairs.valid if held_out == "valid" else pairs.test
        self._subwords = Subwords((text for pair in pairs.train for text in pair), size=vocabulary_size)
        self._source, self._target = self._numbered(pairs.train, longest)
        self._test_source, self._test_target = self._numbered(test, None)
        self._references = [reference for _, reference in test]
        if not (len(self._source) and test):
            raise ValueError(f"corpus={corpus!r} has no pairs of up to longest={longest} subwords, or none to evaluate")
        self._network, self._label_smoothing = network, label_smoothing
        self._beam, self._length_penalty = beam, length_penalty

    @property
    def samples(self) -> int:
        """Number of training pairs."""
        return len(self._source)

    @property
    def test_samples(self) -> int:
        """Number of pairs that are evaluated."""
        return len(self._references)

    @property
    def order(self) -> Order:
        """Each epoch has an order of its own."""
        return "shuffled"

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the sums that `evaluate` returns."""
        return "samples", "tokens", "loss", *COUNTS

    def model(self) -> nn.Module:
        """Build a new model on the CPU, initialised from torch's global generator."""
        return self._network(len(self._subwords))

    def text(self, tokens: Sequence[int]) -> str:
        """Return the sentence of subwords, up to its end."""
        return self._subwords.decode(tokens)

    def train_batch(self, keys: Sequence[Key]) -> Batch:
        """Read training pairs."""
        indices = [index for _, index in keys]
        return self._source.take(indices), self._target.take(indices)

    def test_batch(self, indices: Sequence[int]) -> Batch:
        """Read pairs that are evaluated, with their numbers."""
        return self._test_source.take(indices), self._test_target.take(indices), torch.tensor(indices)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the target's tokens, with label smoothing."""
        source, target = batch
        return _cross_entropy(model, source, target, label_smoothing=self._label_smoothing)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Return the numbers of pairs and tokens, the summed -log p (not smoothed), and the counts of BLEU."""
        source, target, indices = batch
        loss = _cross_entropy(model, source, target, reduction="sum")
        found = beam_search(model, source, beam=self._beam, length_penalty=self._length_penalty)
        translations = [self.text(tokens) for tokens in found.tolist()]
        counts = bleu_counts(translations, [self._references[index] for index in indices.tolist()])
        return {"samples": float(len(source)), "tokens": float((target != PAD).sum()), "loss": loss.item(), **counts}

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the mean "loss" of a token, the "perplexity", and the "bleu" of all translations, in [0, 100]."""
        loss = sums["loss"] / sums["tokens"]
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "bleu": bleu(sums)}

    def _numbered(self, pairs: Pairs, longest: int | None) -> tuple[Sentences, Sentences]:
        kept: list[tuple[Sequence[int], Sequence[int]]] = []
        for start in range(0, len(pairs), CHUNK):
            chunk = pairs[start : start + CHUNK]
            both = (self._subwords.encode([pair[side] for pair in chunk]) for side in (0, 1))
            for source, target in zip(*both, strict=True):
                if longest is None or max(len(source), len(target)) - 1 <= longest:
                    kept.append((array("i", source), array("i", target)))
        return Sentences(source for source, _ in kept), Sentences(target for _, target in kept)


def _cross_entropy(
    model: nn.Module, source: Tensor, target: Tensor, *, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """The target, one place back and behind BEGIN, is what its next token is predicted from."""
    given = functional.pad(target[:, :-1], (1, 0), value=BEGIN)
    logits, _ = model(source, given)
    return functional.cross_entropy(
        logits.flatten(0, 1).float(),
        target.flatten(),
        ignore_index=PAD,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
