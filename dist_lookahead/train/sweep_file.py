"""Sweep files: a run file, and the settings that vary.

name: digits-alpha
base: ../digits/lookahead.yaml
grid:                              # every combination, for every point
  run.seed: [0, 1, 2]
points:                            # methods, each with settings and a grid of its own
  - {name: Lookahead, grid: {levels.alpha: [0.2, 0.5, 0.8]}}
  - {name: SlowMo, agents: 4, levels: {recipe: slowmo, tau: 12}}
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from dist_lookahead.train.config import Config, ConfigError, parse_config
from dist_lookahead.train.config_faults import faults_of, shown
from dist_lookahead.train.config_file import put, read_yaml
from dist_lookahead.train.config_sections import Section, as_tuple

Settings = dict[str, Any]
Grid = dict[str, Annotated[tuple[Any, ...], BeforeValidator(as_tuple), Field(min_length=1)]]

SEED = "run.seed"
NAMED_HERE = ("run.name", "run.dir", "run")
LONGEST = 60  # characters of a readable name


class Variant(Section):
    """A named point of a sweep, or several where it has a grid; any other key is a setting of the run."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1)
    """Of the method, for tables and legends."""
    base: str | dict[str, Any] | None = None
    """Run file, or its sections; null for that of the sweep."""
    grid: Grid = Field(default={})
    """Settings with lists of values, in every combination with each other and with the sweep's grid."""

    @property
    def settings(self) -> Settings:
        """The settings of the run, by path."""
        return dict(self.model_extra or {})


class Sweep(Section):
    """A sweep file."""

    name: str = Field(pattern=r"^\w[\w.+-]*$")
    """Name of the sweep; its folder is `dir`/`name`."""
    dir: str = "runs"
    """Folder of all sweeps and runs."""
    base: str | dict[str, Any] | None = None
    """Run file, looked for from the sweep file's folder, or its sections; a point may have one of its own."""
    threads: int = Field(default=1, ge=1)
    """Threads of each run; a number of its own gives sums in an order of their own, so that last bits may differ."""
    set: dict[str, Any] = Field(default={})
    """Settings of all points over their base, such as run.epochs: 5; a point may have another value."""
    grid: Grid = Field(default={})
    """Settings with lists of values, such as levels.tau: [5, 10]; every combination is run, for each of `points`."""
    points: Annotated[tuple[Variant, ...], BeforeValidator(as_tuple)] = ()
    """Named points, each with settings such as inner.lr: 0.1, its own `base` and `grid`; none for the grid alone."""

    @property
    def folder(self) -> Path:
        """Where its results are."""
        return Path(self.dir) / self.name


@dataclass(frozen=True)
class Point:
    """A run of a sweep.

    Args:
        series: name of the method.
        settings: what the grids chose, by path.
        config: the whole run; its name says which point it is, and no other configuration has the same.
    """

    series: str
    settings: Settings
    config: Config

    @property
    def label(self) -> str:
        """The point in words."""
        return _label(self.series, self.settings)


def load_sweep(path: Path) -> tuple[Sweep, list[Point]]:
    """Read a sweep file and all its points.

    Args:
        path: YAML file.

    Raises:
        ConfigError: lists every fault of the file and of every point.
    """
    plain = read_yaml(path)
    try:
        sweep = Sweep.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(str(path), list(faults_of(error, Sweep))) from error
    points, faults = [], _Faults()
    for variant in sweep.points or (Variant(name=sweep.name),):
        for settings in _combinations(sweep, variant, faults):
            label = _label(variant.name, settings)
            try:
                points.append(_point(sweep, variant, settings, path.parent))
            except ConfigError as error:
                faults.add(label, error.faults)
    faults.add_repeated(points)
    if sentences := list(faults.sentences()):
        raise ConfigError(str(path), sentences)
    return sweep, points


class _Faults:
    """The faults of all points; one that many points have is said once."""

    def __init__(self) -> None:
        self._labels: dict[str, list[str]] = {}

    def add(self, label: str, faults: Sequence[str]) -> None:
        for fault in faults:
            self._labels.setdefault(fault, []).append(label)

    def add_repeated(self, points: Sequence[Point]) -> None:
        first: dict[str, Point] = {}
        for point in points:
            twin = first.setdefault(fingerprint(point.config), point)
            if twin is not point:
                self.add(point.label, [f"the same run as {twin.label}: remove one of them"])

    def sentences(self) -> Iterator[str]:
        for fault, labels in self._labels.items():
            more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
            yield f"{labels[0]}{more}: {fault}"


def _combinations(sweep: Sweep, variant: Variant, faults: _Faults) -> Iterator[Settings]:
    """Yield what the grids choose, seeds last."""
    given = [*variant.settings, *variant.grid, *sweep.grid, *(sweep.set.keys() & sweep.grid.keys())]
    twice = sorted({path for path in given if given.count(path) > 1})
    faults.add(
        variant.name, [f"{path} is given twice: in the point, its grid, or the sweep's set or grid" for path in twice]
    )
    grid = {**variant.grid, **sweep.grid}
    for path, values in grid.items():
        if repeated := [value for index, value in enumerate(values) if value in values[:index]]:
            faults.add(variant.name, [f"grid.{path}: {shown(repeated[0])} is there twice"])
    paths = sorted(grid, key=lambda path: path == SEED)
    for values in itertools.product(*(grid[path] for path in paths)):
        yield dict(zip(paths, values, strict=True))


def _point(sweep: Sweep, variant: Variant, settings: Settings, folder: Path) -> Point:
    plain, faults = _base(sweep, variant, folder), []
    for path, value in {**sweep.set, **variant.settings, **settings}.items():
        if path in NAMED_HERE:
            faults.append(f"{path} has no effect: a sweep names its runs itself; remove it")
            continue
        try:
            put(plain, path, deepcopy(value))
        except ValueError as error:
            faults.append(f"{path}: {error}")
    try:
        config = parse_config(_named(plain, "point", sweep.folder / "runs"))
    except ConfigError as error:
        raise ConfigError(error.source, [*faults, *error.faults]) from error
    if faults:
        raise ConfigError(variant.name, faults)
    name = f"{_slug(variant.name, settings)}-{fingerprint(config)}"
    return Point(variant.name, settings, parse_config(_named(plain, name, sweep.folder / "runs")))


def _base(sweep: Sweep, variant: Variant, folder: Path) -> Settings:
    base = sweep.base if variant.base is None else variant.base
    if base is None:
        raise ConfigError(variant.name, ["base is missing: give a run file here, or for the whole sweep"])
    return deepcopy(base) if isinstance(base, dict) else read_yaml(folder / base)


def _named(plain: Settings, name: str, folder: Path) -> Settings:
    run = plain.get("run", {})
    return {**plain, "run": {**run, "name": name, "dir": str(folder)}} if isinstance(run, dict) else plain


def fingerprint(config: Config) -> str:
    """Return eight digits that another training would not have: of all settings but the names of run and folder."""
    plain = config.resolved()
    run = {key: value for key, value in plain["run"].items() if key not in ("name", "dir")}
    text = json.dumps({**plain, "run": run}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _label(series: str, settings: Mapping[str, Any]) -> str:
    return ", ".join([series, *(f"{path}={shown(value)}" for path, value in settings.items())])


def _slug(series: str, settings: Mapping[str, Any]) -> str:
    """Return a readable name for a folder."""
    chosen = [f"{path.rpartition('.')[2]}-{shown(value)}" for path, value in settings.items()]
    whole = re.sub(r"[^\w.+-]+", "-", "_".join([series, *chosen]))
    return whole[:LONGEST].strip("-._+") or "point"
