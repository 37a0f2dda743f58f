"""The results of a sweep as files: a line of JSON for each point, and a table with mean and spread over seeds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_lookahead.train.config_faults import shown
from dist_lookahead.train.result_table import Group, markdown
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.run_result import RunResult
from dist_lookahead.train.sweep_file import SEED, Point

TABLE, LINES = "table.md", "table.jsonl"


def write_results(folder: Path, points: Sequence[Point]) -> str:
    """Write both files, and return the table.

    Args:
        folder: of the sweep.
        points: of the sweep, run or not.
    """
    results = {point.label: result_of(point) for point in points}
    lines = [json.dumps(_line(point, results[point.label], folder)) for point in points]
    (folder / LINES).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(json.dumps([point.series, _without_seed(point)]), []).append(point)
    table = "\n".join(
        markdown([Group(_columns(own[0]), [results[point.label] for point in own]) for own in groups.values()])
    )
    (folder / TABLE).write_text(f"{table}\n", encoding="utf-8")
    return table


def result_of(point: Point) -> RunResult:
    """Return what there is of a point: of one that has not begun, its settings alone."""
    folder = folder_of(point)
    return RunResult.read(folder) if RunDirectory(folder).config.exists() else RunResult(folder, {}, [], None)


def folder_of(point: Point) -> Path:
    """Return the folder of a point's run."""
    return Path(point.config.run.dir) / point.config.run.name


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the points of a sweep as `write_results` wrote them."""
    return [json.loads(line) for line in (folder / LINES).read_text(encoding="utf-8").splitlines()]


def _line(point: Point, result: RunResult, folder: Path) -> dict[str, Any]:
    return {
        "series": point.series,
        "settings": point.settings,
        "run": str(folder_of(point).relative_to(folder)),
        "state": result.state,
        **result.final(),
    }


def _without_seed(point: Point) -> dict[str, Any]:
    return {path: value for path, value in point.settings.items() if path != SEED}


def _columns(point: Point) -> dict[str, str]:
    return {"point": point.series, **{path: shown(value) for path, value in _without_seed(point).items()}}
