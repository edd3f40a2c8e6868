"""The main job: run the numbered notebooks and keep what they found in one folder.

``results/runs/<profile>/`` holds the executed ``notebooks/``, one tidy ``results.csv`` (all of ``tables/``), ``figures/``,
``manifest.json`` (what ran, with what, on what, for how long) and ``index.html``. Every file is written whole or not at
all. A notebook is not run again while nothing has changed that it depends on: ``Task.inputs``.

``.unfinished/<notebook>/`` is what a notebook at work has so far: ``out/`` (its ``out_dir``), ``training/`` (checkpoints of
``fit``), ``inputs.json``; once it has ended, ``entry.json``. Killed at any moment, the next call finds it and goes on.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from . import kernel as kernels
from . import report
from .plan import Job, Task, cell_text, prepare
from .progress import Board
from .provenance import PACKAGE, git_state, sha256, utc_now
from .recorder import csv_text, reference


def run(
    notebooks=(),
    profile: str = "quick",
    device: str = "auto",
    parameters: dict | None = None,
    fresh: bool = False,
    out=None,
    folder=None,
    time_limit: float | None = None,
) -> dict:
    """Run notebooks and return the manifest, whose ``status`` is ok, failed or interrupted. See ``prepare``."""
    return execute(prepare(notebooks, profile, device, parameters, out, folder), fresh, time_limit)


def execute(job: Job, fresh: bool = False, time_limit: float | None = None) -> dict:
    """Run a checked job and return its manifest, as ``run`` does.

    fresh: also what is unchanged, from the beginning; time_limit: seconds that each notebook may take before it is stopped
    and counts as failed. A notebook that fails is kept, with its traceback in the manifest, and the others go on.
    Raises OSError with one line if the folder is in use or cannot be written.
    """
    out, start = job.out, time.perf_counter()
    with _alone(out) as work, _signals():
        earlier, manifest = _read(out / "manifest.json"), _start_manifest(job)
        entries = manifest["notebooks"]
        ran, pages = _recover(out, work, entries), {}
        with ThreadPoolExecutor(1) as pool, Board(job.tasks, expected(job, entries)) as board:
            try:
                for task in job.tasks:
                    inputs, reasons = (
                        task.inputs(out),
                        ["--fresh"] if fresh else why(task, out, entries.get(task.name)),
                    )
                    blocked = [
                        n for n in task.after if entries.get(n, {}).get("status", "ok") != "ok"
                    ]
                    if not reasons:
                        board.end(task.name, "unchanged", note="ran earlier, --fresh runs it again")
                        continue
                    if not ran:
                        _publish(out, manifest)
                    ran += 1
                    if blocked:
                        entries[task.name] = {
                            "title": task.title,
                            "status": "not run",
                            "error": f"it reads the results of {blocked[0]}, which has none",
                        }
                        board.end(task.name, "not run", note=f"needs {blocked[0]}")
                        continue
                    entry = _run_notebook(
                        job, task, inputs, work / task.name, board, fresh, time_limit
                    )
                    board.end(task.name, entry["status"], entry["seconds"])
                    _install(out, work / task.name, task.name, entry, entries)
                    if entry["status"] == "interrupted":
                        raise KeyboardInterrupt
                    _publish(out, manifest)
                    _clear(work / task.name, entry)
                    # for index.html, beside the next notebook
                    names = {*entries, *(t.name for t in job.tasks)}
                    pages[task.name] = pool.submit(report.shown, task.name, entry, out, names)
                manifest["status"] = (
                    "ok" if all(entries[t.name]["status"] == "ok" for t in job.tasks) else "failed"
                )
            except KeyboardInterrupt:
                manifest["status"] = "interrupted"
        whole = (
            isinstance(earlier, dict)
            and earlier.get("status") == "ok"
            and (out / "index.html").is_file()
        )
        if not ran and whole and manifest["status"] == "ok":
            return earlier  # nothing is written where nothing has changed
        for task in job.tasks:
            entries.setdefault(task.name, {"title": task.title, "status": "not run"})
        manifest["notebooks"] = dict(sorted(entries.items()))
        manifest["seconds"] = round(time.perf_counter() - start, 1)
        _publish(out, manifest, pages)
    return manifest


def why(task: Task, out: Path, entry: dict | None) -> list[str]:
    """Why a notebook would run again in the run folder ``out``: no reason if nothing has changed. entry: what the folder's
    manifest has of it."""
    if not entry or entry["status"] == "not run":
        return ["it has not run yet"]
    if entry["status"] != "ok":
        return [
            {"failed": "it failed", "interrupted": "it was interrupted"}.get(
                entry["status"], "it did not end"
            )
        ]
    now, then = task.inputs(out), entry["inputs"]
    changed = [name for name in now if now[name] != then.get(name)]
    reasons = [_change(name, then.get(name), now[name]) for name in changed]
    reasons += [f"it no longer reads {name}" for name in then if name not in now]
    return (
        reasons
        or [
            f"{name} is missing or was changed"
            for name, digest in entry["files"].items()
            if sha256(out / name) != digest
        ][:1]
    )


def _change(name: str, then, now) -> str:
    """What changed of an input, in words; of parameters and versions each by its name."""
    if isinstance(then, dict) and isinstance(now, dict):
        changed = [k for k in {**then, **now} if then.get(k) != now.get(k)]
        return f"{name}: " + ", ".join(
            f"{k} {then.get(k)!r} is now {now.get(k)!r}" for k in changed
        )
    return f"{name} {'have' if name == 'its cells' else 'has'} changed"


def status(job: Job) -> list[tuple[str, str, str]]:
    """(notebook, "unchanged" or "would run" or "would go on", why or when it ran) for each one of a job; reads only."""
    entries, found, runs = _entries(job), [], set()
    for task in job.tasks:
        entry = entries.get(task.name)
        reasons = why(task, job.out, entry) + [
            f"it reads the results of {n}, which runs" for n in task.after if n in runs
        ]
        if not reasons:
            took = report.duration(entry["seconds"])
            found.append((task.name, "unchanged", f"ran {_readable(entry['started'])} in {took}"))
            continue
        runs.add(task.name)
        begun = _read(job.out / ".unfinished" / task.name / "inputs.json") == task.inputs(job.out)
        found.append((task.name, "would go on" if begun else "would run", "; ".join(reasons)))
    return found


def _readable(stamp: str) -> str:
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").strftime("%Y-%m-%d %H:%M UTC")


def expected(job: Job, entries: dict) -> dict[str, float]:
    """{notebook: seconds} as far as known: of its last good run in this folder, or of the committed run of the profile."""
    found = {}
    try:
        committed = _read(reference(f"{job.profile}.manifest.json"))["notebooks"]
    except (OSError, ValueError, KeyError, TypeError):
        committed = {}
    for known in (committed, entries):
        found |= {
            name: entry["seconds"] for name, entry in known.items() if entry["status"] == "ok"
        }
    return {task.name: found[task.name] for task in job.tasks if task.name in found}


def _run_notebook(
    job: Job, task: Task, inputs: dict, folder: Path, board: Board, fresh: bool, limit
) -> dict:
    """Execute in ``folder`` and say how it went. Ctrl-C becomes status "interrupted"."""
    from iflow_lib.io import write_atomic

    kernels.stop_all(folder)  # a kernel that outlived a runner that was killed
    if fresh or _read(folder / "inputs.json") != inputs:
        shutil.rmtree(folder, ignore_errors=True)
        write_atomic(folder / "inputs.json", json.dumps(inputs))
    for name in ("notebooks", "tables", "figures", "reads"):  # of an attempt that did not end
        shutil.rmtree(folder / "out" / name, ignore_errors=True)
    for name in ("reads", "bar"):
        (folder / name).unlink(missing_ok=True)
    for name in task.after:
        (folder / "out" / "reads").mkdir(parents=True, exist_ok=True)
        if (job.out / "tables" / f"{name}.csv").is_file():
            shutil.copyfile(
                job.out / "tables" / f"{name}.csv", folder / "out" / "reads" / f"{name}.csv"
            )
    entry = {
        "title": task.title,
        "status": "ok",
        "started": utc_now(),
        "seconds": 0.0,
        "parameters": task.parameters,
        "inputs": inputs,
        "error": None,
    }
    start = time.perf_counter()
    board.start(task.name, folder)
    try:
        entry["status"], error = kernels.execute(job, task, folder, board.cell, board, limit)
    except KeyboardInterrupt:
        entry["status"], error = "interrupted", f"interrupted in cell {board.cells[task.name]}"
    entry["seconds"] = round(time.perf_counter() - start, 1)
    entry["error"] = _without_places(error, job, folder) or None
    reads = folder / "reads"
    entry["reads"] = (
        sorted(set(reads.read_text(encoding="utf-8").split("\n")) - {""}) if reads.is_file() else []
    )
    target = folder / "out" / "notebooks" / task.source.name
    if target.is_file():
        _clean_notebook(target, folder)
        trace = kernels.traceback_of(json.loads(target.read_text(encoding="utf-8")))
        if trace:
            entry["traceback"] = _without_places(trace, job, folder, limit=None)
    captions, ok = folder / "out" / "figures" / f"{task.name}.json", entry["status"] == "ok"
    entry["figures"] = (
        json.loads(captions.read_text(encoding="utf-8")) if ok and captions.is_file() else []
    )
    captions.unlink(missing_ok=True)
    shutil.rmtree(folder / "out" / "reads", ignore_errors=True)
    found = [
        f
        for f in sorted((folder / "out").rglob("*"))
        if f.is_file() and (ok or f.parent.name == "notebooks")
    ]
    entry["files"] = {f.relative_to(folder / "out").as_posix(): sha256(f) for f in found}
    if entry["status"] != "interrupted":
        write_atomic(
            folder / "entry.json", json.dumps(entry)
        )  # from here on it has ended, whatever happens
    return entry


def _clean_notebook(file: Path, folder: Path) -> None:
    """Take the places of this machine out of an executed notebook."""
    from iflow_lib.io import write_atomic

    notebook, place = json.loads(file.read_text(encoding="utf-8")), (folder / "out").as_posix()
    papermill = notebook["metadata"].get("papermill", {})
    papermill.update({k: file.name for k in ("input_path", "output_path") if k in papermill})
    if "out_dir" in papermill.get("parameters", {}):
        papermill["parameters"]["out_dir"] = ""
    for cell in notebook["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", ()):
            cell["source"] = cell_text(cell).replace(place, "")
    write_atomic(file, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def _without_places(text: str, job: Job, folder: Path, limit: int | None = 300) -> str:
    """Text without the places of this machine; limit: in one line of so many characters."""
    text = " ".join(text.split()) if limit else text
    out = [(place, "OUT") for place in (folder / "out", folder, job.out)]
    for place, name in (*out, (job.root, "."), (PACKAGE.parent, "."), (Path.home(), "~")):
        for spelling in {str(place), place.as_posix()} - {"/", "."}:
            text = text.replace(spelling, name)
    return text if not limit or len(text) <= limit else text[: limit - 3] + "..."


def _install(out: Path, folder: Path, name: str, entry: dict, entries: dict) -> None:
    """Move the files of a notebook that has ended into ``out``, in place of those of its earlier run. What a failed one had
    recorded is dropped: half a table is worse than none. Cut short, it can be done again."""
    for old in entries.get(name, {}).get("files", {}):
        if old not in entry["files"]:
            (out / old).unlink(missing_ok=True)
    entries[name] = entry
    for file in entry["files"]:
        source, target = folder / "out" / file, out / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file():  # else it was moved before this was cut short
            os.replace(source, target)


def _recover(out: Path, work: Path, entries: dict) -> int:
    """Take in what had ended when an earlier call was killed; the number of notebooks."""
    taken = 0
    for folder in sorted(p for p in work.iterdir() if p.is_dir()):
        kernels.stop_all(folder)
        entry = _read(folder / "entry.json")
        if entry:
            _install(out, folder, folder.name, entry, entries)
            _clear(folder, entry)
            taken += 1
    return taken


def _clear(folder: Path, entry: dict) -> None:
    """Remove what is left of a notebook that was taken in; of one that failed, its trainings stay, to go on from."""
    (folder / "entry.json").unlink(missing_ok=True)
    if entry["status"] == "failed" and (folder / "training").is_dir():
        shutil.rmtree(folder / "out", ignore_errors=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(out: Path):
    """The folder for unfinished work, for one job at a time."""
    from filelock import FileLock, Timeout

    work = out / ".unfinished"
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        number = (
            (work / "process").read_text() if (work / "process").is_file() else "another process"
        )
        raise OSError(
            f"{number} is already writing to {out}: wait for it, or choose another folder with --out"
        ) from None
    try:
        work.mkdir(exist_ok=True)
        (work / "process").write_text(f"process {os.getpid()}")
        yield work
    finally:
        (work / "process").unlink(missing_ok=True)
        if not any(work.iterdir()):
            work.rmdir()
        lock.release()


@contextmanager
def _signals():
    """Ctrl-C and SIGTERM interrupt once; while what was reached is written down, more of them are ignored."""
    numbers = (
        (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread()
        else ()
    )

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


def _read(file: Path):
    """A JSON file's content, None if it is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _entries(job: Job) -> dict:
    """The notebooks of the folder's earlier run; none if its manifest is missing or damaged."""
    try:
        earlier = _read(job.out / "manifest.json")
        entries = {
            name: entry
            for name, entry in earlier["notebooks"].items()
            if entry["status"] != "not run"
        }
        for entry in entries.values():
            if earlier["environment"] != job.environment:
                entry.setdefault("environment", earlier["environment"])
            entry["inputs"], entry["status"] != "ok" or entry["files"]
        return entries
    except (KeyError, TypeError, AttributeError):
        return {}


def _start_manifest(job: Job) -> dict:
    """The manifest of a job that begins, with the notebooks of the folder's earlier run."""
    return {
        "schema": 2,
        "status": "running",
        "profile": job.profile,
        "device": job.device,
        "started": utc_now(),
        "seconds": 0.0,
        **git_state(job.root),
        "lock_sha256": sha256(job.root / "requirements.lock"),
        "environment": job.environment,
        "data_sha256": {f.name: sha256(f) for f in sorted(PACKAGE.glob("assets/*.npz"))},
        "notebooks": _entries(job),
    }


def _publish(out: Path, manifest: dict, pages: dict[str, Future] | None = None) -> None:
    """Write results.csv and manifest.json, from the tables of the notebooks that are ok, and index.html. pages: what has
    been made of it already, when everything is to be in it."""
    from iflow_lib.io import write_together

    rows = []
    for name, entry in sorted(manifest["notebooks"].items()):
        table = f"tables/{name}.csv"
        if entry["status"] == "ok" and table in entry["files"] and (out / table).is_file():
            with open(out / table, encoding="utf-8", newline="") as file:
                rows += list(csv.DictReader(file))
    write_together({out / "results.csv": csv_text(rows)})
    whole = (
        {}
        if pages is None
        else {"out": out, "made": {name: page.result() for name, page in pages.items()}}
    )
    write_together(
        {
            out / "index.html": report.page(manifest, rows, **whole),
            out / "manifest.json": json.dumps(manifest, indent=2, ensure_ascii=False) + "\n",
        }
    )
