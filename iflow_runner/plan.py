"""What to run: notebooks with their parameters, and every check that can be made before that."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import LIBRARY, RUNNER
from .files import output_folder, read_toml
from .provenance import digest, machine, sha256
from .recorder import checkout

#: The types that a parameter may have, in words.
PARAMETER_TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list like [1, 2]",
}
#: Lines for IPython.
_MAGIC = re.compile(r"^\s*([%!].*|.*\?)$", re.M)
_SET_BY = {"device": "--device", "out_dir": "--out"}


@dataclass(frozen=True)
class Notebook:
    """A notebook file that has been read and checked.

    Attributes:
        name: Its file name without the ending.
        file: The file.
        title: Its first heading.
        cells: Kind and source of each cell.
        parameters: Default of each parameter that it declares.
        used: Names that its code reads outside the parameters cell.
        reads: What its metadata declare that it reads.
    """

    name: str
    file: Path
    title: str
    cells: list[list[str]]
    parameters: dict[str, Any]
    used: set[str]
    reads: list[str]


@dataclass(frozen=True)
class Task:
    """A notebook to run.

    Attributes:
        name: Its name.
        notebook: The notebook.
        parameters: Value of every declared parameter but ``out_dir``.
        after: Notebooks whose tables of the same run it reads.
        needs: What else its results depend on, each with its value or checksum.
    """

    name: str
    notebook: Notebook
    parameters: dict[str, Any]
    after: list[str]
    needs: dict[str, Any]

    def inputs(self, out: Path) -> dict[str, Any]:
        """Return everything that the results depend on, the tables that are read included."""
        tables = (f"tables/{name}.csv" for name in self.after)
        return self.needs | {table: sha256(out / table) for table in tables}


@dataclass(frozen=True)
class Plan:
    """Checked tasks, in the order of their names, for ``execute.reproduce``."""

    tasks: list[Task]
    profile: str
    device: str
    out: Path
    root: Path
    environment: dict[str, Any]


def make_plan(
    notebooks: Iterable[str] = (),
    profile: str = "quick",
    device: str = "cpu",
    parameters: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    folder: str | Path | None = None,
    make: bool = True,
) -> Plan:
    """Check everything that a run needs.

    Args:
        notebooks: Names such as "06" or "06_nfe_vs_quality"; all if there are none.
        profile: A table of ``profiles.toml``.
        device: As torch names it, such as ``cpu`` or ``cuda:0``.
        parameters: Values, or their text, for every selected notebook that declares the name.
        out: Folder for the results instead of ``results/runs/<profile>``.
        folder: The notebooks, if they are not those of the checkout.
        make: Make ``out`` if it is not there, and try to write to it.

    Raises:
        ValueError: With one line that says what was wrong and what was expected.
        OSError: The same, for files and folders.
    """
    folder = (Path(folder) if folder else checkout() / "notebooks").resolve()
    root, given = folder.parent, parameters or {}
    known = {f.stem: f for f in sorted(folder.glob("*.ipynb")) if re.match(r"\d\d_", f.name)}
    if not known:
        raise FileNotFoundError(f"there are no numbered notebooks in {folder}")
    profiles = _read_profiles(folder / "profiles.toml", known, profile)
    selected = sorted({_full_name(name, known) for name in notebooks} or known)
    in_profiles = {name for tables in profiles.values() for name in tables}
    books = {name: read_notebook(known[name]) for name in sorted({*selected, *in_profiles})}
    for title, tables in profiles.items():
        for name, settings in tables.items():
            where = f"profiles.toml, profile {title}: "
            for parameter in settings:
                known_name(f"{where}parameter of {name}", parameter, _free(books[name]))
            parameter_values(books[name], settings)
    for name in given:
        if name in _SET_BY:
            raise ValueError(f"parameter {name!r} is set by {_SET_BY[name]}, not by -p")
        free = sorted({p for book in selected for p in _free(books[book])})
        known_name(f"parameter of {', '.join(selected)}", name, free)
    for package in ("papermill", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"running notebooks needs {package}: pip install 'iflow-lib[notebooks]'"
            )
    values = {}
    for name in selected:
        own = {p: value for p, value in given.items() if p in books[name].parameters}
        values[name] = parameter_values(books[name], profiles[profile].get(name, {}) | own)
        values[name] |= {"device": device} if "device" in values[name] else {}
        values[name].pop("out_dir", None)
    committed = root / "results" / "reference"
    reads = {name: _split_reads(books[name], known, committed) for name in selected}
    out = Path(out) if out is not None else root / "results" / "runs" / profile
    out, environment = output_folder(out, "profile", make), machine(device)
    shared = {
        "the code of iflow_lib": digest(LIBRARY, "**/*.py"),
        "the shipped data": digest(LIBRARY, "assets/*"),
        "requirements.lock": sha256(root / "requirements.lock"),
        "the device": [device, environment["gpu"]],
        "installed versions": environment["versions"],
    }
    tasks = []
    for name in selected:
        after, files = reads[name]
        cells = json.dumps(books[name].cells)
        # of the runner nothing else changes a result, such as how a page looks
        modules = {"files", "recorder", *re.findall(r"\biflow_runner\.(\w+)", cells)}
        needs = {
            "its cells": hashlib.sha256(cells.encode()).hexdigest(),
            "its parameters": values[name],
            "the recorder": digest(RUNNER, *(f"{module}.py" for module in modules)),
        }
        needs |= shared | {f"results/reference/{file}": digest(committed / file) for file in files}
        tasks.append(Task(name, books[name], values[name], after, needs))
    return Plan(tasks, profile, device, out, root, environment)


def known_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return a name.

    Raises:
        ValueError: With one line that names the nearest known one, if it is not known.
    """
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown {what}: {name!r}{hint}; there are {', '.join(known) or 'none'}")
    return name


def typed(what: str, value: Any, default: Any, text: bool = True) -> Any:
    """Return a value, or what its text says, as the type of a default.

    Args:
        what: Its name in an error.
        value: The value, or its text.
        default: A bool, int, float, str or list. A whole number is fine for a float.
        text: Whether a text may stand for another type.

    Raises:
        ValueError: With one line, if it is of another type.
    """
    kind, given = type(default), value
    try:
        if text and kind is not str and isinstance(value, str):
            truth = {"true": True, "false": False}
            value = truth[value.lower()] if kind is bool else ast.literal_eval(value.strip())
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or kind is float and not math.isfinite(value):
            raise ValueError
    except (ValueError, KeyError, SyntaxError, OverflowError):
        raise ValueError(f"{what} must be {PARAMETER_TYPES[kind]}, got {given!r}") from None
    if kind is list and default:
        return [typed(f"each item of {what}", v, default[0]) for v in value]
    return value


def parameter_values(book: Notebook, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return every declared parameter with its value; ValueError if one would change nothing."""
    values = {
        p: typed(f"parameter {p} of {book.name}", v, book.parameters[p]) for p, v in given.items()
    }
    idle = sorted(given.keys() - book.used)
    if idle:
        raise ValueError(
            f"parameter {idle[0]!r} of {book.name} would change nothing: no cell uses it"
        )
    return book.parameters | values


def _free(book: Notebook) -> list[str]:
    """The parameters that a profile or a user may set."""
    return [name for name in book.parameters if name not in _SET_BY]


def _read_profiles(file: Path, known: Iterable[str], profile: str) -> dict[str, dict]:
    """All profiles of ``profiles.toml``, of which ``profile`` must be one."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: it holds the parameters of each profile")
    profiles = read_toml(file)
    known_name("profile", profile, profiles)
    for title, tables in profiles.items():
        if not isinstance(tables, dict) or not all(isinstance(v, dict) for v in tables.values()):
            raise ValueError(f"{file}: profile {title} must hold one table for each notebook")
        for name in tables:
            known_name(f"notebook in profile {title} of profiles.toml", name, known)
    return profiles


def _full_name(name: str, known: Iterable[str]) -> str:
    """The name of a notebook of which a number or a beginning is given."""
    stem = name.removesuffix(".ipynb")
    found = [n for n in known if n == stem] or [n for n in known if n.startswith(f"{stem}_")]
    if len(found) > 1:
        raise ValueError(f"ambiguous notebook {name!r}: there are {', '.join(found)}")
    return found[0] if found else known_name("notebook", stem, known)


def _split_reads(book: Notebook, known: Iterable[str], committed: Path) -> tuple[list, list]:
    """What a notebook reads: notebooks of the same run that come before it, and committed files."""
    after = [name for name in book.reads if re.fullmatch(r"\d\d_\w+", name)]
    for name in after:
        what = f"earlier notebook that {book.name} declares to read"
        known_name(what, name, [n for n in known if n < book.name])
    files = [name for name in book.reads if name not in after]
    for file in files:
        if not (committed / file).exists():
            raise FileNotFoundError(
                f"{book.name} reads results/reference/{file}, which is missing: restore it with git"
            )
    return after, files


# ---- one notebook


def cell_text(cell: Mapping[str, Any]) -> str:
    """Return the source of a notebook's cell, a text or a list of lines in the file."""
    return "".join(cell["source"])


def read_notebook(file: Path) -> Notebook:
    """Read and check a notebook.

    Raises:
        ValueError: With one line, if the file is damaged or no Python notebook, or if its
            parameters cell or what it declares to read is not as it must be.
    """
    name = file.stem
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["nbformat"] < 4:
            raise ValueError("it is older than notebook format 4")
        cells = [[cell["cell_type"], cell_text(cell)] for cell in content["cells"]]
        tagged = ["parameters" in cell["metadata"].get("tags", ()) for cell in content["cells"]]
        language = content["metadata"].get("kernelspec", {}).get("language", "python")
        told = content["metadata"].get("iflow", {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file.name} is damaged or not a notebook ({type(error).__name__}: {error})"
        ) from None
    if str(language).lower() != "python":
        raise ValueError(f"{file.name} is written in {language}: only Python notebooks can be run")
    if True not in tagged:
        raise ValueError(f'{name} has no cell tagged "parameters": add one, it may be empty')
    reads = told.get("reads", []) if isinstance(told, dict) else None
    if not isinstance(reads, list) or not all(isinstance(item, str) for item in reads):
        raise ValueError(
            f"{name}: its metadata must declare what it reads as "
            f'{{"iflow": {{"reads": ["plane.csv"]}}}}, got {told!r}'
        )
    code = [text for (kind, text), tag in zip(cells, tagged) if kind == "code" and not tag]
    used, asked, renamed = _names_and_references(code)
    if renamed:
        raise ValueError(
            f"{name} gives reference another name or uses it as a value: call reference by its own "
            'name, reference("plane.csv"), so that what it reads is known'
        )
    for wanted in sorted(asked):
        if not any(r == "." or f"{wanted}/".startswith(f"{r}/") for r in reads):
            raise ValueError(
                f"{name} asks reference() for {repr(wanted) if wanted else 'a name from elsewhere'}, "
                f'which its metadata do not declare: add it, or "." for everything, to the '
                f"reads {reads}"
            )
    heads = (re.search(r"^# +(.+)", text, re.M) for kind, text in cells if kind == "markdown")
    title = next((head[1].strip().replace("$", "") for head in heads if head), name)
    declared = _declared(name, cells[tagged.index(True)][1])
    return Notebook(name, file, title, cells, declared, used, reads)


def _declared(name: str, source: str) -> dict[str, Any]:
    """Defaults in a parameters cell.

    It is read as Python and not by papermill's line patterns: types are the defaults' own, and
    papermill need not be imported for an error.
    """
    defaults: dict[str, Any] = {}
    try:
        for node in ast.parse(source).body:
            if not isinstance(node, (ast.Assign, ast.AnnAssign)):
                continue
            target: Any = node.targets[0] if isinstance(node, ast.Assign) else node.target
            default = ast.literal_eval(node.value)  # type: ignore[arg-type]
            kind = getattr(getattr(node, "annotation", None), "id", type(default).__name__)
            if kind == "float" and type(default) is int:
                default = float(default)
            if kind != type(default).__name__ or type(default) not in PARAMETER_TYPES:
                raise ValueError(
                    f"{target.id} is declared as {kind}, and its default is {default!r}"
                )
            defaults[target.id] = default
    except (SyntaxError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{name}: its parameters cell may only hold lines like `steps: int = 200`, of an int, "
            f"float, bool, str or list ({error})"
        ) from None
    return defaults


def _names_and_references(code: Iterable[str]) -> tuple[set[str], set[str], bool]:
    """The names that cells read, what they ask ``reference`` for, and whether they rename it.

    Lines for IPython (%, !, ?) are left out. Of a cell that is no Python even so, all words count
    as names. In both, a call of ``reference`` is found by its text. Of a file name that is only
    partly a literal, the literal beginning counts.
    """
    names: set[str] = set()
    asked: set[str] = set()
    imported = renamed = value = False
    for source in code:
        try:
            tree = ast.parse(_MAGIC.sub("", source))
        except SyntaxError:
            names |= set(re.findall(r"\w+", source))
            asked |= _text_references(source)
            continue
        for line in _MAGIC.finditer(source):
            asked |= _text_references(line[0])
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("recorder"):
                found = [a for a in node.names if a.name in ("reference", "*")]
                imported |= bool(found)
                renamed |= any(a.asname not in (None, "reference") for a in found)
            if id(node) not in called:
                value |= isinstance(node, ast.Name) and (node.id, type(node.ctx)) == (
                    "reference",
                    ast.Load,
                )
                renamed |= isinstance(node, ast.Attribute) and bool(
                    re.search(r"\brecorder\.reference$", ast.unparse(node))
                )
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                names.add(node.id)
            if not isinstance(node, ast.Call):
                continue
            if getattr(node.func, "id", getattr(node.func, "attr", "")) == "reference":
                name = next(iter(node.args), None)
                if isinstance(name, ast.JoinedStr) and name.values:
                    name = name.values[0]
                asked.add(str(name.value).rstrip("/") if isinstance(name, ast.Constant) else "")
    return names, asked, renamed or (imported and value)


def _text_references(source: str) -> set[str]:
    """What a text that is no Python asks ``reference`` for; "" where that is no literal."""
    found = re.findall(r"""\breference\s*\(\s*(?:[rf]?["']([^"'{]*))?""", source)
    return {name.rstrip("/") for name in found}
