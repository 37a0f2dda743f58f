"""The race over slow links, on a tiny size: that it measures what it says; how fast anything is is not asserted."""

import json
from pathlib import Path

import pytest

from benchmarks import contenders, network, slow_network
from benchmarks.slow_network_agent import Outcome

REASON = network.why_not()
TINY = ["--parameters", "3000", "--target", "1.5", "--steps", "400", "--sample", "4", "--alone", "8"]


@pytest.mark.timeout(300)
@pytest.mark.skipif(REASON is not None, reason=f"no network can be made here: {REASON}")
def test_each_contender_has_a_row_with_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when the core moves on without it, or bytes are not those that travelled."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    names = [contenders.DDP, "SlowMo", contenders.NOTHING]
    file = tmp_path / "table.json"
    slow_network.main([*TINY, "--rates", "100", "--taus", "8", "--json", str(file), "--methods", *names])
    content = json.loads(file.read_text())
    rows = {row[0]: dict(zip(content["columns"], row, strict=True)) for row in content["rows"]}
    assert list(rows) == names
    ddp, slow = rows[contenders.DDP], rows["SlowMo"]
    weights = 4 * 3000 / 1e6  # MB
    assert ddp["MB sent"] / ddp["steps"] == pytest.approx(weights, rel=0.6)  # many small packets have many headers
    assert slow["steps"] % 8 == 0
    assert slow["MB sent"] / (slow["steps"] / 8) == pytest.approx(weights, rel=0.6)
    assert rows[contenders.NOTHING]["steps"] == "-"
    assert all(row["ms/step"] > 0 for row in rows.values())


def test_steps_that_were_not_taken_go_on_at_the_pace_of_the_last_ones() -> None:
    """The first steps of PowerSGD send whole gradients: they count once, not in the pace."""
    outcome = Outcome(steps=4, loss=None, warm_up=2, seconds=[5.0, 10.0, 11.0, 12.0], sent=[50, 100, 110, 120])
    assert outcome.after(3) == (11.0, 110)
    assert outcome.after(10) == (18.0, 180.0)


def test_who_cannot_take_part_is_told_why() -> None:
    assert "hierarchical" in contenders.chosen(None, agents=4)
    assert "hierarchical" not in contenders.chosen(None, agents=2)
    with pytest.raises(ValueError, match="hierarchical cannot take part: it needs 4 agents"):
        contenders.chosen(["hierarchical"], agents=2)
