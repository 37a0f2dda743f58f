"""Who imports whom: the house's rules, read from the syntax trees, and what a bare import loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import dist_lookahead

ROOT = Path(dist_lookahead.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# What each part may import of this package, itself always included; parts not listed may import what is listed.
MAY_IMPORT = {
    "schedule": set(),
    "adaptive": {"schedule"},
    "sharded": set(),
    "bucket": {"sharded"},
    "mesh": set(),
    "comm": {"mesh"},
    "averaging": {"comm", "mesh"},
    "optimal": set(),
    "one_pass": {"slow_kernel"},
    "slow_kernel": set(),
    "move": {"one_pass", "optimal", "schedule"},
    "fragments": set(),
    "level": {"adaptive", "averaging", "fragments", "move", "schedule"},
    "alike": {"fragments", "level", "mesh"},
    "recipes": {"adaptive", "averaging", "comm.topology", "fragments", "level", "move", "schedule"},
    "notation": {"adaptive", "averaging", "comm.topology", "fragments", "level", "move", "optimal", "schedule"},
    "tasks": set(),
    "theory": {
        *("adaptive", "averaging", "comm.topology", "fragments", "level", "mesh", "move", "notation"),
        *("optimal", "schedule"),
    },
    "stability": {"averaging", "fragments", "level", "mesh", "theory"},
    "figures": {"", "level", "notation", "theory"},
    "planner": {
        *(
            "averaging",
            "bound_level",
            "comm.communicator",
            "fragments",
            "level",
            "mail",
            "mesh",
            "move",
            "pace",
            "stack",
        ),
    },
}
MAY_BE_DISTRIBUTED = (
    "comm.alarm",
    "comm.heartbeat",
    "comm.part_sums",
    "comm.process_group",
    "comm.torch_mesh",
    "comm.watchdog",
    "sharded",
    "survivors",
    "train",
)  # `sharded` knows split parameters


def module_name(path: Path) -> str:
    """Return the name below the package: "comm.simulated", "" for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Every imported module, wherever the statement stands: under TYPE_CHECKING and in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports here are absolute"
            assert node.module is not None
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name if name in MODULES else node.module, node) for name in modules)


MODULES = {f"dist_lookahead.{module_name(path)}".rstrip("."): path for path in FILES}


def imports_of_the_package(path: Path) -> set[str]:
    """Return names below the package, "" for the package itself."""
    own = {name for name, _ in imports(path) if name.split(".")[0] == "dist_lookahead"}
    return {name.removeprefix("dist_lookahead").lstrip(".") for name in own}


def part(name: str) -> str:
    return name.split(".")[0]


def test_modules_were_found() -> None:
    assert {"dist_lookahead.comm.process_group", "dist_lookahead.stack"} <= set(MODULES)
    assert "comm.communicator" in imports_of_the_package(MODULES["dist_lookahead.stack"])


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_parts_import_what_they_may(path: Path) -> None:
    name = module_name(path)
    for other in imports_of_the_package(path):
        if part(name) in MAY_IMPORT:
            assert {part(other), other} & (MAY_IMPORT[part(name)] | {part(name)}), f"{name} imports {other}"
        if part(other) == "train":
            assert part(name) in ("train", "__main__"), f"{name} imports {other}: nobody but train itself may"
        if part(other) == "figures":
            assert part(name) in ("figures", "train"), f"{name} imports {other}: it needs matplotlib, only train may"
        if part(name) not in ("train", "__main__"):
            assert part(other) != "tasks" or part(name) == "tasks", f"{name} imports {other}: only train may"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_torch_distributed_stays_behind_the_communicator(path: Path) -> None:
    """Everything else runs without processes, in simulation."""
    name = module_name(path)
    if not name.startswith(MAY_BE_DISTRIBUTED):
        assert not [module for module, _ in imports(path) if module.startswith("torch.distributed")]
        assert "torch.distributed." not in "".join(
            ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
        )


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_of_the_package_stand_at_the_top(path: Path) -> None:
    """An import inside a function hides a cycle."""
    top = {node.lineno for node in ast.parse(path.read_text()).body}
    hidden = [name for name, node in imports(path) if part(name) == "dist_lookahead" and node.lineno not in top]
    assert not hidden


def test_there_are_no_cycles() -> None:
    """A package's __init__ counts as importing what it imports, not as its modules' import of it."""
    graph = {module_name(path): imports_of_the_package(path) - {module_name(path)} for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"cycle: {' -> '.join(error.args[1])}")


def loaded_by(statement: str) -> list[str]:
    """Return the modules that a statement loads in a fresh interpreter, beyond torch's."""
    code = (
        "import sys, torch, torch.distributed\n"
        "before = set(sys.modules)\n"
        f"{statement}\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return run.stdout.split()


def foreign(loaded: list[str]) -> set[str]:
    return {name for name in loaded if part(name) not in {"dist_lookahead", "torch", *sys.stdlib_module_names}}


def test_a_bare_import_loads_torch_and_nothing_else() -> None:
    """The library part needs torch alone; the trainer's packages may not be there."""
    loaded = loaded_by("import dist_lookahead")
    assert {"dist_lookahead.stack", "dist_lookahead.theory.stability"} <= set(loaded)
    assert not foreign(loaded)
    others = tuple(f"dist_lookahead.{name}" for name in ("train", "tasks", "figures"))
    assert not [name for name in loaded if name.startswith(others)]


def test_theory_needs_torch_alone() -> None:
    loaded = loaded_by("from dist_lookahead import theory")
    assert "dist_lookahead.theory.mixing" in loaded
    assert not foreign(loaded)
