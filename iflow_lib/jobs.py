"""What to run: a job of notebooks, and every check that can be made before anything runs."""
from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from .results import PACKAGE, checkout, digest, machine

_RUNNER_SETS = {"device": "--device", "out_dir": "--out"}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list like [1, 2]"}


@dataclass(frozen=True)
class Task:
    """One notebook to run. ``parameters``: every declared one with its final value, but for ``out_dir``."""

    name: str
    source: Path
    title: str
    cells: int
    parameters: dict
    wants_out: bool
    fingerprint: str


@dataclass(frozen=True)
class Job:
    """A checked job, for ``reproduce.execute``."""

    tasks: list[Task]
    profile: str
    device: str
    out: Path
    root: Path
    environment: dict


def prepare(notebooks=(), profile: str = "quick", device: str = "auto", parameters: dict | None = None, out=None,
            folder=None) -> Job:
    """Check everything a job needs.

    notebooks: names such as "06" or "06_nfe_vs_quality", all if empty; profile: a table of ``profiles.toml``;
    device: auto, cpu, cuda or mps; parameters: values (or their text) for every selected notebook that declares the
    name; out: folder for the results instead of ``results/runs/<profile>``; folder: the notebooks, if not the checkout's.

    Raises ValueError, FileNotFoundError or OSError with one line that says what was wrong and what was expected.
    """
    folder = Path(folder) if folder else checkout() / "notebooks"
    root = folder.resolve().parent
    settings = _read_profiles(folder / "profiles.toml", profile)
    sources = _select(folder, notebooks)
    _check_device_name(device)
    contents = {source.stem: _read_notebook(source) for source in sources}
    declared = {name: _declared(name, content) for name, content in contents.items()}
    _check_names(parameters or {}, declared)
    values = {name: _values(name, declared[name], settings.get(name, {}), parameters or {}) for name in declared}
    missing = [p for p in ("papermill", "ipykernel") if importlib.util.find_spec(p) is None]
    if missing:
        raise ValueError(f"running notebooks needs {missing[0]}: pip install 'iflow-lib[notebooks]'")
    device = _resolve_device(device)
    out = _check_out(Path(out) if out is not None else root / "results" / "runs" / profile)
    environment = machine(device)
    shared = [environment, digest(PACKAGE, "*.py", "assets/*"), digest(root / "results" / "reference", "**/*")]
    tasks = []
    for source in sources:
        name, content = source.stem, contents[source.stem]
        if "device" in values[name]:
            values[name]["device"] = device
        wants_out = values[name].pop("out_dir", None) is not None
        code = [[c["cell_type"], cell_text(c)] for c in content["cells"]]
        fingerprint = hashlib.sha256(json.dumps([code, values[name], shared], sort_keys=True).encode()).hexdigest()
        tasks.append(Task(name, source, _title(content, name), len(code), values[name], wants_out, fingerprint))
    return Job(tasks, profile, device, out, root, environment)


def _read_profiles(file: Path, profile: str) -> dict:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        profiles = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing: it holds the parameters of each profile") from None
    except ValueError as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from None
    if profile not in profiles:
        raise ValueError(f"unknown profile {profile!r}: expected one of {', '.join(profiles)}")
    if not isinstance(profiles[profile], dict) or not all(isinstance(v, dict) for v in profiles[profile].values()):
        raise ValueError(f"{file}: profile {profile} must hold one table for each notebook")
    return profiles[profile]


def _select(folder: Path, wanted) -> list[Path]:
    known = sorted(p for p in folder.glob("*.ipynb") if re.match(r"\d\d_", p.name))
    names = ", ".join(p.stem for p in known) or "none"
    chosen = set()
    for name in wanted:
        stem = name.removesuffix(".ipynb")
        found = [p for p in known if p.stem == stem] or [p for p in known if p.stem.startswith(stem + "_")]
        if not stem or len(found) != 1:
            raise ValueError(f"{'ambiguous' if len(found) > 1 else 'unknown'} notebook {name!r}: there are {names}")
        chosen.add(found[0])
    if not known:
        raise FileNotFoundError(f"there are no numbered notebooks in {folder}")
    return sorted(chosen) or known


def _check_device_name(device: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ValueError(f"unknown device {device!r}: expected auto, cpu, cuda or mps")


def _resolve_device(device: str) -> str:
    if device == "cpu":
        return device  # spares the import of torch
    from .samplers import pick_device

    return str(pick_device(device))


def _read_notebook(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["nbformat"] < 4:
            raise ValueError("it is older than notebook format 4")
        [(cell_text(c), c["cell_type"], c["metadata"]) for c in content["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file.name} is damaged or not a notebook ({type(error).__name__}: {error})") from None
    return content


def cell_text(cell: dict) -> str:
    """Source of a notebook cell, a text or a list of lines in the file."""
    return "".join(cell["source"])


def _title(content: dict, name: str) -> str:
    heads = (re.search(r"^# +(.+)", cell_text(c), re.M) for c in content["cells"] if c["cell_type"] == "markdown")
    return next((h[1].strip().replace("$", "") for h in heads if h), name)  # index.html sets no mathematics


def _declared(name: str, content: dict) -> dict:
    """``{parameter: default}`` of the cell tagged "parameters".

    Read as Python, not by papermill's line patterns, so that types are the defaults' own and papermill need not be
    imported for an error.
    """
    cells = [cell_text(c) for c in content["cells"] if "parameters" in c["metadata"].get("tags", ())]
    defaults = {}
    try:
        for node in ast.parse(cells[0] if cells else "").body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                defaults[target.id] = ast.literal_eval(node.value)
    except (SyntaxError, ValueError, AttributeError) as error:
        raise ValueError(f"{name}: its parameters cell may only hold lines like `steps: int = 200` ({error})") from None
    for parameter, default in defaults.items():
        if type(default) not in _KINDS:
            raise ValueError(f"{name}: parameter {parameter} must be int, float, bool, str or list, not "
                             f"{type(default).__name__}")
    return defaults


def _check_names(parameters: dict, declared: dict) -> None:
    known = sorted({p for names in declared.values() for p in names} - set(_RUNNER_SETS))
    for parameter in parameters:
        if parameter in _RUNNER_SETS:
            raise ValueError(f"parameter {parameter!r} is set by {_RUNNER_SETS[parameter]}, not by -p")
        if parameter not in known:
            raise ValueError(f"unknown parameter {parameter!r}: {', '.join(declared)} declare"
                             f"{'s' if len(declared) == 1 else ''} {', '.join(known) or 'none'}")


def _values(name: str, declared: dict, settings: dict, parameters: dict) -> dict:
    for parameter in settings:
        if parameter not in declared or parameter in _RUNNER_SETS:
            raise ValueError(f"profiles.toml sets {parameter!r}, which {name} does not declare")
    given = {**settings, **{p: v for p, v in parameters.items() if p in declared}}
    return declared | {p: _typed(f"parameter {p} of {name}", v, declared[p]) for p, v in given.items()}


def _typed(what: str, value, default):
    """``value``, or what its text says, as the type of ``default``; ValueError if it is of another type."""
    kind, given = type(default), value
    try:
        if kind is not str and isinstance(value, str):
            value = {"true": True, "false": False}[value.lower()] if kind is bool else ast.literal_eval(value.strip())
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or kind is float and not math.isfinite(value):
            raise ValueError
    except (ValueError, KeyError, SyntaxError, OverflowError):
        raise ValueError(f"{what} must be {_KINDS[kind]}, got {given!r}") from None
    if kind is list and default:
        return [_typed(f"each item of {what}", v, default[0]) for v in value]
    return value


def _check_out(out: Path) -> Path:
    """Absolute path of a folder that can be written, made if need be: empty, or with an earlier run."""
    out = Path(os.path.abspath(out))
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
        names = {p.name for p in out.iterdir()}
    except OSError as error:
        raise OSError(f"cannot write to {out} ({error.strerror or error}): choose another folder with --out") from None
    if names and "manifest.json" not in names and not all(n.startswith(".running-") for n in names):
        raise ValueError(f"{out} holds other files and no earlier run: choose a new or empty folder with --out")
    return out
