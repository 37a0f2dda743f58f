"""Notation: descriptions as plain data, for YAML, JSON and checkpoints, and back.

A description is written as {name: {field: value}} with its class name in snake case, fields at their defaults left
out; without such fields as the name alone. Numbers and texts stand for themselves.
"""

import dataclasses
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dist_lookahead.adaptive import QSR, AdaComm, Timed
from dist_lookahead.averaging.codec import Cast, Quantised, TopK
from dist_lookahead.averaging.exact import Exact
from dist_lookahead.averaging.gossip import Gossip
from dist_lookahead.averaging.mixer import Alone
from dist_lookahead.averaging.push_sum import PushSum
from dist_lookahead.comm.topology import (
    BipartiteExponential,
    Complete,
    Graph,
    OnePeerExponential,
    Ring,
    StaticExponential,
)
from dist_lookahead.fragments import Named, Part, Whole
from dist_lookahead.level import Every, Level
from dist_lookahead.move import Copy, Pull
from dist_lookahead.optimal import Optimal
from dist_lookahead.schedule import Cosine, InverseSqrt, Linear, Piecewise, Warmup


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


MIXES = (Alone, Exact, Gossip, PushSum)
TOPOLOGIES = (Ring, Complete, OnePeerExponential, StaticExponential, BipartiteExponential, Graph)
NAMES: dict[str, type] = {
    _snake(c.__name__): c
    for c in (
        *(Level, Every, *MIXES, Copy, Pull, Optimal),
        *(Piecewise, Linear, Cosine, InverseSqrt, Warmup),
        *(QSR, AdaComm, Timed),
        *(Cast, Quantised, TopK),
        *(Whole, Part, Named),
        *TOPOLOGIES,
    )
}


def to_plain(description: Any) -> Any:
    """Write a description as plain containers.

    Example:
        >>> to_plain(Level(Every(5), Alone(), Pull(0.5)))
        {'level': {'when': {'every': {'tau': 5}}, 'mix': 'alone', 'move': {'pull': {'alpha': 0.5}}}}
    """
    if isinstance(description, list | tuple):
        return [to_plain(item) for item in description]
    if not dataclasses.is_dataclass(description):
        return description
    fields = {
        field.name: to_plain(value)
        for field in dataclasses.fields(description)
        if (value := getattr(description, field.name)) != field.default
    }
    name = _snake(type(description).__name__)
    return {name: fields} if fields else name


def from_plain(plain: Any, where: str = "level") -> Any:
    """Read what `to_plain` wrote.

    Args:
        plain: the plain containers.
        where: path of `plain` in its file, for messages.

    Raises:
        ValueError: for unknown names and fields, with the nearest known one, and for what a description refuses.

    Example:
        >>> from_plain({"pull": {"alpha": 0.5, "betta": 0.9}}, "levels[0].move")
        Traceback (most recent call last):
        ...
        ValueError: levels[0].move.pull.betta is unknown; did you mean 'beta'? allowed: alpha, beta, nesterov, follow_lr
    """
    if isinstance(plain, str) and plain in NAMES:
        return _construct(plain, {}, where)
    if isinstance(plain, Mapping):
        if len(plain) != 1:
            raise ValueError(
                f"{where}={dict(plain)!r} must be {{name: {{field: value}}}} with one of {', '.join(NAMES)}"
            )
        ((name, fields),) = plain.items()
        if name not in NAMES:
            raise ValueError(f"{where}.{name} {is_unknown(name, NAMES)}")
        return _construct(name, fields or {}, where)
    if isinstance(plain, Sequence) and not isinstance(plain, str):
        return tuple(from_plain(item, f"{where}[{index}]") for index, item in enumerate(plain))
    return plain


def is_unknown(given: object, allowed: Collection[str], listed: str | None = None) -> str:
    """Say that a name is unknown, which known one is nearest, and which are allowed.

    Args:
        given: the unknown name.
        allowed: the known names.
        listed: how to write the known names, where they are too many to list.

    Example:
        >>> is_unknown("slomo", ["slowmo", "bmuf"])
        "is unknown; did you mean 'slowmo'? allowed: slowmo, bmuf"
    """
    lowered = {name.lower(): name for name in allowed}
    near = difflib.get_close_matches(str(given).lower(), list(lowered), n=1)
    hint = f"did you mean {lowered[near[0]]!r}? " if near else ""
    return f"is unknown; {hint}allowed: {listed or ', '.join(allowed)}"


def _construct(name: str, fields: Any, where: str) -> Any:
    cls = NAMES[name]
    known = [field.name for field in dataclasses.fields(cls)]
    if not isinstance(fields, Mapping):
        raise ValueError(f"{where}.{name}={fields!r} must be a mapping of {', '.join(known)}")
    for field in fields:
        if field not in known:
            raise ValueError(f"{where}.{name}.{field} {is_unknown(field, known)}")
    values = {field: from_plain(value, f"{where}.{name}.{field}") for field, value in fields.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}.{name}: {error}") from error
