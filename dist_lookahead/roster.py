"""The roster: which parameters an optimizer trains, under which names."""

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from dist_lookahead.bucket import Bucket, Weight


class Roster:
    """The parameters of an optimizer, named after the model.

    Args:
        inner: the fast optimizer.
        model: gives names; without it a parameter is called by its place in `param_groups`.
    """

    def __init__(self, inner: Optimizer, model: nn.Module | None) -> None:
        self._inner = inner
        self._model = model

    def all(self) -> list[Weight]:
        """Return all parameters of the optimizer, frozen ones too."""
        names = {} if self._model is None else {id(p): name for name, p in self._model.named_parameters()}
        return [
            Weight(names.get(id(p), f"param_groups[{g}]['params'][{i}]"), p, g)
            for g, group in enumerate(self._inner.param_groups)
            for i, p in enumerate(group["params"])
        ]

    def untrained(self) -> list[Weight]:
        """Return what is not trained, yet must be equal on all agents: frozen parameters, and the model's buffers."""
        here = self.all()
        known = {id(weight.parameter) for weight in here}
        rest = [] if self._model is None else [*self._model.named_parameters(), *self._model.named_buffers()]
        frozen = [weight for weight in here if not weight.parameter.requires_grad]
        return frozen + [Weight(name, tensor, -1) for name, tensor in rest if id(tensor) not in known]

    def joining(self, buckets: Sequence[Bucket]) -> list[Weight]:
        """Return the trainable parameters that are in no bucket yet: new groups, unfrozen layers."""
        inside = {id(slot.weight.parameter) for bucket in buckets for slot in bucket.slots}
        groups = self._inner.param_groups
        if not any(p.requires_grad and id(p) not in inside for group in groups for p in group["params"]):
            return []
        return [w for w in self.all() if w.parameter.requires_grad and id(w.parameter) not in inside]

    def named(self, names: Sequence[str]) -> list[Weight]:
        """Return the parameters with these names."""
        here = {weight.name: weight for weight in self.all()}
        missing = [name for name in names if name not in here]
        if missing:
            raise ValueError(
                f"the saved state has {len(missing)} parameters that this optimizer has not, first {missing[0]!r}; "
                f"it has {', '.join(list(here)[:5])}, ... Build the same model and parameter groups before loading"
            )
        return [here[name] for name in names]

    def require_live(self, buckets: Sequence[Bucket]) -> None:
        """Refuse to go on with parameters that the model has no longer."""
        if self._model is None:
            return
        live = {id(p) for p in self._model.parameters()}
        for slot in (slot for bucket in buckets for slot in bucket.slots):
            if slot.weight.name.startswith("param_groups[") or id(slot.weight.parameter) in live:
                continue
            raise RuntimeError(
                f"parameter {slot.weight.name!r} of the optimizer is no longer in the model: it was replaced, by "
                "load_state_dict(assign=True), a parametrization or the like, and would not be trained. "
                "Build the optimizer after that, or load with assign=False"
            )


def describe(weights: Sequence[Weight], kind: str = "parameter") -> list[str]:
    """Return a line for each weight: what agents must agree on."""
    return [f"{kind} {w.name} has shape {tuple(w.tensor.shape)} and dtype {w.tensor.dtype}" for w in weights]
