"""The main job: run the numbered notebooks and keep what they found in one folder.

``results/runs/<profile>/`` holds the executed ``notebooks/``, one tidy ``results.csv`` (all of ``tables/``), ``figures/``,
``manifest.json`` (what ran, with what, on what, for how long) and ``index.html``. Every file is written whole or not at
all; a notebook whose source, parameters, library and environment are unchanged is not run again.
"""
from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from . import report
from .jobs import Job, Task, cell_text, prepare
from .results import COLUMNS, PACKAGE, csv_text, git_state, sha256, utc_now


def run(notebooks=(), profile: str = "quick", device: str = "auto", parameters: dict | None = None,
        fresh: bool = False, out=None, folder=None) -> dict:
    """Run notebooks and return the manifest, whose ``status`` is ok, failed or interrupted. See ``prepare``."""
    return execute(prepare(notebooks, profile, device, parameters, out, folder), fresh)



def execute(job: Job, fresh: bool = False) -> dict:
    """Run a checked job and return its manifest, as ``run`` does; fresh: also what is unchanged."""
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
    entry = {"title": task.title, "status": "ok", "started": utc_now(), "seconds": 0.0, "parameters": task.parameters,
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

    path = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
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
            cell["source"] = cell_text(cell).replace(work.as_posix(), "")
    write_atomic(file, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def _without_places(text: str, job: Job, work: Path) -> str:
    text = " ".join(text.split())
    for place, name in ((work, "OUT"), (job.out, "OUT"), (job.root, "."), (PACKAGE.parent, "."), (Path.home(), "~")):
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
    entry["files"] = {f.relative_to(work).as_posix(): sha256(f) for f in found}
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
        (out / name).is_file() and sha256(out / name) == digest for name, digest in entry["files"].items())


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



def _start_manifest(job: Job) -> dict:
    """The manifest of a job that begins, with the notebooks of the folder's earlier run."""
    now = {"schema": 1, "status": "running", "profile": job.profile, "device": job.device, "started": utc_now(),
           "seconds": 0.0, **git_state(job.root), "lock_sha256": sha256(job.root / "requirements.lock"),
           "environment": job.environment,
           "data_sha256": {f.name: sha256(f) for f in sorted(PACKAGE.glob("assets/*.npz"))}}
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
    write_together({out / "results.csv": csv_text(rows), out / "index.html": report.page(manifest, rows),
                    out / "manifest.json": json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"})
