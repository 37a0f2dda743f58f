"""Run files: strict YAML in and out, and `--set a.b=c` on top."""

import difflib
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dist_lookahead.train.config_faults import ConfigError, shown

PATH = r"\w+(\.\w+|\[\d+\])*"  # of a setting

# YAML 1.2, not PyYAML's 1.1: there `no` is false, 010 is 8, 1:30 is 90, and 1e-3 is a text.
RESOLVERS = (
    ("tag:yaml.org,2002:null", r"null|~|", "n~\0"),
    ("tag:yaml.org,2002:bool", r"true|false", "tf"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        "-+.0123456789",
    ),
)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans; keys may not be given twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - replaces PyYAML's own class attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            fault = "is given twice" if key in seen else "must be a text" if not isinstance(key, str) else None
            if fault:
                problem = f"the key {shown(key)} {fault}"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    """Writes texts that look like numbers to `_Loader` in quotes."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - replaces PyYAML's own class attribute


for _tag, _pattern, _first in RESOLVERS:
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the file as plain containers.

    Raises:
        ConfigError: there is no such file, or it is no YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [_unreadable(path, error)]) from error
    plain = _parse(text, str(path))
    if not isinstance(plain, dict):
        raise ConfigError(str(path), ["the file must hold sections such as run, data, model, inner and levels"])
    return plain


def write_yaml(plain: Any) -> str:
    """Write plain containers, in their order, as `read_yaml` reads them."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)


def override(plain: dict[str, Any], settings: Sequence[str]) -> list[str]:
    """Put settings such as `levels.tau=24` or `levels[0].fast_buffers=reset` into `plain`.

    Keys are not checked: that is done with those of the file.

    Args:
        plain: what `read_yaml` returned; changed in place.
        settings: path=value each; the value is YAML.

    Returns:
        What is wrong with them, a sentence each.
    """
    faults = []
    for setting in settings:
        try:
            _override(plain, setting)
        except ConfigError as error:
            faults += [f"{error.source}: {fault}" for fault in error.faults]
        except ValueError as error:
            faults.append(f"--set {setting}: {error}")
    return faults


def put(plain: dict[str, Any], path: str, value: Any) -> None:
    """Put a value at a path such as `levels.tau` or `levels[0].fast_buffers`.

    Args:
        plain: what `read_yaml` returned; changed in place.
        path: of the setting.
        value: plain containers.

    Raises:
        ValueError: this is no path, or it leads through something that holds nothing.

    Example:
        >>> plain = {"levels": {"recipe": "slowmo"}}
        >>> put(plain, "levels.tau", 24)
        >>> plain
        {'levels': {'recipe': 'slowmo', 'tau': 24}}
    """
    if not re.fullmatch(PATH, path):
        raise ValueError(f"{path!r} must be a path such as levels.tau or levels[0].fast_buffers")
    keys = re.findall(r"[^.\[\]]+", path)
    holder: Any = plain
    for depth, key in enumerate(keys[:-1]):
        holder = _inside(holder, key, keys[:depth], keys[depth + 1])
    if isinstance(holder, list):
        holder[_index(holder, keys[-1], keys[:-1])] = value
    else:
        holder[keys[-1]] = value


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all settings of a resolved configuration by path.

    Example:
        >>> dict(flat({"run": {"seed": 0}, "agents": 2}))
        {'run.seed': 0, 'agents': 2}
    """
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _override(plain: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    if not equals or not re.fullmatch(PATH, path):
        raise ValueError("must be path=value, such as levels.tau=24")
    put(plain, path, _parse(text, f"--set {setting}"))


def _inside(holder: Any, key: str, above: Sequence[str], following: str) -> Any:
    """Return what `key` holds, a new mapping where it holds nothing yet."""
    if isinstance(holder, list):
        inside = holder[_index(holder, key, above)]
    else:
        inside = holder[key] = {} if holder.get(key) is None else holder[key]
    if not isinstance(inside, dict | list):
        raise ValueError(f"{'.'.join([*above, key])}={shown(inside)} holds no {following}")
    return inside


def _index(holder: list[Any], key: str, above: Sequence[str]) -> int:
    if not key.isdecimal() or int(key) >= len(holder):
        raise ValueError(f"{'.'.join(above)} is a list: give an index from [0] to [{len(holder) - 1}]")
    return int(key)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(source, [f"{where}{error.problem}"]) from error
    except yaml.YAMLError as error:
        raise ConfigError(source, [str(error)]) from error


def _unreadable(path: Path, error: Exception) -> str:
    if path.is_dir():
        return f"{path} is a folder: give a file in it"
    if isinstance(error, FileNotFoundError):
        files = sorted(file.name for file in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, files, n=1, cutoff=0.4)
        there = f"YAML files there: {', '.join(files) or 'none'}"
        return f"{path} does not exist; {f'did you mean {str(path.parent / near[0])!r}?' if near else there}"
    return f"{path} cannot be read: {error}"
