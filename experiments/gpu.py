"""What a GPU library must say of a GPU, in one run of nine minutes: ``python -m experiments.gpu --minutes 9`` (``make gpu``)

It needs PyTorch, numpy, pandas, safetensors, tqdm, scipy and this checkout, nothing else. Parts, each with its own time:

- tests, at most 90 seconds: what must hold on a device (gpu_checks.py; ``pytest -m cuda`` runs the same).
- speed, at most 4 minutes: training steps a second and memory of every objective, on a U-Net of 28 million weights and a
  Transformer of 30, batch 256: float32, TF32 and bfloat16, compiled and not, as CUDA graphs; forward and backward pass and
  optimizer alone as one replayed graph; and the neighbours' loops as they ship, those that are installed. "float32" is without
  TF32 anywhere, "tf32" with it everywhere, "default" what torch does by itself: TF32 in convolutions alone. The card's ceilings
  are measured first: products of 8192x8192 matrices, and copying, bytes read and written; "share_of_ceiling" is the share of
  the operations counted by torch, or of the least bytes, whichever is larger.
- sampling, at most a minute: images a second and latency of ``sample``, the drawing of the noise and the way to the CPU counted.
- quality, the rest: the image systems that ship, trained again (gpu_quality.py): on all 60,000 images of Fashion-MNIST if
  --fashion-mnist names a folder with the four idx.gz files, or Debian's package has them; else on those of this package.

A value of speed and sampling is the median over blocks, ``low`` and ``high`` its 95 % interval from order statistics.
"first_step" and "first_call" count compiling, with what torch's caches hold already.

With fewer minutes than nine every part gets less; the last one gets what is left. On a GPU each part runs in a process of its
own, which is ended if it overruns, and whose end leaves the others unharmed. What is measured is written at once; what there
is no time for is skipped, with a word, and so is what cannot run here. Called again, it does what is missing on this card;
another card is added. Changed code is not noticed: --fresh measures the named parts again.

Writes gpu.csv and gpu.manifest.json into --out (results/reference/bench). ``--device cpu --tiny`` is the small form, which
shows that everything runs, and writes into results/runs/gpu.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from experiments.common import BENCH, ROOT, RUNS
from experiments.gpu_checks import CHECKS, Check
from experiments.gpu_quality import quality_cells
from experiments.gpu_speed import sampling_cells, speed_cells
from experiments.gpu_table import (
    PARTS,
    Budget,
    Cell,
    Results,
    Skip,
    about_card,
    card_name,
    measure_all,
    say,
    show_demands,
)

#: Seconds of each part in a run of nine minutes; the last part gets what is left.
LIMITS = {"tests": 90, "speed": 240, "sampling": 60, "quality": 150}
#: Seconds after its time at which a part is ended, whatever it does.
GRACE = 15


def share(parts: list[str], left: float) -> float:
    """Seconds for the first of the parts that are to come, of the seconds that are left for all of them."""
    if len(parts) == 1:
        return left
    return LIMITS[parts[0]] * min(1.0, left / sum(LIMITS[part] for part in parts))


def check_cells(device: torch.device, need: float) -> list[Cell]:
    """A row for each check: 1 if it passed, 0 if it failed, with a word."""

    def measure(check: Check) -> list[dict]:
        if device.type == "cpu" and not check.cpu:
            raise Skip("it is about a GPU")
        row = {"metric": "passed"}
        try:
            return [row | {"value": 1, "note": check.run(device)}]
        except Skip:
            raise
        except Exception as error:
            why = (str(error).strip().splitlines() or ["no message"])[0][:300]
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            return [row | {"value": 0, "note": f"{kind}{why}"}]

    return [
        Cell(f"tests/{name}", check.seconds * need, lambda _, check=check: measure(check))
        for name, check in CHECKS.items()
    ]


def run_here(part: str, given: argparse.Namespace, until: float) -> int:
    """Make the measurements of a part; 1 if a check failed."""
    device, size = torch.device(given.device), "small" if given.tiny else "full"
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # streams and graphs are of the current one
    results, budget = Results(given.out, card_name(device), about_card(device)), Budget(until)
    if given.fresh:
        results.forget(part)
    if part == "tests":
        cells = check_cells(device, 0.1 if given.tiny else 1.0)
    elif part == "speed":
        cells = speed_cells(size, device, results)
    elif part == "sampling":
        cells = sampling_cells(size, device, results)
    else:
        where = {"folder": given.fashion_mnist, "runs": given.runs, "steps": given.steps}
        cells = quality_cells(size, device, results, budget, **where)
    count = measure_all(cells, results, budget)
    say(f"{part}: {', '.join(f'{n} {word}' for word, n in count.items())}")
    mine = [row for row in results.mine() if row["part"] == part]
    return int(any(row["metric"] == "passed" and row["value"] == "0" for row in mine))


def run_apart(part: str, given: argparse.Namespace, until: float) -> int:
    """Run a part in a process of its own; its exit code, 1 if it had to be ended."""
    command = [sys.executable, "-u", "-m", "experiments.gpu", "--parts", part]
    command += ["--until", repr(until), "--device", given.device]
    command += ["--out", given.out, "--runs", given.runs]
    command += ["--tiny"] * given.tiny + ["--fresh"] * given.fresh
    command += ["--fashion-mnist", given.fashion_mnist] if given.fashion_mnist else []
    command += ["--steps", str(given.steps)] if given.steps else []
    try:
        return subprocess.run(
            list(map(str, command)), cwd=ROOT, timeout=max(1.0, until - time.time() + GRACE)
        ).returncode
    except subprocess.TimeoutExpired:
        say(f"{part}: ended, {GRACE} s after its time; what it had measured is kept")
        return 1


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=9.0, help="for all parts, default 9")
    options.add_argument("--device", default="auto", help="cuda, cuda:1, or cpu for the small form")
    options.add_argument("--parts", type=_parts, default=list(PARTS), help=",".join(PARTS))
    options.add_argument("--tiny", action="store_true", help="the small form, for a CPU")
    options.add_argument("--out", type=Path, help="of the table, default results/reference/bench")
    options.add_argument("--runs", type=Path, default=RUNS, help="of checkpoints")
    options.add_argument("--fashion-mnist", type=Path, help="folder of its four idx.gz files")
    options.add_argument("--steps", type=int, help="of each training, in place of what fits")
    options.add_argument("--fresh", action="store_true", help="measure the parts again")
    options.add_argument("--until", type=float, help=argparse.SUPPRESS)  # the time, of a part
    return options


def _parts(text: str) -> list[str]:
    named = text.split(",")
    if unknown := [part for part in named if part not in PARTS]:
        raise argparse.ArgumentTypeError(
            f"unknown part {unknown[0]!r}: expected some of {','.join(PARTS)}"
        )
    return [part for part in PARTS if part in named]


def main(arguments=None) -> int:
    """Exit code: 0, also if something was skipped; 1 if a check fails, or a part broke off."""
    options = parser()
    given = options.parse_args(arguments)
    if given.device == "auto":
        given.device = "cuda"
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        options.error("torch sees no CUDA device here: --device cpu --tiny runs the small form")
    if not given.device.startswith("cuda") and not given.tiny:
        options.error(f"on {given.device} there is only the small form: add --tiny")
    given.out = (
        given.out or (ROOT / "results" / "runs" / "gpu" if given.tiny else BENCH)
    ).resolve()
    given.runs = given.runs.resolve()
    child = given.until is not None
    until = given.until if child else time.time() + 60 * given.minutes
    run = run_apart if len(given.parts) > 1 and not given.tiny else run_here
    codes = []
    for i, part in enumerate(given.parts):
        seconds = share(given.parts[i:], until - time.time())
        if not child:
            say(f"--- {part}: {max(0, seconds):.0f} s")
        codes.append(run(part, given, time.time() + seconds))
    table = given.out / "gpu.csv"
    if not child and table.is_file():
        show_demands(pd.read_csv(table))
        say(f"\n{table}; `python -m experiments.make_reference readme sums` puts it on the pages")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
