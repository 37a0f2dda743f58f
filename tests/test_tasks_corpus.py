"""Corpora: how texts become numbers, and what is said where a file is missing."""

from pathlib import Path
from typing import Any

import pytest

from dist_lookahead.tasks.corpus import open_corpus


def read(folder: Path, name: str, unit: str = "words", **options: int) -> list[list[str]]:
    """The three parts as tokens again."""
    corpus = open_corpus(name, path=str(folder), unit=unit, **options)
    return [[corpus.types[i] for i in part.tolist()] for part in (corpus.train, corpus.valid, corpus.test)]


@pytest.fixture
def ptb(tmp_path: Path) -> Path:
    (tmp_path / "ptb.train.txt").write_text(" no it was n't black <unk> \n no no it was \n")
    (tmp_path / "ptb.valid.txt").write_text(" it was monday \n")
    (tmp_path / "ptb.test.txt").write_text(" no \n")
    return tmp_path


def test_the_treebank_is_read_as_the_papers_do(ptb: Path) -> None:
    """Split at spaces alone, each line ended by <eos>, words that training lacks read as <unk>."""
    train, valid, test = read(ptb, "ptb")
    assert train == ["no", "it", "was", "n't", "black", "<unk>", "<eos>", "no", "no", "it", "was", "<eos>"]
    assert valid == ["it", "was", "<unk>", "<eos>"]
    assert test == ["no", "<eos>"]


def test_a_smaller_vocabulary_keeps_the_most_frequent_words(ptb: Path) -> None:
    train, _, _ = read(ptb, "ptb", vocabulary_size=3)
    assert train == ["no", "it", *["<unk>"] * 5, "no", "no", "it", *["<unk>"] * 2]


def test_empty_lines_of_wikitext_count(tmp_path: Path) -> None:
    """Its published numbers of tokens include an <eos> for each, and none for other separators within a line."""
    for part in ("train", "valid", "test"):
        (tmp_path / f"wiki.{part}.tokens").write_text(" \n = Title = \n\n A\u2028word . \n", encoding="utf-8")
    train, _, _ = read(tmp_path, "wikitext")
    assert train == ["<eos>", "=", "Title", "=", "<eos>", "<eos>", "A", "word", ".", "<eos>"]


def test_a_text_of_ones_own_is_split_by_lines(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"Line {i}, here.\n" for i in range(20)))
    train, valid, test = read(file, "text")
    assert train[:10] == ["line", "0", ",", "here", ".", "<eos>", "line", "1", ",", "here"]
    assert (len(train), len(valid), len(test)) == (18 * 6, 6, 6)
    assert valid == ["line", "<unk>", ",", "here", ".", "<eos>"]
    characters = read(file, "text", "characters")
    assert "".join(characters[0]).startswith("Line 0, here.\nLine 1")


def test_every_installation_has_the_embedded_text() -> None:
    corpus = open_corpus("python")
    assert len(corpus.train) > 80_000
    assert {"python", "statement", "expression"} <= set(corpus.types)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "pbt", "path": "."}, "corpus='pbt' is unknown; did you mean 'ptb'"),
        ({"name": "python", "unit": "word"}, "unit='word' is unknown; did you mean 'words'"),
        ({"name": "python", "path": "."}, "corpus='python' ships with Python: remove path"),
        ({"name": "text"}, "corpus='text' needs path"),
        (
            {"name": "ptb", "path": "nowhere"},
            r"ptb.train.txt, of the Penn Treebank as Mikolov prepared it.* is missing",
        ),
        ({"name": "text", "path": "nowhere"}, "nowhere is missing: put it there, or change path"),
    ],
)
def test_what_cannot_be_read_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_corpus(**options)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("Ärger".encode("latin-1") * 50)
    with pytest.raises(ValueError, match="could not be read from path"):
        open_corpus("text", path=str(file))
    file.write_text("a b")
    with pytest.raises(ValueError, match="has a part of 0 tokens: at least 2 are needed"):
        open_corpus("text", path=str(file))
