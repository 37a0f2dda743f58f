"""All settings of a run or sweep file with their defaults and meanings, read from the sections themselves."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from dist_lookahead.train.config import Config
from dist_lookahead.train.config_file import write_yaml
from dist_lookahead.train.config_levels import RECIPES
from dist_lookahead.train.sweep_file import Sweep

# Sections whose settings are the arguments of a class or function of the reader's choice.
OPEN = {
    "inner": "{name: SGD, lr: 0.1}  # any optimizer of torch.optim, with its own arguments; clip_norm clips gradients",
    "levels": f"{{recipe: slowmo, tau: 12}}  # or a list of levels; recipes: {', '.join(RECIPES)}",
}


def settings() -> Iterator[str]:
    """Yield the lines of a commented run file; `...` marks what must be given.

    Example:
        >>> next(settings())
        '# Name, length, seed and device.'
    """
    for name, field in Config.model_fields.items():
        yield f"# {field.description}"
        sections = list(_sections(field.annotation))
        if not sections:
            choices = _choices(field)
            yield f"{name}: {OPEN.get(name) or _value(field)}" + (f"  #{choices}" if choices else "")
            continue
        yield f"{name}:"
        for index, section in enumerate(sections):
            if index:
                yield "  # or"
            yield from _lines(section, "  ")


def sweep_settings() -> Iterator[str]:
    """Yield the lines of a commented sweep file.

    Example:
        >>> next(sweep_settings())
        'name: ...  # Name of the sweep; its folder is `dir`/`name`.'
    """
    yield from _lines(Sweep, "")


def _lines(section: type[BaseModel], indent: str) -> Iterator[str]:
    """The settings of a section, those of a section inside it below its name."""
    for name, field in section.model_fields.items():
        inside = list(_sections(field.annotation))
        value = "" if inside else f" {_value(field)}"
        yield f"{indent}{name}:{value}  # {field.description}{_choices(field)}"
        for inner in inside:
            yield from _lines(inner, f"{indent}  ")


def _sections(kind: Any) -> Iterator[type[BaseModel]]:
    """The section that a field is, or those that it may be one of."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _sections(part)


def _choices(field: FieldInfo) -> str:
    names = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return f" ({', '.join(names)})" if len(names) > 1 else ""


def _value(field: FieldInfo) -> str:
    only = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if field.is_required():
        return only[0] if len(only) == 1 else "..."
    kind: Any = Annotated[field.annotation, field]  # pyright: ignore[reportInvalidTypeForm] - made at run time
    default = TypeAdapter(kind).dump_python(field.default, mode="json")
    written = write_yaml([default]).strip()
    return written.removeprefix("- ") if isinstance(default, list | dict) else written[1:-1]
