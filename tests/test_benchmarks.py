"""Every benchmark runs to its end on a tiny size and prints its table; how long anything takes is not asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report

ROOT = Path(__file__).parents[1]
TINY = {
    "slow_step": ["--elements", "3000", "--threads", "1", "--chunks", "1000"],
    "sync": ["--sizes", "0.1M"],
    "local_step": ["--tensors", "1", "3", "--elements", "10"],
}
ROWS = {"slow_step": 4, "sync": 5, "local_step": 4}


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_prints_and_writes_one_row_per_case(name: str, tmp_path: Path) -> None:
    """Breaks when the core's interface moves on without the benchmarks, or a case is dropped silently."""
    file = tmp_path / "table.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", *TINY[name], "--rounds", "2", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads(file.read_text())
    assert len(content["rows"]) == ROWS[name]
    assert all(len(row) == len(content["columns"]) for row in content["rows"])
    assert f"benchmarks.{name} " in content["command"]
    assert all(str(row[0]) in done.stdout for row in content["rows"])


def test_a_page_names_the_machine_and_holds_the_table() -> None:
    """A number without its machine, versions and load cannot be compared with anything later."""
    page = report.markdown(
        report.Report(name="x", about="What.", columns=("rule", "ms"), rows=[("Copy", 0.12345)], load=(0.5, 0.75))
    )
    assert "| rule | ms |\n| --- | --- |\n| Copy | 0.123 |" in page
    assert all(f"\n- {fact}: " in page for fact in ("CPU", "torch", "system", "command"))
    assert "- load average: 0.5 before, 0.8 after" in page
