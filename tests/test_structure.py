"""The library stays small and its modules stand in one order."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import iflow_lib

MODULES = {
    file.stem: ast.parse(file.read_text(encoding="utf-8"))
    for file in Path(iflow_lib.__file__).parent.glob("*.py")
}


def imported(tree: ast.AST) -> set[str]:
    """Modules of ours that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            names |= {node.module} if node.module else {alias.name for alias in node.names}
    return names & set(MODULES) - {"__init__"}


def test_no_circular_import():
    """Strip modules that import none of the rest until none is left: a circle would stay."""
    left = {name: imported(tree) for name, tree in MODULES.items() if name != "__init__"}
    assert left["samplers"] and left["training"]  # imports are seen at all
    assert not left["paths"] and not left["analytic"]
    while free := {name for name, needs in left.items() if not needs & set(left)}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, left


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_file_has_at_most_400_lines(name):
    assert (
        len(
            (Path(iflow_lib.__file__).parent / f"{name}.py")
            .read_text(encoding="utf-8")
            .splitlines()
        )
        <= 400
    )


def test_each_module_can_be_imported_first():
    names = sorted(set(MODULES) - {"__init__", "cli"})
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    for loaded in [m for m in sys.modules if m.startswith('iflow_lib')]: del sys.modules[loaded]\n"
        "    importlib.import_module('iflow_lib.' + name)\n"
    )
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True)
