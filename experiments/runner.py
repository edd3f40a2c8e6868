"""What the runner costs, and whether it loses anything: ``python -m experiments.runner``

All on the smoke profile of `iflow reproduce`:

- overhead: the eleven notebooks by bare papermill and by `iflow reproduce --fresh`, in turns, seconds of either;
- again: a second `make reproduce` with nothing changed, seconds;
- killed: kill -9 at random moments, continued each time: is the table of results that of an undisturbed run?

Each line of ``runner.csv`` is one measurement; absolute seconds compare only within it.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from experiments.common import ROOT, choices, command_line
from experiments.store import write_table
from iflow_runner.plan import make_plan

#: bare papermill, as one would write it: one process, one notebook after another
BARE = """
import json, sys, papermill
for source, target, parameters in json.load(open(sys.argv[1])):
    papermill.execute_notebook(source, target, parameters=parameters, cwd=sys.argv[2], kernel_name="python3",
                               progress_bar=False)
"""
IFLOW = [
    sys.executable,
    "-m",
    "iflow_runner.cli",
    "reproduce",
    "--profile",
    "smoke",
    "--device",
    "cpu",
    "--out",
]


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def bare(work: Path) -> float:
    """Seconds of papermill alone, which records into folders of its own as the runner's notebooks do."""
    listed = []
    for task in make_plan(profile="smoke", out=work / "unused", make=False).tasks:
        source = task.notebook.file
        out_dir = (
            {"out_dir": str(work / task.name)} if "out_dir" in task.notebook.parameters else {}
        )
        listed.append((str(source), str(work / source.name), task.parameters | out_dir))
    work.mkdir()
    (work / "list.json").write_text(json.dumps(listed))
    return timed([sys.executable, "-c", BARE, str(work / "list.json"), str(ROOT / "notebooks")])


def table(out: Path) -> pd.DataFrame:
    """The results, but for what is a time."""
    found = pd.read_csv(out / "results.csv").drop(columns="seconds")
    return found[~found.metric.str.contains("second|time|cost", case=False)].reset_index(drop=True)


def killed(out: Path, times: int, longest: float, seed: int) -> tuple[int, float]:
    """Kill the run ``times`` times and let it end; calls in all, and the seconds of all of them."""
    rng, calls, kills, start = random.Random(seed), 0, 0, time.perf_counter()
    while True:
        process = subprocess.Popen(
            [*IFLOW, str(out)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        calls += 1
        try:
            if process.wait(rng.uniform(0.5, longest) if kills < times else None):
                raise RuntimeError(
                    f"iflow reproduce failed after {kills} kills: {out / 'manifest.json'}"
                )
            return kills, time.perf_counter() - start
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1


def main(arguments=None) -> None:
    options = command_line(__doc__, runs=False, repeats=3, kills=20, longest=18)
    choices(options, "--parts", ("overhead", "again", "killed"))
    options = options.parse_args(arguments)
    rows = []

    def row(part: str, contender: str, value: float, unit: str = "seconds", run: int = 0) -> None:
        rows.append(
            {"part": part, "contender": contender, "run": run, "unit": unit, "value": value}
        )
        print(f"{part}, {contender}, run {run}: {value:.2f} {unit}", flush=True)

    with tempfile.TemporaryDirectory(prefix="runner-") as folder:
        work = Path(folder)
        for i in range(options.repeats if "overhead" in options.parts else 0):
            pair = [
                ("papermill", lambda: bare(work / "bare")),
                ("iflow reproduce", lambda: timed([*IFLOW, str(work / "ours"), "--jobs", "1"])),
            ]
            for name, measure in pair if i % 2 else pair[::-1]:
                row("overhead", name, measure(), run=i)
            shutil.rmtree(work / "bare")
            shutil.move(work / "ours", work / "whole") if i == 0 else shutil.rmtree(work / "ours")
        if not (work / "whole").exists():
            timed([*IFLOW, str(work / "whole")])
        for i in range(options.repeats if "again" in options.parts else 0):
            row("again", "iflow reproduce", timed([*IFLOW, str(work / "whole")]), run=i)
        if "killed" in options.parts:
            kills, seconds = killed(work / "killed", options.kills, options.longest, seed=0)
            row("killed", "kills", kills, "kills")
            row("killed", "all calls together", seconds)
            whole, mine = table(work / "whole"), table(work / "killed")
            same = len(whole) == len(mine) and int(
                (whole.fillna("") == mine.fillna("")).all(axis=1).sum()
            )
            row("killed", "rows of the undisturbed run", len(whole), "rows")
            row("killed", "rows that are the same", same, "rows")
            if same != len(whole):
                print(whole.compare(mine).to_string())
    settings = {name: getattr(options, name) for name in ("repeats", "kills", "longest")}
    write_table(options.out, "runner", rows, profile="smoke", settings=settings)


if __name__ == "__main__":
    main()
