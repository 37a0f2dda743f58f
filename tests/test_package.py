"""What a user installs: the built wheel and the launchers, outside the checkout."""

import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.launching import environment

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.timeout(240)


def shell(arguments: list[str], folder: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    variables = {**environment(), "PYTHONPATH": path} if path else environment()
    done = subprocess.run(
        arguments,
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done


def test_wheel_and_sdist_build_and_the_wheel_trains_outside_the_checkout(tmp_path: Path) -> None:
    shell([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)], tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert list((tmp_path / "dist").glob("*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert "dist_lookahead/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]
    config = tmp_path / "run.yaml"
    config.write_text((ROOT / "configs/digits/slowmo.yaml").read_text(), encoding="utf-8")
    program = (
        "import sys, dist_lookahead.train.command as c; assert c.__file__.startswith(sys.argv[1]), c.__file__; "
        "sys.exit(c.main(sys.argv[2:]))"
    )
    site = str(tmp_path / "site")
    train = ["train", str(config), "--set", "run.epochs=null", "--set", "run.steps=20", "--set", "agents=2"]
    done = shell([sys.executable, "-c", program, site, *train], tmp_path, path=site)
    assert "where DDP sends" in done.stdout
    assert (tmp_path / "runs").is_dir()


def test_local_launcher_trains(tmp_path: Path) -> None:
    config = ROOT / "configs/digits/slowmo.yaml"
    overrides = ["--set", f"run.dir={tmp_path}", "--set", "run.epochs=null", "--set", "run.steps=13"]
    done = shell([str(ROOT / "launch/local.sh"), "2", str(config), *overrides], tmp_path)
    assert "13 fast steps of 2 agents" in done.stdout


def test_multinode_launcher_joins_two_nodes(tmp_path: Path) -> None:
    """Two launchers on one machine, a node each, meet at a rendezvous on a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ROOT / "configs/digits/slowmo.yaml"
    overrides = ["--set", f"run.dir={tmp_path}", "--set", "run.epochs=null", "--set", "run.steps=13"]
    # Without AGENTS: one per GPU, and one where there is none. A machine with GPUs would need them twice.
    variables = {**environment(), "RENDEZVOUS": f"localhost:{port}", "NODES": "2", "CUDA_VISIBLE_DEVICES": ""}
    if shutil.which("nvidia-smi"):
        variables["AGENTS"] = "1"
    nodes = [
        subprocess.Popen(
            [str(ROOT / "launch/multinode.sh"), str(config), *overrides],
            cwd=tmp_path,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        outputs = [node.communicate(timeout=120)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert sum("13 fast steps of 2 agents" in output for output in outputs) == 1


@pytest.mark.parametrize("script", ["local.sh", "multinode.sh"])
def test_launchers_say_how_they_are_used(script: str) -> None:
    done = subprocess.run(
        [str(ROOT / "launch" / script)], capture_output=True, text=True, timeout=20, check=False, env=environment()
    )
    assert done.returncode == 2
    assert f"launch/{script}" in done.stderr
