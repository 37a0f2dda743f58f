"""A run whose checkpoints are damaged, gone or forged goes on from the newest whole one, or says why it does not.

Never from something else: where it goes on, it ends with the bits of the run that never stopped.
"""

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_lookahead.train.checkpoint import CheckpointStore
from dist_lookahead.train.checkpoint_survey import read_survey
from dist_lookahead.train.config import Config
from tests.training import differences, final_states, folder_of, small_config, train

AGENTS = 2
STEPS = [6, 9, 12, 13]  # of the checkpoints that a run of 13 steps leaves with keep=4, one in 3 steps and its end


def config_in(folder: Path, **sections: Any) -> Config:
    return small_config(
        folder, agents=AGENTS, checkpoint={"every": 3, "keep": 4}, evaluation={"every": None}, **sections
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = config_in(tmp_path_factory.mktemp("whole"))
    train(config)
    return config


@pytest.fixture
def copied(whole: Config, tmp_path: Path) -> Config:
    """The same run in another folder, to be damaged."""
    config = config_in(tmp_path)
    shutil.copytree(folder_of(whole), folder_of(config))
    return config


def file_of(config: Config, agent: int, step: int) -> Path:
    (path,) = (folder_of(config) / "checkpoints" / f"step-{step:08d}").glob(f"agent-{agent}-of-*.pt")
    return path


def flip(path: Path, where: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path, share: float = 0.5) -> None:
    os.truncate(path, int(share * path.stat().st_size))


def ends_like(config: Config, whole: Config) -> bool:
    pairs = zip(final_states(folder_of(config), AGENTS), final_states(folder_of(whole), AGENTS), strict=True)
    return not [place for one, other in pairs for place in differences(one, other)]


@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink], ids=["flipped", "truncated", "gone"])
def test_what_is_damaged_is_named_and_what_is_used_instead(
    harm: Callable[[Path], None], copied: Config, whole: Config, caplog: Any
) -> None:
    for step in (12, 13):
        harm(file_of(copied, 1, step))
    outcome = train(copied, resume=True)
    assert outcome.steps_here == 13 - 9
    assert ends_like(copied, whole)
    assert (
        "going on from fast step 9, the last one of which all agents have it; later whole: [12, 13] on" in caplog.text
    )
    if harm is not Path.unlink:
        assert "damaged: [12, 13] on agents [1]" in caplog.text
        assert "step-00000013/agent-1-of-2-" in caplog.text


def test_random_damage_never_goes_on_from_something_else(whole: Config, tmp_path: Path) -> None:
    """Some files of each run are flipped, cut or removed: it ends with the right bits, or refuses to go on."""
    chance = random.Random(1)
    ended, refused = 0, []
    for number in range(12):
        config = config_in(tmp_path / str(number))
        shutil.copytree(folder_of(whole), folder_of(config))
        files = sorted((folder_of(config) / "checkpoints").rglob("*.pt"))
        for path in chance.sample(files, chance.randint(1, len(files))):
            harm = chance.choice([flip, truncate, lambda path, _: path.unlink()])
            harm(path, chance.random())
        try:
            train(config, resume=True)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert ends_like(config, whole)
            ended += 1
    assert ended > 2
    assert len(refused) > 2
    assert all("begin anew without --resume" in message for message in refused)


@pytest.mark.parametrize(
    ("harm", "message"),
    [(flip, r"of steps \[6, 9, 12, 13\] are damaged: restore"), (Path.unlink, r"other agents have none of these")],
    ids=["damaged", "gone"],
)
def test_a_run_that_has_lost_all_its_steps_does_not_begin_anew_by_itself(
    harm: Callable[[Path], None], message: str, copied: Config
) -> None:
    for step in STEPS:
        harm(file_of(copied, 1, step))
    with pytest.raises(ValueError, match=message):
        train(copied, resume=True)
    assert CheckpointStore(folder_of(copied) / "checkpoints", 0, AGENTS).steps() == STEPS


def test_a_run_that_stopped_before_all_had_saved_begins_anew(copied: Config, whole: Config) -> None:
    """Agents are some steps apart: the first to save may be the only one."""
    store = CheckpointStore(folder_of(copied) / "checkpoints", 0, AGENTS)
    first = {**store.load(6), "common": -1}
    shutil.rmtree(store.directory)
    store.save(6, first, common=-1)
    assert train(copied, resume=True).steps_here == 13
    assert ends_like(copied, whole)


class RunsCode:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.proof,))


def forge(path: Path, write: Callable[[Path], object]) -> None:
    """Put another content in the place of a checkpoint, with a name that vouches for it."""
    path.unlink()
    unnamed = path.with_name("forged")
    write(unnamed)
    checksum = hashlib.sha256(unnamed.read_bytes()).hexdigest()[:16]
    unnamed.rename(path.with_name(f"{path.name[: len('agent-0-of-2-')]}{checksum}.pt"))


def test_a_forged_checkpoint_that_would_run_code_is_refused_by_name(copied: Config, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    forge(file_of(copied, 1, 13), lambda path: torch.save({"agent": RunsCode(proof)}, path))
    with pytest.raises(ValueError, match=r"agent-1-of-2-\w+.pt holds more than tensors .* on agents \[1\]"):
        train(copied, resume=True)
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 nearly one"])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(content: bytes, copied: Config) -> None:
    forge(file_of(copied, 0, 13), lambda path: path.write_bytes(content))
    with pytest.raises(ValueError, match=r"agent-0-of-2-\w+.pt (is no checkpoint|holds more than).* on agents \[0\]"):
        train(copied, resume=True)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"whole": [1]}', '{"whole": [-1], "damaged": []}', '{"whole": ["6"], "damaged": []}', "[" * 100_000],
)
def test_what_agents_tell_of_their_checkpoints_is_checked(text: str) -> None:
    with pytest.raises(ValueError, match="an agent tells of"):
        read_survey(text)
