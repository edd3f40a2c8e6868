"""How much sooner is a sweep done with two workers? ``python -m experiments.sweep --repetitions 5``

Runs ``iflow sweep experiments/sweep.toml`` (16 short trainings) with one worker and with two on this machine, in turns, each
time into a new folder, and compares the clock of the whole command: starting dask and the workers is in it. Every table
must be the same but for its seconds. Writes sweep.csv and sweep.manifest.json into --out (results/reference/bench).
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from experiments.common import ROOT, command_line
from experiments.store import write_table


def once(file: Path, workers: int) -> tuple[float, pd.DataFrame, dict]:
    """Seconds, table and manifest of one sweep."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["sweep", str(file), "--workers", str(workers), "--out", folder]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "iflow_runner.cli", *command],
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - start
        table = pd.read_csv(Path(folder, "results.csv")).drop(columns="seconds")
        return seconds, table, json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))


def main(arguments=None) -> None:
    options = command_line(__doc__, runs=False, repetitions=5)
    example = Path(__file__).with_name("sweep.toml")
    options.add_argument("--file", type=Path, default=example, help="another sweep file")
    options.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], help="ratios are to the first"
    )
    given = options.parse_args(arguments)
    rows, tables = [], []
    for repetition in range(given.repetitions):
        for workers in (
            given.workers if repetition % 2 == 0 else given.workers[::-1]
        ):  # who goes first, in turns
            seconds, table, manifest = once(given.file, workers)
            tables.append(table)
            rows.append(
                {
                    "repetition": repetition,
                    "workers": workers,
                    "runs": len(manifest["runs"]),
                    "seconds": seconds,
                }
            )
            print(f"repetition {repetition}, {workers} workers: {seconds:.1f} s", flush=True)
            if not table.equals(tables[0]):
                raise SystemExit("this table differs from the first one: nothing is written")
    wide = (
        pd.DataFrame(rows)
        .drop_duplicates(["repetition", "workers"])
        .pivot(index="repetition", columns="workers", values="seconds")
    )
    ratios = wide.div(wide[given.workers[0]], axis=0)
    for row in rows:
        row["ratio"] = ratios.loc[row["repetition"], row["workers"]]
    about = {name: manifest[name] for name in ("sweep", "code")}
    write_table(given.out, "sweep", rows, **about)
    for workers in given.workers[1:]:
        of = ratios[workers]
        print(
            f"{workers} workers: {of.median():.2f} of the time of {given.workers[0]} (median; {of.min():.2f} to "
            f"{of.max():.2f} in {len(of)} repetitions)"
        )


if __name__ == "__main__":
    main()
