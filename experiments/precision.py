"""Is a faster step as good? ``python experiments/precision.py``

IntegralIdentity with its exact derivative (forward mode), with the central difference that a CPU takes by default, and with
the exact one in bfloat16 autocast. Otherwise the same: two sets in the plane, MLP 128 x 4, batch 512, Adam 2e-3 with half a
cosine, EMA 0.999, seeds. Exact W2 of one jump, 2,000 samples against 2,000 fresh points, mean of ``--draws`` draws.

Writes precision.csv and .manifest.json into --out (results/reference/bench); finished runs are kept in
results/runs/precision and not trained again.
"""

import itertools
from functools import partial

import torch

import iflow_lib as ifl
from experiments.common import distances, kept, parser, save
from iflow_lib import data as data_sets

SETS, POINTS = ("eight_gaussians", "checkerboard"), 2000
VARIANTS = {
    "jvp": ("jvp", "float32"),
    "difference": ("difference", "float32"),
    "jvp, bfloat16": ("jvp", "bfloat16"),
}


def train(dataset: str, variant: str, seed: int, steps: int, draws: int) -> dict:
    derivative, precision = VARIANTS[variant]
    torch.manual_seed(seed)
    model = ifl.FlowMap(ifl.MLP(dim=2, hidden=128, layers=4), ifl.RectifiedFlow())
    config = ifl.TrainConfig(
        steps=steps,
        batch_size=512,
        lr=2e-3,
        seed=seed,
        device="cpu",
        precision=precision,
        progress=False,
    )
    trained = ifl.fit(
        model, ifl.IntegralIdentity(derivative=derivative), data_sets.load(dataset), config
    )
    found = distances(
        lambda k: ifl.sample(trained.model, POINTS, 1, "map", k).x, dataset, seed, draws
    )
    return {"w2": found, "manifest": trained.manifest}


def main() -> None:
    options = parser(__doc__, steps=4000, seeds=6, draws=10)
    options.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    arguments = options.parse_args()
    rows, manifests, steps, draws = [], {}, arguments.steps, arguments.draws
    for seed, dataset, variant in itertools.product(
        range(arguments.seeds), arguments.sets, VARIANTS
    ):
        name = f"{dataset}-{variant.replace(', ', '_')}-{steps}-{draws}-{seed}"
        done = kept(
            arguments.runs / "precision", name, partial(train, dataset, variant, seed, steps, draws)
        )
        manifests[name] = done["manifest"]
        value = sum(done["w2"]) / draws
        rows.append(
            {
                "dataset": dataset,
                "variant": variant,
                "seed": seed,
                "steps": steps,
                "nfe": 1,
                "w2": value,
                "seconds": done["manifest"]["seconds"],
            }
        )
        print(f"{name}: W2 {value:.4f}", flush=True)
    table = save(arguments.out, "precision", rows, manifests)
    print(table.groupby(["dataset", "variant"]).w2.agg(["mean", "min", "max"]).round(4).to_string())


if __name__ == "__main__":
    main()
