"""Agents go on without those that are lost, in the same processes, and take in new ones."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launching import run_module, wait_until
from processes import DEVICES, ON_A_GPU
from surviving import LR, WIDTH, descend, dies, rows, started, target
from torch import Tensor, nn

from dist_lookahead import (
    Copy,
    DistributedLookahead,
    Every,
    Exact,
    Gossip,
    Level,
    Pull,
    Quantised,
    local_sgd,
    overlapped_local_sgd,
    slowmo,
)
from dist_lookahead.survivors.agents import NAME, Survivors
from dist_lookahead.survivors.membership import LeftOut, Membership

pytestmark = pytest.mark.timeout(120)
ALPHA, BETA, TAU = 0.5, 0.5, 4
LEVELS = [Level(Every(TAU), Exact(), Pull(ALPHA, BETA))]
PATIENT: dict[str, Any] = {"timeout": 20.0, "silence": 20.0}


def replayed(members: Sequence[Sequence[str]]) -> list[Tensor]:
    """The slow weights after each round, by the formula, of those that have taken part in it."""
    z = v = torch.zeros(WIDTH, dtype=torch.float64)
    after = []
    for present in members:
        way = torch.stack([(1 - (1 - LR) ** TAU) * (target(name) - z) for name in present]).mean(0)
        v = BETA * v + way
        z = z + ALPHA * v
        after.append(z)
    return after


@DEVICES
def test_a_killed_agent_is_as_if_it_had_not_been_there_in_its_last_round(tmp_path: Path, device: str) -> None:
    event = dies("agent-1", before=7)
    with started(descend, 3, LEVELS, 16, tmp_path, event, {**PATIENT, "device": device}) as agents:
        assert agents.end() == {"agent-0": 0, "agent-1": -signal.SIGKILL, "agent-2": 0}
    everybody, left = ["agent-0", "agent-1", "agent-2"], ["agent-0", "agent-2"]
    expected = replayed([everybody, left, left, left])
    for name in left:
        own = rows(tmp_path, name)
        assert [row["clock"] for row in own] == [4, 8, 12, 16]
        assert [row["members"] for row in own] == [everybody, left, left, left]
        for row, z in zip(own, expected, strict=True):
            torch.testing.assert_close(torch.tensor(row["weights"], dtype=torch.float64), z, rtol=0, atol=1e-12)


def test_those_who_begin_later_are_waited_for(tmp_path: Path) -> None:
    """Nodes are started one by one; breaks if the first ones wait as for a lost agent."""
    with started(begin_late, 2, LEVELS, 8, tmp_path, None, {"timeout": 1.0, "silence": 20.0}) as agents:
        assert set(agents.end().values()) == {0}


def test_those_who_never_begin_are_named(tmp_path: Path) -> None:
    """Breaks if the others wait for one that has ended."""
    with started(end_early, 2, tmp_path) as agents:
        assert set(agents.end().values()) == {0, 3}
    assert "agent-1 ended before the training began" in (tmp_path / "agent-0").read_text()


def begin_late(*arguments: Any) -> None:
    if os.environ[NAME] == "agent-1":
        time.sleep(2.5)
    descend(*arguments)


def end_early(folder: Path) -> None:
    if os.environ[NAME] == "agent-1":
        sys.exit(3)
    with pytest.raises(RuntimeError) as error:
        Survivors.from_environment()
    (folder / "agent-0").write_text(str(error.value))


@DEVICES
def test_a_new_agent_takes_the_state_of_the_others_at_their_next_sync(tmp_path: Path, device: str) -> None:
    # Agents wait before a step until the new one is there, so that its round does not depend on the machine's load.
    event = partial(waits_for_newcomer, tmp_path)
    with started(descend, 2, LEVELS, 20, tmp_path, event, {**PATIENT, "device": device}) as agents:
        wait_until(lambda: len(rows(tmp_path, "agent-0")) >= 1)
        agents.join_later("late")
        assert set(agents.end().values()) == {0}
    told = rows(tmp_path, "agent-0")
    assert [row["clock"] for row in told] == [4, 8, 12, 16, 20]
    # A new agent is there from the sync after which it has joined: what is written of a sync is who goes on from it.
    taking_part = [["agent-0", "agent-1"], *[row["members"] for row in told[:-1]]]
    assert taking_part[-1] == ["agent-0", "agent-1", "late"]
    for row, z in zip(told, replayed(taking_part), strict=True):
        torch.testing.assert_close(torch.tensor(row["weights"], dtype=torch.float64), z, rtol=0, atol=1e-12)
    assert rows(tmp_path, "agent-1") == told
    assert rows(tmp_path, "late") == told[-len(rows(tmp_path, "late")) :]


def waits_for_newcomer(log: Path, agents: object, optimizer: DistributedLookahead) -> None:
    if optimizer.stack.clock == 6:
        waits_for_it_to_knock(agents)


@DEVICES
def test_an_agent_that_stood_still_is_left_out_and_joins_again(tmp_path: Path, device: str) -> None:
    event = partial(stands_still, tmp_path)
    # Signs of life tell, long before the collective's own patience ends.
    with started(
        descend, 2, LEVELS, 40, tmp_path, event, {"timeout": 600.0, "silence": 3.0, "device": device}
    ) as agents:
        wait_until((tmp_path / "still").exists)
        wait_until(lambda: len(rows(tmp_path, "agent-0")) >= 3)
        pid = agents.processes["agent-1"].pid
        assert pid is not None
        os.kill(pid, signal.SIGCONT)
        assert set(agents.end().values()) == {0}
    members = [row["members"] for row in rows(tmp_path, "agent-0")]
    assert members[0] == ["agent-0", "agent-1"]
    assert ["agent-0"] in members
    assert members[-1] == ["agent-0", "agent-1"]
    assert rows(tmp_path, "agent-1")[-1] == rows(tmp_path, "agent-0")[-1]
    # It must not come to the end of the sync that it was missing in, which the other has done without it.
    told = {row["rounds"]: row["weights"] for row in rows(tmp_path, "agent-0")}
    assert all(told[row["rounds"]] == row["weights"] for row in rows(tmp_path, "agent-1"))


def test_an_agent_that_lives_but_does_not_come_is_left_out_and_joins_again(tmp_path: Path) -> None:
    """Breaks if those who agree wait for it as long as it gives signs of life."""
    with started(
        descend, 2, LEVELS, 40, tmp_path, partial(dawdles, tmp_path), {"timeout": 3.0, "silence": 60.0}
    ) as agents:
        assert set(agents.end().values()) == {0}
    members = [row["members"] for row in rows(tmp_path, "agent-0")]
    assert members[0] == members[-1] == ["agent-0", "agent-1"]
    assert ["agent-0"] in members
    assert rows(tmp_path, "agent-1")[-1] == rows(tmp_path, "agent-0")[-1]


def dawdles(log: Path, agents: object, optimizer: DistributedLookahead) -> None:
    """Agent 1 takes its time once, until the other has gone on without it."""
    if os.environ[NAME] == "agent-1" and optimizer.stack.clock == 5:
        wait_until(lambda: len(rows(log, "agent-0")) >= 3)
    elif optimizer.stack.clock == 18:
        waits_for_it_to_knock(agents)


def stands_still(log: Path, agents: object, optimizer: DistributedLookahead) -> None:
    """Agent 1 stops itself once; agent 0 takes its later steps only when it is there again."""
    clock, name = optimizer.stack.clock, os.environ[NAME]
    if name == "agent-1" and clock == 5:
        (log / "still").touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    if name == "agent-0" and clock == 18:
        waits_for_it_to_knock(agents)


def waits_for_it_to_knock(agents: object) -> None:
    membership = agents._membership  # pyright: ignore[reportAttributeAccessIssue] - the moment is what is tested
    wait_until(lambda: membership._knocks() > 0)


CODES = slowmo(tau=TAU, beta=0.5, codec=Quantised(bits=8))
EXACT = {
    "copies": local_sgd(tau=TAU),
    "overlapped": overlapped_local_sgd(tau=TAU, delay=2),
    "two levels": [Level(Every(2), Exact(), Copy()), Level(Every(4), Exact(), Pull(0.5))],
}


@pytest.mark.parametrize(
    ("device", "levels"),
    [
        *[pytest.param("cpu", levels, id=name) for name, levels in EXACT.items()],
        pytest.param("cpu", CODES, id="codes"),
        *[pytest.param("cuda", levels, marks=ON_A_GPU, id=f"{name} on a gpu") for name, levels in EXACT.items()],
    ],
)
def test_all_agree_afterwards_whatever_the_levels(levels: Sequence[Level], device: str, tmp_path: Path) -> None:
    with started(descend, 3, levels, 12, tmp_path, dies("agent-2", before=6), {**PATIENT, "device": device}) as agents:
        assert agents.end() == {"agent-0": 0, "agent-1": 0, "agent-2": -signal.SIGKILL}
    last = [rows(tmp_path, name)[-1] for name in ("agent-0", "agent-1")]
    assert last[0]["members"] == ["agent-0", "agent-1"]
    assert last[0]["rounds"] == last[1]["rounds"]
    if not any(level.when.delay for level in levels):
        assert last[0] == last[1]


def test_the_launcher_does_not_end_the_others_and_starts_a_lost_agent_anew(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    tests = str(Path(__file__).parents[1])
    done = run_module(
        "dist_lookahead",
        ["launch", "--agents", "2", "--rejoin", "1", str(program), str(tmp_path)],
        places=[{"PYTHONPATH": f"{tests}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}],
    )
    assert done.returncode == 0, done.stdout
    assert "agent-1 has ended with signal SIGKILL" in done.stdout
    assert rows(tmp_path, "agent-0")[-1]["members"] == ["agent-0", "agent-1+1"]
    assert rows(tmp_path, "agent-0")[-1] == rows(tmp_path, "agent-1+1")[-1]


PROGRAM = """
import sys
from pathlib import Path
from surviving import descend
from faults.test_survivors import LEVELS, PATIENT, dies_and_is_waited_for
descend(LEVELS, 16, Path(sys.argv[1]), dies_and_is_waited_for, PATIENT)
"""


def dies_and_is_waited_for(agents: object, optimizer: DistributedLookahead) -> None:
    name, clock = os.environ[NAME], optimizer.stack.clock
    if name == "agent-1" and clock == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "agent-0" and clock == 10:
        membership = agents._membership  # pyright: ignore[reportAttributeAccessIssue] - the moment is what is tested
        wait_until(lambda: membership._knocks() > 0)


@pytest.mark.parametrize(
    ("levels", "why"),
    [
        ([Level(Every(2), Gossip(), Copy())], "has agents that differ"),
        ([Level(Every(2), Exact(shard=True), Pull(0.5))], "had a part of the slow state"),
        ([Level(Every(2), Exact("node"), Copy())], "are no mesh any more"),
    ],
)
def test_levels_that_cannot_go_on_are_refused(levels: Sequence[Level], why: str) -> None:
    weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=why):
        DistributedLookahead(torch.optim.SGD([weight], lr=0.1), levels, recoverable=True)


def test_regroup_needs_a_recoverable_optimizer() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = DistributedLookahead(torch.optim.SGD([weight], lr=0.1), local_sgd(tau=2))
    with pytest.raises(ValueError, match="recoverable=True"):
        optimizer.regroup()


def test_a_recoverable_optimizer_computes_the_same() -> None:
    ends = []
    for recoverable in (False, True):
        weight = nn.Parameter(torch.zeros(3))
        levels = slowmo(tau=2, beta=0.5)
        optimizer = DistributedLookahead(torch.optim.SGD([weight], lr=0.1), levels, recoverable=recoverable)
        for step in range(5):
            weight.grad = weight.detach() - step
            optimizer.step()
        ends.append(weight.detach())
    assert torch.equal(*ends)


def test_codes_are_refused_where_groups_cannot_send_them() -> None:
    store = dist.HashStore()
    joins = Survivors(Membership(store, store, "late", [], silence=60), store, timeout=60, device="cuda")
    weight = nn.Parameter(torch.zeros(3))
    optimizer = DistributedLookahead(torch.optim.SGD([weight], lr=0.1), CODES, recoverable=True)
    with pytest.raises(ValueError, match=r"levels\[0\].* sends codes .* leave codec out"):
        joins.enter(optimizer)
    joins.end()


def test_who_comes_after_the_list_was_written_is_left_out() -> None:
    store = dist.HashStore()
    a, b = (Membership(store, store, name, ["a", "b"], silence=60) for name in "ab")
    store.set("gone/b", "1")
    assert not b.is_left_out
    assert a.agree([1, 4]).members == ("a",)
    assert b.is_left_out
    assert not a.is_left_out
    with pytest.raises(LeftOut, match="taken for lost"):
        b.agree([1, 4])
    a.end()
    b.end()


class Cut(dist.HashStore):
    """A connection that nothing comes through until the event."""

    def __init__(self) -> None:
        super().__init__()
        self.mended = threading.Event()

    def add(self, key: str, value: int) -> int:
        self.mended.wait(30)
        return super().add(key, value)


def test_who_cannot_hear_the_others_does_not_take_them_for_lost() -> None:
    """After a cut an agent's connection for signs of life may come back later than that by which it agrees."""
    store, cut = dist.HashStore(), Cut()
    blind = Membership(store, cut, "a", ["a", "b"], silence=0.5)
    agreed = threading.Thread(target=blind.agree, args=([0],))
    agreed.start()
    agreed.join(2)
    assert not store.check(["1/members"])
    cut.mended.set()  # now it looks, and there is no sign of b
    agreed.join(10)
    assert store.get("1/members") == b'["a"]'
    blind.end()


@pytest.mark.parametrize(
    ("key", "value"),
    [("1/members", b"[]"), ("1/members", b'{"a": 1}'), ("1/members", b'["a", "a"]'), ("1/members", b"\xff")],
)
def test_what_agents_write_is_not_believed(key: str, value: bytes) -> None:
    store = dist.HashStore()
    alone = Membership(store, store, "a", ["a"], silence=60)
    store.set(key, value.decode(errors="replace"))
    with pytest.raises(RuntimeError, match="an agent says that the members are"):
        alone.agree([0])
    alone.end()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--agents", "0", "x.py"], "at least 1 agent"),
        (["--agents", "2"], "no command"),
        (["--agents", "2", "--store", "nowhere", "x.py"], "must be HOST:PORT"),
        (["--agents", "2", "--nodes", "2", "x.py"], "need the address of node 0"),
    ],
)
def test_a_launch_that_cannot_be_says_why(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    from dist_lookahead.train.command import main

    assert main(["launch", *arguments]) == 2
    assert why in capsys.readouterr().err
