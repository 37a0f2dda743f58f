"""What the README shows is what happens."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from dist_lookahead import recipes
from dist_lookahead.train.command import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_snippets_run_in_order(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    snippets = blocks("python")
    assert len(snippets) >= 3
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)  # the README is ours
    loss, simulated = capsys.readouterr().out.split("\n")[:2]
    assert float(loss.split(": ")[1]) < 0.1, "the model of the snippet learns: it starts above 0.1"
    assert simulated == "True True"


def test_the_commands_name_files_that_are_there_and_settings_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    runs = [line for line in lines if "dist_lookahead train" in line or "dist-lookahead train" in line]
    runs += [line for line in lines if "dist-lookahead validate" in line]
    assert len(runs) >= 4
    for line in runs:
        arguments = re.split(r"\s+(?:train|validate)\s+", line.strip())[1].split()
        assert main(["validate", str(ROOT / arguments[0]), *arguments[1:]]) == 0, capsys.readouterr().err


def test_every_recipe_is_in_the_table() -> None:
    public = recipes.__all__
    assert len(public) >= 9
    missing = [name for name in public if f"| `{name}` |" not in README]
    assert not missing


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) <= targets


def test_pre_commit_runs_what_make_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = {hook["entry"].removeprefix(".venv/bin/") for hook in hooks}
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    assert entries == set(re.findall(r"\$\(BIN\)/(.+)", lint))
