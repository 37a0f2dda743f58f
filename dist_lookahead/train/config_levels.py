"""The section `levels`: a recipe by name with its arguments, or a list of levels in the notation of `notation.py`."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

from dist_lookahead import recipes
from dist_lookahead.adaptive import Adaptive, Tau
from dist_lookahead.level import FastBuffers, Level, check_levels
from dist_lookahead.move import Alpha
from dist_lookahead.notation import NAMES, from_plain, is_unknown, to_plain
from dist_lookahead.optimal import Optimal
from dist_lookahead.schedule import Schedule, Scheduled
from dist_lookahead.train.config_faults import Faults, shown

RECIPES: dict[str, Callable[..., list[Level]]] = {name: getattr(recipes, name) for name in recipes.__all__}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """The levels, and how they were written.

    Args:
        stack: the levels, innermost first.
        recipe: name of the recipe that made them; None for a list.
        arguments: all arguments of the recipe, its defaults filled in.

    Example:
        >>> Levels.read({"recipe": "slowmo", "tau": 24}).stack[0].when
        Every(tau=24)
    """

    stack: tuple[Level, ...]
    recipe: str | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def plain(self) -> Any:
        """Return what `read` reads."""
        if self.recipe is None:
            return [to_plain(level)["level"] for level in self.stack]
        return {"recipe": self.recipe, **{name: to_plain(value) for name, value in self.arguments.items()}}

    @classmethod
    def read(cls, plain: object) -> "Levels":
        """Read the section.

        Raises:
            Faults: for everything that is wrong with it.
        """
        if isinstance(plain, Levels):
            return plain
        if isinstance(plain, list):
            return cls(stack=_read_list(plain))
        if not isinstance(plain, Mapping) or "recipe" not in plain:
            known = ", ".join(RECIPES)
            raise Faults(
                [f"levels={shown(plain)} must have a recipe, or be a list of levels; allowed recipes: {known}"]
            )
        return cls._of_recipe(plain["recipe"], {key: value for key, value in plain.items() if key != "recipe"})

    @classmethod
    def _of_recipe(cls, name: Any, given: Mapping[str, Any]) -> "Levels":
        if not isinstance(name, str) or name not in RECIPES:
            raise Faults([f"levels.recipe={shown(name)} {is_unknown(name, RECIPES)}"])
        signature = inspect.signature(RECIPES[name])
        known = signature.parameters
        faults = [f"levels.{key} {is_unknown(key, known)}" for key in given if key not in known]
        read: dict[str, Any] = {}
        for key, parameter in known.items():
            if key in given:
                reader = _read_levels if parameter.annotation == Sequence[Level] else _read_value
                read[key] = reader(given[key], parameter.annotation, f"levels.{key}", faults)
            elif parameter.default is parameter.empty:
                faults.append(f"levels.{key} is missing: {name} needs it")
        if faults:
            raise Faults(faults)
        bound = signature.bind(**read)
        bound.apply_defaults()
        return cls(stack=_call(RECIPES[name], bound.arguments), recipe=name, arguments=bound.arguments)


def _call(recipe: Callable[..., list[Level]], arguments: Mapping[str, Any]) -> tuple[Level, ...]:
    try:
        return check_levels(recipe(**arguments))
    except ValueError as error:
        raise Faults(list(_blame(recipe, arguments)) or [f"levels: {error}"]) from error


def _blame(recipe: Callable[..., list[Level]], arguments: Mapping[str, Any]) -> Iterator[str]:
    """Say which numbers are wrong each for itself, the others at their defaults."""
    parameters = inspect.signature(recipe).parameters
    kinds = (Scheduled, Alpha, Tau)
    numbers = [key for key, p in parameters.items() if p.annotation in kinds and p.default is not p.empty]
    others = {key: value for key, value in arguments.items() if key not in numbers}
    if _refusal(recipe, others):
        return
    for key in numbers:
        if refusal := _refusal(recipe, {**others, key: arguments[key]}):
            yield f"levels.{key}={shown(to_plain(arguments[key]))}: {refusal}"


def _refusal(recipe: Callable[..., list[Level]], arguments: Mapping[str, Any]) -> str | None:
    try:
        recipe(**arguments)
    except ValueError as error:
        return str(error)
    return None


def _read_list(plain: Sequence[Any]) -> tuple[Level, ...]:
    faults: list[str] = []
    levels = [_read_level(item, f"levels[{index}]", faults) for index, item in enumerate(plain)]
    if not faults:
        try:
            return check_levels([level for level in levels if level is not None])
        except ValueError as error:
            faults.append(str(error))
    raise Faults(faults)


def _read_level(plain: Any, path: str, faults: list[str]) -> Level | None:
    """Read {when: .., mix: .., move: ..}, also as the full {level: {..}}; None where it has faults."""
    known = {field.name: field for field in dataclasses.fields(Level)}
    if isinstance(plain, Mapping) and plain.keys() == {"level"}:
        plain, path = plain["level"], f"{path}.level"
    if not isinstance(plain, Mapping):
        faults.append(f"{path}={shown(plain)} must be a mapping of {', '.join(known)}")
        return None
    before = len(faults)
    faults += [f"{path}.{key} {is_unknown(key, known)}" for key in plain if key not in known]
    required = [name for name, field in known.items() if field.default is dataclasses.MISSING]
    faults += [f"{path}.{name} is missing" for name in required if name not in plain]
    read = {
        name: _read_value(plain[name], field.type, f"{path}.{name}", faults)
        for name, field in known.items()
        if name in plain
    }
    if len(faults) > before:
        return None
    try:
        return Level(**read)
    except ValueError as error:
        faults.append(f"{path}: {error}")
        return None


def _read_levels(plain: Any, _annotation: Any, path: str, faults: list[str]) -> list[Level | None]:
    """Read the levels below those of a recipe."""
    if not isinstance(plain, list):
        faults.append(f"{path}={shown(plain)} must be a list of levels, innermost first")
        return []
    return [_read_level(item, f"{path}[{index}]", faults) for index, item in enumerate(plain)]


def _read_value(plain: Any, annotation: Any, path: str, faults: list[str]) -> Any:
    """Read a value in the notation, and note what is wrong with it."""
    try:
        value = from_plain(plain, path)
    except ValueError as error:
        faults.append(str(error))
        return None
    faults += _wrong_types(value, annotation, path)
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _is_scheduled(value: object) -> bool:
    return _is_number(value) or (dataclasses.is_dataclass(value) and isinstance(value, Schedule))


def _is_interval(value: object) -> bool:
    return isinstance(value, Optimal)


def _all(kind: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, tuple) and all(map(kind, value))


SPELLED = {kind: name for name, kind in NAMES.items()}
A_SCHEDULE = "a schedule such as {piecewise: {values: [1, 12], boundaries: [1000]}}"
A_RULE = "a rule such as {qsr: {base: 4, coefficient: 0.02}}"
AN_INTERVAL = "{optimal: {low: 0.2, high: 1.0}}"
KINDS: list[tuple[Any, str, Callable[[object], bool]]] = [
    (bool, "true or false", lambda value: isinstance(value, bool)),
    (int, "a whole number", _is_whole),
    (float, "a number", _is_number),
    (str, "a text", lambda value: isinstance(value, str)),
    (Scheduled, f"a number or {A_SCHEDULE}", _is_scheduled),
    (Tau, f"a number or {A_SCHEDULE}, or {A_RULE}", lambda value: _is_scheduled(value) or isinstance(value, Adaptive)),
    (Alpha, f"a number, {A_SCHEDULE}, or {AN_INTERVAL}", lambda value: _is_scheduled(value) or _is_interval(value)),
    (FastBuffers, f"one of {', '.join(get_args(FastBuffers))}", lambda value: value in get_args(FastBuffers)),
    (Sequence[int], "a list of whole numbers", _all(_is_whole)),
    (tuple[int, ...], "a list of whole numbers", _all(_is_whole)),
    (tuple[str, ...], "a list of texts", _all(lambda value: isinstance(value, str))),
    (Sequence[str], "a list of texts", _all(lambda value: isinstance(value, str))),
    (tuple[float, ...], "a list of numbers", _all(_is_number)),
    (Sequence[Scheduled], f"a list of numbers or of {A_SCHEDULE}", _all(_is_scheduled)),
]


def _wrong_types(value: Any, annotation: Any, path: str) -> list[str]:
    """Say which values inside a description have another type than its fields are declared with."""
    for kind, words, fits in KINDS:
        if annotation == kind and not fits(value):
            return [f"{path}={shown(to_plain(value))} must be {words}"]
    known = any(annotation == kind for kind, _, _ in KINDS)
    members = [member for member in get_args(annotation) or (annotation,) if member in SPELLED and not known]
    optional = type(None) in get_args(annotation)
    if members and not isinstance(value, tuple(members)) and not (optional and value is None):
        return [
            f"{path}={shown(to_plain(value))} {is_unknown(to_plain(value), [SPELLED[member] for member in members])}"
        ]
    if not dataclasses.is_dataclass(value):
        return []
    name = SPELLED[type(value)]
    return [
        fault
        for field in dataclasses.fields(value)
        for fault in _wrong_types(getattr(value, field.name), field.type, f"{path}.{name}.{field.name}")
    ]
