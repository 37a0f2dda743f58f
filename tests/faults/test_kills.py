"""A run of two processes that is killed again and again, wherever it is, and resumed each time."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from dist_lookahead.train.checkpoint_file import step_folders
from tests.launching import run, started, wait_until
from tests.training import differences, final_states, folder_of, records, small_config, train

LENGTH = {"run": {"steps": 150}, "checkpoint": {"every": 3, "keep": 2}, "evaluation": {"every": 50}}


def newest_step(folder: Path) -> int:
    return max((step for step, _ in step_folders(folder / "checkpoints")), default=0)


@pytest.mark.timeout(120)
def test_a_run_that_is_killed_at_any_instants_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Breaks if a kill between two writes, of one agent or between those of two, costs more than the steps since."""
    chance = random.Random(0)
    whole, killed = (small_config(tmp_path / name, agents=n, **LENGTH) for name, n in (("whole", 2), ("killed", 1)))
    file, folder = tmp_path / "run.yaml", folder_of(killed)
    file.write_text(killed.to_yaml(), encoding="utf-8")
    command = ["train", str(file), "--resume"]
    reached = []
    for early in (False, True, False, False, True):  # while it starts, or reads what there is; else on its way
        with started(command, processes=2) as (agents, output):
            before = newest_step(folder)
            if not early:
                wait_until(lambda before=before: newest_step(folder) > before)
            time.sleep(chance.uniform(0.1, 0.7) if early else chance.uniform(0.0, 0.2))
            for agent in chance.sample(agents, 2):
                assert agent.pid is not None
                assert agent.exitcode is None, output.read_text()
                os.kill(agent.pid, signal.SIGKILL)
                time.sleep(chance.uniform(0.0, 0.02))
        reached.append(newest_step(folder))
    assert len(set(reached)) > 2, reached  # else this has tried something else
    done = run(command, processes=2)
    assert done.returncode == 0, done.stdout
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    train(whole)
    assert list(differences(final_states(folder, 2), final_states(folder_of(whole), 2))) == []
    assert records(folder) == records(folder_of(whole))
