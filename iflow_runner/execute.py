"""The main job: run the numbered notebooks and keep what they found in one folder.

``results/runs/<profile>/`` holds the executed ``notebooks/``, one tidy ``results.csv`` (all of
``tables/``), ``figures/``, ``manifest.json`` (what ran, with what, on what, for how long) and
``index.html``. Every file is written whole or not at all. A notebook is not run again while nothing
has changed that it depends on (``Task.inputs``).

``.unfinished/<notebook>/`` is what a notebook at work has so far: ``out/`` (its ``out_dir``, with
the checkpoints of its trainings) and ``inputs.json``; once it has ended, ``entry.json``. Killed at
any moment, the next call finds it and goes on.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime
from pathlib import Path
from typing import Any

from . import LIBRARY, report
from .files import only_writer, read_json, write_together
from .kernel import run_notebook, stop_kernel, traceback_of
from .plan import Plan, Task, cell_text
from .progress import ProgressTable
from .provenance import duration, git_state, sha256, utc_now
from .recorder import TRAINING, csv_text, reference

#: Memory that a kernel is reckoned to need, in bytes.
KERNEL_MEMORY = 2 * 2**30
#: Folder, in that of a run, for the notebooks at work.
WORK = ".unfinished"


def reproduce(
    plan: Plan,
    jobs: int | None = None,
    fresh: bool = False,
    time_limit: float | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Run what a plan holds and return the manifest.

    A notebook that fails is kept, with its traceback in the manifest, and the others go on. Ctrl-C
    stops those at work and keeps what has ended. The results do not depend on ``jobs``.

    Args:
        plan: What to run.
        jobs: Notebooks at work at once; as many as cores and memory allow if None, and one on a
            GPU.
        fresh: Run also what is unchanged, and from the beginning.
        time_limit: Seconds that each notebook may take; it is stopped then and counts as failed.
        show: Whether to show progress.

    Returns:
        The manifest, whose ``status`` is "ok", "failed" or "interrupted".

    Raises:
        OSError: With one line, if the folder is in use or cannot be written.
    """
    with only_writer(plan.out):
        manifest = _Run(plan, fresh, time_limit).run(jobs or default_jobs(plan), show)
        if (work := plan.out / WORK).is_dir() and not any(work.iterdir()):
            work.rmdir()
        return manifest


def default_jobs(plan: Plan) -> int:
    """Return how many notebooks to run at once on this machine."""
    import joblib
    import psutil

    if plan.device != "cpu":
        return 1  # they would share its memory and spoil each other's times
    room = psutil.virtual_memory().available // KERNEL_MEMORY
    return max(1, min(joblib.cpu_count(), room, len(plan.tasks)))


def status(plan: Plan) -> list[tuple[str, str, str]]:
    """Say what a run of the plan would do, and why; reads only.

    Returns:
        For each notebook its name, "unchanged", "would run" or "would go on", and why or when it
        ran.
    """
    entries, said, runs = _earlier_entries(plan), [], set()
    for task in plan.tasks:
        reasons = why(task, plan.out, entries.get(task.name))
        first = [name for name in task.after if name in runs]
        if first and task.name in entries:
            more = f" and {len(first) - 1} more" if len(first) > 1 else ""
            reasons.append(f"it reads the results of {first[0]}{more}, which run before it")
        elif first and not reasons:
            reasons = ["it has not run yet"]
        if reasons:
            runs.add(task.name)
            begun = read_json(plan.out / WORK / task.name / "inputs.json") == task.inputs(plan.out)
            said.append((task.name, "would go on" if begun else "would run", "; ".join(reasons)))
        else:
            entry = entries[task.name]
            at = datetime.strptime(entry["started"], "%Y-%m-%dT%H:%M:%SZ")
            note = f"ran {at:%Y-%m-%d %H:%M} UTC in {duration(entry['seconds'])}"
            said.append((task.name, "unchanged", note))
    return said


def why(task: Task, out: Path, entry: dict[str, Any] | None) -> list[str]:
    """Say why a notebook would run again.

    Args:
        task: The notebook.
        out: The run's folder.
        entry: What the folder's manifest has of it.

    Returns:
        The reasons; none if nothing has changed.
    """
    if entry is None:
        return ["it has not run yet"]
    if entry["status"] != "ok":
        return ["it was interrupted" if entry["status"] == "interrupted" else "it failed"]
    now, then = task.inputs(out), entry["inputs"]
    reasons = [_change(name, then.get(name), now[name]) for name in now]
    reasons += [f"it no longer reads {name}" for name in then if name not in now]
    if any(reasons):
        return list(filter(None, reasons))
    files = (name for name, checksum in entry["files"].items() if sha256(out / name) != checksum)
    return [f"{name} is missing or was changed" for name in files][:1]


def _change(name: str, then: Any, now: Any) -> str:
    """What changed of an input, in words; of parameters and versions each by its name."""
    if then == now:
        return ""
    if isinstance(then, dict) and isinstance(now, dict):
        changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        words = (f"{key} {then.get(key)!r} is now {now.get(key)!r}" for key in changed)
        return f"{name}: {', '.join(words)}"
    return f"{name} {'have' if name == 'its cells' else 'has'} changed"


def _expected(plan: Plan, entries: dict[str, dict]) -> dict[str, float]:
    """Seconds of the notebooks: of their last good run here, or of the profile's committed run."""
    try:
        committed = read_json(reference(f"{plan.profile}.manifest.json"))["notebooks"]
    except (OSError, KeyError, TypeError):
        committed = {}
    seconds = {
        name: entry["seconds"]
        for name, entry in [*committed.items(), *entries.items()]
        if entry["status"] == "ok"
    }
    return {task.name: seconds[task.name] for task in plan.tasks if task.name in seconds}


def _earlier_entries(plan: Plan) -> dict[str, dict]:
    """The notebooks of the folder's earlier run; none if its manifest is missing or damaged."""
    earlier = read_json(plan.out / "manifest.json")
    try:
        entries = {n: e for n, e in earlier["notebooks"].items() if e["status"] != "not run"}
        for entry in entries.values():
            if earlier["environment"] != plan.environment:
                entry.setdefault("environment", earlier["environment"])
            entry["inputs"], entry["seconds"], entry["files"]
        return entries
    except (KeyError, TypeError, AttributeError):
        return {}


class _Run:
    """A run of a plan, in the process that has its folder."""

    def __init__(self, plan: Plan, fresh: bool, time_limit: float | None) -> None:
        self.plan, self.out, self.work = plan, plan.out, plan.out / WORK
        self.fresh, self.time_limit = fresh, time_limit
        self.earlier = read_json(self.out / "manifest.json")
        self.entries = _earlier_entries(plan)
        self.pages: dict[str, Future] = {}
        self.clock, self.stop, self.changed = time.monotonic(), threading.Event(), False
        self.about = {
            "schema": 2,
            "profile": plan.profile,
            "device": plan.device,
            "started": utc_now(),
            **git_state(plan.root),
            "lock_sha256": sha256(plan.root / "requirements.lock"),
            "environment": plan.environment,
            "data_sha256": {f.name: sha256(f) for f in sorted(LIBRARY.glob("assets/*.npz"))},
        }

    def run(self, jobs: int, show: bool) -> dict[str, Any]:
        """Run everything that must run, ``jobs`` notebooks at once."""
        tasks, running = self.plan.tasks, dict[Future, Task]()
        self.recover()
        expected = _expected(self.plan, self.entries)
        # the longest first, so that none is left alone at the end
        waiting = sorted(tasks, key=lambda task: -expected.get(task.name, float("inf")))
        with ProgressTable(tasks, expected, show) as table, ThreadPoolExecutor(jobs + 1) as pool:
            try:
                while waiting or running:
                    for task in list(waiting):
                        unfinished = {t.name for t in (*waiting, *running.values())}
                        if len(running) < jobs and not unfinished.intersection(task.after):
                            waiting.remove(task)
                            if self.must_run(task, table):
                                running[pool.submit(self.attempt, task, table)] = task
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        self.take_in(running.pop(future), future.result(), table, pool)
                good = all(self.entries[task.name]["status"] == "ok" for task in tasks)
                status = "ok" if good else "failed"
            except KeyboardInterrupt:
                status = "interrupted"
                self.stop.set()
                for future, task in running.items():
                    self.take_in(task, future.result(), table, pool)
            finally:
                self.stop.set()  # whatever went wrong, no notebook goes on
        complete = isinstance(self.earlier, dict) and self.earlier.get("status") == "ok"
        if not self.changed and status == "ok" and complete and (self.out / "index.html").is_file():
            return self.earlier  # nothing is written where nothing has changed
        for task in tasks:
            self.entries.setdefault(task.name, _not_run(task))
        return self.publish(status)

    def must_run(self, task: Task, table: ProgressTable) -> bool:
        """Whether a notebook is to run now: something has changed, and what it reads is there."""
        if not self.fresh and not why(task, self.out, self.entries.get(task.name)):
            table.end(task.name, "unchanged", "ran earlier, --fresh runs it again")
            return False
        if not self.changed:
            self.changed = True
            self.publish("running")
        for name in task.after:
            if self.entries.get(name, {"status": "ok"})["status"] != "ok":
                error = f"it reads the results of {name}, which has none"
                self.entries[task.name] = _not_run(task) | {"error": error}
                table.end(task.name, "not run", f"needs {name}")
                return False
        return True

    def attempt(self, task: Task, table: ProgressTable) -> dict[str, Any]:
        """Execute a notebook in its work folder and return its entry for the manifest."""
        folder, inputs = self.work / task.name, task.inputs(self.out)
        out = folder / "out"
        stop_kernel(folder)  # one that outlived a runner that was killed
        if self.fresh or read_json(folder / "inputs.json") != inputs:
            shutil.rmtree(folder, ignore_errors=True)
            write_together({folder / "inputs.json": json.dumps(inputs)})
        _keep_training(out)
        for name in task.after:
            if (table_file := self.out / "tables" / f"{name}.csv").is_file():
                (out / "reads").mkdir(parents=True, exist_ok=True)
                shutil.copy(table_file, out / "reads")
        started, clock, row = utc_now(), time.monotonic(), table.start(task.name, out)
        status, error = run_notebook(task, folder, row, self.time_limit, self.stop)
        entry = {
            "title": task.notebook.title,
            "status": status,
            "started": started,
            "seconds": round(time.monotonic() - clock, 1),
            "parameters": task.parameters,
            "inputs": inputs,
            "reads": task.notebook.reads,
            "error": self.without_places(" ".join(error.split()), folder)[:300] or None,
        }
        executed = out / "notebooks" / task.notebook.file.name
        if executed.is_file() and (trace := traceback_of(_clean_notebook(executed, out))):
            entry["traceback"] = self.without_places(trace, folder)
        captions = out / "figures" / f"{task.name}.json"
        entry["figures"] = (read_json(captions) or []) if status == "ok" else []
        captions.unlink(missing_ok=True)
        shutil.rmtree(out / "reads", ignore_errors=True)
        found = (f for f in sorted(out.rglob("*")) if f.is_file())
        names = [(f.relative_to(out).as_posix(), f) for f in found]
        entry["files"] = {
            name: sha256(file)
            for name, file in names
            if not name.startswith(TRAINING) and (status == "ok" or name.startswith("notebooks/"))
        }
        if status != "interrupted":  # from here on it has ended, whatever happens
            write_together({folder / "entry.json": json.dumps(entry)})
        return entry

    def without_places(self, text: str, folder: Path) -> str:
        """A text without the places of this machine."""
        out = [(place, "OUT") for place in (folder / "out", folder, self.out)]
        ours = [(self.plan.root, "."), (LIBRARY.parent, "."), (Path.home(), "~")]
        for place, name in (*out, *ours):
            for spelling in {str(place), place.as_posix()} - {"/", "."}:
                text = text.replace(spelling, name)
        return text

    def take_in(
        self, task: Task, entry: dict[str, Any], table: ProgressTable, pool: ThreadPoolExecutor
    ) -> None:
        """Take in a notebook that has ended, and begin to render it for the page."""
        table.end(task.name, entry["status"], duration(entry["seconds"]), entry["seconds"])
        self.install(task.name, entry)
        if entry["status"] != "interrupted":
            self.publish("running")
            self.clear(task.name, entry)
            render = report.render_notebook
            self.pages[task.name] = pool.submit(render, task.name, entry, self.out)

    def install(self, name: str, entry: dict[str, Any]) -> None:
        """Move a notebook's files in place of those of its earlier run.

        What a failed one had recorded is dropped: half a table is worse than none. Cut short, this
        can be done again.
        """
        for old in self.entries.get(name, {}).get("files", {}):
            if old not in entry["files"]:
                (self.out / old).unlink(missing_ok=True)
        self.entries[name] = entry
        for file in entry["files"]:
            source, target = self.work / name / "out" / file, self.out / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_file():  # else it was moved before this was cut short
                os.replace(source, target)

    def clear(self, name: str, entry: dict[str, Any]) -> None:
        """Remove what is left of a notebook; of one that failed, its trainings stay, to go on."""
        folder = self.work / name
        (folder / "entry.json").unlink(missing_ok=True)
        if entry["status"] == "failed" and (folder / "out" / TRAINING).is_dir():
            _keep_training(folder / "out")
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def recover(self) -> None:
        """Take in what had ended when an earlier call was killed."""
        for folder in sorted(path for path in self.work.glob("*") if path.is_dir()):
            stop_kernel(folder)
            if entry := read_json(folder / "entry.json"):
                self.install(folder.name, entry)
                self.clear(folder.name, entry)
                self.changed = True

    def publish(self, status: str) -> dict[str, Any]:
        """Write results.csv, manifest.json and the page, which is complete when the run is over."""
        seconds = round(time.monotonic() - self.clock, 1)
        notebooks = {"seconds": seconds, "notebooks": dict(sorted(self.entries.items()))}
        manifest, rows = self.about | {"status": status} | notebooks, []
        for name, entry in manifest["notebooks"].items():
            table = self.out / "tables" / f"{name}.csv"
            if entry["status"] == "ok" and f"tables/{name}.csv" in entry["files"]:
                with open(table, encoding="utf-8", newline="") as file:
                    rows += list(csv.DictReader(file))
        write_together({self.out / "results.csv": csv_text(rows)})  # the complete page reads it
        over = status != "running"
        made = {name: page.result() for name, page in self.pages.items()} if over else {}
        page = report.page(manifest, rows, self.out if over else None, made)
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_together({self.out / "index.html": page, self.out / "manifest.json": text})
        return manifest


def _not_run(task: Task) -> dict[str, Any]:
    return {"title": task.notebook.title, "status": "not run"}


def _keep_training(out: Path) -> None:
    """Remove what an attempt has left in its ``out_dir``, but for the checkpoints of trainings."""
    for path in out.glob("*"):
        if path.name != TRAINING:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for bar in out.glob(f"{TRAINING}/*/progress.txt"):
        bar.unlink()


def _clean_notebook(file: Path, out: Path) -> dict[str, Any]:
    """Take the places of this machine out of an executed notebook, and return it."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    papermill = notebook["metadata"].get("papermill", {})
    papermill.update({key: file.name for key in ("input_path", "output_path") if key in papermill})
    if "out_dir" in papermill.get("parameters", {}):
        papermill["parameters"]["out_dir"] = ""
    for cell in notebook["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", ()):
            cell["source"] = cell_text(cell).replace(out.as_posix(), "")
    write_together({file: json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"})
    return notebook
