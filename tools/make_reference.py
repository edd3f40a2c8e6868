"""Make results/reference: ``python tools/make_reference.py [STEP ...]``, all if none is named:

plane: train and measure in the plane, three seeds; images: measure the shipped Fashion-MNIST models with three sampling
seeds (both resumable: what is finished is kept in results/runs/reference); models: train small models of the eight
Gaussians, one of each kind, for notebooks and figures; table: write nfe_vs_quality.csv and its manifest; quick: take the
table of the last `iflow reproduce`, results/runs/quick, for `iflow verify`; readme: the tables in README.md and docs/, from
it and from results/reference/bench (see benchmarks/); sums: SHA256SUMS, the checksums that `iflow verify` checks.
To train the image models again: ``... train [SYSTEM ...]``.
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
from scipy.stats import t as student

import iflow_lib
from iflow_lib import studies
from iflow_lib.checkpoints import write_atomic
from iflow_lib.results import COLUMNS, sha256
from iflow_lib.speed import hardware
from iflow_lib.verify import SUMS

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


def models() -> None:
    """One model of each kind, 2,500 steps, as in plane.csv with seed 0."""
    for kind in studies.KINDS:
        system, dataset = f"rectified_{kind}", "eight_gaussians"
        folder = REFERENCE / "checkpoints" / f"{dataset}_{system}"
        if folder.is_dir():
            continue
        run = studies.train_plane(system, dataset, seed=0, steps=studies.ANCHOR_STEPS)
        rows = studies.evaluate_plane(run, system, dataset, nfes=(1, 2, 8), draws=3)
        measured = "\n".join(f"| {r['method']} | {r['nfe']} | {r['metric']} | {r['value']:.3f} |" for r in rows)
        card = f"""# {dataset}, {system}

Eight Gaussians in the plane, {run.manifest['path']['name']}, `{run.manifest['objective']}`.

- {studies.ANCHOR_STEPS:,} steps of batch 512, seed 0, {run.manifest['seconds']:.0f} seconds on {run.manifest['hardware']};
  {run.model.parameter_count:,} parameters, stored as float16.
- For notebooks and figures: trained a quarter as long as the models behind the tables.

Means of three draws of 2,000 points:

| method | nfe | metric | value |
|---|---|---|---|
{measured}
"""
        run.model.save_pretrained(folder, card=card, dtype=torch.float16, system=system, manifest=run.manifest)
        print(folder.name, flush=True)


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


def exactness_table(table: pd.DataFrame) -> str:
    """benchmarks/exactness.py in README.md: the largest of the four paths' relative RMS errors, means over seeds."""
    shown = {"velocity": "the velocity", "flow_map": "the jump from t_max to 0", "posterior_mean": "the posterior mean"}
    found = table.groupby(["objective", "quantity", "dim", "path"], sort=False).relative_rms.mean()
    worst = found.groupby(["objective", "quantity", "dim"], sort=False).max().unstack("dim")
    lines = ["| trained with | learns | " + " | ".join(f"in {dim} dimensions" for dim in worst) + " |", "|---|---|---|---|"]
    for (objective, quantity), row in worst.iterrows():
        if quantity in shown:
            cells = " | ".join(f"{100 * value:.1f} %" for value in row)
            lines.append(f"| {objective} | {shown[quantity]} | {cells} |")
    return "\n".join(lines)


def self_anchor_table(table: pd.DataFrame) -> str:
    """benchmarks/self_anchor.py in README.md: W2 without and with the anchor, and the difference with its 95 % interval."""
    lines = ["| | network calls | no anchor | anchor=\"self\" | difference |", "|---|---|---|---|---|"]
    for (dataset, path, nfe), rows in table[table.nfe.isin([1, 2, 4])].groupby(["dataset", "path", "nfe"], sort=False):
        none, own = (rows[rows.anchor == a].sort_values("seed").w2.to_numpy() for a in ("none", "self"))
        half = (own - none).std(ddof=1) * student.ppf(0.975, len(none) - 1) / len(none) ** 0.5
        name = f"{dataset.replace('_', ' ').replace('gaussians', 'Gaussians')}, {path}"
        lines.append(f"| {name} | {nfe} | {none.mean():.3f} | {own.mean():.3f} | {(own - none).mean():+.3f} ± {half:.3f} |")
    return "\n".join(lines)


def peers_table(table: pd.DataFrame) -> str:
    """The comparison with the neighbours in README.md, from benchmarks/quality_vs_peers.py: means over seeds, plus or minus
    half their range. A search that ends at the defaults has no line of its own."""
    sets = {"eight_gaussians": "eight Gaussians", "checkerboard": "checkerboard"}
    lines = ["| one network call | settings | " + ", W2 | ".join(sets.values()) + ", W2 |", "|---|---|---|---|"]
    for method, rows in table[table.role != "search"].groupby("method", sort=False):
        for role in rows.role.unique():
            cells, variants = [], []
            for dataset in sets:
                part = rows[(rows.dataset == dataset) & (rows.role == role)]
                spread = f" ± {(part.w2.max() - part.w2.min()) / 2:.3f}" if len(part) > 1 else ""
                cells.append(f"{part.w2.mean():.3f}{spread}")
                variants.append(part.variant.iloc[0])
            if role == "best found" and variants == list(rows[rows.role == "defaults"].variant.unique()) * 2:
                continue
            settings = role if role != "best found" else "best found: " + "; then ".join(dict.fromkeys(variants))
            lines.append(f"| {method} | {settings if role != 'floor' else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def claims_table(table: pd.DataFrame) -> str:
    """tools/claims.py in README.md: statements and verdicts."""
    lines = ["| claim | verdict |", "|---|---|"]
    return "\n".join(lines + [f"| {row.statement} | {row.verdict} |" for row in table.itertuples()])


def tuning_table(table: pd.DataFrame) -> str:
    """benchmarks/tuning.py in docs/findings.md."""
    wide = table.pivot(index=["variant", "steps"], columns="nfe", values="frechet_to_train")
    lines = ["| | steps | " + " | ".join(f"{nfe} call{'s' * (nfe > 1)}" for nfe in wide) + " |",
             "|---|---" + "|---" * wide.shape[1] + "|"]
    for variant, steps in dict.fromkeys(zip(table.variant, table.steps)):
        cells = " | ".join("" if pd.isna(value) else f"{value:.1f}" for value in wide.loc[(variant, steps)])
        lines.append(f"| {variant} | {steps:,} | {cells} |")
    return "\n".join(lines)


def _ratio(row) -> str:
    return "1" if row.low == row.high == 1 else f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})"


def speed_short_table(table: pd.DataFrame) -> str:
    """Training steps of benchmarks/speed.py in README.md: what is not compiled."""
    rows = _steps(table)
    lines = ["| one training step | MLP | U-Net |", "|---|---|---|"]
    for name in [n for n in rows if "compiled" not in n and ", self" not in n and "per_example" not in n]:
        lines.append(f"| {name} | {rows[name]['MLP'].ratio:.2f} | {rows[name]['UNet'].ratio:.2f} |")
    return "\n".join(lines)


def _steps(table: pd.DataFrame) -> dict:
    """{contender: {network: its row}} of the part training."""
    part, out = table[table.part == "training"], {}
    for row in part.itertuples():
        out.setdefault(row.contender, {})[row.network] = row
    return out


def speed_table(table: pd.DataFrame) -> str:
    """Training steps and memory of benchmarks/speed.py in docs/scaling.md."""
    megabytes = table[table.part == "memory"].set_index(["network", "contender"]).megabytes
    lines = ["| one training step | MLP, ratio | steps a second | peak MB | U-Net, ratio | steps a second | peak MB |",
             "|---|---|---|---|---|---|---|"]
    for name, found in _steps(table).items():
        cells = [cell for network in ("MLP", "UNet") for cell in (
            _ratio(found[network]), f"{found[network].per_second:.3g}",
            f"{megabytes[network, name]:.0f}" if (network, name) in megabytes.index else "")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compiling_table(table: pd.DataFrame) -> str:
    """What torch.compile costs and saves on this CPU, from benchmarks/speed.py."""
    lines = ["| | network | ratio, not compiled | ratio, compiled | first step, s | pays back after, steps |",
             "|---|---|---|---|---|---|"]
    steps = _steps(table)
    for name in [n for n in steps if n.endswith(", compiled")]:
        for network, fast in steps[name].items():
            plain = steps[name.removesuffix(", compiled")][network]
            saved = plain.seconds - fast.seconds
            back = f"{fast.first_step_seconds / saved:,.0f}" if saved > 0.01 * plain.seconds else "never"
            lines.append(f"| {name.removesuffix(', compiled')} | {network} | {plain.ratio:.2f} | {fast.ratio:.2f} | "
                         f"{fast.first_step_seconds:.0f} | {back} |")
    return "\n".join(lines)


def sampling_table(table: pd.DataFrame) -> str:
    """``sample`` in benchmarks/speed.py: time against one jump that is not compiled, and samples a second."""
    part = table[table.part == "sampling"].set_index(["network", "batch", "nfe", "contender"])
    lines = ["| network | samples at once | calls | ratio | samples a second | ratio, compiled | samples a second |",
             "|---|---|---|---|---|---|---|"]
    for network, batch, nfe in dict.fromkeys(key[:3] for key in part.index):
        cells = [cell for kind in ("eager", "compiled") for row in [part.loc[(network, batch, nfe, kind)]]
                 for cell in (_ratio(row), f"{row.per_second:.3g}")]
        lines.append(f"| {network} | {batch} | {nfe:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def threads_table(table: pd.DataFrame) -> str:
    """Two threads against one in benchmarks/speed.py."""
    lines = ["| weights x batch, millions | two threads against one |", "|---|---|"]
    for row in table[table.part == "threads"].itertuples():
        lines.append(f"| {row.params * row.batch / 1e6:.0f} | {_ratio(row)} |")
    return "\n".join(lines)


def precision_table(table: pd.DataFrame) -> str:
    """benchmarks/precision.py: W2 of one jump, and the difference from the exact derivative with its 95 % interval."""
    wide = table.pivot(index=["dataset", "seed"], columns="variant", values="w2")
    lines = ["| derivative, precision | W2 of one jump | against the exact one |", "|---|---|---|"]
    for name in table.variant.unique():
        apart = wide[name] - wide["jvp"]
        half = apart.std(ddof=1) * student.ppf(0.975, len(apart) - 1) / len(apart) ** 0.5
        lines.append(f"| {name} | {wide[name].mean():.4f} | " + (f"{apart.mean():+.4f} ± {half:.4f} |" if half else " |"))
    return "\n".join(lines)


def cost_table(table: pd.DataFrame) -> str:
    """benchmarks/published.py cost."""
    titles = [f"{row.setting}, {row.objective}" for row in table.itertuples()]
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
    for title, cell in (
            ("weights", lambda r: f"{r.params / 1e6:.0f} M"),
            ("steps x batch", lambda r: f"{r.steps:,} x {r.batch:,}"),
            ("operations of one network call, one image", lambda r: f"{r.flops_per_call / 1e9:.1f} G"),
            ("network calls a step, one image", lambda r: f"{r.calls_per_step:g}"),
            ("operations in all", lambda r: f"{r.flops:.2g}"),
            ("hours of this CPU, at its measured rate", lambda r: f"{r.cpu_hours:,.0f}"),
            ("GPU-hours, if 30 % of the ceiling are reached", lambda r: f"{r.gpu_hours_assumed:,.0f}"),
            ("weights, gradients, Adam, average (float32)", lambda r: f"{r.weights_bytes / 1e9:.2f} GB"),
            ("kept for the backward pass, one image (float32)", lambda r: f"{r.kept_bytes_per_example / 1e6:.0f} MB"),
            ("data set (float32)", lambda r: f"{r.data_bytes / 1e9:.2f} GB"),
            ("anchor store, N x dims, float32 / float16",
             lambda r: f"{r.anchor_bytes_float32 / 1e9:.2f} / {r.anchor_bytes_float16 / 1e9:.2f} GB")):
        lines.append(f"| {title} | " + " | ".join(cell(row) for row in table.itertuples()) + " |")
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


def readme() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, (file, make) in README_TABLES.items():
            part = f"<!-- {name} -->\n{make(pd.read_csv(REFERENCE / file))}\n<!-- /{name} -->"
            text = re.sub(rf"<!-- {name} -->.*<!-- /{name} -->", lambda _, part=part: part, text, flags=re.S)
        write_atomic(ROOT / page, text)


PAGES = ("README.md", "docs/scaling.md", "docs/findings.md")
#: name of the table in one of these pages -> where it is read from, and how it is written
README_TABLES = {
    "results": ("nfe_vs_quality.csv", readme_table), "exactness": ("bench/exactness.csv", exactness_table),
    "peers": ("bench/quality_vs_peers.csv", peers_table), "self_anchor": ("bench/self_anchor.csv", self_anchor_table),
    "tuning": ("bench/tuning.csv", tuning_table), "claims": ("claims.csv", claims_table),
    "speed_short": ("bench/speed.csv", speed_short_table), "speed": ("bench/speed.csv", speed_table),
    "compiling": ("bench/speed.csv", compiling_table), "sampling": ("bench/speed.csv", sampling_table),
    "threads": ("bench/speed.csv", threads_table), "precision": ("bench/precision.csv", precision_table),
    "cost": ("bench/cost.csv", cost_table)}


def quick() -> None:
    run = ROOT / "results" / "runs" / "quick"
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    if manifest["status"] != "ok" or manifest["dirty"]:
        sys.exit(f"{run} must be a whole run of a clean checkout: its status is {manifest['status']}")
    write_atomic(REFERENCE / "quick.csv", (run / "results.csv").read_text(encoding="utf-8"))
    write_atomic(REFERENCE / "quick.manifest.json", json.dumps(manifest, indent=2) + "\n")


def sums() -> None:
    files = sorted(f.relative_to(REFERENCE).as_posix() for f in REFERENCE.rglob("*") if f.is_file() and f.name != SUMS)
    write_atomic(REFERENCE / SUMS, "".join(f"{sha256(REFERENCE / name)}  {name}\n" for name in files))


STEPS = {"plane": plane, "images": images, "models": models, "table": table, "quick": quick, "readme": readme, "sums": sums}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    steps = sys.argv[1:] or list(STEPS)
    if steps[0] == "train":
        train(steps[1:])
    elif set(steps) <= set(STEPS):
        for step in steps:
            STEPS[step]()
    else:
        sys.exit(f"expected {', '.join(STEPS)} or train, got {' '.join(steps)}")
