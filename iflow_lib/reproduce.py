"""The main job: run the numbered notebooks and keep what they found in one folder.

``results/runs/<profile>/`` holds the executed ``notebooks/``, one tidy ``results.csv`` (all of ``tables/``), ``figures/``,
``manifest.json`` (what ran, with what, on what, for how long) and ``index.html``. Every file is written whole or not at
all; a notebook whose source, parameters, library and environment are unchanged is not run again.
"""
from __future__ import annotations

import ast
import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from . import __version__, report

#: Columns of every table of results, in this order.
COLUMNS = ("run_id", "dataset", "path", "objective", "anchor", "network", "params", "seed", "step", "nfe", "method",
           "metric", "value", "n_samples", "device", "seconds")
_WHOLE = ("params", "seed", "step", "nfe", "n_samples")  # pandas turns whole numbers beside a gap into floats
_PACKAGE = Path(__file__).resolve().parent
_RUNNER_SETS = {"device": "--device", "out_dir": "--out"}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list like [1, 2]"}
_REPORTED = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "POT", "torchmetrics", "matplotlib", "papermill")


# ---- used by the notebooks

class Recorder:
    """Collects a notebook's rows and figures, and writes them into ``out_dir``; writes nothing where that is "".

    rows: dicts or a pandas table with columns from ``COLUMNS``. Files: ``tables/<notebook>.csv``,
    ``figures/<notebook>-<name>.png`` and, for the captions, ``figures/<notebook>.json``.
    """

    def __init__(self, notebook: str, out_dir: str = ""):
        self.notebook, self.out = notebook, Path(out_dir) if out_dir else None
        self._rows: list[dict] = []
        self._figures: dict[str, str] = {}

    def rows(self, rows) -> None:
        """Add rows; missing columns stay empty, ``run_id`` is the notebook's name unless given.

        Raises ValueError for unknown columns and for rows without a metric or a number as value.
        """
        for row in rows.to_dict("records") if hasattr(rows, "to_dict") else rows:
            self._rows.append(_tidy({"run_id": self.notebook, **row}))

    def figure(self, fig, name: str, caption: str = "") -> None:
        """Save a matplotlib figure as PNG, 150 dpi. ``name``: letters, digits, - and _; ``caption``: one sentence."""
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"a figure's name is made of letters, digits, - and _, got {name!r}")
        if self.out is None:
            return
        from .checkpoints import write_together

        image, file = io.BytesIO(), f"{self.notebook}-{name}.png"
        fig.savefig(image, format="png", dpi=150, bbox_inches="tight")
        self._figures[file] = caption
        captions = [{"file": f"figures/{f}", "caption": c} for f, c in self._figures.items()]
        write_together({self.out / "figures" / file: image.getvalue(),
                        self.out / "figures" / f"{self.notebook}.json": json.dumps(captions, indent=2)})

    def save(self) -> None:
        """Write all rows so far as ``tables/<notebook>.csv``."""
        if self.out is not None:
            from .checkpoints import write_atomic

            write_atomic(self.out / "tables" / f"{self.notebook}.csv", _csv_text(self._rows))


def _tidy(row: dict) -> dict:
    unknown = [c for c in row if c not in COLUMNS]
    if unknown:
        raise ValueError(f"unknown column {unknown[0]!r} in a row of results: expected {', '.join(COLUMNS)}")
    row = {c: v.item() if hasattr(v, "item") else v for c, v in row.items()}  # numpy and torch scalars
    if not row.get("metric") or isinstance(row.get("value"), (bool, str, type(None))):
        raise ValueError(f"a row of results needs a metric and a number as value, got {row.get('metric')!r} and "
                         f"{row.get('value')!r}")
    for column in row:
        value = row[column]
        if column != "value" and isinstance(value, float) and math.isnan(value):
            row[column] = None
        elif column in _WHOLE and isinstance(value, float) and value.is_integer():
            row[column] = int(value)
    return {c: row.get(c) for c in COLUMNS}


def _csv_text(rows) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def checkout() -> Path:
    """The root of the checkout: around the package, else around the working folder. FileNotFoundError outside one."""
    for folder in (_PACKAGE.parent, Path.cwd(), *Path.cwd().parents):
        if (folder / "notebooks" / "profiles.toml").is_file():
            return folder
    raise FileNotFoundError("this needs the checkout with its notebooks folder: run it there, or install with `pip "
                            "install -e .`")


def reference(name: str = "") -> Path:
    """Path of a committed file or folder under ``results/reference``. FileNotFoundError with one line if missing."""
    path = checkout() / "results" / "reference" / name
    if not path.exists():
        raise FileNotFoundError(f"results/reference/{name} is missing from this checkout: restore it with git")
    return path


# ---- what to run: everything that can be wrong is found before anything runs

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
    """A checked job; ``execute`` runs it."""

    tasks: list[Task]
    profile: str
    device: str
    out: Path
    root: Path
    environment: dict

    def execute(self, fresh: bool = False) -> dict:
        return _execute(self, fresh)


def run(notebooks=(), profile: str = "quick", device: str = "auto", parameters: dict | None = None,
        fresh: bool = False, out=None, folder=None) -> dict:
    """Run notebooks and return the manifest, whose ``status`` is ok, failed or interrupted. See ``prepare``."""
    return prepare(notebooks, profile, device, parameters, out, folder).execute(fresh)


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
    environment = _environment(root, device)
    shared = [environment, _digest(_PACKAGE, "*.py", "assets/*"), _digest(root / "results" / "reference", "**/*")]
    tasks = []
    for source in sources:
        name, content = source.stem, contents[source.stem]
        if "device" in values[name]:
            values[name]["device"] = device
        wants_out = values[name].pop("out_dir", None) is not None
        code = [[c["cell_type"], _text(c)] for c in content["cells"]]
        digest = hashlib.sha256(json.dumps([code, values[name], shared], sort_keys=True).encode()).hexdigest()
        tasks.append(Task(name, source, _title(content, name), len(code), values[name], wants_out, digest))
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
        [(_text(c), c["cell_type"], c["metadata"]) for c in content["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file.name} is damaged or not a notebook ({type(error).__name__}: {error})") from None
    return content


def _text(cell: dict) -> str:
    return "".join(cell["source"])


def _title(content: dict, name: str) -> str:
    heads = (re.search(r"^# +(.+)", _text(c), re.M) for c in content["cells"] if c["cell_type"] == "markdown")
    return next((h[1].strip() for h in heads if h), name)


def _declared(name: str, content: dict) -> dict:
    """``{parameter: default}`` of the cell tagged "parameters".

    Read as Python, not by papermill's line patterns, so that types are the defaults' own and papermill need not be
    imported for an error.
    """
    cells = [_text(c) for c in content["cells"] if "parameters" in c["metadata"].get("tags", ())]
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


# ---- running

def _execute(job: Job, fresh: bool) -> dict:
    out, manifest = job.out, _start_manifest(job)
    entries, progress = manifest["notebooks"], _Progress(len(job.tasks))
    start = time.perf_counter()
    with _work_folder(out) as work, _signals():
        try:
            _publish(out, manifest)
            for number, task in enumerate(job.tasks, 1):
                if not fresh and _unchanged(out, entries.get(task.name), task):
                    progress.tell(f"unchanged    {task.name}: ran earlier, --fresh runs it again")
                    continue
                entry = _run_notebook(job, task, work / task.name, progress, number)
                _install(out, work / task.name, task, entry, entries)
                progress.tell(f"{entry['status']:<12} {task.name}: {report.duration(entry['seconds'])}")
                if entry["status"] != "ok":
                    manifest["status"] = entry["status"]
                    break
                _publish(out, manifest)
            else:
                manifest["status"] = "ok"
        except KeyboardInterrupt:
            manifest["status"] = "interrupted"
        for task in job.tasks:
            entries.setdefault(task.name, {"title": task.title, "status": "not run"})
        manifest["notebooks"] = dict(sorted(entries.items()))
        manifest["seconds"] = round(time.perf_counter() - start, 1)
        _publish(out, manifest)
    return manifest


def _run_notebook(job: Job, task: Task, work: Path, progress: _Progress, number: int) -> dict:
    """Execute into ``work`` and say how it went. Ctrl-C becomes status "interrupted"."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    for logger in ("papermill", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # what went wrong is said once, by us
    target = work / "notebooks" / task.source.name
    target.parent.mkdir(parents=True)
    out_dir = {"out_dir": work.as_posix()} if task.wants_out else {}
    entry = {"title": task.title, "status": "ok", "started": _now(), "seconds": 0.0, "parameters": task.parameters,
             "fingerprint": task.fingerprint, "error": None}
    start, last = time.perf_counter(), [0]

    def on_cell_start(cell, cell_index):
        last[0] = cell_index + 1
        progress.cell(cell_index + 1)

    progress.start(number, task)
    try:
        papermill.execute_notebook(
            str(task.source), str(target), parameters=task.parameters | out_dir, cwd=str(task.source.parent),
            kernel_name="python3", language="python", kernel_manager_class=_kernel_manager(job), progress_bar=False,
            start_timeout=180, iopub_timeout=60,
            shutdown_kernel="immediate", on_cell_start=on_cell_start)
        _check_table(work / "tables" / f"{task.name}.csv")
    except KeyboardInterrupt:
        entry.update(status="interrupted", error=f"interrupted in cell {last[0]}")
    except DeadKernelError:
        entry.update(status="failed", error=f"the Python process of the notebook died in cell {last[0]}, which is often "
                                            "for want of memory")
    except papermill.PapermillExecutionError as error:
        entry.update(status="failed", error=f"cell {last[0]}: {error.ename}: {error.evalue}")
    except Exception as error:  # the kernel did not start, the disk is full, ...
        entry.update(status="failed", error=f"after cell {last[0]}: {type(error).__name__}: {error}")
    finally:
        progress.stop()
    if entry["error"]:
        entry["error"] = _without_places(entry["error"], job, work)
    entry["seconds"] = round(time.perf_counter() - start, 1)
    if target.is_file():
        _clean_notebook(target, work)
    return entry


def _kernel_manager(job: Job) -> type:
    """Starts this very interpreter, whatever kernel is registered as python3, and lets it import this very library."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    path = [str(_PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=50"],
        display_name="Python 3", language="python", env={
            "PYTHONPATH": os.pathsep.join(path),
            "OMP_NUM_THREADS": str(job.environment["threads"]),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # a terminal's Agg would lose the figures
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger of ipykernel writes warnings
        })

    class ThisPython(AsyncKernelManager):
        kernel_spec = spec

    return ThisPython


def _check_table(file: Path) -> None:
    """Refuse a table that a notebook wrote without the ``Recorder`` and that does not fit the others."""
    if file.is_file():
        with open(file, encoding="utf-8", newline="") as lines:
            table = csv.DictReader(lines)
            if tuple(table.fieldnames or ()) != COLUMNS:
                raise ValueError(f"tables/{file.name} must have the columns {', '.join(COLUMNS)}")
            for row in table:
                float(row["value"])


def _clean_notebook(file: Path, work: Path) -> None:
    """Take the places of this machine out of an executed notebook."""
    from .checkpoints import write_atomic

    notebook = json.loads(file.read_text(encoding="utf-8"))
    papermill = notebook["metadata"].get("papermill", {})
    papermill.update({k: file.name for k in ("input_path", "output_path") if k in papermill})
    if "out_dir" in papermill.get("parameters", {}):
        papermill["parameters"]["out_dir"] = ""
    for cell in notebook["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", ()):
            cell["source"] = _text(cell).replace(work.as_posix(), "")
    write_atomic(file, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def _without_places(text: str, job: Job, work: Path) -> str:
    text = " ".join(text.split())
    for place, name in ((work, "OUT"), (job.out, "OUT"), (job.root, "."), (_PACKAGE.parent, "."), (Path.home(), "~")):
        for spelling in {str(place), place.as_posix()} - {"/", "."}:
            text = text.replace(spelling, name)
    return text if len(text) <= 300 else text[:297] + "..."


def _install(out: Path, work: Path, task: Task, entry: dict, entries: dict) -> None:
    """Move a notebook's files from ``work`` into ``out``, in place of those of its earlier run. What a failed notebook
    had recorded is dropped: half a table is worse than none."""
    captions = work / "figures" / f"{task.name}.json"
    ok = entry["status"] == "ok"
    entry["figures"] = json.loads(captions.read_text(encoding="utf-8")) if ok and captions.is_file() else []
    captions.unlink(missing_ok=True)
    found = [f for f in sorted(work.rglob("*")) if f.is_file() and (ok or f.parent.name == "notebooks")]
    entry["files"] = {f.relative_to(work).as_posix(): _sha256(f) for f in found}
    for name in entries.get(task.name, {}).get("files", {}):
        if name not in entry["files"]:
            (out / name).unlink(missing_ok=True)
    entries[task.name] = entry  # from here on the earlier run counts as changed, even if this is cut short
    for file in found:
        target = out / file.relative_to(work)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)


def _unchanged(out: Path, entry: dict | None, task: Task) -> bool:
    return bool(entry) and entry["status"] == "ok" and entry["fingerprint"] == task.fingerprint and all(
        (out / name).is_file() and _sha256(out / name) == digest for name, digest in entry["files"].items())


@contextmanager
def _work_folder(out: Path):
    """A folder for unfinished work, named after this process: one job at a time, and leftovers are recognised."""
    import psutil

    for old in out.glob(".running-*"):
        number = old.name.removeprefix(".running-")
        if number.isdecimal() and int(number) != os.getpid() and psutil.pid_exists(int(number)):
            raise OSError(f"process {number} is already writing to {out}: wait for it, or choose another folder with "
                          f"--out (if there is no such job, remove {old.name})")
        shutil.rmtree(old, ignore_errors=True)
    work = out / f".running-{os.getpid()}"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _signals():
    """Ctrl-C and SIGTERM interrupt once; while what was reached is written down, more of them are ignored."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()

    def interrupt(*_):
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    earlier = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


class _Progress:
    """Notebook, cell i of n, elapsed time: a live line on a terminal, plain lines now and then elsewhere."""

    def __init__(self, total: int):
        from rich.console import Console

        self.total, self.console, self.bar, self.said = total, Console(highlight=False), None, 0.0

    def tell(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def start(self, number: int, task: Task) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.cells, self.name = task.cells + 1, task.name  # papermill adds a cell with the parameters
        if not self.console.is_terminal:
            self.tell(f"running      {task.name} ({number} of {self.total})")
        self.said = self.started = time.perf_counter()
        self.bar = Progress(TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("cell"),
                            MofNCompleteColumn(" of "), TimeElapsedColumn(), console=self.console, transient=True,
                            disable=not self.console.is_terminal)
        self.bar.start()
        self.row = self.bar.add_task(f"running      {task.name} ({number} of {self.total})", total=self.cells)

    def cell(self, index: int) -> None:
        self.bar.update(self.row, completed=index)
        now = time.perf_counter()
        if not self.console.is_terminal and now - self.said > 15:
            self.said = now
            self.tell(f"             {self.name}: cell {index} of {self.cells} after {report.duration(now - self.started)}")

    def stop(self) -> None:
        self.bar.stop()


# ---- what is written down

def _start_manifest(job: Job) -> dict:
    """The manifest of a job that begins, with the notebooks of the folder's earlier run."""
    now = {"schema": 1, "status": "running", "profile": job.profile, "device": job.device, "started": _now(),
           "seconds": 0.0, **_git(job.root), "lock_sha256": _sha256(job.root / "requirements.lock"),
           "environment": job.environment,
           "data_sha256": {f.name: _sha256(f) for f in sorted(_PACKAGE.glob("assets/*.npz"))}}
    try:
        earlier = json.loads((job.out / "manifest.json").read_text(encoding="utf-8"))
        entries = {name: entry for name, entry in earlier["notebooks"].items() if entry["status"] != "not run"}
        for entry in entries.values():
            if earlier["environment"] != job.environment:
                entry.setdefault("environment", earlier["environment"])
            entry["fingerprint"], entry["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        entries = {}  # none, or damaged: everything runs
    return now | {"notebooks": entries}


def _publish(out: Path, manifest: dict) -> None:
    """Write results.csv, index.html and manifest.json together, from the tables of the notebooks that are ok."""
    from .checkpoints import write_together

    rows = []
    for name, entry in sorted(manifest["notebooks"].items()):
        table = f"tables/{name}.csv"
        if entry["status"] == "ok" and table in entry["files"] and (out / table).is_file():
            with open(out / table, encoding="utf-8", newline="") as file:
                rows += list(csv.DictReader(file))
    write_together({out / "results.csv": _csv_text(rows), out / "index.html": report.page(manifest, rows),
                    out / "manifest.json": json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"})


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _sha256(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _digest(folder: Path, *patterns: str) -> str:
    files = sorted({f for p in patterns for f in folder.glob(p) if f.is_file()})
    return hashlib.sha256("".join(f"{f.relative_to(folder).as_posix()} {_sha256(f)}\n" for f in files).encode()).hexdigest()


def _git(root: Path) -> dict:
    """Commit, and whether anything differs from it; None for both without git or outside a repository."""
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return {"commit": None, "dirty": None}
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _environment(root: Path, device: str) -> dict:
    import psutil

    versions = {"python": platform.python_version(), "iflow_lib": __version__}
    for package in _REPORTED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return {"system": f"{platform.system()} {platform.machine()}", "cpu": _cpu_name(), "cores": cores,
            "threads": _threads(cores), "memory_gb": round(psutil.virtual_memory().total / 2**30), "gpu": _gpu_name(device),
            "versions": versions}


def _gpu_name(device: str) -> str | None:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device == "mps" else None


def _cpu_name() -> str:
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        return found[1].strip() if found else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def _threads(cores: int) -> int:
    """Threads for torch: OMP_NUM_THREADS if set, else the cores this process may use (torch ignores container limits)."""
    if os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        return int(os.environ["OMP_NUM_THREADS"])
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no limit
    return max(1, cores)
