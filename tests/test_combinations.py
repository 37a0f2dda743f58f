"""What docs/methods.md says goes together does, and what it says does not is refused with a reason."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_training import make_agents, same, train

from dist_lookahead import (
    QSR,
    Cast,
    Copy,
    Every,
    Exact,
    Gossip,
    Level,
    Optimal,
    Part,
    Pull,
    Quantised,
)

TAU = 3
# Answers of a row of the table, and what a column adds; None where another file covers the column.
ROWS: dict[str, dict[str, Any]] = {
    "`Copy`": {"move": Copy()},
    "`Pull`": {"move": Pull(0.5, 0.4)},
    "parts of the parameters": {"params": Part(0, 2), "move": Pull(0.5, 0.4)},
    "adaptive tau": {"when": Every(QSR(2, 0.1)), "move": Pull(0.5, 0.4)},
    '`fast_buffers="average"`': {"fast_buffers": "average", "move": Pull(0.5, 0.4)},
    "`local_share`": {"local_share": 0.5, "move": Pull(0.5, 0.4)},
    "`codec`": {"mix": {"codec": Quantised(8)}, "move": Pull(0.5, 0.4)},
    "`shard`": {"mix": {"shard": True}, "move": Pull(0.5, 0.4)},
}
COLUMNS: dict[str, dict[str, Any]] = {
    "`delay`": {"when": {"delay": 1}},
    "`local_share`": {"local_share": 0.5},
    "`codec`": {"mix": {"codec": Cast()}},
    "`shard`": {"mix": {"shard": True}},
    "`weighted`": {"mix": {"weighted": "steps"}},
    "gossip": {"gossip": True},
}


def table() -> dict[str, dict[str, str]]:
    """The cells of the table "What goes with what"."""
    text = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    lines = text.split("## What goes with what")[1].split("##")[0].strip().splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!`)\|", line)[1:-1]] for line in lines if line.startswith("|")]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def levels_of(row: dict[str, Any], column: dict[str, Any]) -> list[Level]:
    mix = {**row.get("mix", {}), **column.get("mix", {})}
    when = row.get("when", Every(TAU))
    if "when" in column:
        when = Every(when.tau, column["when"]["delay"])
    options = {name: value for name, value in {**row, **column}.items() if name not in ("mix", "when", "gossip")}
    chosen = Gossip(**mix) if column.get("gossip") else Exact(**mix)
    levels = [Level(when, chosen, **options)]
    if "params" in row:
        levels.append(Level(when, chosen, **{**options, "params": Part(1, 2)}))
    return levels


CASES = [(row, column) for row in ROWS for column in COLUMNS if table()[row][column]]


@pytest.mark.parametrize(("row", "column"), CASES)
def test_the_table_says_what_goes_together(row: str, column: str) -> None:
    said = table()[row][column]
    if not said.startswith("yes"):
        with pytest.raises((ValueError, TypeError)):
            make_agents(2, levels_of(ROWS[row], COLUMNS[column]))
        return
    agents = make_agents(2, levels_of(ROWS[row], COLUMNS[column]))
    train(agents, range(3 * TAU))
    for agent in agents:
        agent.optimizer.sync()
        assert all(torch.isfinite(parameter).all() for parameter in agent.model.parameters())
    # With a share agents go on from weights of their own; of two agents a gossip is the mean.
    apart = "`local_share`" in (row, column)
    first, second = (agent.model.state_dict()["0.weight"] for agent in agents)
    assert same(first, second) == (not apart)


def test_every_row_of_the_table_is_tried() -> None:
    assert set(table()) - set(ROWS) == {"`alpha=Optimal`"}, "tests/test_optimal_alpha.py has that one"
    with pytest.raises(ValueError, match="leave weighted, shard and alpha=Optimal out"):
        Level(Every(TAU), Exact(), Pull(Optimal(0.2, 1.0)), local_share=0.5)
