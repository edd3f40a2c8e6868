"""What raises the quality of few jumps on images? ``python experiments/tuning.py``

IntegralIdentity on the rectified path, Fashion-MNIST, the U-Net and settings of the shipped model
(``studies.image_setup``), with one thing changed at a time. Quality is the Frechet distance on the classifier's features
of 2,000 samples to the *training* images, so that the test images stay unused until something has been chosen.
``evaluations`` is what the run cost, in network evaluations per example and step (a backward pass counts as two), times
steps. Warm variants and those with a teacher start from the shipped velocity model (12,000 steps of FlowMatching on the
same data), whose cost comes on top.

Writes tuning.csv and .manifest.json into --out (results/reference/bench); finished runs are kept in results/runs/tuning and
not trained again, and rows of the committed table are kept. --variants runs some of them, or none.
"""

import dataclasses
import json
from functools import partial

import pandas as pd

import iflow_lib as ifl
from experiments.common import calls_per_step, kept, parser, save
from iflow_lib import data as data_sets
from iflow_lib import metrics
from iflow_lib import zoo as studies

NFES, POINTS = (1, 2, 4, 8), 2000
SHIPPED = {
    "velocity model, Euler": "rectified_velocity",
    "shipped model: teacher": "rectified_integral",
}
#: name -> (how it starts, changes of the objective, changes of the configuration). "cold": from nothing; "warm": from the
#: shipped velocity model's weights; "teacher": also with that model's velocity in the target, ``studies.image_setup``.
#: Committed rows of the first two kinds are of networks with six octaves of t - s, those of the third have two.
VARIANTS = {
    "base": ("cold", {}, {}),
    "warm": ("warm", {}, {}),
    "warm, power 0": ("warm", {"power": 0.0}, {}),
    "warm, power 1": ("warm", {"power": 1.0}, {}),
    "warm, equal 0.25": ("warm", {"equal_share": 0.25}, {}),
    "warm, equal 0.75": ("warm", {"equal_share": 0.75}, {}),
    "warm, ends 0.3": ("warm", {"start_share": 0.3, "end_share": 0.3}, {}),
    "warm, times (0, 1.6)": ("warm", {"time_density": (0.0, 1.6)}, {}),
    "warm, lr 5e-4": ("warm", {}, {"lr": 5e-4}),
    "warm, lr 2e-3": ("warm", {}, {"lr": 2e-3}),
    "warm, ema 0.9995": ("warm", {}, {"ema": 0.9995}),
    "warm, conditional tangent": ("warm", {"tangent": "conditional"}, {}),
    "teacher": ("teacher", {}, {}),
    "teacher, perceptual 0": ("teacher", {"perceptual": 0.0}, {}),
    "teacher, perceptual 0.3": ("teacher", {"perceptual": 0.3}, {}),
    "teacher, perceptual 3": ("teacher", {"perceptual": 3.0}, {}),
    "teacher, perceptual 0, detail 0": ("teacher", {"perceptual": 0.0, "detail": 0.0}, {}),
    "teacher, perceptual 0, detail 0, ends 0.3": (
        "teacher",
        {"start_share": 0.3, "end_share": 0.3, "perceptual": 0.0, "detail": 0.0},
        {},
    ),
    "teacher, detail 0": ("teacher", {"detail": 0.0}, {}),
    "teacher, detail 5": ("teacher", {"detail": 5.0}, {}),
    "teacher, ends 0.3": ("teacher", {"start_share": 0.3, "end_share": 0.3}, {}),
    "teacher, ends 0.05": ("teacher", {"start_share": 0.05, "end_share": 0.05}, {}),
    "teacher, equal 0.1": ("teacher", {"equal_share": 0.1}, {}),
    "teacher, equal 0.5": ("teacher", {"equal_share": 0.5}, {}),
    "teacher, power 0.75": ("teacher", {"power": 0.75}, {}),
    "teacher, lr 1e-3": ("teacher", {}, {"lr": 1e-3}),
    "teacher, ema 0.99": ("teacher", {}, {"ema": 0.99}),
    "teacher, ema 0.9999": ("teacher", {}, {"ema": 0.9999}),
}


def measured(model, method: str, nfes) -> dict:
    """{nfe: Frechet distance to the training images}."""
    real = metrics.embed(data_sets.load("fashion_mnist"))
    return {
        nfe: metrics.frechet_distance(
            metrics.embed(ifl.sample(model, POINTS, nfe, method, 1).x), real
        )
        for nfe in nfes
    }


def shipped(system: str) -> dict:
    """A shipped model: the velocity model by Euler steps, to be beaten with fewer calls, or the one that jumps."""
    model, manifest = studies.pretrained(system), studies.training_manifest(system)
    found = (
        measured(model, "euler", (*NFES, 16, 32))
        if system.endswith("velocity")
        else measured(model, "map", NFES)
    )
    return {"frechet": found, "evaluations": evaluations(system, manifest), "manifest": manifest}


def evaluations(system: str, manifest: dict) -> float:
    """Network evaluations per example of the training that a manifest tells of, the stage before it included."""
    before = manifest.get("before", {"steps_done": 0})
    velocity = (
        studies.pretrained("rectified_velocity").float() if system.endswith("integral") else None
    )
    settings = {
        name: manifest["objective"][name]
        for name in ("equal_share", "perceptual", "matching")
        if name in manifest["objective"]
    }
    objective = dataclasses.replace(studies.image_setup(system, velocity)[1], **settings)
    own = calls_per_step(objective) * (manifest["steps_done"] - before["steps_done"])
    return own + (evaluations(system, before) if before["steps_done"] else 0)


def train(variant: str, steps: int) -> dict:
    start, of_objective, of_config = VARIANTS[variant]
    velocity = None if start == "cold" else studies.pretrained("rectified_velocity").float()
    model, objective, settings = studies.image_setup(
        "rectified_integral", velocity if start == "teacher" else None
    )
    if start == "warm":
        model.load_state_dict(velocity.state_dict())
    objective = dataclasses.replace(objective, **of_objective)
    config = ifl.TrainConfig(**{**settings, **of_config}, steps=steps, device="cpu", progress=False)
    trained = ifl.fit(model, objective, data_sets.load("fashion_mnist"), config)
    return {
        "frechet": measured(trained.model, "map", NFES),
        "evaluations": calls_per_step(objective) * steps,
        "manifest": trained.manifest,
    }


def main() -> None:
    options = parser(__doc__, steps=4000)
    options.add_argument("--variants", nargs="*", default=tuple(VARIANTS), choices=VARIANTS)
    arguments = options.parse_args()
    file, rows, manifests = arguments.out / "tuning.csv", [], {}
    if file.is_file():
        earlier = pd.read_csv(file)
        again = earlier.variant.isin(arguments.variants) & (earlier.steps == arguments.steps)
        rows = earlier[~again].to_dict("records")
        manifests = json.loads(file.with_suffix(".manifest.json").read_text(encoding="utf-8"))[
            "runs"
        ]
    known = [row["variant"] for row in rows]
    jobs = [
        (name, partial(shipped, system)) for name, system in SHIPPED.items() if name not in known
    ]
    for variant, job in jobs + [
        (variant, partial(train, variant, arguments.steps)) for variant in arguments.variants
    ]:
        name = f"{variant.replace(', ', '_').replace(' ', '')}-{arguments.steps}"
        done = kept(arguments.runs / "tuning", name, job)
        manifests[name] = done["manifest"]
        rows += [
            {
                "variant": variant,
                "steps": done["manifest"]["steps_done"],
                "nfe": int(nfe),
                "frechet_to_train": value,
                "evaluations": done["evaluations"],
                "seconds": done["manifest"]["seconds"],
            }
            for nfe, value in done["frechet"].items()
        ]
        print(name, {nfe: round(value, 2) for nfe, value in done["frechet"].items()}, flush=True)
    table = save(arguments.out, "tuning", rows, {"runs": manifests})
    print(
        table.pivot(index=["variant", "steps"], columns="nfe", values="frechet_to_train")
        .round(2)
        .to_string()
    )


if __name__ == "__main__":
    main()
