"""The section `inner`: the fast optimizer, any of torch.optim by name, with its own arguments."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn
from torch.optim import Optimizer

from dist_lookahead.notation import is_unknown
from dist_lookahead.train.config_faults import Faults, shown

UNFIT = {
    "ASGD": "keeps the average of its weights where nothing evaluates it: take SGD, and levels: {recipe: polyak}",
    "LBFGS": "needs a closure, which the trainer does not give",
    "SparseAdam": "needs sparse gradients, which no model here has",
    "Muon": "takes matrices only, and every model here has vectors too",
}
PARALLEL = ("none", "ddp", "fsdp2")
OWN = ("decay_norm_and_bias", "data_parallel", "clip_norm")  # settings beside the optimizer's
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """The fast optimizer. In the file its options stand beside its name.

    Args:
        name: class in torch.optim.
        options: arguments of its constructor, `lr` among them.
        decay_norm_and_bias: whether weight decay acts on vectors too (biases, BatchNorm's scale), as in torch.
        data_parallel: "ddp" averages gradients over the agents of a node in each fast step, "fsdp2" splits their
            weights as well, "none" does neither.
        clip_norm: gradients longer than this are brought to this length before each fast step, > 0: on each agent its
            own, over all parameters together; None for any length.

    Example:
        >>> inner = Inner.read({"name": "SGD", "lr": 0.1, "momentum": 0.9})
        >>> inner.build([nn.Parameter(torch.zeros(2))]).param_groups[0]["momentum"]
        0.9
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    decay_norm_and_bias: bool = True
    data_parallel: str = "none"
    clip_norm: float | None = None

    def build(self, params: Iterable[nn.Parameter]) -> Optimizer:
        """Construct the optimizer."""
        params = list(params)
        groups: list[dict[str, Any]] = [{"params": params}]
        if not self.decay_norm_and_bias:
            vectors = [p for p in params if p.ndim < 2]
            matrices = [p for p in params if p.ndim >= 2]
            groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        return OPTIMIZERS[self.name](groups, **self.options)

    def plain(self) -> dict[str, Any]:
        """Return what `read` reads."""
        options = {key: list(value) if isinstance(value, tuple) else value for key, value in self.options.items()}
        own = {name: getattr(self, name) for name in OWN}
        return {"name": self.name, **options, **own}

    @classmethod
    def read(cls, plain: object) -> "Inner":
        """Read the section.

        Raises:
            Faults: for everything that is wrong with it.
        """
        if isinstance(plain, Inner):
            return plain
        if not isinstance(plain, Mapping) or "name" not in plain:
            raise Faults([f"inner={shown(plain)} must have a name, such as SGD, and the arguments of that optimizer"])
        options: dict[Any, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in plain.items()}
        name, decays = options.pop("name"), options.pop("decay_norm_and_bias", True)
        parallel, clip_norm = options.pop("data_parallel", "none"), options.pop("clip_norm", None)
        if not isinstance(name, str) or name not in OPTIMIZERS or name in UNFIT:
            raise Faults([_unfit(name)])
        faults = list(_option_faults(name, options))
        if not isinstance(decays, bool):
            faults.append(f"inner.decay_norm_and_bias={shown(decays)} must be true or false")
        if parallel not in PARALLEL:
            faults.append(f"inner.data_parallel={shown(parallel)} {is_unknown(parallel, PARALLEL)}")
        if not (clip_norm is None or (_fits(clip_norm, float) and clip_norm > 0)):
            faults.append(
                f"inner.clip_norm={shown(clip_norm)} must be a number above 0, or null for gradients as they are"
            )
        if faults:
            raise Faults(faults)
        inner = cls(name=name, options=options, decay_norm_and_bias=decays, data_parallel=parallel, clip_norm=clip_norm)
        inner._try_out()
        return inner

    def _try_out(self) -> None:
        """Refuse values that the optimizer itself refuses, and options without effect."""
        options = ", ".join(f"{key}={shown(value)}" for key, value in self.options.items())
        try:
            defaults = OPTIMIZERS[self.name]([nn.Parameter(torch.zeros(1))], **self.options).defaults
        except (TypeError, ValueError, RuntimeError) as error:
            raise Faults([f"inner: {self.name}({options}) is refused by torch: {error}"]) from error
        faults = []
        if not self.decay_norm_and_bias and not defaults.get("weight_decay"):
            faults.append("inner.decay_norm_and_bias=false has no effect without weight_decay; remove it, or set both")
        if defaults.get("dampening") and not defaults.get("momentum"):
            faults.append("inner.dampening has no effect without momentum; remove it, or set both")
        if faults:
            raise Faults(faults)


def _unfit(name: object) -> str:
    fit = [known for known in OPTIMIZERS if known not in UNFIT]
    if isinstance(name, str) and name in UNFIT:
        return f"inner.name={name!r} {UNFIT[name]}; allowed: {', '.join(fit)}"
    return f"inner.name={shown(name)} {is_unknown(name, fit)}"


def _option_faults(name: str, options: Mapping[str, Any]) -> Iterable[str]:
    parameters = dict(inspect.signature(OPTIMIZERS[name]).parameters)
    del parameters["params"]
    if "lr" not in options:
        yield "inner.lr is missing: the learning rate has no default here"
    for key, value in options.items():
        if key not in parameters:
            yield f"inner.{key} {is_unknown(key, [*parameters, *OWN])}"
        elif not _fits(value, parameters[key].annotation):
            yield f"inner.{key}={shown(value)} must be {_words(parameters[key].annotation)}"
        elif key == "lr" and value == 0:
            yield "inner.lr=0 must be above 0: nothing would be learnt"


def _fits(value: object, annotation: Any) -> bool:
    config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        TypeAdapter(annotation, config=config).validate_python(value)
    except ValidationError:
        return False
    return True


def _words(annotation: Any) -> str:
    """Say what an annotation of torch.optim allows in a file, where there are no tensors."""
    kinds = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", type(None): "null"}
    if getattr(annotation, "__origin__", None) is tuple:
        return f"a list of {len(annotation.__args__)} numbers"
    members = getattr(annotation, "__args__", (annotation,))
    return " or ".join(kinds[member] for member in members if member in kinds)
