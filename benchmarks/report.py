"""Reporting: a table on the terminal, JSON, and a dated Markdown page that says where it was measured."""

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
Cell = str | int | float


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A table of measurements.

    Args:
        name: of the benchmark; also the name of its page.
        about: what the columns mean, in a few sentences.
        columns: headings.
        rows: one cell per column; floats are shown with three digits.
        load: one-minute load averages before and after the measurement.
    """

    name: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    load: tuple[float, float]


def add_options(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Add the options that all benchmarks share that time something."""
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each case is timed (%(default)s)")
    add_outputs(parser)


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a table goes."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")
    parser.add_argument("--write", action="store_true", help=f"write a dated page to {RESULTS.name}/")


def load_average() -> float:
    """Return how many processes wanted to run during the last minute."""
    return os.getloadavg()[0]


def publish(report: Report, options: argparse.Namespace) -> None:
    """Print the table; write it where the options say."""
    _print(report)
    if options.json:
        content = {**asdict(report), "machine": machine(), "command": _command()}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    if options.write:
        page = RESULTS / f"{datetime.datetime.now(datetime.UTC).date()}-{report.name.replace('_', '-')}.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(markdown(report))
        Console(stderr=True).print(f"wrote {page}")


def markdown(report: Report) -> str:
    """Return the page: how it was measured, then the table."""
    facts = {**machine(), "command": f"`{_command()}`", "load average": _load(report)}
    table = [
        _line(report.columns),
        _line(["---"] * len(report.columns)),
        *(_line([_text(cell) for cell in row]) for row in report.rows),
    ]
    lines = [
        f"# {report.name}",
        "",
        report.about,
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
        *table,
    ]
    return "\n".join(lines) + "\n"


def machine() -> dict[str, str]:
    """Describe the machine and the versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores, {memory:.0f} GiB memory",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
    }
    if torch.cuda.is_available():
        facts["GPU"] = torch.cuda.get_device_name()
    return facts


def _print(report: Report) -> None:
    table = Table(title=report.name, caption=f"{report.about}\nload average {_load(report)}", caption_justify="left")
    for index, column in enumerate(report.columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in report.rows:
        table.add_row(*(_text(cell) for cell in row))
    # A pipe has no width of its own, and a table cut to 80 columns loses its headings.
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _text(cell: Cell) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _load(report: Report) -> str:
    return f"{report.load[0]:.1f} before, {report.load[1]:.1f} after"


def _command() -> str:
    module = Path(sys.argv[0]).stem
    return " ".join(["python -m", f"benchmarks.{module}", *sys.argv[1:]])


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"
