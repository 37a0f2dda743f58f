"""The configuration of a run: strict, typed YAML; every fault in one error.

    config = load_config("configs/digits/slowmo.yaml", ["levels.tau=24"])

The sections and the meaning of each setting are in `config_sections.py`, `config_inner.py`, `config_lr.py`,
`config_levels.py` and those of the tasks, such as `config_language.py`; each field has its docstring.
`config_tasks.py` says which task has which.
"""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh
from dist_lookahead.tasks.task import Task
from dist_lookahead.train.config_faults import ConfigError, Faults, faults_of
from dist_lookahead.train.config_file import override, read_yaml, write_yaml
from dist_lookahead.train.config_gan import Gan, Images
from dist_lookahead.train.config_inner import Inner
from dist_lookahead.train.config_language import Corpus, LanguageModel
from dist_lookahead.train.config_length import RunLength
from dist_lookahead.train.config_levels import Levels
from dist_lookahead.train.config_lr import ConstantRate, LrSchedule
from dist_lookahead.train.config_mesh import read_mesh, write_mesh
from dist_lookahead.train.config_pairs import (
    PAIRS,
    agents_faults,
    device_faults,
    length_faults,
    run_length,
    window_faults,
)
from dist_lookahead.train.config_quadratic import Quadratic, kinds_faults
from dist_lookahead.train.config_sections import (
    Checkpoint,
    Data,
    Evaluation,
    FaultHandling,
    Logging,
    ModelChoice,
    Performance,
    Precision,
    Probe,
    Run,
    Section,
    Sync,
    one_of,
)
from dist_lookahead.train.config_tasks import SECTIONS, TASKS, Feed, sections_of
from dist_lookahead.train.config_translation import ParallelCorpus, TranslatorChoice

__all__ = ["Config", "ConfigError", "load_config", "parse_config"]


class Config(Section):
    """Everything about a run; frozen.

    Raises:
        ValidationError: from pydantic, where it is built by hand; `load_config` and `parse_config` raise `ConfigError`.
    """

    model_config = ConfigDict(validate_default=True)  # whether a section may be left out depends on the task

    run: Run
    """Name, length, seed and device."""
    agents: int = Field(default=1, ge=1)
    """Agents simulated in this one process; under torchrun every process is one agent, and this is 1."""
    mesh: Annotated[Mesh | None, PlainValidator(read_mesh), PlainSerializer(write_mesh)] = None
    """Axes of the agents by size, such as {node: 2, local: 4}; null for torchrun's nodes and processes on each."""
    task: Annotated[str, one_of(TASKS)] = "vision"
    """What kind of thing is learnt: vision (of images), language, translation, gan, or quadratic (noisy quadratics)."""
    data: Data | None = None
    """What is trained on; for vision only."""
    model: ModelChoice | None = None
    """What is trained; for vision only."""
    quadratic: Quadratic | None = None
    """The noisy quadratics; for quadratic only."""
    corpus: Corpus | None = None
    """The text that is learnt; for language only."""
    language_model: LanguageModel | None = None
    """What learns it; for language only."""
    parallel_corpus: ParallelCorpus | None = None
    """The sentence pairs; for translation only."""
    translator: TranslatorChoice | None = None
    """What learns to translate them; for translation only."""
    images: Images | None = None
    """The images that are imitated; for gan only."""
    gan: Gan | None = None
    """The players; for gan only."""
    inner: Annotated[Inner, PlainValidator(Inner.read), PlainSerializer(Inner.plain)]
    """The fast optimizer."""
    lr_schedule: LrSchedule = ConstantRate()
    """How the fast learning rate changes."""
    levels: Annotated[Levels, PlainValidator(Levels.read), PlainSerializer(Levels.plain)]
    """When agents average and how slow weights move."""
    sync: Sync = Sync()
    """What happens at syncs beside the levels."""
    faults: FaultHandling = FaultHandling()
    """What is done about faults of the agents and their machines."""
    precision: Precision = "fp32"
    """tf32: matrix products on a GPU in TF32; bf16 and fp16: autocast, fp16 with loss scaling."""
    evaluation: Evaluation = Evaluation()
    """When and at which weights the test data are evaluated."""
    probe: Probe | None = None
    """A closer look at a part of the run; null for none."""
    checkpoint: Checkpoint = Checkpoint()
    """What is kept to go on from."""
    logging: Logging = Logging()
    """What is written and shown."""
    performance: Performance = Performance()
    """What makes it faster."""

    @field_validator(*SECTIONS, mode="before")
    @classmethod
    def _belongs_to_the_task(cls, section: object, info: ValidationInfo) -> object:
        task, name = info.data.get("task"), str(info.field_name)
        if task is None:  # which is a fault of its own
            return section
        if name in sections_of(task):
            if section is None:
                raise PydanticCustomError("missing", "Field required")
        elif section is not None:
            others = " or ".join(other for other in TASKS if name in sections_of(other))
            raise Faults([f"{name} has no effect with task={task!r}: remove it, or set task: {others}"])
        return section

    @model_validator(mode="after")
    def _pairs_fit(self) -> "Config":
        faults = list(_pair_faults(dict(self)))
        if faults:
            raise Faults(faults)
        return self

    @property
    def feed(self) -> Feed:
        """How the task is fed."""
        return getattr(self, sections_of(self.task)[0])

    def build_task(self) -> Task:
        """Read the data of the task, where it has some."""
        return TASKS[self.task](run=self.run, **{name: getattr(self, name) for name in sections_of(self.task)})

    def levels_stack(self) -> list[Level]:
        """Return the levels, innermost first, for `DistributedLookahead`."""
        return list(self.levels.stack)

    def length(self, *, samples: int, agents: int) -> RunLength:
        """Return the length of the run, `total` in fast steps.

        Args:
            samples: training samples of the task.
            agents: number of agents, simulated or not.
        """
        return run_length(self.run, self.feed, samples=samples, agents=agents)

    def check(self, *, device: str, samples: int, agents: int) -> None:
        """Check what only the running program knows: the device, the data, and the number of agents.

        Args:
            device: "cpu" or "cuda".
            samples: training samples of the task.
            agents: number of agents, simulated or not.

        Raises:
            ConfigError: for settings without effect there.
        """
        length = self.length(samples=samples, agents=agents)
        faults = [
            *device_faults(device, self.feed, self.precision, self.sync),
            *agents_faults(agents, self.levels),
            *(kinds_faults(agents, self.quadratic) if self.quadratic else ()),
            *length_faults(length, self.levels, self.lr_schedule),
            *(window_faults(length, self.probe) if self.probe else ()),
        ]
        if faults:
            raise ConfigError(f"run {self.run.name!r}", faults)

    def resolved(self) -> dict[str, Any]:
        """Return plain containers with all defaults filled in; `parse_config` makes an equal `Config` of them."""
        return self.model_dump(mode="json", exclude=set(SECTIONS).difference(sections_of(self.task)))

    def to_yaml(self) -> str:
        """Return `resolved` as the text of a run file."""
        return write_yaml(self.resolved())


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run file.

    Args:
        path: YAML file.
        overrides: settings on top of it, such as "levels.tau=24"; the value is YAML.

    Raises:
        ConfigError: lists every fault of file and overrides.
    """
    path = Path(path)
    plain = read_yaml(path)
    return _parse(plain, str(path), override(plain, overrides))


def parse_config(plain: Mapping[str, Any], source: str = "config") -> Config:
    """Check plain containers.

    Args:
        plain: as in a run file.
        source: where they came from, for messages.

    Raises:
        ConfigError: lists every fault.
    """
    return _parse(plain, source, [])


def _parse(plain: Mapping[str, Any], source: str, faults: list[str]) -> Config:
    try:
        config = Config.model_validate(dict(plain))
    except ValidationError as error:
        faults = [*faults, *faults_of(error, Config)]
        if all(details["loc"] for details in error.errors()):  # else the pairs were checked already
            faults += _pair_faults(dict(_sound_sections(plain, {details["loc"][0] for details in error.errors()})))
        raise ConfigError(source, faults) from error
    if faults:
        raise ConfigError(source, faults)
    return config


def _sound_sections(plain: Mapping[str, Any], faulty: Collection[int | str]) -> Iterator[tuple[str, Any]]:
    """Yield the sections that have no faults in themselves, and the defaults of those not given."""
    for name, field in Config.model_fields.items():
        if name in faulty:
            continue
        if name in plain:
            section: Any = Annotated[field.annotation, field]  # pyright: ignore[reportInvalidTypeForm] - made at run time
            yield name, TypeAdapter(section).validate_python(plain[name])
        else:
            yield name, field.default


def _pair_faults(sections: Mapping[str, Any]) -> Iterator[str]:
    """Run every check whose sections are all there."""
    there: dict[str, Any] = {
        name: section for name, section in sections.items() if section is not None or name not in SECTIONS
    }
    feed = there.get(sections_of(there["task"])[0]) if "task" in there else None
    if feed is not None:
        there["feed"] = feed
    for check in PAIRS:
        needed = inspect.signature(check).parameters
        if there.keys() >= needed.keys():
            yield from check(**{name: there[name] for name in needed})
