"""Faults in a configuration: how each is said, and the one error that lists all of them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dist_lookahead.notation import is_unknown

LONGEST = 60  # characters of a value in a message


class ConfigError(ValueError):
    """A configuration is refused; the message holds every fault, one a line.

    Args:
        source: where the configuration came from.
        faults: one sentence each: what was given at which path, what is allowed, what to change.

    Example:
        >>> print(ConfigError("run.yaml", ["run.seed=-1 must be at least 0"]))
        run.yaml has 1 fault:
          run.seed=-1 must be at least 0
    """

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.source = source
        self.faults = tuple(faults)
        lines = "".join(f"\n  {fault}" for fault in self.faults)
        super().__init__(f"{source} has {len(faults)} fault{'s' * (len(faults) != 1)}:{lines}")


class Faults(ValueError):
    """Several faults of one section, as whole sentences; what a validator raises that finds more than one."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


def shown(value: object) -> str:
    """Write a value as in YAML, not too long.

    Example:
        >>> shown(True), shown(None), shown("a")
        ('true', 'null', "'a'")
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def faults_of(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """Say every fault that pydantic found in a plain configuration.

    Args:
        error: from validating `root`.
        root: the model, whose fields are sections or single settings.
    """
    for details in error.errors():
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, Faults):
            yield from cause.faults
        else:
            path, models = _resolve(root, details["loc"])
            yield _sentence(path, models, details, str(cause))


def _resolve(root: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, list[type[BaseModel]]]:
    """Return the path in the file, and the model there or around it: several where a union's variant is open."""
    path, models = "", [root]
    for key in loc:
        chosen = [model for model in models if key in _names_of_variant(model)]
        if len(models) > 1 and chosen:  # pydantic puts the name of a union's variant into the path; the file has none
            models = chosen
            continue
        path += f"[{key}]" if isinstance(key, int) else f".{key}" if path else str(key)
        field = models[0].model_fields.get(str(key))
        if field is not None and (inside := _models_in(field.annotation)):
            models = inside
    return path, models


def _names_of_variant(model: type[BaseModel]) -> tuple[object, ...]:
    return get_args(model.model_fields["name"].annotation) if "name" in model.model_fields else ()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


MUST_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "string_pattern_mismatch": "a text that matches the pattern {pattern}",
    "tuple_type": "a list",
    "too_short": "a list of at least {min_length} item",
    "finite_number": "finite",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
}
BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


def _sentence(path: str, models: Sequence[type[BaseModel]], details: ErrorDetails, cause: str) -> str:
    context, given = details.get("ctx", {}), details["input"]
    names = list(models[0].model_fields)
    match details["type"]:
        case "extra_forbidden" | "invalid_key":
            return f"{path} {is_unknown(details['loc'][-1], names)}"
        case "missing":
            return f"{path} is missing"
        case "union_tag_not_found":
            return f"{path}.name is missing; allowed: {', '.join(_variants(models))}"
        case "union_tag_invalid":
            return f"{path}.name={shown(given['name'])} {is_unknown(given['name'], _variants(models))}"
        case "literal_error":
            return f"{path}={shown(given)} {is_unknown(given, _quoted(context['expected']))}"
        case "value_error":
            return f"{path}={shown(given)} {cause}"
        case "model_type" | "model_attributes_type":
            if len(models) > 1:
                return f"{path}={shown(given)} must be a mapping with a name; allowed: {', '.join(_variants(models))}"
            return f"{path}={shown(given)} must be a mapping of {', '.join(names)}"
        case kind if kind in MUST_BE:
            return f"{path}={shown(given)} must be {MUST_BE[kind].format(**context)}{_hint(given)}"
    return f"{path}={shown(given)}: {details['msg']}"


def _variants(models: Sequence[type[BaseModel]]) -> list[str]:
    return [str(name) for model in models for name in _names_of_variant(model)]


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _hint(given: object) -> str:
    if not isinstance(given, str):
        return ""
    if given.lower() in BOOLEANS:
        return f": write {BOOLEANS[given.lower()]}"
    return ": remove the quotes" if re.fullmatch(r"[-+.\deE]*\d[-+.\deE]*|true|false", given) else ""
