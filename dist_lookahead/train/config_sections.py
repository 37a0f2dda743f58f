"""The plain sections of a run file: run, data, model, sync, evaluation, probe, checkpoint, logging, performance."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torchvision import models

from dist_lookahead.notation import is_unknown
from dist_lookahead.same_weights import Differing
from dist_lookahead.tasks.datasets import DATA_SETS
from dist_lookahead.tasks.models import OWN_MODELS
from dist_lookahead.train.config_faults import Faults
from dist_lookahead.train.config_length import RunLength, Unit

Precision = Literal["fp32", "tf32", "bf16", "fp16"]

MODELS = (*OWN_MODELS, *models.list_models(module=models))
SAMPLES = {"digits": 1437, "mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}
"""Training samples of the data sets that always have the same."""
THEIRS = f"any of the {len(MODELS) - len(OWN_MODELS)} classifiers in torchvision.models"


class Section(BaseModel):
    """A section of the file: frozen, without unknown keys, without conversions but from whole numbers to numbers."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),  # `model` is a section here
    )


def one_of(names: Collection[str], listed: str | None = None) -> AfterValidator:
    """Return a validator that refuses names which are not among the known ones."""

    def check(given: str) -> str:
        if given not in names:
            raise ValueError(is_unknown(given, names, listed))
        return given

    return AfterValidator(check)


def as_tuple(value: object) -> object:
    """Turn YAML's list into what a frozen section holds."""
    return tuple(value) if isinstance(value, list) else value


def place_faults(section: str, name: str, path: str | None, *, download: bool) -> list[str]:
    """Return what is wrong with where a set of images is said to lie.

    Args:
        section: of the file.
        name: of the data set.
        path: folder of the files, if any.
        download: whether missing files are fetched.
    """
    facts, faults = DATA_SETS[name], []
    if facts.files and path is None:
        faults.append(f"{section}.path is missing: the folder that holds (or will hold) {facts.files[0]}")
    if not facts.files and path is not None:
        faults.append(f"{section}.path={path!r} has no effect: {name} ships inside a package; remove it")
    if download and facts.reader is None:
        faults.append(f"{section}.download=true: {name} cannot be downloaded; remove it")
    return faults


class Run(Section):
    """What the run is called, how long it is, and on what it runs."""

    name: str = Field(pattern=r"^\w[\w.+-]*$")
    """Name of the run; its folder is `dir`/`name`."""
    dir: str = "runs"
    """Folder of all runs."""
    seed: int = Field(default=0, ge=0)
    """Of the initial weights, the order of the data, and the augmentation."""
    epochs: float | None = Field(default=None, gt=0)
    """Length in epochs: passes of all agents together over the training data. Give this or `steps`."""
    steps: int | None = Field(default=None, ge=1)
    """Length in fast steps of each agent. Give this or `epochs`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where there is some."""
    deterministic: bool = False
    """Use only algorithms that give the same bits in every run; slower on a GPU."""

    @model_validator(mode="before")
    @classmethod
    def _without_the_timeout(cls, plain: Any) -> Any:
        if isinstance(plain, dict) and "timeout" in plain:
            raise Faults(["run.timeout is faults.timeout now: move it there"])
        return plain

    @model_validator(mode="after")
    def _one_length(self) -> "Run":
        if (self.epochs is None) == (self.steps is None):
            given = (
                "neither epochs nor steps" if self.epochs is None else f"epochs={self.epochs:g} and steps={self.steps}"
            )
            raise Faults([f"run has {given}: give one of them (and null for the other, where a file already has it)"])
        return self


class Data(Section):
    """What is trained on."""

    name: Annotated[str, one_of(DATA_SETS)]
    """Data set."""
    path: str | None = None
    """Folder that holds the files, in torchvision's layout; digits have none."""
    download: bool = False
    """Fetch missing files into `path`."""
    augment: bool | None = None
    """Augment training images; null for what is standard for the data set."""
    image_size: int | None = Field(default=None, ge=1)
    """Height and width to which imagefolder brings its images; null for 224."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each training label that is spread evenly over all classes."""
    batch_size: int = Field(ge=1)
    """Samples per agent and fast step."""
    workers: int = Field(default=0, ge=0)
    """Processes that read the data of one agent; 0 reads in the training process."""
    pin_memory: bool = False
    """Copy batches to page-locked memory, for asynchronous copies to a GPU."""

    @property
    def samples(self) -> int | None:
        """Training samples, where they are known before the data are read."""
        return SAMPLES.get(self.name)

    @model_validator(mode="before")
    @classmethod
    def _standard_augmentation(cls, plain: Any) -> Any:
        if not isinstance(plain, dict) or plain.get("augment") is not None:
            return plain
        facts = DATA_SETS.get(str(plain.get("name")))
        return {**plain, "augment": facts is not None and facts.augmented}

    @model_validator(mode="after")
    def _fits_the_set(self) -> "Data":
        facts, faults = DATA_SETS[self.name], []
        if self.augment and not facts.augmented:
            faults.append(f"data.augment=true: {self.name} has no standard augmentation; remove it")
        faults += place_faults("data", self.name, self.path, download=self.download)
        if self.image_size is not None and self.name != "imagefolder":
            faults.append(
                f"data.image_size={self.image_size}: {self.name} has a size of its own, {facts.size}; remove it"
            )
        if faults:
            raise Faults(faults)
        return self


class ModelChoice(Section):
    """What is trained."""

    name: Annotated[str, one_of(MODELS, listed=f"{', '.join(OWN_MODELS)}, or {THEIRS}")]
    """Own model, or a classifier of torchvision."""
    width: int | None = Field(default=None, ge=1)
    """Units (mlp) or channels (cnn, cifar_resnet) of the first layer; null for the model's default."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Probability of zeroing a hidden unit; null for the model's default."""

    @model_validator(mode="after")
    def _takes_its_options(self) -> "ModelChoice":
        takes = OWN_MODELS.get(self.name, ("dropout",))  # some of torchvision's do: seen when one is built
        faults = [
            f"model.{option}={getattr(self, option)} has no effect on {self.name}; remove it, or choose "
            + " or ".join(own for own, options in OWN_MODELS.items() if option in options)
            for option in ("width", "dropout")
            if getattr(self, option) is not None and option not in takes
        ]
        if faults:
            raise Faults(faults)
        return self


class Sync(Section):
    """What happens at syncs beside the levels."""

    model_buffers: Literal["average", "local"] = "average"
    """Average BatchNorm's statistics at the outermost sync, or leave each agent its own."""
    check_every: int = Field(default=0, ge=0)
    """Syncs between comparisons of the agents' weights; 0 compares after the first sync only."""
    offload: Literal["cpu"] | None = None
    """cpu keeps slow weights and slow momentum in host memory, for models that leave no room on the GPU.

    `logging.dynamics: false` leaves out three copies more, of what the run reports about its syncs."""


class FaultHandling(Section):
    """What a run does about faults of the agents and their machines."""

    timeout: float = Field(default=600.0, gt=0)
    """Seconds for which an agent that is silent in a collective is waited for; more than the slowest is ever late."""
    on_late: Literal["stop", "wait"] = "stop"
    """What is done after `timeout`: end the run on every agent with an error that says who is late, or wait on."""
    report_after: float = Field(default=30.0, gt=0)
    """Seconds of waiting for others after which one agent says where all of them are; again after twice that, .."""
    on_lost_agent: Literal["stop", "restart", "continue"] = "stop"
    """stop: the run ends on every agent; restart: the same, and it does not begin where torchrun would not start agents
    again; continue: those that are left go on in the same processes, started by `dist-lookahead launch`."""
    differing_weights: Differing = "stop"
    """Where a comparison (sync.check_every) finds that agents' slow weights differ: end the run, or take the parameter
    from the majority of the agents and end it without one, or then take it from the lowest rank."""
    poison: Literal["stop", "leave_out"] = "stop"
    """Where an agent's loss or weights are not finite: end the run, or leave the agent out of the means and let it go
    on from the slow weights; the run ends where that is so of all agents."""
    clip: float | None = Field(default=None, gt=0)
    """With poison: leave_out, at most so many times the usual way of the agents in a round counts of any one's."""
    agents: Literal["fixed", "elastic"] = "fixed"
    """Whether a run goes on with as many agents as it had, or with any number of them. elastic writes checkpoints at
    outermost syncs only, the first one at or after each fast step at which checkpoint.every is due."""


class Evaluation(Section):
    """When and at which weights the test data are evaluated; the end of the run always is."""

    every: float | None = Field(default=1, gt=0)
    """Evaluate at the first sync after every so many `unit`; null for the end of the run only."""
    unit: Unit = "epochs"
    """Unit of `every`: fast steps or epochs."""
    weights: Annotated[tuple[Literal["slow", "averaged"], ...], BeforeValidator(as_tuple), Field(min_length=1)] = (
        "slow",
    )
    """slow: the outermost slow weights; averaged: the mean of the agents' fast weights."""
    batch_size: int = Field(default=512, ge=1)
    """Samples per agent and batch."""

    def period(self, length: RunLength) -> int | None:
        """Return `every` in fast steps; None for the end only."""
        return None if self.every is None else length.steps(self.every, self.unit)

    @model_validator(mode="after")
    def _sensible(self) -> "Evaluation":
        faults = []
        if len(set(self.weights)) < len(self.weights):
            faults.append(f"evaluation.weights={list(self.weights)} names the same weights twice")
        if self.unit == "steps" and self.every is not None and self.every % 1:
            faults.append(f"evaluation.every={self.every} must be a whole number of steps, or unit: epochs")
        if faults:
            raise Faults(faults)
        return self


class Probe(Section):
    """A closer look at a part of the run, which changes nothing in it."""

    name: Literal["inner_loop"] = "inner_loop"
    """inner_loop: test metrics of the agents' own weights after every fast step, and again after every sync."""
    start: int | None = Field(default=None, ge=0)
    """Fast step at which the window begins; null for three rounds of the outermost level before its end."""
    end: int | None = Field(default=None, ge=1)
    """Last fast step of the window; null for the end of the run."""
    samples: int = Field(default=1000, ge=1)
    """Test samples to measure on, the same ones each time; all of them where there are fewer."""

    @model_validator(mode="after")
    def _has_a_length(self) -> "Probe":
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise Faults([f"probe.start={self.start} and probe.end={self.end}: the window must end after its start"])
        return self


class Checkpoint(Section):
    """What is kept of the run, to go on from."""

    every: int = Field(default=200, ge=1)
    """Fast steps between checkpoints; the end of the run always has one."""
    keep: int = Field(default=3, ge=1)
    """Checkpoints that are kept, the newest."""
    grace: float = Field(default=20.0, ge=0, lt=30)
    """Seconds from a signal to the end: a sync within them saves; below the 30 after which torchrun kills."""


class Logging(Section):
    """What is written and shown."""

    every: int = Field(default=1, ge=1)
    """Syncs between lines of metrics."""
    dynamics: bool = True
    """Measure spread, distance of the mean from z, and cosine of slow steps, which reads the weights once more; not
    where the outermost level gossips, since no agent has the mean."""
    tensorboard: bool = True
    """Write TensorBoard events beside the JSONL file."""
    plots: bool = True
    """Write curves as PNG at the end."""
    progress: Literal["auto", "bar", "plain", "off"] = "auto"
    """A bar, plain lines, or nothing; auto shows a bar on a terminal and plain lines elsewhere."""


class Performance(Section):
    """What makes it faster and changes no more than the last bits."""

    channels_last: bool = False
    """Keep images and convolutions in the order that tensor cores want."""
    compile: bool = False
    """Compile the model with torch.compile."""
