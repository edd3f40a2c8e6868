"""The packages keep their layers, their types and their habits."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("iflow_lib", "iflow_runner")
FILES = sorted(f for package in PACKAGES for f in (ROOT / package).rglob("*.py"))
MODULES = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in FILES]


def run(*command) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_import_contracts():
    """The contracts stand in pyproject.toml. ``lint-imports`` reads them."""
    done = run(Path(sys.executable).with_name("lint-imports"), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_types():
    done = run(sys.executable, "-m", "mypy")
    assert done.returncode == 0, done.stdout + done.stderr


def modules_named(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return ["." * node.level + (node.module or "")] if isinstance(node, ast.ImportFrom) else []


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_private_name_crosses_a_module(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            private = [a.name for a in node.names if a.name.startswith("_") and a.name[1] != "_"]
            assert not private, f"line {node.lineno} imports {private[0]}"


@pytest.mark.parametrize(
    "file",
    [f for f in FILES if f.parts[-2:] != ("training", "distributed.py")],
    ids=lambda f: str(f.relative_to(ROOT)),
)
def test_no_environment_variable_switches_anything(file):
    """torchrun tells its processes by the environment who they are; nothing else is read from it.

    The runner may hand an environment on to the processes that it starts.
    """
    if file.is_relative_to(ROOT / "iflow_lib"):
        assert "environ" not in file.read_text(encoding="utf-8")
        assert "getenv" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_is_light(package):
    """Heavy packages wait for their first use, and the runner does without torch. ``frames`` itself is such a use of pandas."""
    heavy = {"matplotlib", "pandas", "papermill", "scipy", "seaborn", "sklearn", "torchmetrics"}
    heavy |= {"torch", "iflow_lib"} if package == "iflow_runner" else set()
    modules = [m for m in MODULES if m.split(".")[0] == package and not m.endswith("__main__")]
    modules = [m for m in modules if not m.startswith("iflow_lib.frames")]
    code = (
        "import importlib, sys\n"
        f"for name in {modules}: importlib.import_module(name.removesuffix('.__init__'))\n"
        f"print(*sorted({heavy} & set(sys.modules)))"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_frames_wait_for_their_first_use():
    """They need pandas, which takes pyarrow along where it is, and nothing that is optional."""
    optional = {"sklearn", "soundfile", "PIL", "matplotlib", "statsmodels", "jinja2"}
    modules = [m.removesuffix(".__init__") for m in MODULES if m.startswith("iflow_lib.frames")]
    code = (
        "import importlib, sys, iflow_lib as ifl\n"
        "assert 'pandas' not in sys.modules and 'TableFlow' in dir(ifl)\n"
        "assert ifl.TableFlow is ifl.frames.TableFlow and ifl.SeriesFlow is ifl.frames.SeriesFlow\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        f"print(*sorted({optional} & set(sys.modules)))\n"
        "ifl.frame"
    )
    done = run(sys.executable, "-c", code)
    assert done.stdout.strip() == "" and len(modules) > 10
    assert "module 'iflow_lib' has no attribute 'frame'" in done.stderr


def test_experiments_are_imported_by_nobody():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assert not any(name.split(".")[0] == "experiments" for name in modules_named(node)), (
                file
            )
