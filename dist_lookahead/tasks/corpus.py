"""Texts to be predicted word by word or character by character: the corpora known by name, as token numbers."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from dist_lookahead.tasks.choice import unknown_name

UNITS = ("words", "characters")
UNKNOWN, END_OF_LINE = "<unk>", "<eos>"

Parts = tuple[str, str, str]
"""The texts for training, validation and test."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusFacts:
    """What is known of a corpus before any of its files is read.

    Args:
        files: for training, validation and test, below `path`; without them `path` is the one text itself, or the text
            is embedded.
        embedded: whether every Python installation has it.
        source: where a user finds the files.
    """

    files: tuple[str, ...] = ()
    embedded: bool = False
    source: str = ""

    @property
    def raw(self) -> bool:
        """Whether words and punctuation still have to be set apart."""
        return not self.files


CORPORA: dict[str, CorpusFacts] = {
    "python": CorpusFacts(embedded=True),
    "ptb": CorpusFacts(
        files=tuple(f"ptb.{part}.txt" for part in ("train", "valid", "test")),
        source="the Penn Treebank as Mikolov prepared it, folder data/ of his simple-examples",
    ),
    "wikitext": CorpusFacts(
        files=tuple(f"wiki.{part}.tokens" for part in ("train", "valid", "test")),
        source="WikiText-2 or WikiText-103 at the level of words",
    ),
    "text": CorpusFacts(),
}
"""Every corpus by its name in a configuration. python is the reference of the language that `help()` shows: 376,677
characters in Python 3.11.7, 400,615 in 3.12.1, 417,805 in 3.13.0, so that their perplexities do not compare."""


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """A corpus as numbers.

    Args:
        types: the token of each number.
        train: int32, shape (tokens,).
        valid: likewise.
        test: likewise.
    """

    types: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor


def corpus_facts(name: str) -> CorpusFacts:
    """Look up a corpus by name.

    Raises:
        ValueError: the name is unknown; the message holds the allowed names and the nearest one.
    """
    if name not in CORPORA:
        raise unknown_name("corpus", name, CORPORA)
    return CORPORA[name]


def open_corpus(
    name: str, *, path: str | None = None, unit: str = "words", vocabulary_size: int | None = None
) -> Corpus:
    """Read a corpus into memory.

    Words of ptb and wikitext are what stands between spaces, those of other texts are put in lower case and set apart
    from punctuation; each line ends with "<eos>". A text without parts of its own gives its first 90 % of lines to
    training, 5 % to validation and 5 % to the test.

    Args:
        name: a key of `CORPORA`.
        path: the folder of the files; for "text" the file; None for "python".
        unit: "words" or "characters".
        vocabulary_size: keep so many of the most frequent tokens of the training text, "<unk>" among them, and read
            all others as "<unk>"; None keeps all.

    Raises:
        ValueError: a name is unknown, `path` does not fit the corpus, or a file is missing, unreadable or too short.

    Example:
        >>> corpus = open_corpus("python", unit="characters")
        >>> "".join(corpus.types[i] for i in corpus.train[:17].tolist())
        'The "assert" stat'
    """
    facts = corpus_facts(name)
    if unit not in UNITS:
        raise unknown_name("unit", unit, UNITS)
    if facts.embedded != (path is None):
        raise ValueError(
            f"corpus={name!r} ships with Python: remove path" if facts.embedded else f"corpus={name!r} needs path"
        )
    parts = [_tokens(part, unit, raw=facts.raw) for part in _read(name, facts, path)]
    if min(map(len, parts)) < 2:
        raise ValueError(f"corpus={name!r} has a part of {min(map(len, parts))} tokens: at least 2 are needed")
    types = _types(parts[0], vocabulary_size)
    numbers = {token: number for number, token in enumerate(types)}
    train, valid, test = (_numbered(part, numbers) for part in parts)
    return Corpus(types, train, valid, test)


def _read(name: str, facts: CorpusFacts, path: str | None) -> Parts:
    if path is None:
        return _split(_python_topics())
    where = Path(path).expanduser()
    files = [where / file for file in facts.files] or [where]
    if missing := [file for file in files if not file.is_file()]:
        what = f", of {facts.source}," if facts.source else ""
        raise ValueError(f"corpus={name!r}: {missing[0].absolute()}{what} is missing: put it there, or change path")
    try:
        texts = [file.read_text(encoding="utf-8") for file in files]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"corpus={name!r} could not be read from path={path!r}: {error}") from error
    return (texts[0], texts[1], texts[2]) if facts.files else _split(texts[0])


def _python_topics() -> str:
    try:
        # Imported here because only those who use it should read half a megabyte.
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError("corpus='python': this Python lacks its module pydoc_data; use another corpus") from error
    paragraphs = (paragraph for name in sorted(topics) for paragraph in topics[name].split("\n\n"))
    # Many pages are parts of others. Of each paragraph one is left: else the test would be of what was learnt by heart.
    return "\n\n".join(dict.fromkeys(paragraphs))


def _split(text: str) -> Parts:
    lines = text.splitlines(keepends=True)
    valid, test = len(lines) * 90 // 100, len(lines) * 95 // 100
    train, middle, end = ("".join(part) for part in (lines[:valid], lines[valid:test], lines[test:]))
    return train, middle, end


def _tokens(text: str, unit: str, *, raw: bool) -> list[str]:
    if unit == "characters":
        return list(text)
    # At line feeds alone: other characters that end lines for Python would add to the papers' count of "<eos>".
    lines = text.removesuffix("\n").split("\n")
    words = (re.findall(r"\w+|[^\w\s]", line.lower()) if raw else line.split() for line in lines)
    # Empty lines separate articles in wikitext; in a raw text they are layout.
    return list(chain.from_iterable((*line, END_OF_LINE) for line in words if line or not raw))


def _types(tokens: Sequence[str], size: int | None) -> tuple[str, ...]:
    """Return the tokens from the most frequent on; of equally frequent ones that which comes first in the text."""
    common = [token for token, _ in Counter(tokens).most_common() if token != UNKNOWN]
    return UNKNOWN, *common[: None if size is None else size - 1]


def _numbered(tokens: Sequence[str], numbers: Mapping[str, int]) -> Tensor:
    return torch.tensor([numbers.get(token, 0) for token in tokens], dtype=torch.int32)
