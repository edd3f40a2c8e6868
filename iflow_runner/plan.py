"""What to run: a job of notebooks, and every check that can be made before anything runs."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import json
import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from .provenance import PACKAGE, digest, machine, sha256
from .recorder import checkout

_RUNNER_SETS = {"device": "--device", "out_dir": "--out"}
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list like [1, 2]",
}


@dataclass(frozen=True)
class Task:
    """One notebook to run. ``parameters``: every declared one with its final value, but for ``out_dir``; ``after``: the
    notebooks whose tables of the same run it reads; ``needs``: {what else it depends on: value or checksum}."""

    name: str
    source: Path
    title: str
    cells: int
    parameters: dict
    wants_out: bool
    after: tuple[str, ...]
    needs: dict

    def inputs(self, out: Path) -> dict:
        """``needs`` with the tables that it reads in the run folder ``out``: as long as these stay, so do its results."""
        return self.needs | {
            f"tables/{name}.csv": sha256(out / "tables" / f"{name}.csv") for name in self.after
        }


@dataclass(frozen=True)
class Job:
    """A checked job, for ``reproduce.execute``."""

    tasks: list[Task]
    profile: str
    device: str
    out: Path
    root: Path
    environment: dict


def prepare(
    notebooks=(),
    profile: str = "quick",
    device: str = "auto",
    parameters: dict | None = None,
    out=None,
    folder=None,
    make: bool = True,
) -> Job:
    """Check everything a job needs.

    notebooks: names such as "06" or "06_nfe_vs_quality", all if empty; profile: a table of ``profiles.toml``;
    device: auto, cpu, cuda or mps; parameters: values (or their text) for every selected notebook that declares the
    name; out: folder for the results instead of ``results/runs/<profile>``; folder: the notebooks, if not the checkout's;
    make: make ``out`` if it is not there, and try to write to it.

    Raises ValueError, FileNotFoundError or OSError with one line that says what was wrong and what was expected.
    """
    folder = Path(folder) if folder else checkout() / "notebooks"
    root, known = folder.resolve().parent, _numbered(folder)
    profiles = _read_profiles(folder / "profiles.toml", profile)
    sources = _select(known, notebooks)
    _check_device_name(device)
    contents = {source.stem: _read_notebook(source) for source in sources}
    for name in sorted(
        {name for settings in profiles.values() for name in settings if name in known}
        - set(contents)
    ):
        contents[name] = _read_notebook(known[name])
    declared = {name: _declared(name, content) for name, content in contents.items()}
    _check_profiles(profiles, known, declared, contents)
    chosen = {source.stem: declared[source.stem] for source in sources}
    _check_names(parameters or {}, chosen)
    values = {
        name: _values(
            name, chosen[name], contents[name], profiles[profile].get(name, {}), parameters or {}
        )
        for name in chosen
    }
    missing = [p for p in ("papermill", "ipykernel") if importlib.util.find_spec(p) is None]
    if missing:
        raise ValueError(
            f"running notebooks needs {missing[0]}: pip install 'iflow-lib[notebooks]'"
        )
    reads = {name: _reads(name, contents[name], known, root) for name in chosen}
    device = _resolve_device(device)
    out = _check_out(Path(out) if out is not None else root / "results" / "runs" / profile, make)
    environment = machine(device)
    shared = {
        "the code of iflow_lib": digest(PACKAGE, "*.py"),
        "the shipped data": digest(PACKAGE, "assets/*"),
        "requirements.lock": sha256(root / "requirements.lock"),
        "the device": [device, environment["gpu"]],
        "installed versions": environment["versions"],
    }
    tasks = []
    for source in sources:
        name, content = source.stem, contents[source.stem]
        if "device" in values[name]:
            values[name]["device"] = device
        wants_out = values[name].pop("out_dir", None) is not None
        code = [[c["cell_type"], cell_text(c)] for c in content["cells"]]
        after, files = reads[name]
        needs = {
            "its cells": hashlib.sha256(json.dumps(code).encode()).hexdigest(),
            "its parameters": values[name],
            **shared,
            **{
                f"results/reference/{f}": _checksum(root / "results" / "reference" / f)
                for f in files
            },
        }
        tasks.append(
            Task(
                name,
                source,
                _title(content, name),
                len(code),
                values[name],
                wants_out,
                after,
                needs,
            )
        )
    return Job(tasks, profile, device, out, root, environment)


def _checksum(path: Path) -> str:
    return digest(path, "**/*") if path.is_dir() else sha256(path)


def read_toml(file: Path) -> dict:
    """Content of a TOML file. OSError or ValueError with one line if there is none."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from None


def _read_profiles(file: Path, profile: str) -> dict:
    """All tables of profiles.toml, of which ``profile`` must be one."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: it holds the parameters of each profile")
    profiles = read_toml(file)
    if profile not in profiles:
        raise ValueError(
            f"unknown profile {profile!r}{nearest(profile, profiles)}: expected one of {', '.join(profiles)}"
        )
    for name, tables in profiles.items():
        if not isinstance(tables, dict) or not all(isinstance(v, dict) for v in tables.values()):
            raise ValueError(f"{file}: profile {name} must hold one table for each notebook")
    return profiles


def nearest(name: str, known) -> str:
    """``" (did you mean 'steps'?)"``, or nothing if no known name is like it."""
    found = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _numbered(folder: Path) -> dict[str, Path]:
    """{name: file} of the numbered notebooks of a folder."""
    known = {p.stem: p for p in sorted(folder.glob("*.ipynb")) if re.match(r"\d\d_", p.name)}
    if not known:
        raise FileNotFoundError(f"there are no numbered notebooks in {folder}")
    return known


def _select(known: dict[str, Path], wanted) -> list[Path]:
    chosen = set()
    for name in wanted:
        stem = name.removesuffix(".ipynb")
        found = [n for n in known if n == stem] or [n for n in known if n.startswith(stem + "_")]
        if not stem or len(found) != 1:
            raise ValueError(
                f"{'ambiguous' if len(found) > 1 else 'unknown'} notebook {name!r}{nearest(stem, known)}: "
                f"there are {', '.join(known)}"
            )
        chosen.add(found[0])
    return [known[name] for name in sorted(chosen or known)]


def _check_device_name(device: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ValueError(f"unknown device {device!r}: expected auto, cpu, cuda or mps")


def _resolve_device(device: str) -> str:
    if device == "cpu":
        return device  # spares the import of torch
    from iflow_lib.utils import pick_device

    return str(pick_device(device))


def _read_notebook(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["nbformat"] < 4:
            raise ValueError("it is older than notebook format 4")
        [(cell_text(c), c["cell_type"], c["metadata"]) for c in content["cells"]]
        language = content["metadata"].get("kernelspec", {}).get("language", "python")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file.name} is damaged or not a notebook ({type(error).__name__}: {error})"
        ) from None
    if str(language).lower() != "python":
        raise ValueError(
            f"{file.name} is written in {language}, and only Python notebooks can be run"
        )
    return content


def cell_text(cell: dict) -> str:
    """Source of a notebook cell, a text or a list of lines in the file."""
    return "".join(cell["source"])


def _title(content: dict, name: str) -> str:
    heads = (
        re.search(r"^# +(.+)", cell_text(c), re.M)
        for c in content["cells"]
        if c["cell_type"] == "markdown"
    )
    return next(
        (h[1].strip().replace("$", "") for h in heads if h), name
    )  # index.html sets no mathematics


def _declared(name: str, content: dict) -> dict:
    """``{parameter: default}`` of the cell tagged "parameters".

    Read as Python, not by papermill's line patterns, so that types are the defaults' own and papermill need not be
    imported for an error.
    """
    cells = [
        cell_text(c) for c in content["cells"] if "parameters" in c["metadata"].get("tags", ())
    ]
    if not cells:
        raise ValueError(f'{name} has no cell tagged "parameters": add one, it may be empty')
    defaults = {}
    try:
        for node in ast.parse(cells[0]).body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                default = defaults[target.id] = ast.literal_eval(node.value)
                kind = getattr(getattr(node, "annotation", None), "id", type(default).__name__)
                if kind == "float" and type(default) is int:
                    defaults[target.id] = float(default)
                elif kind != type(default).__name__:
                    raise ValueError(
                        f"{target.id} is declared as {kind}, but its default is {default!r}"
                    )
    except (SyntaxError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{name}: its parameters cell may only hold lines like `steps: int = 200` ({error})"
        ) from None
    for parameter, default in defaults.items():
        if type(default) not in _KINDS:
            raise ValueError(
                f"{name}: parameter {parameter} must be int, float, bool, str or list, not "
                f"{type(default).__name__}"
            )
    return defaults


def _used(content: dict) -> set[str]:
    """Names that the code cells read, but for the one with the parameters. Lines for IPython (%, !, ?) are left
    out; a cell that is no Python even so counts with all its words."""
    names = set()
    for cell in content["cells"]:
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", ()):
            text = re.sub(r"^\s*([%!].*|.*\?)$", "", cell_text(cell), flags=re.M)
            try:
                found = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name))
                names |= {n.id for n in found if isinstance(n.ctx, ast.Load)}
            except SyntaxError:
                names |= {*re.findall(r"\w+", text)}
    return names


def _reads(name: str, content: dict, known: dict, root: Path) -> tuple[tuple[str, ...], list[str]]:
    """What the notebook's metadata declare: {"iflow": {"reads": [...]}}, as notebooks of the same run that come before it
    and files or folders of results/reference."""
    told = content["metadata"].get("iflow", {})
    reads = told.get("reads", []) if isinstance(told, dict) else None
    if not isinstance(reads, list) or not all(isinstance(r, str) for r in reads):
        raise ValueError(
            f'{name}: its metadata must declare what it reads as {{"iflow": {{"reads": ["plane.csv"]}}}}, got '
            f"{told!r}"
        )
    after = tuple(r for r in reads if re.fullmatch(r"\d\d_\w+", r))
    for other in after:
        if other not in known or other >= name:
            raise ValueError(
                f"{name} declares that it reads {other!r}, which is no earlier notebook"
                f"{nearest(other, [n for n in known if n < name])}"
            )
    files = [r for r in reads if r not in after]
    for file in files:
        if not (root / "results" / "reference" / file).exists():
            raise FileNotFoundError(
                f"{name} reads results/reference/{file}, which is missing: restore it with git"
            )
    return after, files


def _check_profiles(profiles: dict, known: dict, declared: dict, contents: dict) -> None:
    """Everything that any profile sets must be declared, of its type, and used."""
    for profile, tables in profiles.items():
        for name, settings in tables.items():
            if name not in known:
                raise ValueError(
                    f"profiles.toml: profile {profile} has a table for {name!r}{nearest(name, known)}, and "
                    f"there are {', '.join(known)}"
                )
            for parameter in settings:
                if parameter not in declared[name] or parameter in _RUNNER_SETS:
                    raise ValueError(
                        f"profiles.toml: profile {profile} sets {parameter!r}, which {name} does not declare"
                        f"{nearest(parameter, declared[name])}"
                    )
            _values(name, declared[name], contents[name], settings, {})


def _check_names(parameters: dict, declared: dict) -> None:
    known = sorted({p for names in declared.values() for p in names} - set(_RUNNER_SETS))
    for parameter in parameters:
        if parameter in _RUNNER_SETS:
            raise ValueError(
                f"parameter {parameter!r} is set by {_RUNNER_SETS[parameter]}, not by -p"
            )
        if parameter not in known:
            raise ValueError(
                f"unknown parameter {parameter!r}{nearest(parameter, known)}: {', '.join(declared)} declare"
                f"{'s' if len(declared) == 1 else ''} {', '.join(known) or 'none'}"
            )


def _values(name: str, declared: dict, content: dict, settings: dict, parameters: dict) -> dict:
    """Every declared parameter with its value. ValueError for one that is set but wrongly typed, or never used."""
    given = {**settings, **{p: v for p, v in parameters.items() if p in declared}}
    values = declared | {
        p: _typed(f"parameter {p} of {name}", v, declared[p]) for p, v in given.items()
    }
    idle = sorted(set(given) - _used(content))
    if idle:
        raise ValueError(f"parameter {idle[0]!r} of {name} would change nothing: no cell uses it")
    return values


def _typed(what: str, value, default):
    """``value``, or what its text says, as the type of ``default``; ValueError if it is of another type."""
    kind, given = type(default), value
    try:
        if kind is not str and isinstance(value, str):
            value = (
                {"true": True, "false": False}[value.lower()]
                if kind is bool
                else ast.literal_eval(value.strip())
            )
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or kind is float and not math.isfinite(value):
            raise ValueError
    except (ValueError, KeyError, SyntaxError, OverflowError):
        raise ValueError(f"{what} must be {_KINDS[kind]}, got {given!r}") from None
    if kind is list and default:
        return [_typed(f"each item of {what}", v, default[0]) for v in value]
    return value


def _check_out(out: Path, make: bool) -> Path:
    """Absolute path of a folder that can be written, made if need be: empty, or with an earlier run."""
    out = Path(os.path.abspath(out))
    try:
        if make:
            out.mkdir(parents=True, exist_ok=True)
            probe = out / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        names = (
            {p.name for p in out.iterdir()} - {".lock", ".unfinished"}
            if make or out.exists()
            else set()
        )
    except OSError as error:
        raise OSError(
            f"cannot write to {out} ({error.strerror or error}): choose another folder with --out"
        ) from None
    if names and "manifest.json" not in names:
        raise ValueError(
            f"{out} holds other files and no earlier run: choose a new or empty folder with --out"
        )
    return out
