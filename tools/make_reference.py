"""Make results/reference: ``python tools/make_reference.py [plane] [images] [table]`` (all three if none is named).

plane: train and measure in the plane, three seeds; images: measure the shipped Fashion-MNIST models with three sampling
seeds (both resumable: what is finished is kept in results/runs/reference); table: write nfe_vs_quality.csv, its manifest
and the results in README.md. To train the image models again: ``... train [SYSTEM ...]``.
"""
import hashlib
import json
import platform
import re
import sys
import warnings
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import torch

import iflow_lib
from iflow_lib import studies
from iflow_lib.checkpoints import write_atomic
from iflow_lib.results import COLUMNS
from iflow_lib.training import hardware

ROOT = Path(__file__).resolve().parent.parent
REFERENCE, WORK = ROOT / "results" / "reference", ROOT / "results" / "runs" / "reference"
SETS, SEEDS, DRAWS, FLOOR_PAIRS = ("eight_gaussians", "checkerboard"), 3, 10, 200
SYSTEMS = ("rectified_integral", "rectified_velocity", "ve_integral", "pfgmpp_integral")  # the others: see their cards


def plane() -> None:
    rows = studies.plane_study(SETS, SYSTEMS, seeds=SEEDS, draws=DRAWS, floor_pairs=FLOOR_PAIRS,
                               cache=WORK / "plane")
    write_atomic(WORK / "plane.json", json.dumps(rows))


def images() -> None:
    rows = studies.floor_rows("fashion_mnist")
    for system in SYSTEMS:
        model, manifest = studies.pretrained(system), studies.training_manifest(system)
        weights = json.loads((REFERENCE / "checkpoints" / system / "config.json").read_text())["sha256"]
        for seed in range(SEEDS):
            file = WORK / "images" / f"{system}-{weights[:12]}-seed{seed}.json"
            if not file.is_file():
                found = studies.evaluate_images(model, system, seed=seed, manifest=manifest)
                write_atomic(file, json.dumps(found))
                print(f"{system}, sampling seed {seed}", flush=True)
            rows += json.loads(file.read_text())
    write_atomic(WORK / "images.json", json.dumps(rows))


def train(systems) -> None:
    for system in systems or studies.SYSTEMS:
        studies.train_images(system, REFERENCE / "checkpoints" / system)


def readme_table(table: pd.DataFrame) -> str:
    """The results in README.md, from the reference table: means over seeds, plus or minus half their range;
    for the floor, whose pairs are many, its standard error."""
    lines = ["| | network calls | eight Gaussians, W2 | checkerboard, W2 "
             "| Fashion-MNIST, Frechet | Fashion-MNIST, kernel |",
             "|---|---|---|---|---|---|"]
    columns = [("eight_gaussians", "w2"), ("checkerboard", "w2"),
               ("fashion_mnist", "frechet"), ("fashion_mnist", "kernel")]

    def cell(rows: pd.DataFrame, dataset: str, metric: str) -> str:
        values = rows[(rows.dataset == dataset) & (rows.metric == metric)].value
        digits = 1 if metric == "frechet" and values.mean() > 1 else 2
        spread = values.std() / len(values) ** 0.5 if set(rows.method) == {"floor"} else (values.max() - values.min()) / 2
        return f"{values.mean():.{digits}f} ± {spread:.{digits}f}"

    def line(name: str, calls: str, rows: pd.DataFrame) -> None:
        lines.append(f"| {name} | {calls} | " + " | ".join(cell(rows, *column) for column in columns) + " |")

    for nfe in (1, 4, 16, 100):
        euler = (table.path == "rectified") & (table.method == "euler")
        line("Rectified Flow, Euler", str(nfe), table[euler & (table.nfe == nfe)])
    for path, name in (("rectified", "rectified"), ("ve", "VE"), ("pfgmpp", "PFGM++")):
        for nfe in (1, 2):
            line(f"Integration Flow, {name}", str(nfe),
                 table[(table.path == path) & (table.method == "map") & (table.nfe == nfe)])
    line("floor: data against data", "", table[table.method == "floor"])
    return "\n".join(lines)


def table() -> None:
    parts = [json.loads((WORK / f"{name}.json").read_text()) for name in ("plane", "images")]
    found = pd.DataFrame([{"run_id": "reference", **row} for part in parts for row in part])[list(COLUMNS)]
    whole = ["params", "seed", "step", "nfe", "n_samples"]
    found[whole] = found[whole].astype("Int64")
    text = found.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    manifest = {
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": "python tools/make_reference.py",
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "lock_sha256": hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest(),
        "hardware": hardware(torch.device("cpu")) + "; two cores shared with other work, so seconds are not timings",
        "versions": {"iflow_lib": iflow_lib.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "plane": {"sets": SETS, "systems": SYSTEMS, "seeds": SEEDS, "steps": studies.PLANE_STEPS, "draws": DRAWS,
                  "floor_pairs": FLOOR_PAIRS},
        "images": {system: {"sampling_seeds": SEEDS, **studies.training_manifest(system)} for system in SYSTEMS},
    }
    write_atomic(REFERENCE / "nfe_vs_quality.csv", text)
    write_atomic(REFERENCE / "nfe_vs_quality.manifest.json", json.dumps(manifest, indent=2) + "\n")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    results = f"<!-- results -->\n{readme_table(pd.read_csv(REFERENCE / 'nfe_vs_quality.csv'))}\n<!-- /results -->"
    write_atomic(ROOT / "README.md", re.sub(r"<!-- results -->.*<!-- /results -->", lambda _: results, readme, flags=re.S))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    steps = sys.argv[1:] or ["plane", "images", "table"]
    if steps[0] == "train":
        train(steps[1:])
    elif set(steps) <= {"plane", "images", "table"}:
        for step in steps:
            {"plane": plane, "images": images, "table": table}[step]()
    else:
        sys.exit(f"expected plane, images, table or train, got {' '.join(steps)}")
