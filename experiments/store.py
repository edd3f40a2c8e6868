"""Finished runs are kept, and a table is written with its manifest.

A run is a call of a function with settings that are JSON values: ``make(**settings) -> (rows, manifest)``. A
``Store`` keeps what it returned, one file for each run, under a name made of *all* its settings, so that a run with
other settings is another run. An experiment that was stopped at any moment and started again does what is missing.
"""

import hashlib
import json
import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from csv import DictReader
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd

from experiments.common import ROOT
from iflow_lib.io import write_atomic, write_together
from iflow_runner.provenance import git_state, machine, sha256, utc_now
from iflow_runner.recorder import csv_text


@dataclass
class Run:
    """What a run gave. manifest: how it was made, with the commit it was made at."""

    rows: list[dict]
    manifest: dict = field(default_factory=dict)


class Store:
    """A folder of finished runs. Delete it, or choose another, to do them again with changed code."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def file(self, make: Callable, settings: dict) -> Path:
        """Where a run is kept: a name to be read, and a digest of the function's name and all settings."""
        name = getattr(make, "func", make).__name__
        key = json.dumps([name, settings], sort_keys=True)
        words = "-".join(map(str, [name, *(settings[k] for k in sorted(settings))]))
        words = re.sub(r"[^\w.=+]+", "-", words)
        return self.folder / f"{words[:90]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"

    def get(self, make: Callable, **settings) -> Run:
        """What ``make(**settings)`` returns, or what it returned the first time.

        make: a function, or a ``partial`` of one: what is bound beforehand is not part of the key.
        """
        file = self.file(make, settings)
        if not file.is_file():
            how = {**git_state(ROOT), "settings": settings}
            rows, manifest = make(**settings)
            write_atomic(file, json.dumps({"rows": rows, "manifest": how | manifest}))
        kept = json.loads(file.read_text(encoding="utf-8"))
        return Run(kept["rows"], kept["manifest"])

    def get_all(self, runs: dict, jobs: int = 1, minutes: float = 0) -> dict[str, Run]:
        """Get many runs and say so of each.

        Args:
            runs: name -> (function, settings).
            jobs: Processes at work at once.
            minutes: After so many no other run is started; 0: never.

        Returns:
            name -> ``Run``, in the order of ``runs``; those that were not started are missing.
        """
        start, found = time.monotonic(), {}

        def time_is_up() -> bool:
            return bool(minutes) and time.monotonic() - start > 60 * minutes

        def note(name: str, run: Run) -> None:
            found[name] = run
            took = (time.monotonic() - start) / 60
            print(
                f"{name}: {summary(run.rows)} ({len(found)} of {len(runs)}, {took:.0f} minutes)",
                flush=True,
            )

        if jobs == 1:
            for name, (make, settings) in runs.items():
                if time_is_up():
                    break
                note(name, self.get(make, **settings))
            return found
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            waiting, working = iter(runs.items()), {}
            while True:
                while len(working) < jobs and not time_is_up():
                    name, (make, settings) = next(waiting, (None, (None, None)))
                    if name is None:
                        break
                    working[pool.submit(partial(self.get, make, **settings))] = name
                if not working:
                    return {name: found[name] for name in runs if name in found}
                for future in wait(working, return_when=FIRST_COMPLETED).done:
                    note(working.pop(future), future.result())


def summary(rows: list[dict]) -> str:
    """A few words on rows: the values of one that is alone, or how many there are."""
    if len(rows) != 1:
        return f"{len(rows)} rows"
    values = {k: v for k, v in rows[0].items() if isinstance(v, float) and k != "seconds"}
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items()) or "1 row"


#: Parts of a manifest that have a line for each of their entries.
LISTED = ("runs", "systems", "measured")


def manifest_text(manifest: dict) -> str:
    """JSON with a line for each entry, so that a changed run is a changed line."""

    def lines(entries: dict) -> str:
        return "{\n" + ",\n".join(f"{json.dumps(k)}: {v}" for k, v in entries.items()) + "\n}"

    def shown(key: str, value) -> str:
        if key in LISTED:
            return lines({k: json.dumps(v) for k, v in value.items()})
        return json.dumps(value)

    return lines({key: shown(key, value) for key, value in manifest.items()}) + "\n"


def write_table(
    out: Path, name: str, rows: list[dict], tidy: bool = False, **about
) -> pd.DataFrame:
    """Write ``NAME.csv`` and ``NAME.manifest.json`` together, and return the table.

    The manifest has the commit and the machine, and ``about``: of ``runs`` how each was made.

    tidy: with the columns of all results (``iflow_runner.recorder.COLUMNS``) and every digit.
    """
    table = pd.DataFrame(rows)
    manifest = {
        "made": utc_now(),
        **git_state(ROOT),
        "lock_sha256": sha256(ROOT / "requirements.lock"),
        "environment": machine("cpu"),
        **about,
    }
    plain = partial(table.to_csv, index=False, float_format="%.5g", lineterminator="\n")
    write_together(
        {
            out / f"{name}.csv": csv_text(rows) if tidy else plain(),
            out / f"{name}.manifest.json": manifest_text(manifest),
        }
    )
    return table


def write_runs(out: Path, name: str, store: Store, runs: dict) -> pd.DataFrame:
    """Get the runs, and write a table of their rows. runs: as in ``Store.get_all``."""
    found = store.get_all(runs)
    rows = [row for run in found.values() for row in run.rows]
    return write_table(out, name, rows, runs={n: run.manifest for n, run in found.items()})


def read_manifest(file: Path) -> dict:
    """The manifest beside a table."""
    return json.loads(file.with_suffix(".manifest.json").read_text(encoding="utf-8"))


def extend_table(
    out: Path, name: str, store: Store, runs: dict, jobs: int = 1, minutes: float = 0, **about
) -> None:
    """Add to a tidy table, and to its manifest, the runs that it does not have yet.

    A row's ``run_id`` is the name of its run. A run of that name that had other settings is done again, and its rows are
    replaced.

    runs, jobs, minutes: as in ``Store.get_all``. about: what the manifest says of all runs.
    """
    file, rows, done = out / f"{name}.csv", [], {}
    if file.is_file():
        with open(file, encoding="utf-8", newline="") as old:
            rows = list(DictReader(old))
        done = read_manifest(file)["runs"]
    missing = {}
    for run_id, (make, settings) in runs.items():
        if run_id not in done or done[run_id].get("settings", settings) != settings:
            missing[run_id] = (make, settings)
    print(f"{file}: {len(done)} runs are there, {len(missing)} to do", flush=True)
    found = store.get_all(missing, jobs, minutes)
    if not found:
        return
    rows = [row for row in rows if row["run_id"] not in found]
    for run_id, run in found.items():
        rows += [{"anchor": "none", **row, "run_id": run_id} for row in run.rows]
        done[run_id] = run.manifest
    rows.sort(key=lambda row: row["run_id"])
    write_table(out, name, rows, tidy=True, **about, runs=dict(sorted(done.items())))
