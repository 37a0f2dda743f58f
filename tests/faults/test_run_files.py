"""The files of a run folder that are written anew when it is resumed: whole, or as they were."""

from pathlib import Path

import pytest

from dist_lookahead.train.recorder import Recorder, read_metrics
from tests.disks import file_size_limit
from tests.training import folder_of, records, small_config, train


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_metrics_that_cannot_be_written_anew_stay_as_they_were(tmp_path: Path) -> None:
    """Breaks if a resumed run empties the file before what it keeps of it is on the disk."""
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(f'{{"kind": "sync", "step": {step}, "loss": 0.5}}\n' for step in range(200)))
    before = contents(tmp_path)
    with file_size_limit(tmp_path, 1000), pytest.raises(OSError, match="File too large"):
        Recorder(metrics, None, start=150)
    assert contents(tmp_path) == before
    Recorder(metrics, None, start=20).close()
    assert [record["step"] for record in read_metrics(metrics)] == list(range(21))


def test_a_run_that_cannot_be_resumed_on_a_full_disk_can_be_later(tmp_path: Path) -> None:
    config, longer = small_config(tmp_path), small_config(tmp_path, run={"steps": 20})
    train(config)
    folder = folder_of(config)
    (folder / "outcome.json").write_text('{"state": "finished"}')
    before = contents(folder)
    assert {"config.yaml", "metrics.jsonl", "outcome.json"} <= before.keys()
    with file_size_limit(tmp_path, 300), pytest.raises(OSError, match="File too large"):
        train(longer, resume=True)
    assert contents(folder) == before
    train(longer, resume=True)
    assert "steps: 20" in (folder / "config.yaml").read_text()
    assert not (folder / "outcome.json").exists()
    assert records(folder)[-1]["step"] == 20
