"""Language modelling: predict each token of a text from those before it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dist_lookahead.tasks.corpus import open_corpus
from dist_lookahead.tasks.task import Batch, Key, Order

NOTHING = -100  # the target at a place where there is no token to predict


class LanguageTask:
    """Minimise -log p(token | those before it), report it with the perplexity, its exponential. A `Task`.

    A training sample is a window of the text: the windows follow each other without overlap, and what is left of the
    text behind the last one is not read. They come in streams, so that a model which remembers goes on reading. A batch
    is (tokens, next tokens, first): int64 of shapes (batch, window), the second one place further on, and whether a
    window begins the text, (batch,).

    A test sample is one of `test_streams` long pieces of the held-out text. Each of its tokens but the first one of all
    is predicted once; a model remembers within a piece and begins each without memory.

    Args:
        network: builds the model from the number of types, such as `functools.partial(LstmLanguageModel, hidden=64)`.
            The model is called with tokens and `first`, and returns logits (batch, window, types) and a penalty.
        corpus: "python", which every installation has, "ptb", "wikitext" or "text".
        path: of the files, see `open_corpus`.
        unit: "words" or "characters".
        vocabulary_size: keep so many of the most frequent tokens; None keeps all.
        window: tokens that gradients go back at most, >= 2.
        held_out: which text is evaluated, "valid" or "test".
        test_streams: pieces of it, >= 1; as many as are read side by side, in one batch if that is large enough.

    Raises:
        ValueError: a name is unknown, a number out of range, a file missing, or the text too short.

    Example:
        >>> from functools import partial
        >>> from dist_lookahead.tasks.gpt import TransformerLanguageModel
        >>> task = LanguageTask(partial(TransformerLanguageModel, width=8), unit="characters", window=20)
        >>> tokens, following, first = task.train_batch([(0, 0), (0, 1)])
        >>> tokens.shape, bool((tokens[:, 1:] == following[:, :-1]).all()), first.tolist()
        (torch.Size([2, 20]), True, [True, False])
    """

    def __init__(
        self,
        network: Callable[[int], nn.Module],
        *,
        corpus: str = "python",
        path: str | None = None,
        unit: str = "words",
        vocabulary_size: int | None = None,
        window: int = 35,
        held_out: Literal["valid", "test"] = "test",
        test_streams: int = 10,
    ) -> None:
        if window < 2 or test_streams < 1:
            raise ValueError(f"window={window} must be at least 2, and test_streams={test_streams} at least 1")
        texts = open_corpus(corpus, path=path, unit=unit, vocabulary_size=vocabulary_size)
        self._types, self._train = texts.types, texts.train
        self._test = texts.valid if held_out == "valid" else texts.test
        self._network, self._window, self._streams = network, window, test_streams
        for name, text, least in (("window", self._train, window), ("test_streams", self._test, test_streams)):
            if len(text) <= least:
                raise ValueError(f"{name}={least} must be below the {len(text)} tokens of the text")

    @property
    def types(self) -> tuple[str, ...]:
        """The token of each number."""
        return self._types

    @property
    def samples(self) -> int:
        """Number of windows of the training text."""
        return (len(self._train) - 1) // self._window

    @property
    def test_samples(self) -> int:
        """Number of pieces of the held-out text."""
        return self._streams

    @property
    def order(self) -> Order:
        """Each row of a batch goes on where it was in the batch before."""
        return "streams"

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the sums that `evaluate` returns."""
        return "samples", "tokens", "loss"

    def model(self) -> nn.Module:
        """Build a new model on the CPU, initialised from torch's global generator."""
        return self._network(len(self._types))

    def train_batch(self, keys: Sequence[Key]) -> Batch:
        """Read windows of the training text."""
        starts = torch.tensor([index * self._window for _, index in keys])
        places = starts[:, None] + torch.arange(self._window + 1)
        text = self._train[places].to(torch.int64)
        return text[:, :-1], text[:, 1:], starts == 0

    def test_batch(self, indices: Sequence[int]) -> Batch:
        """Read pieces of the held-out text, the shorter ones filled up."""
        predicted = len(self._test) - 1
        cuts = [(index * predicted // self._streams, (index + 1) * predicted // self._streams) for index in indices]
        longest = max(stop - start for start, stop in cuts)
        tokens = torch.zeros(len(cuts), longest, dtype=torch.int64)
        following = torch.full_like(tokens, NOTHING)
        for row, (start, stop) in enumerate(cuts):
            tokens[row, : stop - start] = self._test[start:stop]
            following[row, : stop - start] = self._test[start + 1 : stop + 1]
        return tokens, following, torch.ones(len(cuts), dtype=torch.bool)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the tokens, and the model's penalty."""
        tokens, following, first = batch
        logits, penalty = model(tokens, first)
        return functional.cross_entropy(logits.flatten(0, 1), following.flatten()) + penalty

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Return the numbers of pieces and of predicted tokens, and the summed -log p, read window by window."""
        tokens, following, first = batch
        loss = torch.zeros((), dtype=torch.float64, device=tokens.device)
        for window, targets in zip(tokens.split(self._window, 1), following.split(self._window, 1), strict=True):
            logits, _ = model(window, first)
            loss += functional.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten(), ignore_index=NOTHING, reduction="sum"
            )
            first = torch.zeros_like(first)
        predicted = float((following != NOTHING).sum())
        return {"samples": float(len(tokens)), "tokens": predicted, "loss": loss.item()}

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the mean "loss" of a token, and the "perplexity"."""
        loss = sums["loss"] / sums["tokens"]
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}  # beyond it the number is too large for a float
