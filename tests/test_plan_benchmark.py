"""The planner's check against real trainings, on a tiny size; how well it predicts is not asserted on busy machines."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import network, plan


@pytest.mark.timeout(200)
@pytest.mark.skipif(network.why_not() is not None, reason=f"no link can be made here: {network.why_not()}")
def test_predicted_and_taken_times_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when planner or trainer move on without it, or where nodes or frames are left behind."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    file = tmp_path / "table.json"
    chosen = ["--rates", "200", "--delays", "1", "--levels", "local SGD", "overlapped", "--width", "16", "--pause", "1"]
    plan.main([*chosen, "--json", str(file)])
    content = json.loads(file.read_text())
    assert [row[0] for row in content["rows"]] == ["local SGD", "overlapped"]
    for row in content["rows"]:
        cells = dict(zip(content["columns"], row, strict=True))
        assert cells["predicted"] >= cells["computing"] > 0
        assert cells["taken"] > 0
        assert 0 <= cells["waiting, taken"] <= 1
    assert not list(Path("/run/netns").glob(f"dl{os.getpid()}*"))


def test_without_root_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="no link can be made here: network namespaces need root"):
        plan.main([])
