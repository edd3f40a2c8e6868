"""What raises the quality of few jumps on images? ``python -m experiments.tuning``

IntegralIdentity on the rectified path, Fashion-MNIST, the U-Net and settings of the shipped model
(``zoo.System``), with one thing changed at a time. Quality is the Frechet distance on the classifier's features
of 2,000 samples to the *training* images, so that the test images stay unused until something has been chosen.
``evaluations`` is what the run cost, in network evaluations per example and step (a backward pass counts as two), times
steps. Warm variants and those with a teacher start from the shipped velocity model (12,000 steps of FlowMatching on the
same data), whose cost comes on top.

Writes tuning.csv and .manifest.json into --out (results/reference/bench), where rows of the table that stands there stay.
--variants runs some of them, or none.
"""

import dataclasses
from functools import cache

import pandas as pd

import iflow_lib as ifl
from experiments.common import CHECKPOINTS, calls_per_step, command_line, finished
from experiments.store import Store, read_manifest, write_table
from iflow_lib import data as data_sets
from iflow_lib import metrics, zoo

NFES, POINTS = (1, 2, 4, 8), 2000
SHIPPED = {
    "velocity model, Euler": "rectified_velocity",
    "shipped model: teacher": "rectified_integral",
}
#: name -> (how it starts, changes of the objective, changes of the configuration). "cold": from nothing; "warm": from the
#: shipped velocity model's weights; "teacher": also with that model's velocity in the target, ``zoo.train``.
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


@cache
def training_features():
    return metrics.embed(data_sets.load("fashion_mnist"))


def measured(model, method: str, nfes) -> list[dict]:
    """Rows with the Frechet distance to the training images."""
    real = training_features()
    drawn = {nfe: ifl.sample(model, POINTS, nfe, method, 1).x for nfe in nfes}
    return [
        {"nfe": nfe, "frechet_to_train": metrics.frechet_distance(metrics.embed(x), real)}
        for nfe, x in drawn.items()
    ]


def velocity_model() -> ifl.FlowMap:
    """The shipped velocity model, from which warm variants start and by which others are taught."""
    return zoo.pretrained("rectified_velocity", CHECKPOINTS).float()


def shipped(system: str) -> tuple[list[dict], dict]:
    """A shipped model: the velocity model by Euler steps, to be beaten with fewer calls, or the one that jumps."""
    model = zoo.pretrained(system, CHECKPOINTS)
    manifest = zoo.training_manifest(system, CHECKPOINTS)
    jumps = system.endswith("integral")
    found = measured(model, "map", NFES) if jumps else measured(model, "euler", (*NFES, 16, 32))
    cost = {"evaluations": evaluations(system, manifest)}
    return [row | cost for row in found], manifest


def evaluations(system: str, manifest: dict) -> float:
    """Network evaluations per example of the training that a manifest tells of, the stage before it included."""
    before = manifest.get("before", {"steps_done": 0})
    teacher = velocity_model() if system.endswith("integral") else None
    names = ("equal_share", "perceptual", "matching")
    settings = {n: manifest["objective"][n] for n in names if n in manifest["objective"]}
    objective = dataclasses.replace(zoo.System.parse(system).objective(teacher), **settings)
    own = calls_per_step(objective) * (manifest["steps_done"] - before["steps_done"])
    return own + (evaluations(system, before) if before["steps_done"] else 0)


def train(variant: str, steps: int) -> tuple[list[dict], dict]:
    """Rows and manifest of one variant."""
    start, of_objective, of_config = VARIANTS[variant]
    system = zoo.System.parse("rectified_integral")
    teacher = velocity_model() if start == "teacher" else None
    objective = dataclasses.replace(system.objective(teacher), **of_objective)
    model = system.model()
    if start != "cold":
        model.load_state_dict(velocity_model().state_dict())
    settings = system.settings | ({"lr": zoo.TAUGHT_LR} if teacher else {}) | of_config
    config = ifl.TrainConfig(**settings, steps=steps, device="cpu", progress=False)
    run = finished(ifl.fit(model, objective, data_sets.load(system.data), config))
    cost = {"evaluations": calls_per_step(objective) * steps}
    return [row | cost for row in measured(run.model, "map", NFES)], run.manifest


def main(arguments=None) -> None:
    options = command_line(__doc__, steps=4000)
    options.add_argument("--variants", nargs="*", default=tuple(VARIANTS), choices=VARIANTS)
    given = options.parse_args(arguments)
    file, rows, manifests = given.out / "tuning.csv", [], {}
    if file.is_file():
        earlier = pd.read_csv(file)
        again = earlier.variant.isin(given.variants) & (earlier.steps == given.steps)
        rows, manifests = earlier[~again].to_dict("records"), read_manifest(file)["runs"]
    known = {row["variant"] for row in rows}
    runs = {
        name: (shipped, {"system": system}) for name, system in SHIPPED.items() if name not in known
    }
    runs |= {name: (train, {"variant": name, "steps": given.steps}) for name in given.variants}
    for variant, run in Store(given.runs / "tuning").get_all(runs).items():
        manifests[f"{variant}-{given.steps}"] = how = run.manifest
        base = {"variant": variant, "steps": how["steps_done"]}
        rows += [base | row | {"seconds": how["seconds"]} for row in run.rows]
    table = write_table(given.out, "tuning", rows, runs=manifests)
    wide = table.pivot(index=["variant", "steps"], columns="nfe", values="frechet_to_train")
    print(wide.round(2).to_string())


if __name__ == "__main__":
    main()
