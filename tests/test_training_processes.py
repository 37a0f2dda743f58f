"""The command line in real processes: torchrun, signals, kills, and going on afterwards."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from dist_lookahead.train.checkpoint import CheckpointStore
from tests.launching import interrupt, run, run_torchrun, start_agent, wait_until
from tests.training import differences, final_states, records, small_config, train

pytestmark = pytest.mark.timeout(240)


def write(tmp_path: Path, name: str, **sections: Any) -> Path:
    config = small_config(tmp_path / name, **sections)
    file = tmp_path / f"{name}.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    return file


def folder(tmp_path: Path, name: str) -> Path:
    return tmp_path / name / "small"


def has_checkpoint(tmp_path: Path, name: str, agents: int) -> bool:
    stores = [CheckpointStore(folder(tmp_path, name) / "checkpoints", agent, agents) for agent in range(agents)]
    return all(any(folder(tmp_path, name).glob(f"checkpoints/step-*/agent-{s.agent}-*.pt")) for s in stores)


def test_two_processes_compute_what_two_simulated_agents_compute(tmp_path: Path) -> None:
    real = write(tmp_path, "real")
    done = run_torchrun(["train", str(real)], processes=2)
    assert done.returncode == 0, done.stdout
    train(small_config(tmp_path / "simulated", agents=2))
    for a, b in zip(
        final_states(folder(tmp_path, "real"), 2), final_states(folder(tmp_path, "simulated"), 2), strict=True
    ):
        assert list(differences(a, b)) == []
    assert records(folder(tmp_path, "real")) == records(folder(tmp_path, "simulated"))


@pytest.mark.parametrize(("processes", "signum"), [(1, signal.SIGINT), (2, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_signal_stops_and_saves_at_a_sync_and_the_run_goes_on(
    processes: int, signum: signal.Signals, tmp_path: Path
) -> None:
    long: dict[str, Any] = {"run": {"steps": 800}, "checkpoint": {"every": 51, "keep": 2}, "evaluation": {"every": 200}}
    stopped = write(tmp_path, "stopped", **long)
    status, output = interrupt(
        ["train", str(stopped)],
        when=lambda: has_checkpoint(tmp_path, "stopped", processes),
        signum=signum,
        processes=processes,
    )
    assert f"Stopped by signal {int(signum)} at the sync" in output or "SIGTERM" in output or processes == 2
    assert status == (128 + signum if processes == 1 else 1), output
    stores = [
        CheckpointStore(folder(tmp_path, "stopped") / "checkpoints", agent, processes) for agent in range(processes)
    ]
    saved = {store.steps()[-1] for store in stores}
    assert len(saved) == 1, "all agents stop together"
    assert saved.pop() % 4 == 0, "at a sync: tau is 4"

    done = run(["train", str(stopped), "--resume"], processes=processes)
    assert done.returncode == 0, done.stdout
    train(small_config(tmp_path / "whole", **long, agents=processes))
    a, b = (final_states(folder(tmp_path, name), processes) for name in ("whole", "stopped"))
    assert list(differences(a, b)) == []
    assert records(folder(tmp_path, "whole")) == records(folder(tmp_path, "stopped"))


def test_a_signal_far_from_a_sync_ends_on_the_last_periodic_checkpoint(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "far",
        run={"steps": 1_000_000},
        levels={"recipe": "lookahead", "tau": 500_000},
        checkpoint={"every": 50, "grace": 0.5},
    )
    status, output = interrupt(
        ["train", str(file)], when=lambda: has_checkpoint(tmp_path, "far", 1), signum=signal.SIGTERM
    )
    assert status == 128 + signal.SIGTERM
    assert "no sync within checkpoint.grace=0.5 s" in output
    # It trains and saves on until the end, so that the last checkpoint may be newer than the one it has named.
    named = re.search(r"The last checkpoint is of fast step (\d+) ", output)
    assert named is not None, output
    assert int(named[1]) in CheckpointStore(folder(tmp_path, "far") / "checkpoints", 0, 1).steps()
    assert int(named[1]) % 50 == 0


def test_a_lost_agent_is_named_with_the_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    """Without torchrun's help: it would end the survivor as soon as it sees the loss."""
    file = write(tmp_path, "lost", run={"steps": 100_000}, checkpoint={"every": 101})
    store = str(tmp_path / "store")
    with start_agent(file, 0, store) as survivor, start_agent(file, 1, store) as victim:
        try:
            wait_until(lambda: has_checkpoint(tmp_path, "lost", 2))
            victim.kill()
            output, _ = survivor.communicate(timeout=60)
        finally:
            survivor.kill()
            victim.kill()
    assert survivor.returncode == 1, output
    assert "after fast step" in output
    assert "agents [1] did not report" in output
    step = CheckpointStore(folder(tmp_path, "lost") / "checkpoints", 0, 2).steps()[-1]
    assert f"The last checkpoint is of fast step {step} " in output


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    long: dict[str, Any] = {
        "run": {"steps": 200},
        "checkpoint": {"every": 51},
        "data": {"workers": 1},
        "evaluation": {"every": 100},
    }
    whole, killed = write(tmp_path, "whole", **long), write(tmp_path, "killed", **long)
    status, _ = interrupt(
        ["train", str(killed)], when=lambda: has_checkpoint(tmp_path, "killed", 1), signum=signal.SIGKILL
    )
    assert status == -signal.SIGKILL
    for arguments in (["train", str(killed), "--resume"], ["train", str(whole)]):
        done = run(arguments)
        assert done.returncode == 0, done.stdout
        assert "Traceback" not in done.stdout, "loader workers end with the training"
    assert list(differences(final_states(folder(tmp_path, "whole")), final_states(folder(tmp_path, "killed")))) == []
    assert records(folder(tmp_path, "whole")) == records(folder(tmp_path, "killed"))
