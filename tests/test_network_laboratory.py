"""The benchmarks' network of namespaces: nodes reach each other, bytes are counted, and nothing is left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import network

ROOT = Path(__file__).parents[1]
REASON = network.why_not()
SIZE = 50_000
SEND = f"""
import os, socket, sys, time
from pathlib import Path
from benchmarks import network
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
if rank == 0:
    with socket.create_server((os.environ["MASTER_ADDR"], 5000)) as server:
        (folder / "listens").touch()
        connection, _ = server.accept()
        got = 0
        while block := connection.recv(65536):
            got += len(block)
    (folder / "got").write_text(str(got))
else:
    while not (folder / "listens").exists():
        time.sleep(0.01)
    before = network.bytes_sent()
    with socket.create_connection((os.environ["MASTER_ADDR"], 5000)) as connection:
        connection.sendall(bytes({SIZE}))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
    (folder / "sent").write_text(str(network.bytes_sent() - before))
"""
FAIL = "import os, time; time.sleep(60 if os.environ['RANK'] == '0' else 0); raise SystemExit(3)"
WAIT = """
import time
from benchmarks.network import Network
with Network(1) as nodes:
    nodes.start(0, ["sleep", "60"], {})
    print("built", flush=True)
    time.sleep(60)
"""

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(REASON is not None, reason=f"no network can be made here: {REASON}"),
]


def _left(owner: int) -> list[Path]:
    return [path for folder in (network.NAMESPACES, network.FILES) for path in folder.glob(f"{network.PREFIX}{owner}*")]


@pytest.mark.parametrize("delay", [0, 0.005])
def test_nodes_reach_each_other_and_count_what_they_send(
    delay: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of bytes would be wrong where a counter belongs to another interface, or counts what never left."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with network.Network(2, mbit=50, delay=delay) as nodes:
        nodes.run([sys.executable, "-c", SEND, str(tmp_path)], timeout=40)
    assert int((tmp_path / "got").read_text()) == SIZE
    assert SIZE < int((tmp_path / "sent").read_text()) < 1.3 * SIZE
    assert not _left(os.getpid())


def test_a_failure_ends_the_other_agents() -> None:
    """Those that wait for a lost one would keep the benchmark from its end."""
    with network.Network(1) as nodes:
        with pytest.raises(RuntimeError, match=r"by rank: \{1: 3\}"):
            nodes.run([sys.executable, "-c", FAIL], timeout=40, local=2)
        assert not network.processes_of(nodes.names[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_removes_its_nodes(number: signal.Signals) -> None:
    """Namespaces, and processes in them, would outlive a benchmark that is broken off."""
    with subprocess.Popen(
        [sys.executable, "-c", WAIT], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"built\n"
        command.send_signal(number)
        command.wait(timeout=30)
        assert command.returncode != 0
    assert not _left(command.pid)


def test_what_a_killed_command_has_left_is_removed_by_the_next() -> None:
    """Nothing can run in a process that is killed, so that somebody else has to sweep up."""
    with subprocess.Popen(
        [sys.executable, "-c", WAIT], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"built\n"
        command.kill()
    assert _left(command.pid)
    network.remove_abandoned()
    assert not _left(command.pid)
