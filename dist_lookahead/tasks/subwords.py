"""Subwords: a vocabulary of frequent pieces, by byte pair encoding with Hugging Face's `tokenizers`."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BEGIN, END = 0, 1, 2
SPECIAL = ("<pad>", "<s>", "</s>")
BYTES = 256  # any text can be written in them, so that there is no unknown token


class Subwords:
    """Pieces of words, merged from bytes in the order of their frequency.

    Args:
        sentences: to count in.
        size: of the vocabulary at most, >= 259: three marks, 256 bytes, and merges.

    Raises:
        ValueError: the size is too small, or `tokenizers` is not installed.

    Example:
        >>> subwords = Subwords(["eine Katze", "eine Tatze"], size=262)
        >>> subwords.encode(["eine Katze"])[0][-1] == END, subwords.decode(subwords.encode(["Tee für zwei"])[0])
        (True, 'Tee für zwei')

    Reference: arXiv 1508.07909, on bytes.
    """

    def __init__(self, sentences: Iterable[str], *, size: int) -> None:
        if size < BYTES + len(SPECIAL):
            raise ValueError(f"vocabulary_size={size} must be at least {BYTES + len(SPECIAL)}: all bytes, and 3 marks")
        self._tokenizer = _trained(sentences, size)

    def __len__(self) -> int:
        """Return the size of the vocabulary: less than was asked for where the text has no more to merge."""
        return self._tokenizer.get_vocab_size()

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Return the numbers of each sentence's subwords, END behind them."""
        return [[*found.ids, END] for found in self._tokenizer.encode_batch(list(sentences))]

    def decode(self, numbers: Sequence[int]) -> str:
        """Return the sentence of subwords, up to END."""
        numbers = list(numbers)
        end = numbers.index(END) if END in numbers else len(numbers)
        return self._tokenizer.decode(numbers[:end]).strip()


def _trained(sentences: Iterable[str], size: int) -> "Tokenizer":
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ValueError("a vocabulary of subwords needs tokenizers: pip install 'dist-lookahead[text]'") from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer
