"""Make what results/reference has beside the benchmarks' tables: ``python experiments/make_reference.py [STEP ...]``, all if none
is named:

models: train small models of the eight Gaussians, one of each kind, for notebooks and figures; quick: take the table of the
last `iflow reproduce`, results/runs/quick, for `iflow verify`; readme: the tables in README.md and docs/, from plane.csv,
images.csv, claims.csv and results/reference/bench (see benchmarks/ and experiments/claims.py); sums: SHA256SUMS, the checksums
that `iflow verify` checks. To train the image models again: ``... train [SYSTEM ...]``.
"""

import json
import re
import sys
import warnings
from pathlib import Path

import pandas as pd
import torch

from iflow_lib import plotting
from iflow_lib import zoo as studies
from iflow_lib.io import write_atomic
from iflow_lib.metrics import interval
from iflow_runner.provenance import sha256
from iflow_runner.verify import SUMS

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference"
SETS, PATHS = plotting.SETS, plotting.PATHS
WANTED = {
    1: 8,
    2: 16,
    4: 32,
}  # jumps -> Euler steps of the velocity model on the same path that they should match


def models() -> None:
    """One model of each kind, trained as those of plane.csv with seed 0."""
    for kind in studies.KINDS:
        system, dataset = f"rectified_{kind}", "eight_gaussians"
        folder = REFERENCE / "checkpoints" / f"{dataset}_{system}"
        if folder.is_dir():
            continue
        run = studies.train_plane(system, dataset, seed=0, steps=studies.PLANE_STEPS)
        rows = studies.evaluate_plane(run, system, dataset, nfes=(1, 2, 8), draws=3)
        measured = "\n".join(
            f"| {r['method']} | {r['nfe']} | {r['metric']} | {r['value']:.3f} |" for r in rows
        )
        card = f"""# {dataset}, {system}

Eight Gaussians in the plane, {run.manifest["path"]["name"]}, `{run.manifest["objective"]}`.

- {studies.PLANE_STEPS:,} steps of batch 512, seed 0, {run.manifest["seconds"]:.0f} seconds on {run.manifest["hardware"]};
  {run.model.parameter_count:,} parameters, stored as float16.
- For notebooks and figures.

Means of three draws of 2,000 points:

| method | nfe | metric | value |
|---|---|---|---|
{measured}
"""
        run.model.save_pretrained(
            folder, card=card, dtype=torch.float16, system=system, manifest=run.manifest
        )
        print(folder.name, flush=True)


def train(systems) -> None:
    for system in systems or (*studies.SYSTEMS, *studies.EMOJI_SYSTEMS):
        studies.train_images(system, REFERENCE / "checkpoints" / system)


def spread(values: pd.Series, digits: int = 2) -> str:
    """Mean, plus or minus half the range."""
    return f"{values.mean():.{digits}f} ± {(values.max() - values.min()) / 2:.{digits}f}"


def plane_table(table: pd.DataFrame) -> str:
    """experiments/plane.py in README.md: W2 over its floor, seeds; and the median over the sets of their means."""
    floor = table[table.method == "floor"].groupby("dataset").value.mean()
    rows = table[
        (table.metric == "w2")
        & (table.step == studies.PLANE_STEPS)
        & (table.objective != "X0Regression")
    ]
    rows = rows.assign(ratio=rows.value / rows.dataset.map(floor))
    lines = [
        "| W2 / floor | network calls | " + " | ".join(SETS.values()) + " | median |",
        "|---" * 8 + "|",
    ]

    def line(name: str, part: pd.DataFrame, nfe: int) -> None:
        part = part[part.nfe == nfe]
        cells = [part[part.dataset == dataset].ratio for dataset in SETS]
        lines.append(
            f"| {name} | {nfe} | "
            + " | ".join(spread(cell) for cell in cells)
            + f" | {pd.Series([cell.mean() for cell in cells]).median():.2f} |"
        )

    for nfe in (1, 4, 16, 100):
        line(
            "Rectified Flow, Euler",
            rows[(rows.path == "rectified") & (rows.method == "euler")],
            nfe,
        )
    for objective, name in (
        ("IntegralIdentity", "Integration Flow"),
        ("IntegralAdditivity", "integral additivity"),
        ("ConsistencyTraining", "consistency training"),
    ):
        for path, shown in PATHS.items():
            for nfe in (1, 2) if objective == "IntegralIdentity" else (1,):
                line(
                    f"{name}, {shown}",
                    rows[(rows.path == path) & (rows.objective == objective)],
                    nfe,
                )
    return "\n".join(lines)


def images_table(table: pd.DataFrame) -> str:
    """experiments/images.py in README.md; in bold where jumps reach what Euler steps of the same path have to show."""
    metrics_, table = (
        ("frechet", "kernel", "precision", "recall"),
        table[table.dataset == "fashion_mnist"],
    )
    value = table.pivot_table(index=["path", "method", "nfe"], columns="metric", values="value")
    floor = table[table.method == "floor"].set_index("metric").value
    lines = [
        "| Fashion-MNIST | network calls | Frechet | kernel | precision | recall |",
        "|---|---|---|---|---|---|",
    ]
    for path, shown in PATHS.items():
        for method, name in (("euler", "velocity, Euler"), ("map", "Integration Flow")):
            for nfe in value.loc[path, method].index:
                row, wanted = (
                    value.loc[path, method, nfe],
                    WANTED.get(nfe) if method == "map" else None,
                )
                cells = [f"{row[m]:.{3 if m == 'kernel' else 2}f}" for m in metrics_]
                if wanted and row.frechet <= value.loc[path, "euler", wanted].frechet:
                    cells[0] = f"**{cells[0]}**"
                lines.append(f"| {name}, {shown} | {nfe:.0f} | " + " | ".join(cells) + " |")
    cells = " | ".join(f"{floor[m]:.{3 if m in metrics_[:2] else 2}f}" for m in metrics_)
    return "\n".join([*lines, f"| floor: data against data | | {cells} |"])


def exactness_table(table: pd.DataFrame) -> str:
    """experiments/exactness.py in README.md: the largest of the four paths' relative RMS errors, means over seeds."""
    shown = {
        "velocity": "the velocity",
        "flow_map": "the jump from t_max to 0",
        "posterior_mean": "the posterior mean",
    }
    found = table.groupby(["objective", "quantity", "dim", "path"], sort=False).relative_rms.mean()
    worst = found.groupby(["objective", "quantity", "dim"], sort=False).max().unstack("dim")
    lines = [
        "| trained with | learns | " + " | ".join(f"in {dim} dimensions" for dim in worst) + " |",
        "|---|---|---|---|",
    ]
    for (objective, quantity), row in worst.iterrows():
        if quantity in shown:
            cells = " | ".join(f"{100 * value:.1f} %" for value in row)
            lines.append(f"| {objective} | {shown[quantity]} | {cells} |")
    return "\n".join(lines)


def self_anchor_table(table: pd.DataFrame) -> str:
    """experiments/self_anchor.py in README.md: W2 without and with the anchor, and the difference with its 95 % interval."""
    lines = [
        '| | network calls | no anchor | anchor="self" | difference |',
        "|---|---|---|---|---|",
    ]
    for (dataset, path, nfe), rows in table[table.nfe.isin([1, 2, 4])].groupby(
        ["dataset", "path", "nfe"], sort=False
    ):
        none, own = (
            rows[rows.anchor == a].sort_values("seed").w2.to_numpy() for a in ("none", "self")
        )
        half = interval(own - none)
        name = f"{dataset.replace('_', ' ').replace('gaussians', 'Gaussians')}, {PATHS[path]}"
        lines.append(
            f"| {name} | {nfe} | {none.mean():.3f} | {own.mean():.3f} | {(own - none).mean():+.3f} ± {half:.3f} |"
        )
    return "\n".join(lines)


def peers_table(table: pd.DataFrame) -> str:
    """The comparison with the neighbours in README.md, from experiments/quality_vs_peers.py: means over seeds, plus or minus
    half their range. A search that ends at the defaults has no line of its own."""
    sets = {"eight_gaussians": "eight Gaussians", "checkerboard": "checkerboard"}
    lines = [
        "| one network call | settings | " + ", W2 | ".join(sets.values()) + ", W2 |",
        "|---|---|---|---|",
    ]
    for method, rows in table[table.role != "search"].groupby("method", sort=False):
        for role in rows.role.unique():
            cells, variants = [], []
            for dataset in sets:
                part = rows[(rows.dataset == dataset) & (rows.role == role)]
                spread = f" ± {(part.w2.max() - part.w2.min()) / 2:.3f}" if len(part) > 1 else ""
                cells.append(f"{part.w2.mean():.3f}{spread}")
                variants.append(part.variant.iloc[0])
            if (
                role == "best found"
                and variants == list(rows[rows.role == "defaults"].variant.unique()) * 2
            ):
                continue
            settings = (
                role
                if role != "best found"
                else "best found: " + "; then ".join(dict.fromkeys(variants))
            )
            lines.append(
                f"| {method} | {settings if role != 'floor' else ''} | " + " | ".join(cells) + " |"
            )
    return "\n".join(lines)


def claims_table(table: pd.DataFrame) -> str:
    """experiments/claims.py in README.md: statements, verdicts and the pictures that are drawn."""
    lines = ["| claim | verdict | |", "|---|---|---|"]
    for row in table.itertuples():
        drawn = row.verdict != "open" and (ROOT / row.picture).is_file()
        lines.append(
            f"| {row.statement} | {row.verdict} | "
            + (f"[picture]({row.picture}) |" if drawn else "|")
        )
    return "\n".join(lines)


def tuning_table(table: pd.DataFrame) -> str:
    """experiments/tuning.py in docs/findings.md."""
    wide = table.pivot(index=["variant", "steps"], columns="nfe", values="frechet_to_train")
    lines = [
        "| | steps | " + " | ".join(f"{nfe} call{'s' * (nfe > 1)}" for nfe in wide) + " |",
        "|---|---" + "|---" * wide.shape[1] + "|",
    ]
    for variant, steps in dict.fromkeys(zip(table.variant, table.steps)):
        cells = " | ".join(
            "" if pd.isna(value) else f"{value:.1f}" for value in wide.loc[(variant, steps)]
        )
        lines.append(f"| {variant} | {steps:,} | {cells} |")
    return "\n".join(lines)


METHODS = {
    "FlowMatching": "velocity, Euler",
    "ConsistencyTraining": "consistency training",
    "IntegralAdditivity": "integral additivity",
    "IntegralIdentity": "integral identity",
    "X0Regression": "recipe",
}


def image_methods_table(table: pd.DataFrame) -> str:
    """experiments/image_methods.py in docs/findings.md: Frechet distance, mean of the seeds and half their range."""
    rows = table[
        (table.dataset == "fashion_mnist") & (table.metric == "frechet") & (table.method != "floor")
    ]
    lines = [
        "| Fashion-MNIST, Frechet distance | network calls | " + " | ".join(PATHS.values()) + " |",
        "|---" * 5 + "|",
    ]
    for objective, name in METHODS.items():
        for anchor in rows[rows.objective == objective].anchor.unique():
            part = rows[(rows.objective == objective) & (rows.anchor == anchor)]
            for nfe in sorted(part.nfe.unique()):
                cells = [part[(part.path == path) & (part.nfe == nfe)].value for path in PATHS]
                shown = [
                    f"{c.mean():.3g} ± {(c.max() - c.min()) / 2:.2g}"
                    if c.notna().all() and c.mean() < 1000
                    else "over 1000"
                    for c in cells
                ]
                told = (
                    ""
                    if anchor == "none" and objective != "X0Regression"
                    else f", {anchor.replace('_', ' ')}"
                )
                lines.append(f"| {name}{told} | {nfe:.0f} | " + " | ".join(shown) + " |")
    floor = table[(table.method == "floor") & (table.metric == "frechet")].value
    return "\n".join([*lines, f"| floor: data against data | | {spread(floor)} | | |"])


def budget_table(_: pd.DataFrame) -> str:
    """What a run of plane.csv and of image_methods.csv cost, in docs/findings.md: medians of the manifests' runs."""
    settings = {
        "plane": (f"steps{studies.PLANE_STEPS}", studies.PLANE_STEPS),
        "image_methods": ("width16/steps1500", 1500),
    }
    cost = {}
    for name, (part, steps) in settings.items():
        runs = json.loads((REFERENCE / f"{name}.manifest.json").read_text(encoding="utf-8"))["runs"]
        for run, how in runs.items():
            if f"/{part}/" in run and not run.startswith("emoji"):
                kind = run.split("/")[1].split("_", 1)[1]
                cost.setdefault((kind, name), []).append(
                    (steps, steps * how["calls_per_step"], how["seconds"])
                )
    lines = [
        "| | plane: steps | network evaluations | seconds | images: steps | network evaluations | seconds |",
        "|---" * 7 + "|",
    ]
    for kind in studies.KINDS:
        known = [
            pd.DataFrame(cost.get((kind, name), [[float("nan")] * 3])).median() for name in settings
        ]
        cells = ["" if pd.isna(value) else f"{value:,.0f}" for found in known for value in found]
        lines.append(f"| `{kind}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def emoji_table(table: pd.DataFrame) -> str:
    """The emoji of experiments/image_methods.py in docs/findings.md: mean of the seeds and half their range."""
    table = table[table.dataset == "emoji"]
    lines = [
        "| emoji, rectified | network calls | Frechet, 64 components | sliced W2 |",
        "|---|---|---|---|",
    ]
    for objective, name in METHODS.items():
        part = table[table.objective == objective]
        for nfe, rows in part.groupby("nfe"):
            by = rows.groupby("metric").value
            lines.append(
                f"| {name} | {nfe:.0f} | "
                + " | ".join(
                    spread(by.get_group(metric), 3) for metric in ("frechet_pca", "sliced_w2")
                )
                + " |"
            )
    floor = table[table.method == "floor"].groupby("metric").value
    cells = " | ".join(
        spread(floor.get_group(metric), 3) for metric in ("frechet_pca", "sliced_w2")
    )
    return "\n".join([*lines, f"| floor: data against data | | {cells} |"])


def plane_tuning_table(table: pd.DataFrame) -> str:
    """experiments/plane_tuning.py in docs/findings.md: W2 over its floor, mean of paths and seeds, and what it is more than
    the defaults', same path and seed, with its 95 % interval; in bold where that leaves out 0. The best comes first."""
    rows, floor = table[table.method != "floor"], table[table.method == "floor"].value.mean()
    rows = rows.assign(ratio=rows.value / floor, variant=rows.run_id.str.split("/").str[0])
    values = rows.pivot_table(index=["variant", "path", "seed"], columns="nfe", values="ratio")
    lines = [
        "| | "
        + " | ".join(f"{nfe:.0f} call{'s' * (nfe > 1)} | more than the defaults" for nfe in values)
        + " |",
        "|---" * (1 + 2 * values.shape[1]) + "|",
    ]
    for variant in values[values.columns[0]].groupby("variant").mean().sort_values().index:
        cells = []
        for nfe in values:
            apart = (values.loc[variant, nfe] - values.loc["defaults", nfe]).dropna()
            told = f"{apart.mean():+.2f} ± {interval(apart):.2f}" if variant != "defaults" else ""
            told = f"**{told}**" if abs(apart.mean()) > interval(apart) else told
            cells += [f"{values.loc[variant, nfe].mean():.2f}", told]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def recipe_table(table: pd.DataFrame) -> str:
    """The search of experiments/recipe.py in docs/findings.md."""
    rows = table[table.part == "search"]
    wide = rows.pivot(index=["rule", "setting"], columns="nfe", values="w2_over_floor")
    first = rows[rows.nfe == 1].set_index(["rule", "setting"])
    lines = [
        "| anchor | setting | "
        + " | ".join(f"W2 / floor, {nfe:.0f} call{'s' * (nfe > 1)}" for nfe in wide)
        + " | spread | explained by the anchor |",
        "|---|---" + "|---" * (wide.shape[1] + 2) + "|",
    ]
    for rule, setting in dict.fromkeys(zip(rows.rule, rows.setting)):
        row, one = wide.loc[(rule, setting)], first.loc[(rule, setting)]
        cells = [f"{v:.2f}" if v < 100 else "over 100" for v in row.dropna()] + [""] * int(
            row.isna().sum()
        )
        cells += [
            f"{one.spread:.2f}",
            "" if pd.isna(one.copy_share) else f"{100 * one.copy_share:.0f} %",
        ]
        name = "*integral identity*" if rule == "identity" else rule.replace("_", " ")
        lines.append(f"| {name} | {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def straight_table(table: pd.DataFrame) -> str:
    """Straightness of experiments/recipe.py in docs/findings.md."""
    rows = table[table.part == "straight"].groupby("quantity", sort=False).value
    return "\n".join(
        ["| flow | S / E\\|Z_1 - Z_0\\|^2 |", "|---|---|"]
        + [f"| {name} | {spread(values, 3)} |" for name, values in rows]
    )


def _ratio(row) -> str:
    return "1" if row.low == row.high == 1 else f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})"


def speed_short_table(table: pd.DataFrame) -> str:
    """Training steps of experiments/speed.py in README.md: what is not compiled."""
    rows = _steps(table)
    lines = ["| one training step | MLP | U-Net |", "|---|---|---|"]
    for name in [
        n for n in rows if "compiled" not in n and ", self" not in n and "per_example" not in n
    ]:
        lines.append(f"| {name} | {rows[name]['MLP'].ratio:.2f} | {rows[name]['UNet'].ratio:.2f} |")
    return "\n".join(lines)


def _steps(table: pd.DataFrame) -> dict:
    """{contender: {network: its row}} of the part training."""
    part, out = table[table.part == "training"], {}
    for row in part.itertuples():
        out.setdefault(row.contender, {})[row.network] = row
    return out


def speed_table(table: pd.DataFrame) -> str:
    """Training steps and memory of experiments/speed.py in docs/scaling.md."""
    megabytes = table[table.part == "memory"].set_index(["network", "contender"]).megabytes
    lines = [
        "| one training step | MLP, ratio | steps a second | peak MB | U-Net, ratio | steps a second | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in _steps(table).items():
        cells = [
            cell
            for network in ("MLP", "UNet")
            for cell in (
                _ratio(found[network]),
                f"{found[network].per_second:.3g}",
                f"{megabytes[network, name]:.0f}" if (network, name) in megabytes.index else "",
            )
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compiling_table(table: pd.DataFrame) -> str:
    """What torch.compile costs and saves on this CPU, from experiments/speed.py."""
    lines = [
        "| | network | ratio, not compiled | ratio, compiled | first step, s | pays back after, steps |",
        "|---|---|---|---|---|---|",
    ]
    steps = _steps(table)
    for name in [n for n in steps if n.endswith(", compiled")]:
        for network, fast in steps[name].items():
            plain = steps[name.removesuffix(", compiled")][network]
            saved = plain.seconds - fast.seconds
            back = (
                f"{fast.first_step_seconds / saved:,.0f}"
                if saved > 0.01 * plain.seconds
                else "never"
            )
            lines.append(
                f"| {name.removesuffix(', compiled')} | {network} | {plain.ratio:.2f} | {fast.ratio:.2f} | "
                f"{fast.first_step_seconds:.0f} | {back} |"
            )
    return "\n".join(lines)


def sampling_table(table: pd.DataFrame) -> str:
    """``sample`` in experiments/speed.py: time against one jump that is not compiled, and samples a second."""
    part = table[table.part == "sampling"].set_index(["network", "batch", "nfe", "contender"])
    lines = [
        "| network | samples at once | calls | ratio | samples a second | ratio, compiled | samples a second |",
        "|---|---|---|---|---|---|---|",
    ]
    for network, batch, nfe in dict.fromkeys(key[:3] for key in part.index):
        cells = [
            cell
            for kind in ("eager", "compiled")
            for row in [part.loc[(network, batch, nfe, kind)]]
            for cell in (_ratio(row), f"{row.per_second:.3g}")
        ]
        lines.append(f"| {network} | {batch} | {nfe:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def threads_table(table: pd.DataFrame) -> str:
    """Two threads against one in experiments/speed.py."""
    lines = ["| weights x batch, millions | two threads against one |", "|---|---|"]
    for row in table[table.part == "threads"].itertuples():
        lines.append(f"| {row.params * row.batch / 1e6:.0f} | {_ratio(row)} |")
    return "\n".join(lines)


def precision_table(table: pd.DataFrame) -> str:
    """experiments/precision.py: W2 of one jump, and the difference from the exact derivative with its 95 % interval."""
    wide = table.pivot(index=["dataset", "seed"], columns="variant", values="w2")
    lines = ["| derivative, precision | W2 of one jump | against the exact one |", "|---|---|---|"]
    for name in table.variant.unique():
        apart = wide[name] - wide["jvp"]
        half = interval(apart)
        lines.append(
            f"| {name} | {wide[name].mean():.4f} | "
            + (f"{apart.mean():+.4f} ± {half:.4f} |" if half else " |")
        )
    return "\n".join(lines)


def runner_table(table: pd.DataFrame) -> str:
    """experiments/runner.py: what `iflow reproduce` costs beside papermill, and whether it loses anything."""
    overhead = table[table.part == "overhead"].pivot(
        index="run", columns="contender", values="value"
    )
    ratio = overhead["iflow reproduce"] / overhead["papermill"]
    killed = table[table.part == "killed"].set_index("contender").value
    again = table[table.part == "again"].value
    return "\n".join(
        [
            "| smoke profile, eleven notebooks | |",
            "|---|---|",
            f"| time of `iflow reproduce --fresh` against bare papermill, {len(ratio)} pairs in turns | {ratio.mean():.3f} "
            f"({ratio.min():.3f} to {ratio.max():.3f}) |",
            f"| the same again, nothing changed | {again.max():.1f} s at most, {again.max() / overhead.papermill.mean():.1%} "
            "of a run |",
            f"| rows of results that are the same after {killed['kills']:.0f} kills at random moments | "
            f"{killed['rows that are the same']:.0f} of {killed['rows of the undisturbed run']:.0f} |",
        ]
    )


def sweep_table(table: pd.DataFrame) -> str:
    """experiments/sweep.py: the time of a sweep with two workers against that with one, in the same pair."""
    two = table[table.workers == 2]
    lines = ["| pair | time with two workers against one |", "|---|---|"]
    lines += [f"| {row.repetition + 1} | {row.ratio:.2f} |" for row in two.itertuples()]
    return "\n".join([*lines, f"| median | {two.ratio.median():.2f} |"])


def cost_table(table: pd.DataFrame) -> str:
    """experiments/published.py cost."""
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
        (
            "weights, gradients, Adam, average (float32)",
            lambda r: f"{r.weights_bytes / 1e9:.2f} GB",
        ),
        (
            "kept for the backward pass, one image (float32)",
            lambda r: f"{r.kept_bytes_per_example / 1e6:.0f} MB",
        ),
        ("data set (float32)", lambda r: f"{r.data_bytes / 1e9:.2f} GB"),
        (
            "anchor store, N x dims, float32 / float16",
            lambda r: f"{r.anchor_bytes_float32 / 1e9:.2f} / {r.anchor_bytes_float16 / 1e9:.2f} GB",
        ),
    ):
        lines.append(f"| {title} | " + " | ".join(cell(row) for row in table.itertuples()) + " |")
    return "\n".join(lines)


def readme() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, (file, make) in README_TABLES.items():
            if f"<!-- {name} -->" not in text:
                continue
            part = f"<!-- {name} -->\n{make(pd.read_csv(REFERENCE / file))}\n<!-- /{name} -->"
            text = re.sub(
                rf"<!-- {name} -->.*<!-- /{name} -->", lambda _, part=part: part, text, flags=re.S
            )
        write_atomic(ROOT / page, text)


PAGES = ("README.md", "docs/scaling.md", "docs/findings.md")
#: name of the table in one of these pages -> where it is read from, and how it is written
README_TABLES = {
    "plane": ("plane.csv", plane_table),
    "images": ("images.csv", images_table),
    "exactness": ("bench/exactness.csv", exactness_table),
    "peers": ("bench/quality_vs_peers.csv", peers_table),
    "self_anchor": ("bench/self_anchor.csv", self_anchor_table),
    "recipe": ("bench/recipe.csv", recipe_table),
    "straight": ("bench/recipe.csv", straight_table),
    "image_methods": ("image_methods.csv", image_methods_table),
    "emoji": ("image_methods.csv", emoji_table),
    "budget": ("image_methods.csv", budget_table),
    "plane_tuning": ("bench/plane_tuning.csv", plane_tuning_table),
    "tuning": ("bench/tuning.csv", tuning_table),
    "claims": ("claims.csv", claims_table),
    "speed_short": ("bench/speed.csv", speed_short_table),
    "speed": ("bench/speed.csv", speed_table),
    "compiling": ("bench/speed.csv", compiling_table),
    "sampling": ("bench/speed.csv", sampling_table),
    "threads": ("bench/speed.csv", threads_table),
    "precision": ("bench/precision.csv", precision_table),
    "cost": ("bench/cost.csv", cost_table),
    "runner": ("bench/runner.csv", runner_table),
    "sweep": ("bench/sweep.csv", sweep_table),
}


def quick() -> None:
    run = ROOT / "results" / "runs" / "quick"
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    if manifest["status"] != "ok" or manifest["dirty"]:
        sys.exit(
            f"{run} must be a whole run of a clean checkout: its status is {manifest['status']}"
        )
    write_atomic(REFERENCE / "quick.csv", (run / "results.csv").read_text(encoding="utf-8"))
    write_atomic(REFERENCE / "quick.manifest.json", json.dumps(manifest, indent=2) + "\n")


def sums() -> None:
    files = sorted(
        f.relative_to(REFERENCE).as_posix()
        for f in REFERENCE.rglob("*")
        if f.is_file() and f.name != SUMS
    )
    write_atomic(
        REFERENCE / SUMS, "".join(f"{sha256(REFERENCE / name)}  {name}\n" for name in files)
    )


STEPS = {"models": models, "quick": quick, "readme": readme, "sums": sums}

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
