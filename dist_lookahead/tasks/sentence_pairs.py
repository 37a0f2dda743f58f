"""Sentence pairs: the parallel corpora known by name, as text."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dist_lookahead.tasks.augment import sample_seed
from dist_lookahead.tasks.choice import unknown_name
from dist_lookahead.tasks.number_words import english, german

Pairs = list[tuple[str, str]]
"""(source, target) sentences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairFacts:
    """What is known of a parallel corpus before any of its files is read.

    Args:
        languages: that it has.
        parts: names of the files for training, validation and test, without the language that ends them; none where
            the pairs are generated.
        source: where a user finds the files.
    """

    languages: tuple[str, ...] = ("en", "de")
    parts: tuple[str, ...] = ()
    source: str = ""


PARALLEL: dict[str, PairFacts] = {
    "numbers": PairFacts(),
    "multi30k": PairFacts(
        languages=("en", "de", "fr", "cs"),
        parts=("train", "val", "test_2016_flickr"),
        source="Multi30k, task 1, folder data/task1/raw of its repository, unpacked",
    ),
    "wmt14": PairFacts(
        parts=("train", "newstest2013", "newstest2014"), source="WMT 2014 English-German, one sentence a line"
    ),
}
"""Every parallel corpus by its name in a configuration. numbers are 0 to 9999 in words, better into English: a German
number is one word, and BLEU counts sequences of up to four."""


@dataclass(frozen=True, slots=True, eq=False)
class SentencePairs:
    """A parallel corpus.

    Args:
        train: pairs for training.
        valid: for validation.
        test: for the test.
    """

    train: Pairs
    valid: Pairs
    test: Pairs


def pair_facts(name: str, source: str, target: str) -> PairFacts:
    """Look up a parallel corpus by name.

    Raises:
        ValueError: the name or a language is unknown, or both languages are the same.
    """
    if name not in PARALLEL:
        raise unknown_name("parallel corpus", name, PARALLEL)
    facts = PARALLEL[name]
    for what, language in (("source", source), ("target", target)):
        if language not in facts.languages:
            raise unknown_name(what, language, facts.languages)
    if source == target:
        raise ValueError(f"source={source!r} and target={target!r} must be two languages")
    return facts


def open_pairs(name: str, *, path: str | None = None, source: str = "en", target: str = "de") -> SentencePairs:
    """Read a parallel corpus into memory.

    Args:
        name: a key of `PARALLEL`.
        path: folder of the files, such as train.en and train.de; None for "numbers".
        source: language to translate from.
        target: language to translate to.

    Raises:
        ValueError: a name is unknown, `path` does not fit the corpus, or files are missing, unreadable or do not match.

    Example:
        >>> open_pairs("numbers").train[21]
        ('twenty-one', 'einundzwanzig')
    """
    facts = pair_facts(name, source, target)
    if (path is None) == bool(facts.parts):
        raise ValueError(
            f"parallel corpus={name!r} needs path: the folder that holds {facts.parts[0]}.{source}"
            if facts.parts
            else f"parallel corpus={name!r} is generated: remove path"
        )
    if path is None:
        return _numbers(swapped=source == "de")
    folder = Path(path).expanduser()
    files = [[folder / f"{part}.{language}" for language in (source, target)] for part in facts.parts]
    if missing := [file for file in chain.from_iterable(files) if not file.is_file()]:
        raise ValueError(f"{missing[0].absolute()}, of {facts.source}, is missing: put it there, or change path")
    return SentencePairs(*(_read(one, other) for one, other in files))


def _numbers(*, swapped: bool) -> SentencePairs:
    """Every 20th number, chosen by a hash, is for the test, as many others for validation."""
    parts: tuple[Pairs, Pairs, Pairs] = ([], [], [])
    for number in range(10_000):
        pair = (german(number), english(number)) if swapped else (english(number), german(number))
        parts[{0: 2, 1: 1}.get(sample_seed(0, 0, number) % 20, 0)].append(pair)
    return SentencePairs(*parts)


def _read(source: Path, target: Path) -> Pairs:
    one, other = (_lines(file) for file in (source, target))
    if len(one) != len(other):
        raise ValueError(f"{source} has {len(one)} lines and {target} {len(other)}: line by line they must match")
    return [(a, b) for a, b in zip(one, other, strict=True) if a and b]


def _lines(file: Path) -> list[str]:
    try:
        # At line feeds alone: other characters that break lines, carriage returns too, occur within sentences of WMT.
        lines: Iterable[str] = file.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} could not be read: {error}") from error
    return [line.strip() for line in lines]
