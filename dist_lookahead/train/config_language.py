"""The sections `corpus` and `language_model`: a text, and what learns to go on with it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from dist_lookahead.tasks.corpus import CORPORA
from dist_lookahead.tasks.gpt import TransformerLanguageModel
from dist_lookahead.tasks.lstm import LstmLanguageModel
from dist_lookahead.train.config_faults import Faults
from dist_lookahead.train.config_sections import Performance, Section, one_of

Rate = Annotated[float, Field(ge=0, lt=1)]


class Corpus(Section):
    """What is read."""

    name: Annotated[str, one_of(CORPORA)] = "python"
    """python (the reference that help() shows; in every installation), ptb, wikitext, or a text of your own."""
    path: str | None = None
    """Folder that holds ptb.train.txt or wiki.train.tokens and their siblings; for text the file itself."""
    unit: Literal["words", "characters"] = "words"
    """What is predicted."""
    vocabulary_size: int | None = Field(default=None, ge=2)
    """Keep so many of the most frequent words or characters, the others are <unk>; null keeps all."""
    window: int = Field(default=35, ge=2)
    """Tokens of a sample: as far as gradients go back, and as a Transformer sees."""
    batch_size: int = Field(ge=1)
    """Streams that an agent reads side by side: samples per agent and fast step."""
    held_out: Literal["valid", "test"] = "test"
    """Which text is evaluated."""
    test_streams: int = Field(default=10, ge=1)
    """Pieces of that text, each read from its beginning; 1 reads it as a whole, as slowly as that is."""

    # How it is fed: the text lies in memory, and a batch is a slice of it.
    samples: ClassVar[None] = None
    workers: ClassVar[int] = 0
    pin_memory: ClassVar[bool] = False
    download: ClassVar[bool] = False

    @model_validator(mode="after")
    def _is_where_it_says(self) -> "Corpus":
        facts = CORPORA[self.name]
        if facts.embedded and self.path is not None:
            raise Faults([f"corpus.path={self.path!r} has no effect: {self.name} ships with Python; remove it"])
        if not facts.embedded and self.path is None:
            what = f"the folder that holds {facts.files[0]}, of {facts.source}" if facts.files else "the text file"
            raise Faults([f"corpus.path is missing: {what}"])
        return self


class LstmChoice(Section):
    """An LSTM, regularised as AWD-LSTM is (arXiv 1708.02182)."""

    name: Literal["lstm"]
    """Layers of LSTM with a memory; the rates below in the paper: 0.1, 0.4 (0.65 in its code), 0.3, 0.4, 0.5, 2, 1."""
    embedding: int = Field(default=400, ge=1)
    """Width of the embedding and of the last layer, which share their matrix with the output."""
    hidden: int = Field(default=1150, ge=1)
    """Width of the other layers."""
    layers: int = Field(default=3, ge=1)
    """Number of layers."""
    dropout_embedding: Rate = 0.0
    """Probability of dropping a word from the embedding for a window."""
    dropout_input: Rate = 0.0
    """Of zeroing a coordinate of the embedded words for a window, as in all the following."""
    dropout_between: Rate = 0.0
    """Of zeroing a coordinate between two layers."""
    dropout_output: Rate = 0.0
    """Of zeroing a coordinate of the last layer."""
    dropout_weights: Rate = 0.0
    """Of zeroing a hidden-to-hidden weight."""
    activation: float = Field(default=0.0, ge=0)
    """AR: weight of the mean square of the last layer in the loss."""
    slowness: float = Field(default=0.0, ge=0)
    """TAR: weight of the mean square of its change from token to token."""

    def network(self) -> Callable[[int], nn.Module]:
        """Return what builds the model."""
        return partial(LstmLanguageModel, **self.model_dump(exclude={"name"}))

    @model_validator(mode="after")
    def _has_what_is_regularised(self) -> "LstmChoice":
        if self.dropout_between and self.layers == 1:
            raise Faults(
                [f"language_model.dropout_between={self.dropout_between} has no effect with layers=1: remove it"]
            )
        return self


class GptChoice(Section):
    """A Transformer of decoder layers alone."""

    name: Literal["transformer"]
    """A Transformer as in GPT, which sees its window and remembers nothing."""
    width: int = Field(default=256, ge=2)
    """Of the positions: even, and a multiple of heads."""
    heads: int = Field(default=4, ge=1)
    """Of the attention."""
    layers: int = Field(default=4, ge=1)
    """Number of layers."""
    dropout: Rate = 0.1
    """Probability of zeroing what a part of a layer adds."""

    def network(self) -> Callable[[int], nn.Module]:
        """Return what builds the model."""
        return partial(TransformerLanguageModel, **self.model_dump(exclude={"name"}))

    @model_validator(mode="after")
    def _divides(self) -> "GptChoice":
        raise_for_width("language_model", self.width, self.heads)
        return self


LanguageModel = Annotated[LstmChoice | GptChoice, Field(discriminator="name")]


def raise_for_width(section: str, width: int, heads: int) -> None:
    """Refuse a width of a Transformer that its heads and positions cannot share."""
    if width % heads or width % 2:
        raise Faults([f"{section}.width={width} must be even, and a multiple of {section}.heads={heads}"])


def _no_images(corpus: Corpus, performance: Performance) -> Iterator[str]:
    if performance.channels_last:
        yield "performance.channels_last=true has no effect on a text, which has no images: remove it"


LANGUAGE_PAIRS: tuple[Callable[..., Iterator[str]], ...] = (_no_images,)
