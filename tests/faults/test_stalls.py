"""Agents that are late: those who wait say where everybody is, and end or wait on."""

import logging
import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from processes import run_processes

from dist_lookahead import simulate
from dist_lookahead.comm import watchdog
from dist_lookahead.comm.communicator import Pending
from dist_lookahead.comm.heartbeat import LONGEST, Heartbeat, Seen
from dist_lookahead.comm.lateness import everybody, first_to_tell
from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from dist_lookahead.comm.watchdog import Watchdog
from dist_lookahead.train.config import ConfigError, load_config
from tests.launching import started, store_of_its_own, wait_until
from tests.training import small_config

LIMIT = pytest.mark.timeout(90)
COMPUTING = Heartbeat(1, "node1", 42, 17, "computing", False, 2.0)
WAITING = Heartbeat(1, "node0", 41, 18, "waiting for others", True, 2.0)


def test_what_is_not_a_sign_of_life_is_none() -> None:
    """The store is open to whoever reaches it: what it holds goes into messages on a terminal."""
    assert Heartbeat.read(COMPUTING.encode().encode()) == COMPUTING
    for raw in (
        b"",
        b"\xff",
        b"[]",
        b"[" * 400,
        COMPUTING.encode().replace("node1", "\\u001b[2J").encode(),
        COMPUTING.encode().replace("2.0", "NaN").encode(),
        COMPUTING.encode().replace("node1", "n" * LONGEST).encode(),
    ):
        assert Heartbeat.read(raw) is None, raw


def test_who_waits_is_not_who_is_late() -> None:
    told = everybody([Seen(WAITING, 0.5), Seen(COMPUTING, 9.0), Seen(None), Seen(WAITING, 9.0)])
    assert told.split("; ")[0] == "agents [0] wait for others, for 2 s"
    assert "agent 1 (host node1, process 42) has given no sign of life for 9 s" in told
    assert "agent 2 has never given a sign of life" in told
    assert "agent 3 (host node0, process 41) has given no sign of life for 9 s; it was waiting" in told


def test_who_waits_for_a_moment_does_not_keep_others_from_telling() -> None:
    """On a node of its own, agent 0 waits for agent 1 again and again, while agent 2 waits for agent 3 for good."""
    moment, long = Seen(WAITING, 0.5), Seen(WAITING, 3.0)
    assert first_to_tell(2, [moment, Seen(COMPUTING, 0.5), long, Seen(None)], 6.0)
    assert not first_to_tell(2, [long, Seen(COMPUTING, 0.5), long, Seen(None)], 6.0)
    assert not first_to_tell(1, [Seen(WAITING, 2.0), long], 6.0)  # it has begun to wait a little later


def late() -> list[str]:
    end, said, waited = ProcessGroupCommunicator(), list[str](), list[float | None]()
    make = end._make_group

    def make_group() -> object:  # a group along an axis is made by all processes together, so that it is waited for
        waited.append(end.waits_since)
        return make()

    end._make_group = make_group
    with Watchdog(end, step=lambda: 5, report_after=4, say=said.append):
        time.sleep(5.5 if end.rank == 2 else 0)
        tensor = torch.ones(3)

        def add():
            yield end.all_reduce(tensor)

        end.run(add())
    assert end.where is None
    assert waited != [None]
    assert len(waited) == 1
    return said


@LIMIT
def test_an_agent_that_computes_for_long_is_named_once_by_the_first_that_waits() -> None:
    first, second, third = run_processes(late, 3)
    assert len(first) == 1, first
    assert second == third == []
    assert re.fullmatch(
        r"agents have been waited for \d s: agents \[0, 1\] wait for others, for \d s; "
        r"agent 2 \(host \S+, process \d+\) is computing after fast step 5, for \d s",
        *first,
    ), first


def with_functions_that_fail() -> list[str]:
    end, logged = ProcessGroupCommunicator(), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger(watchdog.__name__).addHandler(handler)

    def fail(*_: str) -> NoReturn:
        raise KeyError("of this test")

    def add() -> Pending:
        yield end.all_reduce(torch.ones(3))

    with Watchdog(end, step=fail if end.rank else lambda: 5, doing=fail, report_after=1, say=fail):
        time.sleep(0.5 + 2.5 * end.rank)
        end.run(add())
    return logged


@LIMIT
def test_functions_of_the_user_that_fail_do_not_end_the_watch() -> None:
    """Each is told of once; the report comes all the same."""
    first, second = run_processes(with_functions_that_fail, 2)
    failed = "the watchdog's function '{}' has failed, and is told of no more: KeyError('of this test')"
    assert sorted(second) == [failed.format("doing"), failed.format("step")]
    reports = [line for line in first if line.startswith("agents have been waited for")]
    assert sorted(set(first) - set(reports)) == [failed.format("doing"), failed.format("say")]
    assert re.search(r"agent 1 \(.*\) (is|was) doing something that it cannot say after fast step 0", reports[0])
    assert len(first) == len(reports) + 2


def halted(
    folder: Path, faults: dict[str, object], *, then: Callable[[int, Path], None], port: int | None = None
) -> tuple[list[int | None], str]:
    """Stop agent 2 of three as soon as there is a first sync."""
    config = small_config(
        folder, agents=1, run={"steps": 400}, checkpoint={"every": 10_000}, faults={"report_after": 2.5, **faults}
    )
    file = folder / "run.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    metrics = Path(config.run.dir) / config.run.name / "metrics.jsonl"
    with started(["train", str(file)], processes=3, port=port) as (processes, output):
        wait_until(lambda: metrics.exists() and '"sync"' in metrics.read_text())
        victim = processes[2].pid
        assert victim is not None
        os.kill(victim, signal.SIGSTOP)
        then(victim, output)
        for process in processes:
            if process is not processes[2] or faults["on_late"] == "wait":
                process.join(25)
        return [process.exitcode for process in processes], output.read_text()


REPORT = r"agents have been waited for \d+ s: agents \[0, 1\] wait for others, .*agent 2 \(host \S+, process {}\)"


@LIMIT
def test_an_agent_that_stands_still_is_named_and_waited_for(tmp_path: Path) -> None:
    def go_on(victim: int, output: Path) -> None:
        wait_until(lambda: re.search(REPORT.format(victim), output.read_text()) is not None)
        wait_until(lambda: "has given no sign of life" in output.read_text())
        os.kill(victim, signal.SIGCONT)

    codes, output = halted(tmp_path, {"on_late": "wait", "timeout": 2}, then=go_on)
    assert codes == [0, 0, 0], output


@LIMIT
def test_an_agent_that_stands_still_for_too_long_ends_the_run_by_name(tmp_path: Path) -> None:
    codes, output = halted(tmp_path, {"on_late": "stop", "timeout": 6}, then=lambda *_: None)
    assert codes[:2] == [1, 1], output
    assert re.search(
        r"agents \[2\] did not report \(agent 2 \(host \S+, process \d+\) has given no sign of life for \d+ s; "
        r"it was \w+ after fast step \d+\)",
        output,
    ), output


@LIMIT
def test_a_store_that_does_not_answer_is_said_too(tmp_path: Path) -> None:
    with store_of_its_own() as (store, port):
        assert store.pid is not None
        stop = partial(os.kill, store.pid, signal.SIGSTOP)
        codes, output = halted(tmp_path, {"on_late": "stop", "timeout": 5}, then=lambda *_: stop(), port=port)
    assert codes[:2] == [1, 1], output
    assert re.search(r"agent 0 has waited .* where it could ask for them does not answer: is its host there?", output)
    assert "which agents are lost is not known" in output


def test_the_setting_that_has_moved_is_said(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(small_config(tmp_path).to_yaml())
    with pytest.raises(ConfigError, match=r"run.timeout is faults.timeout now"):
        load_config(file, ["run.timeout=5"])


def test_a_report_needs_some_time() -> None:
    with pytest.raises(ValueError, match=r"report_after=0 must be above 0, in seconds"):
        Watchdog(simulate(1)[0], step=lambda: 0, report_after=0)
