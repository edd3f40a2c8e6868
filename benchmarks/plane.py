"""Every objective, path and anchor rule in the plane: ``python benchmarks/plane.py --jobs 2``

Five sets, three paths, seeds, one network and training (``studies.train_plane``), two comparisons, each at the same number
of gradient steps for all in it (``calls_per_step`` in the manifest says what a step costs each):

- methods: ways to few calls without an anchor, and the velocity that they are measured by, 10,000 steps;
- anchors: the published recipe in every reading of its anchor, beside the integral identity without and with its own
  estimate as the anchor, 2,500 steps. So that nobody has to ask whether the recipe needs more: it has 10,000 too, on the
  eight Gaussians, rectified.

--steps runs all kinds that long instead. Measured as exact W2 of 2,000 samples to 2,000 fresh points, mean of ``--draws``
draws (one draw for the recipe, whose distances are many floors and not a matter of the draw), at 1 to 100 network calls:
see ``studies.methods``. A value is empty where samples were not finite. Floors: pairs of independent draws of the data.

Writes plane.csv, a tidy table, and plane.manifest.json into --out (results/reference). What is in the table already is not
run again, so it can be stopped at any time and continued; --minutes stops it by itself.
"""
import argparse
import csv
import itertools
import json
import multiprocessing
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

import torch
from common import ROOT, calls_per_step

from iflow_lib import data, studies
from iflow_lib.checkpoints import write_together
from iflow_lib.results import csv_text, git_state, machine, sha256, utc_now

METHODS = ("integral", "velocity", "additivity", "consistency")


def planned(sets, systems, seeds: int, steps: int) -> dict:
    """Name -> (set, system or "floor", seed, steps), all of them with one seed first."""
    runs = [(dataset, "floor", 0, 0) for dataset in sets]
    for seed, dataset, system in itertools.product(range(seeds), sets, systems):
        kind = studies.parse_system(system, studies.PLANE_SYSTEMS)[1]
        longer = kind.startswith("x0_") and system.startswith("rectified") and dataset == "eight_gaussians"
        lengths = [studies.PLANE_STEPS] * (kind in METHODS or longer)
        lengths += [studies.ANCHOR_STEPS] * (kind == "integral" or kind not in METHODS)
        runs += [(dataset, system, seed, length) for length in ([steps] if steps else lengths)]
    runs.sort(key=lambda run: (run[2], run[3] not in (0, studies.PLANE_STEPS)))
    return {f"{dataset}/{system}" + (f"/steps{steps}/seed{seed}" if steps else ""): (dataset, system, seed, steps)
            for dataset, system, seed, steps in runs}


def one(dataset: str, system: str, seed: int, steps: int, draws: int, nfes, pairs: int) -> tuple[list[dict], dict]:
    """Rows and manifest of one run."""
    torch.set_num_threads(1)
    if system == "floor":
        return studies.floor_rows(dataset, pairs=pairs), {}
    try:
        run = studies.train_plane(system, dataset, seed=seed, steps=steps)
    except FloatingPointError as error:
        return [], {"diverged": str(error)}
    manifest = run.manifest
    draws = 1 if manifest["objective"]["name"] == "X0Regression" else draws
    rows = studies.evaluate_plane(run, system, dataset, nfes=nfes, draws=draws)
    kept = {name: manifest[name] for name in ("objective", "path", "data", "seconds", "hardware", "versions")}
    kind = studies.parse_system(system, studies.PLANE_SYSTEMS)[1]
    return rows, {**kept, "calls_per_step": calls_per_step(studies.KINDS[kind]()), "draws": draws}


def save(file: Path, rows: list[dict], runs: dict, settings: dict) -> None:
    """The table and its manifest, a line for each run."""
    whole = {"made": utc_now(), "lock_sha256": sha256(ROOT / "requirements.lock"), "environment": machine("cpu")} | settings
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(runs.items()))
    write_together({file: csv_text(sorted(rows, key=lambda row: row["run_id"])),
                    file.with_suffix(".manifest.json"): f'{json.dumps(whole)[:-1]},\n"runs": {{\n{lines}\n}}}}\n'})


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sets", nargs="+", default=data.PLANE, choices=data.PLANE)
    options.add_argument("--systems", nargs="+", default=studies.PLANE_SYSTEMS, choices=studies.PLANE_SYSTEMS)
    for name, default in (("seeds", 3), ("steps", 0), ("draws", 3), ("floor-pairs", 50), ("jobs", 1),
                          ("minutes", 0)):
        options.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options.add_argument("--nfes", type=int, nargs="+", default=studies.NFES)
    options.add_argument("--out", type=Path, default=ROOT / "results" / "reference")
    given = options.parse_args()
    file, start, rows, runs = given.out / "plane.csv", time.monotonic(), [], {}
    if file.is_file():
        with open(file, encoding="utf-8", newline="") as old:
            rows = list(csv.DictReader(old))
        runs = json.loads(file.with_suffix(".manifest.json").read_text(encoding="utf-8"))["runs"]
    names = {name: run for name, run in planned(given.sets, given.systems, given.seeds, given.steps).items()
             if name not in runs}
    print(f"{len(names)} runs to do", flush=True)
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting, working = iter(names.items()), {}
        while True:
            while len(working) < given.jobs and not (given.minutes and time.monotonic() - start > 60 * given.minutes):
                name, run = next(waiting, (None, None))
                if name is None:
                    break
                working[pool.submit(one, *run, given.draws, given.nfes, given.floor_pairs)] = name
            if not working:
                break
            for future in wait(working, return_when=FIRST_COMPLETED).done:
                name, (found, manifest) = working.pop(future), future.result()
                rows += [{"anchor": "none", **row, "run_id": name} for row in found]
                runs[name] = {**git_state(ROOT), **manifest}
                save(file, rows, runs, {"floor_pairs": given.floor_pairs})
                print(f"{name}: {len(found)} rows, {(time.monotonic() - start) / 60:.0f} minutes", flush=True)


if __name__ == "__main__":
    main()
