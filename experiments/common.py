"""What the benchmarks share: a finished run is kept and not run again, and a table is written with its manifests."""

import argparse
import csv
import json
import multiprocessing
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

import pandas as pd

import iflow_lib as ifl
from iflow_lib import data as data_sets
from iflow_lib import metrics
from iflow_lib.io import write_together
from iflow_runner.provenance import git_state, machine, sha256, utc_now
from iflow_runner.recorder import csv_text

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "results" / "reference" / "bench"


def parser(doc: str, **defaults: int) -> argparse.ArgumentParser:
    """A command line with ``--out``, ``--runs`` and a whole-number option for each default."""
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, default in defaults.items():
        options.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options.add_argument(
        "--out",
        type=Path,
        default=BENCH,
        help="folder of the table, by default results/reference/bench",
    )
    options.add_argument(
        "--runs", type=Path, default=ROOT / "results" / "runs", help="folder of the finished runs"
    )
    return options


def kept(folder: Path, name: str, make) -> dict:
    """``make()``, a dict of JSON values, or what an earlier call with this name gave and ``folder`` holds."""
    file = folder / f"{name}.json"
    if not file.is_file():
        write_together({file: json.dumps(make())})
    return json.loads(file.read_text(encoding="utf-8"))


def calls_per_step(objective) -> float:
    """Network evaluations per example and step of an objective, a backward pass counting as two."""
    if isinstance(objective, ifl.IntegralIdentity):
        if objective.teacher is not None:
            hidden = 2 * bool(
                objective.perceptual
            )  # twice 0.65 of a call, and back to what it was of
            return (
                4 + (1 - objective.equal_share) * (2 + hidden) + 5 * bool(objective.matching)
            )  # 3 and its features
        each = 3 if objective.tangent == "network" else 2
        return 3 + (1 - objective.equal_share) * each + (objective.anchor is not None)
    if isinstance(objective, ifl.IntegralAdditivity):
        return 3 + 2 * (1 - objective.equal_share)
    return 3 + (
        isinstance(objective, ifl.ConsistencyTraining)
        or getattr(objective, "anchor", None) == "self"
    )


def distances(draw, dataset: str, seed: int, draws: int, points: int = 2000) -> list[float]:
    """Exact W2 of ``draw(k)``, (points, 2), to as many fresh points of the data, for ``draws`` sampling seeds k that are
    not the training's ``seed``."""
    seeds = [1000 * (seed + 1) + i for i in range(draws)]
    return [metrics.w2(draw(k), data_sets.load(dataset, points, "test", seed=k).x) for k in seeds]


def save(out: Path, name: str, rows: list[dict], manifests: dict) -> pd.DataFrame:
    """Write ``<name>.csv`` and ``<name>.manifest.json`` (the code, the machine and, a line each, how every run was
    trained), and return the table."""
    table = pd.DataFrame(rows)
    made = {
        **git_state(ROOT),
        "lock_sha256": sha256(ROOT / "requirements.lock"),
        "environment": machine("cpu"),
    }
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value)}" for key, value in (made | manifests).items()
    )
    write_together(
        {
            out / f"{name}.csv": table.to_csv(
                index=False, float_format="%.5g", lineterminator="\n"
            ),
            out / f"{name}.manifest.json": "{\n" + lines + "\n}\n",
        }
    )
    return table


def grow(file: Path, runs: dict, work, jobs: int, minutes: int, settings: dict) -> None:
    """Add to the tidy table ``file``, and to the manifest beside it, the runs that are not in it yet: ``work(*runs[name])``
    gives rows and a manifest. ``jobs`` processes; each finished run is saved at once; after ``minutes`` (0: never) no
    other is started. settings: what the manifest says of all runs."""
    start, rows, done, manifest = time.monotonic(), [], {}, file.with_suffix(".manifest.json")
    if file.is_file():
        with open(file, encoding="utf-8", newline="") as old:
            rows = list(csv.DictReader(old))
        done = json.loads(manifest.read_text(encoding="utf-8"))["runs"]
    whole = {
        "made": utc_now(),
        "lock_sha256": sha256(ROOT / "requirements.lock"),
        "environment": machine("cpu"),
    } | settings
    names = {name: run for name, run in runs.items() if name not in done}
    print(f"{len(names)} runs to do", flush=True)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting, working = iter(names.items()), {}
        while True:
            while len(working) < jobs and not (minutes and time.monotonic() - start > 60 * minutes):
                name, run = next(waiting, (None, None))
                if name is None:
                    break
                working[pool.submit(work, *run)] = name
            if not working:
                break
            for future in wait(working, return_when=FIRST_COMPLETED).done:
                name, (found, how) = working.pop(future), future.result()
                rows += [{"anchor": "none", **row, "run_id": name} for row in found]
                done[name] = {**git_state(ROOT), **how}
                lines = ",\n".join(
                    f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(done.items())
                )
                write_together(
                    {
                        file: csv_text(sorted(rows, key=lambda row: row["run_id"])),
                        manifest: f'{json.dumps(whole)[:-1]},\n"runs": {{\n{lines}\n}}}}\n',
                    }
                )
                print(
                    f"{name}: {len(found)} rows, {(time.monotonic() - start) / 60:.0f} minutes",
                    flush=True,
                )
