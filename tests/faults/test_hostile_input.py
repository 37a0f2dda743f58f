"""Input of others, or made to harm: names never reach a shell, control messages are checked, nothing is unpickled."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import dist_lookahead
from dist_lookahead.mail import FIELDS, Mail
from dist_lookahead.train.config import ConfigError
from tests.launching import launched
from tests.training import small_config

PACKAGE = Path(dist_lookahead.__file__).parent
HOSTILE = [
    "$(touch proof)",
    "`touch proof`",
    "; touch proof",
    "a b",
    "' || touch proof #",
    '"; touch proof; "',
    "*",
    "\n",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_launchers_pass_names_on_as_they_are(name: str, tmp_path: Path) -> None:
    arguments = [f"{name}.yaml", "--set", f"run.dir={name}"]
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    assert launched("local.sh", ["2", *arguments], tmp_path / "one")[-3:] == arguments
    many = {"RENDEZVOUS": f"host{name}:29400", "NODES": "2", "AGENTS": "1", "INTERFACE": name}
    seen = launched("multinode.sh", arguments, tmp_path / "many", **many)
    assert seen[-3:] == arguments
    assert f"host{name}:29400" in seen
    assert not list(tmp_path.rglob("proof"))


@pytest.mark.parametrize("name", [*HOSTILE, "../up", "/etc/passwd", ".hidden", "-rf", ""])
def test_names_of_runs_are_names_of_folders_and_nothing_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.name="):
        small_config(tmp_path, run={"name": name})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0, 0.5, 2.0**24])
@pytest.mark.parametrize("field", FIELDS)
def test_mail_that_no_agent_sends_is_refused_by_field_and_agent(field: str, number: float) -> None:
    tail = torch.zeros(2 * len(FIELDS))
    tail[len(FIELDS) + FIELDS.index(field)] = number
    with pytest.raises(RuntimeError, match=rf"says {field}=\S+ of agent 1, and agents send whole numbers"):
        Mail(0, 2).read(tail, members=(0, 1))


FORBIDDEN = {  # what would run code that somebody else has written, or hand a text to a shell
    *("pickle.load", "pickle.loads", "os.system", "os.popen", "eval", "exec", "yaml.unsafe_load", "yaml.full_load"),
    *("dist.all_gather_object", "dist.broadcast_object_list", "dist.gather_object", "dist.scatter_object_list"),
    *("dist.send_object_list", "dist.recv_object_list", "subprocess.getoutput", "subprocess.getstatusoutput"),
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_call_would_run_what_it_reads(path: Path) -> None:
    for name, call in calls(path):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in FORBIDDEN
        assert keywords.get("shell", "False") == "False"
        if name == "torch.load":
            assert keywords.get("weights_only") == "True"
