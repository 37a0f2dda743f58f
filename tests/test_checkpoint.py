"""Checkpoints: whole or not there, whatever happens to the writer, the disk or the bytes."""

import errno
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_lookahead.train import checkpoint
from dist_lookahead.train.checkpoint import CheckpointStore, newest_common
from tests.disks import file_size_limit, small_disk

ROOT = Path(checkpoint.__file__).parents[2]
STATE = {"weights": torch.arange(1000.0), "lr": 0.1, "levels": [{"tau": 12}, (1, None, True, "slowmo")]}


def store_with(directory: Path, *steps: int, agent: int = 0, agents: int = 2, keep: int = 3) -> CheckpointStore:
    store = CheckpointStore(directory, agent, agents, keep)
    for step in steps:
        store.save(step, {"step": step, "weights": torch.full((100,), step)}, common=-1)
    return store


def file_of(store: CheckpointStore, step: int) -> Path:
    (path,) = store.directory.glob(f"step-{step:08d}/agent-{store.agent}-of-*.pt")
    return path


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


class RunsCode:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch '{self.proof}'",))


# --- saving and loading


def test_what_is_saved_is_loaded_any_number_of_times(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "not there yet" / "with spaces", agent=1, agents=2)
    store.save(120, STATE, common=0)
    first, second = store.load(120), store.load(120)
    first["weights"].zero_()
    assert torch.equal(second["weights"], STATE["weights"])
    assert (second["lr"], second["levels"]) == (STATE["lr"], STATE["levels"])


def test_name_tells_step_agent_and_checksum(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, agent=1, agents=2).save(120, STATE, common=0)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert path == tmp_path / "step-00000120" / f"agent-1-of-2-{checksum}.pt"
    assert names(tmp_path) == {"step-00000120", f"step-00000120/{path.name}"}


def test_views_of_a_bucket_are_written_once(tmp_path: Path) -> None:
    bucket = torch.arange(100_000.0)
    path = CheckpointStore(tmp_path, 0, 1).save(0, {"parameters": list(bucket.split(1000))}, common=0)
    assert path.stat().st_size < 1.2 * bucket.nbytes


def test_same_step_saved_again_replaces_the_file(tmp_path: Path) -> None:
    store = store_with(tmp_path, 10)
    store.save(10, STATE, common=0)
    assert "lr" in store.load(10)
    assert len(list(tmp_path.rglob("*.pt"))) == 1


def test_steps_beyond_eight_digits_are_found_and_sorted_as_numbers(tmp_path: Path) -> None:
    assert store_with(tmp_path, 99_999_999, 100_000_000).steps() == [99_999_999, 100_000_000]


def test_unknown_step_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("no whole checkpoint of step 7") + r".*\[10, 20\]"):
        store_with(tmp_path, 10, 20).load(7)


def test_a_directory_that_is_not_there_holds_no_steps(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none", 0, 1).steps() == []


@pytest.mark.parametrize(("agent", "agents", "keep"), [(2, 2, 3), (-1, 2, 3), (0, 0, 3), (0, 1, 0)])
def test_impossible_stores_are_refused(agent: int, agents: int, keep: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        CheckpointStore("anywhere", agent, agents, keep)


# --- only tensors and plain containers


def test_objects_are_refused_when_saved_not_only_when_resuming(tmp_path: Path) -> None:
    store = store_with(tmp_path, 10)
    with pytest.raises(ValueError, match=r"pathlib.*takes tensors, numbers"):
        store.save(20, {"directory": tmp_path}, common=0)
    assert store.steps() == [10]
    assert not list(tmp_path.glob("*.tmp"))


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    proof, forged = tmp_path / "proof", tmp_path / "forged.pt"
    torch.save({"weights": RunsCode(proof)}, forged)
    checksum = hashlib.sha256(forged.read_bytes()).hexdigest()[:16]
    (tmp_path / "step-00000010").mkdir()
    forged.rename(tmp_path / "step-00000010" / f"agent-0-of-1-{checksum}.pt")
    with pytest.raises(ValueError, match=rf"{checksum}.*refused"):
        CheckpointStore(tmp_path, 0, 1).load(10)
    assert not proof.exists()


# --- unfinished and damaged files


def test_a_writer_killed_at_any_instant_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Breaks if a file gets its name before it is whole, or the old one goes before the new one is there."""
    chance = random.Random(0)
    store = CheckpointStore(tmp_path, agent=0, agents=2, keep=2)
    command = [sys.executable, str(Path(__file__).with_name("checkpoint_writer.py")), str(tmp_path)]
    server = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert server.stdin
    assert server.stdout
    store.save(1, {"step": 1, "weights": torch.ones(1)}, common=1)
    interrupted, newest = 0, 1
    with server, server.stdin:
        for _ in range(60):
            server.stdin.write("next\n")
            server.stdin.flush()
            writer = int(server.stdout.readline())
            time.sleep(chance.uniform(0.0, 0.03))
            os.kill(writer, signal.SIGKILL)
            assert server.stdout.readline() == "gone\n"
            interrupted += len(list(tmp_path.glob("*.tmp")))
            newest = whole_and_not_older(store, newest)
    assert interrupted > 10  # else this has tried something else


def whole_and_not_older(store: CheckpointStore, newest: int) -> int:
    steps = store.steps()
    assert max(steps, default=0) >= newest
    for step in steps:
        state = store.load(step)
        assert state["step"] == step
        assert bool((state["weights"] == step).all())
    return max(steps)


def test_leftovers_of_a_killed_writer_go_with_its_next_save(tmp_path: Path, caplog) -> None:
    store = store_with(tmp_path, 10)
    own, other = (tmp_path / f"step-00000020-agent-{agent}-of-2.tmp" for agent in (0, 1))
    own.write_bytes(b"half")
    other.write_bytes(b"still being written by the other agent")
    assert store.steps() == [10]
    assert f"{own} is skipped (unfinished" in caplog.text
    assert "step 10" in caplog.text
    store.save(30, STATE, common=0)
    assert not own.exists()
    assert other.exists()


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_flipped_byte_is_noticed(where: float, flip: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = store_with(Path(directory), 10, 20)
        path = file_of(store, 20)
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= flip
        path.write_bytes(content)
        assert store.steps() == [10]
        with pytest.raises(ValueError, match="no whole checkpoint of step 20"):
            store.load(20)


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_skipped_and_the_message_names_it(tmp_path: Path, caplog, part: float) -> None:
    store = store_with(tmp_path, 10, 20)
    path = file_of(store, 20)
    os.truncate(path, int(part * path.stat().st_size))
    assert store.steps() == [10]
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert "damaged" in record.getMessage()
    assert "the newest whole one before it is of step 10" in record.getMessage()


def test_when_nothing_is_whole_each_message_says_that_nothing_is_left(tmp_path: Path, caplog) -> None:
    store = store_with(tmp_path, 10, 20)
    file_of(store, 10).write_bytes(b"")
    file_of(store, 20).unlink()
    file_of(store, 10).parent.with_name("step-00000020").joinpath(f"agent-0-of-2-{'0' * 16}.pt").mkdir()
    assert store.steps() == []
    unreadable, damaged = (record.getMessage() for record in caplog.records)
    assert "unreadable, Is a directory" in unreadable
    assert "damaged" in damaged
    assert damaged.endswith("there is no whole one before it")


# --- a disk that refuses


@pytest.mark.parametrize(
    ("limit", "number"), [(file_size_limit, errno.EFBIG), (small_disk, errno.ENOSPC)], ids=["limit", "full"]
)
@pytest.mark.parametrize("elements", [300_000, 65_400])
def test_a_full_disk_is_named_and_earlier_checkpoints_stay(tmp_path: Path, limit, number: int, elements: int):
    """Breaks where torch's own error (a wrong position in an archive) hides the reason.

    Of the larger state a tensor finds no room, of the smaller one only the end of the archive.
    """
    with limit(tmp_path, 262_144) as directory:
        store = store_with(directory, 10)
        before = names(directory)
        with pytest.raises(OSError, match=r"earlier ones are untouched.*step-00000020-agent-0-of-2\.tmp") as raised:
            store.save(20, {"weights": torch.ones(elements)}, common=10)
        assert raised.value.errno == number
        assert names(directory) == before
        assert store.load(10)["step"] == 10


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = CheckpointStore(tmp_path / "file" / "checkpoints", 0, 1)
    with pytest.raises(NotADirectoryError, match=r"cannot write a checkpoint.*file/checkpoints"):
        store.save(0, STATE, common=0)


def test_torch_errors_other_than_the_disk_are_not_disguised(tmp_path: Path) -> None:
    weights = torch.ones(4)
    with pytest.raises(RuntimeError, match="view the same data as different types"):
        CheckpointStore(tmp_path, 0, 1).save(0, {"a": weights, "b": weights.view(torch.int32)}, common=0)
    assert not list(tmp_path.glob("*.tmp"))


# --- which are kept


@pytest.mark.parametrize(
    ("keep", "common", "kept"),
    [
        (3, 50, [30, 40, 50]),
        (1, 50, [50]),
        (1, 49, [40, 50]),
        (2, 25, [20, 40, 50]),
        (2, 10, [10, 40, 50]),
        (2, 9, [40, 50]),
        (9, 50, [10, 20, 30, 40, 50]),
    ],
)
def test_the_last_are_kept_and_the_newest_that_everybody_has(tmp_path: Path, keep: int, common: int, kept: list):
    store_with(tmp_path, 10, 20, 30, 40, keep=9)
    store = CheckpointStore(tmp_path, 0, 2, keep)
    store.save(50, STATE, common=common)
    assert store.steps() == kept


@settings(max_examples=25, deadline=None)
@given(data=st.data(), every=st.integers(1, 7), tau=st.integers(1, 9), keep=st.integers(1, 3))
def test_agents_that_drift_apart_always_have_a_common_step(data: st.DataObject, every: int, tau: int, keep: int):
    """Agents save every `every` steps, wait for each other every tau, and may crash at any time between."""
    with tempfile.TemporaryDirectory() as directory:
        stores = [store_with(Path(directory), 0, agent=agent, agents=3, keep=keep) for agent in range(3)]
        done = [0, 0, 0]
        for agent in data.draw(st.lists(st.integers(0, 2), max_size=60)):
            synced = min(done) // tau * tau
            if done[agent] == synced + tau:
                continue  # it waits in the sync
            done[agent] += 1
            if done[agent] % every == 0:
                stores[agent].save(done[agent], {"step": done[agent]}, common=synced)
            assert newest_common([store.steps() for store in stores]) is not None


def test_emptied_folders_go_and_other_agents_files_stay(tmp_path: Path) -> None:
    other = store_with(tmp_path, 20, agent=1)
    store = store_with(tmp_path, 10, 20, keep=1)
    store.save(30, STATE, common=30)
    assert store.steps() == [30]
    assert other.steps() == [20]
    assert not (tmp_path / "step-00000010").exists()


def test_a_folder_in_which_a_slower_agent_may_be_about_to_write_stays(tmp_path: Path) -> None:
    store = store_with(tmp_path, 10)
    store.keep = 1
    store.save(20, STATE, common=10)
    store.save(30, STATE, common=10)
    assert store.steps() == [10, 30]
    assert (tmp_path / "step-00000020").exists()


def test_dropping_later_steps_leaves_the_one_resumed_from(tmp_path: Path) -> None:
    store, other = store_with(tmp_path, 10, 20, 30), store_with(tmp_path, 30, agent=1)
    store.drop_after(20)
    assert store.steps() == [10, 20]
    assert other.steps() == [30]


# --- several agents


@pytest.mark.parametrize(
    ("steps", "newest"),
    [
        ([[1, 2, 3]], 3),
        ([[1, 2, 3], [1, 2]], 2),
        ([[1, 2], [3]], None),
        ([[], [1]], None),
        ([[2, 1], [1, 2]], 2),
    ],
)
def test_newest_step_of_all(steps: list[list[int]], newest: int | None) -> None:
    assert newest_common(steps) == newest


@pytest.mark.parametrize("use", ["steps", "load", "save"])
def test_another_number_of_agents_is_refused_with_what_to_do(tmp_path: Path, use: str) -> None:
    """Breaks if two agents silently start anew in the directory of a run of four."""
    store_with(tmp_path, 10, agent=3, agents=4)
    store = CheckpointStore(tmp_path, agent=0, agents=2)
    calls = {
        "steps": store.steps,
        "load": lambda: store.load(10),
        "save": lambda: store.save(20, STATE, common=0),
    }
    with pytest.raises(ValueError, match="run of 4 agents, and this run has 2: start it with 4 agents, or"):
        calls[use]()
