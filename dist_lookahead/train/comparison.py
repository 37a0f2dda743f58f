"""Runs beside each other: in groups of repetitions, as curves with mean and spread, and as a table."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dist_lookahead.notation import is_unknown
from dist_lookahead.train.config_faults import shown
from dist_lookahead.train.result_table import Group, mean_and_spread
from dist_lookahead.train.run_result import OWN_NAMES, SPENT, RunResult, name_of_test
from dist_lookahead.train.sweep_results import LINES, read_lines

X = {"steps": "step", "epochs": "epoch", "seconds": "seconds", "bytes": "bytes_sent"}
"""What curves may be drawn against, and how records call it."""
STANDARD = ("loss", "test_loss", "test_accuracy")
NOT_CURVES = ("kind", "step", "weights", *SPENT)


@dataclass(frozen=True)
class Entry:
    """A run to compare.

    Args:
        run: the run.
        columns: what a sweep calls its point, by the title of the column; None for a run on its own.
    """

    run: RunResult
    columns: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Curve:
    """Mean and spread of a group, at the fast steps that all of its runs have recorded.

    Args:
        x: mean of steps, epochs, seconds or bytes.
        mean: of the values.
        spread: their standard deviation; 0 for a single run.
    """

    x: Sequence[float]
    mean: Sequence[float]
    spread: Sequence[float]


def read_entries(folders: Sequence[Path]) -> list[Entry]:
    """Read runs, and all runs of sweeps.

    Args:
        folders: of runs or sweeps.

    Raises:
        ValueError: a folder holds neither, or a run is there twice.
    """
    entries = [entry for folder in folders for entry in _entries(folder)]
    paths = [entry.run.folder.resolve() for entry in entries]
    if twice := [path for index, path in enumerate(paths) if path in paths[:index]]:
        raise ValueError(f"{twice[0]} is given twice: name each run once, alone or within its sweep")
    return entries


def grouped(entries: Sequence[Entry], keys: Sequence[str]) -> list[Group]:
    """Put runs together that differ in their seed only, or that agree in the settings given.

    Args:
        entries: at least one.
        keys: paths of settings; none for the first way.

    Raises:
        ValueError: no run has such a setting.
    """
    known = {path for entry in entries for path in entry.run.settings}
    for key in keys:
        if key not in known:
            raise ValueError(f"--group-by {key} {is_unknown(key, sorted(known))}")
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        settings = entry.run.settings
        chosen = {path: settings.get(path) for path in keys} if keys else _repeated(entry)
        groups.setdefault(json.dumps(chosen, sort_keys=True), []).append(entry)
    differing = list(keys) or _differing([own[0].run for own in groups.values()])
    return [Group(_columns(own, differing, keys), [entry.run for entry in own]) for own in groups.values()]


def named(entries: Sequence[Entry], patterns: Sequence[str]) -> list[Entry]:
    """Return the runs whose name, in a sweep that of their method, fits a pattern; all of them where none is given.

    Args:
        entries: of any names.
        patterns: names in which * stands for anything.

    Raises:
        ValueError: a pattern fits no run.
    """
    names = [str(entry.columns["run"] if entry.columns else entry.run.settings["run.name"]) for entry in entries]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"--only {pattern!r} fits no run; there are: {', '.join(dict.fromkeys(names))}")
    fit = [not patterns or any(fnmatchcase(name, pattern) for pattern in patterns) for name in names]
    return [entry for entry, fits in zip(entries, fit, strict=True) if fits]


def tuned(groups: Sequence[Group], keys: Sequence[str]) -> list[Group]:
    """Keep, of the groups that differ in these settings alone, the one of the lowest final test loss.

    A group with a diverged or unfinished run is kept only where no other is whole.

    Args:
        groups: at least one.
        keys: paths of settings, such as inner.lr; none to keep all groups.

    Raises:
        ValueError: the groups do not differ in a setting.
    """
    for key in keys:
        if not any(key in group.columns for group in groups):
            raise ValueError(f"--tuned {key}: the runs do not differ in it; remove it")
    if not keys:
        return list(groups)
    best: dict[str, Group] = {}
    for group in groups:
        alike = json.dumps(
            [item for item in group.columns.items() if item[0] not in keys and not _is_own(group, *item)]
        )
        best[alike] = min(best.get(alike, group), group, key=_final_loss)
    return list(best.values())


def names_of_curves(entries: Sequence[Entry], wanted: Sequence[str]) -> list[str]:
    """Return what to draw: what is wanted, or losses and accuracy where there are some.

    Raises:
        ValueError: no run has recorded that.
    """
    known = dict.fromkeys(name for entry in entries for record in entry.run.records for name in _names(record))
    for name in wanted:
        if name not in known:
            raise ValueError(f"--y {name} {is_unknown(name, list(known))}")
    return list(wanted) or [name for name in STANDARD if name in known]


def curve(group: Group, y: str, x: str) -> Curve:
    """Return a quantity of a group.

    Args:
        group: of runs.
        y: name of a value in records of syncs, or "test_" and a metric, at the first of the weights evaluated.
        x: a key of `X`.
    """
    series = [own for run in group.runs if (own := dict(_series(run, y, X[x])))]
    steps = sorted(set.intersection(*(set(own) for own in series))) if series else []
    spreads = [mean_and_spread([own[step][1] for own in series]) for step in steps]
    return Curve(
        x=[mean_and_spread([own[step][0] for own in series])[0] for step in steps],
        mean=[mean for mean, _ in spreads],
        spread=[spread for _, spread in spreads],
    )


def _entries(folder: Path) -> Iterator[Entry]:
    if not (folder / LINES).exists():
        yield Entry(RunResult.read(folder))
        return
    for line in read_lines(folder):
        settings = {path: shown(value) for path, value in line["settings"].items() if path not in OWN_NAMES}
        if (folder / line["run"]).is_dir():  # else it has not begun yet
            yield Entry(RunResult.read(folder / line["run"]), {"run": line["series"], **settings})


def _repeated(entry: Entry) -> list[Any]:
    settings = {path: value for path, value in entry.run.settings.items() if path not in OWN_NAMES}
    return [settings, entry.columns]


def _differing(runs: Sequence[RunResult]) -> list[str]:
    paths = dict.fromkeys(path for run in runs for path in run.settings if path not in OWN_NAMES)
    return [path for path in paths if any(run.settings.get(path) != runs[0].settings.get(path) for run in runs)]


def _columns(own: Sequence[Entry], differing: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    first = own[0]
    if first.columns is not None and not keys:
        return dict(first.columns)
    settings = {path: shown(first.run.settings[path]) for path in differing if path in first.run.settings}
    return settings if keys else {"run": first.run.settings["run.name"], **settings}


def _is_own(group: Group, column: str, value: str) -> bool:
    """Whether a column holds the name of a run that belongs to no sweep, and that nothing else has."""
    return column == "run" and value == group.runs[0].settings["run.name"]


def _final_loss(group: Group) -> tuple[bool, float]:
    losses = group.values().get("test_loss", [])
    return len(losses) < len(group.runs), mean_and_spread(losses)[0] if losses else math.inf


def _names(record: Mapping[str, Any]) -> Iterator[str]:
    for name in record:
        if name not in NOT_CURVES and record["kind"] != "probe":
            yield name if record["kind"] == "sync" else name_of_test(name)


def _series(run: RunResult, y: str, x: str) -> Iterator[tuple[int, tuple[float, float]]]:
    weights = next((record["weights"] for record in run.of_kind("evaluation")), None)
    for record in run.records:
        kind = record["kind"]
        if kind == "evaluation" and record["weights"] != weights:
            continue
        name = {"sync": y, "evaluation": y.removeprefix("test_") if y.startswith("test_") else ""}.get(kind, "")
        if name not in record:
            continue
        if x not in record:
            raise ValueError(f"{run.folder} has not recorded {x!r} at step {record['step']}: choose another --x")
        yield record["step"], (record[x], record[name])
