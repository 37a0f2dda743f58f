"""The sections `parallel_corpus` and `translator`: sentence pairs, and what learns to translate them."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from dist_lookahead.notation import is_unknown
from dist_lookahead.tasks.sentence_pairs import PARALLEL
from dist_lookahead.tasks.transformer import Translator
from dist_lookahead.train.config_faults import Faults
from dist_lookahead.train.config_language import Rate, raise_for_width
from dist_lookahead.train.config_sections import Performance, Section, one_of


class ParallelCorpus(Section):
    """What is translated."""

    name: Annotated[str, one_of(PARALLEL)] = "numbers"
    """numbers (0 to 9999 in words, generated; better into English: BLEU needs several words), multi30k, or wmt14."""
    path: str | None = None
    """Folder that holds train.en, train.de and their siblings; numbers have none."""
    source: str = "en"
    """Language to translate from."""
    target: str = "de"
    """Language to translate to."""
    vocabulary_size: int = Field(default=400, ge=259)
    """Subwords of both languages together, at most; each of the 256 bytes is one."""
    longest: int = Field(default=100, ge=1)
    """Training pairs with a sentence of more subwords are left out."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread evenly over all subwords."""
    batch_size: int = Field(ge=1)
    """Sentence pairs per agent and fast step."""
    workers: int = Field(default=0, ge=0)
    """Processes that read the data of one agent; 0 reads in the training process."""
    pin_memory: bool = False
    """Copy batches to page-locked memory, for asynchronous copies to a GPU."""
    held_out: Literal["valid", "test"] = "test"
    """Which pairs are evaluated."""

    samples: ClassVar[None] = None  # how many are short enough is known when they are read
    download: ClassVar[bool] = False

    @model_validator(mode="after")
    def _is_where_it_says(self) -> "ParallelCorpus":
        facts, faults = PARALLEL[self.name], []
        for what in ("source", "target"):
            if (given := getattr(self, what)) not in facts.languages:
                faults.append(f"parallel_corpus.{what}={given!r} {is_unknown(given, facts.languages)}")
        if self.source == self.target:
            faults.append(f"parallel_corpus.source and target are both {self.source!r}: give two languages")
        if facts.parts and self.path is None:
            where = f"the folder that holds {facts.parts[0]}.{self.source}, of {facts.source}"
            faults.append(f"parallel_corpus.path is missing: {where}")
        if not facts.parts and self.path is not None:
            faults.append(f"parallel_corpus.path={self.path!r} has no effect: {self.name} are generated; remove it")
        if faults:
            raise Faults(faults)
        return self


class TranslatorChoice(Section):
    """A Transformer with encoder and decoder (arXiv 1706.03762), normalised before each part."""

    width: int = Field(default=512, ge=2)
    """Of the positions: even, and a multiple of heads."""
    heads: int = Field(default=8, ge=1)
    """Of the attention."""
    layers: int = Field(default=6, ge=1)
    """Of the encoder, and as many of the decoder."""
    dropout: Rate = 0.1
    """Probability of zeroing what a part of a layer adds."""
    beam: int = Field(default=1, ge=1)
    """Partial translations that are kept in decoding; 1 is greedy."""
    length_penalty: float = Field(default=0.6, ge=0)
    """How much longer translations are preferred in a beam."""

    def network(self) -> Callable[[int], nn.Module]:
        """Return what builds the model."""
        return partial(Translator, **self.model_dump(include={"width", "heads", "layers", "dropout"}))

    @model_validator(mode="after")
    def _fits(self) -> "TranslatorChoice":
        raise_for_width("translator", self.width, self.heads)
        if self.beam == 1 and self.length_penalty != TranslatorChoice.model_fields["length_penalty"].default:
            raise Faults([f"translator.length_penalty={self.length_penalty} has no effect with beam=1: remove it"])
        return self


def _no_images(parallel_corpus: ParallelCorpus, performance: Performance) -> Iterator[str]:
    if performance.channels_last:
        yield "performance.channels_last=true has no effect on sentences, which have no images: remove it"


TRANSLATION_PAIRS: tuple[Callable[..., Iterator[str]], ...] = (_no_images,)
