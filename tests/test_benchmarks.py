"""Every benchmark runs to its end on a tiny size and prints its table; how long anything takes is not asserted."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import run_module
from processes import run_processes
from torch import nn

from benchmarks import chaos, memory, network, peers, picture, quadratic, report, scaling, simulation
from benchmarks.chaos_agent import Course
from benchmarks.rivals.trainer import TAU
from dist_lookahead import simulate, slowmo
from dist_lookahead.figures.style import new_figure

ROOT = Path(__file__).parents[1]
TINY = {
    "slow_step": ["--elements", "3000", "--threads", "1", "--chunks", "1000"],
    "sync": ["--sizes", "0.1M"],
    "local_step": ["--tensors", "1", "3", "--elements", "10"],
    "simulation": ["--models", "mlp", "--agents", "2", "3"],
    "overlap": ["--elements", "1000", "--multiplications", "1"],
    "quadratic": ["--agents", "1", "3", "--repetitions", "4"],
    "peers": ["--sizes", "0.1M", "--rivals", "torch PostLocalSGD", "decent-dp"],
    "methods": ["--methods", "local SGD", "SGP, one peer", "hierarchical local SGD", "--steps", "13"],
    "scaling": ["--processes", "2", "--agents", "4", "--elements", "1000"],
}
ROWS = {
    "slow_step": 4,
    "sync": 5,
    "local_step": 4,
    "simulation": 2,
    "overlap": 3,
    "quadratic": 2,
    "peers": 2,
    "methods": 3,
    "scaling": 6,
}


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_prints_and_writes_one_row_per_case(name: str, tmp_path: Path) -> None:
    """Breaks when the core's interface moves on without the benchmarks, or a case is dropped silently."""
    file, drawn = tmp_path / "table.json", tmp_path / "table.png"
    options = ["--rounds", "2", "--json", str(file), "--png", str(drawn)]
    done = run_module(f"benchmarks.{name}", [*TINY[name], *options], folder=ROOT)
    assert done.returncode == 0, done.stdout
    content = json.loads(file.read_text())
    assert len(content["rows"]) == ROWS[name]
    assert all(len(row) == len(content["columns"]) for row in content["rows"])
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert f"benchmarks.{name} " in content["command"]
    assert all(str(row[0]) in done.stdout for row in content["rows"])


def test_memory_prints_and_writes_one_row_per_recipe(tmp_path: Path) -> None:
    """It times nothing, and so has no rounds."""
    file = tmp_path / "table.json"
    memory.main(["--recipes", "slowmo", "sgp", "--elements", "100000", "--agents", "1", "--json", str(file)])
    content = json.loads(file.read_text())
    assert [row[:2] for row in content["rows"]] == [["slowmo", 1], ["sgp", 1]]
    assert all(len(row) == len(content["columns"]) for row in content["rows"])


def test_fault_times_measures_what_happens_after_a_kill(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    options = ["--runs", "1", "--cases", "killed, others go on", "--json", str(file)]
    done = run_module("benchmarks.fault_times", options, folder=ROOT)
    assert done.returncode == 0, done.stdout
    (row,) = json.loads(file.read_text())["rows"]
    assert row[:4] == ["killed, others go on", 1, "-", "-"]
    assert row[4] > 0


@pytest.mark.skipif(network.why_not() is not None, reason=f"no network can be made here: {network.why_not()}")
def test_chaos_tells_how_a_run_ended_and_what_happened_in_it(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    options = ["--runs", "1", "--faults", "1", "--agents", "3", "--steps", "160", "--json", str(file)]
    done = run_module("benchmarks.chaos", options, folder=ROOT)
    assert done.returncode == 0, done.stdout
    content = json.loads(file.read_text())
    run = dict(zip(content["columns"], content["rows"][0], strict=True))
    assert run["end"] == "well"
    assert sum(run[kind] for kind in ("kill", "stop", "cut", "poison")) == 1
    assert run["syncs"] == 20


@pytest.mark.parametrize(
    ("later", "differing"),
    [
        ({"generation": 0, "members": ["a", "b"]}, [3]),  # of one group
        ({"generation": 1, "members": ["a", "b"]}, [3]),  # done anew, by one that had come to its end
        ({"generation": 1, "members": ["b"]}, []),  # by those who had lost it
    ],
)
def test_chaos_finds_agents_that_hold_different_weights(
    later: dict[str, Any], differing: list[int], tmp_path: Path
) -> None:
    first = {"rounds": 3, "checksum": "x", "generation": 0, "members": ["a", "b"]}
    for name, row in {"a": first, "b": {**first, "checksum": "y", **later}}.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**first, "rounds": 2}) + "\n" + json.dumps(row) + "\n")
    assert chaos.differing_rounds(Course(folder=tmp_path, steps=8, tau=2, pause=0, timeout=1, silence=1)) == differing


def compare_with_another_method() -> str:
    torch.set_num_threads(1)
    rival = replace(peers.RIVALS["torch PostLocalSGD"], levels=lambda: slowmo(TAU, beta=0.5))
    with pytest.raises(AssertionError) as error:
        peers.pair_cells(rival, 10_000, 4, 2, torch.device("cpu"))
    return str(error.value)


@pytest.mark.timeout(100)
def test_methods_that_compute_different_things_are_not_compared() -> None:
    """A rival that is faster since it does less would be none."""
    assert "torch PostLocalSGD is not local_sgd" in run_processes(compare_with_another_method, 2, timeout=80)[0]


def test_a_rival_that_is_not_installed_is_known_as_such() -> None:
    rival = peers.RIVALS["torch PostLocalSGD"]
    assert rival.installed
    assert not replace(rival, module="no_such_package.part").installed


def test_the_quadratic_by_hand_is_what_the_agents_compute() -> None:
    """A floor that does less, or something else, would make every ratio to it meaningless."""
    by_hand, simulated = quadratic.ByHand(3, 5), quadratic.Simulated(3, 5)
    for _ in range(4):
        by_hand.round()
        simulated.round()
        assert by_hand.weights[0].detach().abs().min() > 0
        for own, other in zip(by_hand.weights, simulated.weights, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def test_simulated_networks_end_alike_in_either_order() -> None:
    """Else the two columns would time two different trainings."""
    start = nn.Sequential(nn.Flatten(), nn.Linear(simulation.SIZE**2, simulation.CLASSES))
    teams = [[simulation.Agent(start, rank, end) for rank, end in enumerate(simulate(3))] for _ in range(2)]
    for _ in range(2):
        simulation.in_turn(teams[0])
        simulation.apart(teams[1])
    assert not torch.equal(next(teams[0][0].model.parameters()), next(start.parameters()))
    for own, other in zip(*teams, strict=True):
        assert all(map(torch.equal, own.model.parameters(), other.model.parameters()))


def _table(rows: list[list[report.Cell]], drawn: picture.Picture) -> report.Report:
    return report.Report(name="x", about="What.", columns=("rule", "ms"), rows=rows, load=(0.5, 0.75), picture=drawn)


def test_a_page_names_the_machine_and_holds_the_table() -> None:
    """A number without its machine, versions and load cannot be compared with anything later."""
    table = _table([["Copy", 0.12345]], picture.Bars(panels=[["ms"]], by=["rule"]))
    page = report.markdown(table)
    assert "| rule | ms |\n| --- | --- |\n| Copy | 0.123 |" in page
    assert all(f"\n- {fact}: " in page for fact in ("CPU", "torch", "system", "command"))
    assert "- load average: 0.5 before, 0.8 after" in page
    assert "![" not in page
    assert "![x](x.png)" in report.markdown(table, report.RESULTS / "x.png")


def test_a_picture_refuses_columns_that_the_table_has_not(tmp_path: Path) -> None:
    """A heading that is renamed must not end in a KeyError after a measurement of ten minutes."""
    drawn = picture.Lines(x="ms", panels=[["speed"]], by=["rule"])
    with pytest.raises(ValueError, match=r"no columns \['speed'\]: draw some of \['rule', 'ms'\]"):
        picture.save(drawn, "x", ("rule", "ms"), [["Copy", 1.0]], tmp_path / "x.png")


def test_a_picture_draws_the_numbers_of_the_cells() -> None:
    """Numbers with separators are numbers, and a cell without one is a gap, not a zero."""
    rows = [{"n": "1,000", "a": 2.0, "by": "u"}, {"n": 2000, "a": "-", "by": "u"}]
    _, axes = new_figure("x", size=(4, 3))
    picture.Lines(x="n", panels=[["a"]], by=["by"]).draw(axes[0], ["a"], rows)
    (line,) = axes[0].get_lines()
    first, second = np.asarray(line.get_xydata()).tolist()
    assert first == [1000.0, 2.0]
    assert second[0] == 2000.0
    assert math.isnan(second[1])


@pytest.mark.parametrize("name", scaling.AVERAGES)
def test_simulated_agents_send_what_the_formula_says(name: str) -> None:
    """Bytes and formula stand beside each other: one that belongs to another average would go unnoticed."""
    row = dict(zip(scaling.COLUMNS, scaling.simulated(name, 8, 100_000), strict=True))
    assert row["bytes"] == pytest.approx(row["by formula"], rel=0.01)
    assert row["far"] == pytest.approx(row["far by formula"], rel=0.01)
