"""Tasks by name: the sections of the file that each one has, and how it is built from them.

A task is a function of its sections, named as in the file, and of `run`. The first of them says how it is fed.
A new task is a module in `tasks`, a section, and a function here.
"""

import inspect
from collections.abc import Callable
from typing import Protocol

from dist_lookahead.tasks.gan import GanTask
from dist_lookahead.tasks.language import LanguageTask
from dist_lookahead.tasks.quadratic import QuadraticTask
from dist_lookahead.tasks.task import Task
from dist_lookahead.tasks.translation import TranslationTask
from dist_lookahead.tasks.vision import VisionTask
from dist_lookahead.train.config_gan import Gan, Images
from dist_lookahead.train.config_language import Corpus, LanguageModel
from dist_lookahead.train.config_quadratic import Quadratic
from dist_lookahead.train.config_sections import Data, ModelChoice, Run
from dist_lookahead.train.config_translation import ParallelCorpus, TranslatorChoice


class Feed(Protocol):
    """What the trainer asks of a task's first section."""

    @property
    def batch_size(self) -> int:
        """Samples per agent and fast step."""
        ...

    @property
    def samples(self) -> int | None:
        """Training samples, where the file alone says how many."""
        ...

    @property
    def workers(self) -> int:
        """Processes that read the data of one agent."""
        ...

    @property
    def pin_memory(self) -> bool:
        """Whether batches are copied to page-locked memory."""
        ...

    @property
    def download(self) -> bool:
        """Whether building the task may write files that other agents read."""
        ...


def vision(run: Run, data: Data, model: ModelChoice) -> Task:
    """Image classification."""
    return VisionTask(
        data=data.name,
        model=model.name,
        path=data.path,
        download=data.download,
        augment=data.augment,
        label_smoothing=data.label_smoothing,
        width=model.width,
        dropout=model.dropout,
        image_size=data.image_size,
        seed=run.seed,
    )


def quadratic(run: Run, quadratic: Quadratic) -> Task:
    """Noisy quadratics."""
    return QuadraticTask(
        curvature=quadratic.numbers("curvature"),
        noise=quadratic.numbers("noise"),
        offsets=quadratic.numbers("offsets"),
        start=quadratic.numbers("start")[0],
        repetitions=quadratic.repetitions,
        seed=run.seed,
    )


def gan(run: Run, images: Images, gan: Gan) -> Task:
    """Generative adversarial networks."""
    return GanTask(
        data=images.name,
        path=images.path,
        download=images.download,
        latent=gan.latent,
        width=gan.width,
        loss=gan.loss,
        spectral_norm=gan.spectral_norm,
        step=gan.step,
        d_steps=gan.d_steps,
        judge_dir=images.judge_dir,
        seed=run.seed,
    )


def language(run: Run, corpus: Corpus, language_model: LanguageModel) -> Task:
    """Language modelling."""
    return LanguageTask(
        language_model.network(),
        corpus=corpus.name,
        path=corpus.path,
        unit=corpus.unit,
        vocabulary_size=corpus.vocabulary_size,
        window=corpus.window,
        held_out=corpus.held_out,
        test_streams=corpus.test_streams,
    )


def translation(run: Run, parallel_corpus: ParallelCorpus, translator: TranslatorChoice) -> Task:
    """Translation."""
    return TranslationTask(
        translator.network(),
        corpus=parallel_corpus.name,
        path=parallel_corpus.path,
        source=parallel_corpus.source,
        target=parallel_corpus.target,
        vocabulary_size=parallel_corpus.vocabulary_size,
        longest=parallel_corpus.longest,
        label_smoothing=parallel_corpus.label_smoothing,
        held_out=parallel_corpus.held_out,
        beam=translator.beam,
        length_penalty=translator.length_penalty,
    )


TASKS: dict[str, Callable[..., Task]] = {
    "vision": vision,
    "quadratic": quadratic,
    "language": language,
    "translation": translation,
    "gan": gan,
}


def sections_of(task: str) -> tuple[str, ...]:
    """Return the names of a task's own sections.

    Example:
        >>> sections_of("vision")
        ('data', 'model')
    """
    return tuple(name for name in inspect.signature(TASKS[task]).parameters if name != "run")


SECTIONS = tuple(dict.fromkeys(name for task in TASKS for name in sections_of(task)))
"""The sections that not every task has."""
