"""pyproject.toml, requirements.lock, environment.yml, Makefile and README agree on what is installed and how."""

import ast
import itertools
import json
import os
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PYTHONS = [
    f"3.{minor}" for minor in range(30) if f"3.{minor}" in SpecifierSet(PROJECT["requires-python"])
]
SYSTEMS = [
    ("linux", "Linux", "posix", "x86_64"),
    ("linux", "Linux", "posix", "aarch64"),
    ("darwin", "Darwin", "posix", "arm64"),
    ("win32", "Windows", "nt", "AMD64"),
]

# A whole entry of the lock: one pin, an optional marker, one or more hashes, then only comments.
ENTRY = re.compile(
    r"(?P<pin>[a-z0-9][a-z0-9._-]*==[a-z0-9.+!]+( ; [^\\\n]+)?) \\\n"
    r"(    --hash=sha256:[0-9a-f]{64} \\\n)*    --hash=sha256:[0-9a-f]{64}\n( *#.*\n)*"
)


in_venv = pytest.mark.skipif(
    not (ROOT / ".venv/installed").exists() or Path(sys.prefix) != ROOT / ".venv",
    reason="needs the .venv that make builds",
)


def pins() -> list[Requirement]:
    return [Requirement(entry["pin"]) for entry in ENTRY.finditer(LOCK)]


def environments() -> list[dict[str, str]]:
    """Marker values of every supported Python on every supported system."""
    return [
        default_environment()
        | {
            "python_version": python,
            "python_full_version": f"{python}.9",
            "sys_platform": system[0],
            "platform_system": system[1],
            "os_name": system[2],
            "platform_machine": system[3],
            "extra": "",
        }
        for python, system in itertools.product(PYTHONS, SYSTEMS)
    ]


def active(requirements: list[Requirement], environment: dict[str, str]) -> list[Requirement]:
    return [r for r in requirements if r.marker is None or r.marker.evaluate(environment)]


def test_the_lock_holds_only_hashed_pins():
    """Every line belongs to a hashed pin or is a comment: no index, host, path or option can hide in between."""
    rest = ENTRY.sub("", LOCK)
    assert len(pins()) > 100
    assert [line for line in rest.splitlines() if not line.startswith("#")] == []
    assert not re.search(
        r"://|--(extra-)?index|--find-links|\bfile:|/(home|root|tmp|opt|work|Users)\b", LOCK
    )


@pytest.mark.parametrize(
    "environment",
    environments(),
    ids=lambda e: "-".join(
        e[key] for key in ("python_version", "sys_platform", "platform_machine")
    ),
)
def test_every_dependency_is_locked(environment):
    """On each Python and system: one version a package, and one that each extra of pyproject.toml accepts."""
    versions: dict[str, str] = {}
    for pin in active(pins(), environment):
        assert canonicalize_name(pin.name) not in versions, f"{pin.name} is pinned twice"
        versions[canonicalize_name(pin.name)] = next(iter(pin.specifier)).version
    locked = "notebooks frames scale export serve hub logging fid dev".split()
    assert set(EXTRAS) == {*locked, "forest"}
    assert f"EXTRAS = {' '.join(locked)}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = [EXTRAS[name] for name in locked]
    declared = [Requirement(line) for line in itertools.chain(PROJECT["dependencies"], *extras)]
    for requirement in active(declared, environment):
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not in requirements.lock: run make lock"
        assert version in requirement.specifier, (
            f"{requirement} is locked at {version}: run make lock"
        )


@in_venv
def test_what_is_installed_is_the_lock():
    """Nothing is missing, at another version, or there without a pin (so the pins are closed under dependencies)."""
    installed = {canonicalize_name(d.name): d.version for d in distributions()}
    assert {"pip", "iflow-lib"} <= set(installed)
    locked = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in active(pins(), default_environment())
    }
    assert {
        name: version.partition("+")[0]
        for name, version in installed.items()
        if name not in ("pip", "iflow-lib")
    } == locked  # torch names its CUDA after a plus


def test_conda_installs_the_lock_and_the_package():
    """pip accepts no hashes beside `-e .`, so environment.yml repeats the pins, in full and in order."""
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))[
        "dependencies"
    ]
    (pip,) = [d["pip"] for d in dependencies if isinstance(d, dict)]
    assert pip == ["-e .", *(entry["pin"] for entry in ENTRY.finditer(LOCK))], "run make lock"
    assert [d for d in dependencies if isinstance(d, str)] == [
        f"python {PROJECT['requires-python']}",
        "pip",
    ]


def test_the_same_pythons_everywhere():
    """The Makefile's check names the Pythons that pyproject.toml allows."""
    first, last = re.search(
        r"\(3, (\d+)\) <= v <= \(3, (\d+)\)", (ROOT / "Makefile").read_text()
    ).groups()
    assert [f"3.{first}", f"3.{last}"] == [PYTHONS[0], PYTHONS[-1]]


def imported(source: str) -> set[str]:
    """Top-level names of the absolute imports in Python source."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def notebook_source(path: Path) -> str:
    cells = [
        c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"
    ]
    lines = "\n".join("".join(c["source"]) for c in cells).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def test_imports_are_declared():
    """`pip install .[notebooks]` brings all that a notebook imports; no module imports what no extra declares."""
    owners = {
        "ot": "pot",
        "sklearn": "scikit-learn",
        "PIL": "pillow",
    }  # as imported: as declared

    def unknown(names: set[str], extras: list[str]) -> set[str]:
        lines = itertools.chain(PROJECT["dependencies"], *(EXTRAS[extra] for extra in extras))
        declared = {canonicalize_name(Requirement(line).name) for line in lines}
        known = sys.stdlib_module_names | {
            "iflow_lib",
            "iflow_runner",
            "tomllib",
            "torchvision",
            "statsmodels",
        }  # the last three are used if there
        return {
            name
            for name in names - known
            if canonicalize_name(owners.get(name, name)) not in declared
        }

    for path in [f for p in ("iflow_lib", "iflow_runner") for f in (ROOT / p).rglob("*.py")]:
        assert (
            unknown(
                imported(path.read_text(encoding="utf-8")),
                ["notebooks", "frames", "scale", "export", "serve", "hub", "logging", "fid"],
            )
            == set()
        ), path
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        assert unknown(imported(notebook_source(path)), ["notebooks"]) == set(), path


def no_make_lines() -> list[str]:
    """The lines of docs/reproduce.md for those without make, as they stand there (for Windows)."""
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- no-make -->\s*```\w*\n(.*?)```\s*<!-- /no-make -->", page, re.DOTALL)
    assert block, (
        "docs/reproduce.md: no fenced block between <!-- no-make --> and <!-- /no-make -->"
    )
    assert "(docs/reproduce.md#without-make)" in (ROOT / "README.md").read_text(encoding="utf-8")
    return block[1].splitlines()


def test_the_lines_without_make_are_known():
    """docs/reproduce.md says what the Makefile's comment says: three lines that install, one that runs."""
    comment = (ROOT / "Makefile").read_text(encoding="utf-8").partition("PROFILE ?=")[0]
    assert no_make_lines() == re.findall(r"^#   (.*)$", comment, re.MULTILINE)
    assert len(no_make_lines()) == 4


@pytest.mark.long
@in_venv
def test_the_lines_without_make_work(tmp_path):
    """Runs these lines for real as far as that is cheap and needs no network.

    1. The virtual environment is made, elsewhere. 2. pip resolves the whole hashed lock as a dry run inside make's
    .venv: it passes only if pip (not just uv) accepts the file and would install nothing that make did not.
    3. pip builds the package's metadata as a dry run. 4. The command line that line 3 installs answers. What is
    not run: downloads, and Windows itself; elsewhere `.venv\\Scripts` is read as `.venv/bin`.
    """
    make, lock, package, run = no_make_lines()
    here = str(Path(sys.executable).parent) + os.sep

    def call(line: str, *options: str, cwd: Path = ROOT) -> str:
        program, *words = line.replace("\\", "/").split(" ")
        program = sys.executable if program == "python" else program.replace(".venv/Scripts/", here)
        done = subprocess.run(
            [program, *words, *options],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    call(make, cwd=tmp_path)
    assert (tmp_path / ".venv" / Path(here).name).is_dir()
    satisfied = call(lock, "--dry-run", "--no-index")
    assert (
        "Would install" not in satisfied and "Requirement already satisfied: torch==" in satisfied
    )
    assert "Would install iflow" in call(package, "--dry-run")
    assert "--profile" in call(run, "--help")
