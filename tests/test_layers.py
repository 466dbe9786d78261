"""The house stands: imports run downwards only, heavy packages are imported where they belong, and late."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rebasin_cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rebasin_cli"

LEVELS = (
    {"cli"},
    {"report", "compat"},
    {"verbs"},
    {"merging", "interpolation"},
    {"matching", "task_vectors"},
    {"execution", "rules"},
    {"symmetry"},
    {"maps"},
    {"permutation", "tracing", "data"},
    {"spec", "checkpoint", "model"},
    {"options", "progress", "freedom"},
    {"errors"},
)
"""From the roof to the ground; a room sees what lies below it."""

FACES = {"__init__", "__main__"}
"""The package's own door and its public names, which open lazily on every floor."""


def rooms() -> dict[str, int]:
    return {room: level for level, names in enumerate(LEVELS) for room in names}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in the file, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno
            if node.module == "rebasin_cli":
                yield from ((f"rebasin_cli.{alias.name}", node.lineno) for alias in node.names)


def test_every_room_has_its_level() -> None:
    known = set(rooms()) | FACES
    assert {room_of(path) for path in modules()} <= known


def test_imports_run_downwards() -> None:
    level = rooms()
    wrong = []
    for path in modules():
        room = room_of(path)
        if room in FACES:
            continue
        for name, line in imported(path):
            parts = name.split(".")
            if parts[0] != "rebasin_cli" or len(parts) == 1 or parts[1] not in level or parts[1] == room:
                continue
            if level[parts[1]] <= level[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


def test_data_sees_only_the_public_names_of_model() -> None:
    inner = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in (PACKAGE / "data").rglob("*.py")
        for name, line in imported(path)
        if name.startswith("rebasin_cli.model.")
    ]
    assert inner == []


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("typer", ("cli/",)),
        ("rich", ("cli/", "report/")),
        ("scipy.optimize", ("matching/assignment.py",)),
        ("lap", ("matching/assignment.py",)),
        ("safetensors", ("checkpoint/formats/",)),
        ("pickle", ("checkpoint/formats/",)),
        ("click", ()),
    ],
)
def test_a_package_is_imported_only_where_it_belongs(package: str, allowed: tuple[str, ...]) -> None:
    elsewhere = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in modules()
        for name, line in imported(path)
        if f"{name}.".startswith(f"{package}.") and not str(path.relative_to(PACKAGE)).startswith(allowed or "\0")
    ]
    assert elsewhere == []


def test_dispatch_modes_have_one_base_and_live_in_two_places() -> None:
    texts = {str(path.relative_to(PACKAGE)): path.read_text("utf-8") for path in modules()}
    assert {name for name, text in texts.items() if "(TorchDispatchMode)" in text} == {"tracing/dispatch.py"}
    users = {name for name, text in texts.items() if "(OperationMode):" in text}
    assert {name for name in users if not name.startswith("tracing/")} == {"execution/widening.py"}


def test_files_stay_short() -> None:
    long = {str(path.relative_to(ROOT)): lines for path in modules() if (lines := _lines(path)) > 600}
    assert long == {}


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    "statement",
    [
        "import rebasin_cli",
        "from rebasin_cli.cli.app import main; main(['--help'])",
        "from rebasin_cli.cli.app import main; main(['--version'])",
        "from rebasin_cli.cli.app import main; main(['align', '--help'])",
        "from rebasin_cli.cli.app import main; main(['completions', 'bash'])",
        "from rebasin_cli.cli.app import main; main(['align', 'a'])",
    ],
)
def test_torch_is_not_imported_before_a_verb_works(statement: str) -> None:
    check = f"import sys; {statement}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_public_names_are_what_they_say() -> None:
    check = (
        "import rebasin_cli, rebasin_cli.tracing.graph, types\n"
        "for name in rebasin_cli._HOMES: assert not isinstance(getattr(rebasin_cli, name), types.ModuleType), name"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_exported_and_documented() -> None:
    assert sorted(rebasin_cli.__all__) == sorted(rebasin_cli._HOMES)
    for name in rebasin_cli.__all__:
        found = getattr(rebasin_cli, name)
        if name == "Permutations":  # an alias of a type
            continue
        assert (found.__doc__ or "").strip(), name
        assert not (found.__doc__ or "").startswith(f"{name}("), f"{name} has only the docstring of a dataclass"
