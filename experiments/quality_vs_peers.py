"""One-step quality beside rectified-flow-pytorch's MeanFlow and SplitMeanFlow. ``python -m experiments.quality_vs_peers``

Everything but the loss is the same: two sets in the plane, MLP 128 x 4 that sees t and t - s, batch 512, gradient steps,
Adam 2e-3 with half a cosine, EMA 0.999, seeds, and this package's ``fit`` around all of them. Measured as exact W2 of one
jump, 2,000 samples against 2,000 fresh points, mean of ``--draws`` draws; the floor is data against data, as often.

Every method is run with its defaults, and with the best of a small search on a seed that the comparison does not use:

- IntegralIdentity, IntegralAdditivity: weight ``power`` 0 (default) with its own times (default), 0.5 with its own times,
  0.5 with uniform times.
- MeanFlow: weight ``adaptive_loss_weight_p`` 0.5 (default), 1.0, or off; times logit-normal (-0.4, 1) (default) or uniform.
- SplitMeanFlow: as released, its time runs from noise (0) to data (1), its jumps go towards earlier times, so away from
  the data, and its one-step ``sample`` starts at time 1. So it has no trained jump from noise to data. "exchanged" gives
  it noise for data and data for noise, which turns its jumps round and makes that ``sample`` right. In its boundary
  term it also passes the time itself where the length of the jump belongs: "exchanged, boundary 0" passes 0 there.

Writes quality_vs_peers.csv and .manifest.json into --out (results/reference/bench). --steps, --seeds and --draws shorten it.
"""

import itertools
import random
from dataclasses import dataclass

import torch

import iflow_lib as ifl
from experiments.common import (
    choices,
    command_line,
    finished,
    mean_w2,
    plane_config,
    plane_model,
)
from experiments.store import Store, write_table
from iflow_lib import data as data_sets
from iflow_lib import metrics, zoo
from iflow_lib.objectives import Objective

SETS = ("eight_gaussians", "checkerboard")
SEARCH_SEED = 100
UNIFORM = {"use_logit_normal_sampler": False}
WEIGHTS = {
    "p 0.5": {},
    "p 1": {"adaptive_loss_weight_p": 1.0},
    "no weight": {"use_adaptive_loss_weight": False},
}
MEAN_FLOW = {
    f"{weight}, {times}": settings | extra
    for weight, settings in WEIGHTS.items()
    for times, extra in (("logit-normal", {}), ("uniform", UNIFORM))
}
SPLIT = {
    "as released": {},
    "exchanged": {"exchange": True},
    "exchanged, boundary 0": {"exchange": True, "zero_boundary": True},
}
INTEGRAL = {
    "p 0, own times": {},
    "p 0.5, own times": {"power": 0.5},
    "p 0.5, uniform": {"power": 0.5, "time_density": "uniform"},
}
VARIANTS = {
    "IntegralIdentity": INTEGRAL,
    "IntegralAdditivity": INTEGRAL,
    "MeanFlow": MEAN_FLOW,
    "SplitMeanFlow": SPLIT,
}


class Adapter(torch.nn.Module):
    """Our network under the peers' call ``model(x, t, t - s)``. zero_boundary: take ``model(x, t, t)`` as t - s = 0."""

    def __init__(self, model, zero_boundary: bool = False):
        super().__init__()
        self.model, self.zero_boundary = model, zero_boundary

    def forward(self, x, t, delta):
        if (
            self.zero_boundary and delta is t
        ):  # the boundary term passes the same tensor twice, no other call does
            return self.model(x, t, t)
        return self.model(x, t, t - delta)


@dataclass(frozen=True)
class Peer(Objective):
    """A peer's loss under our ``fit``. Its randomness is torch's and Python's global one, which ``train`` seeds."""

    kind: str
    settings: tuple = ()

    def build(self, model):
        import rectified_flow_pytorch as rfp

        settings = dict(self.settings)
        exchange, zero = settings.pop("exchange", False), settings.pop("zero_boundary", False)
        cls = {"MeanFlow": rfp.MeanFlow, "SplitMeanFlow": rfp.SplitMeanFlow}[self.kind]
        return cls(Adapter(model, zero), data_shape=model.data_shape, **settings), exchange

    def __call__(self, model, batch, generator=None):
        peer, exchange = self.build(model)
        x_0 = ifl.Batch.of(batch).x_0
        return peer(torch.randn_like(x_0), noise=x_0) if exchange else peer(x_0)


def train(
    dataset: str, method: str, variant: str, seed: int, steps: int, draws: int
) -> tuple[list[dict], dict]:
    """The row and the manifest of one run, measured at one jump."""
    random.seed(seed)
    model = plane_model(
        ifl.RectifiedFlow(), seed
    )  # and from here on torch's numbers are the peers'
    settings, ours = VARIANTS[method][variant], VARIANTS[method] is INTEGRAL
    if ours:  # with the defaults of before the search
        settings = zoo.PAIRS | settings
    if method == "IntegralIdentity":
        settings = {"derivative": "jvp", "tangent": "network", **settings}
    objective = getattr(ifl, method)(**settings) if ours else Peer(method, tuple(settings.items()))
    run = finished(ifl.fit(model, objective, data_sets.load(dataset), plane_config(steps, seed)))

    def draw(k: int) -> torch.Tensor:
        if ours:
            return ifl.sample(run.model, zoo.POINTS, 1, "map", k).x
        torch.manual_seed(k)
        peer, _ = objective.build(run.model)
        return peer.sample(batch_size=zoo.POINTS, steps=1)

    row = {"dataset": dataset, "method": method, "variant": variant, "seed": seed, "steps": steps}
    w2 = mean_w2(draw, dataset, seed, draws)
    return [row | {"nfe": 1, "w2": w2, "seconds": run.manifest["seconds"]}], run.manifest


def main(arguments=None) -> None:
    options = command_line(__doc__, steps=4000, seeds=3, draws=10)
    choices(options, "--sets", SETS)
    given = options.parse_args(arguments)
    rows, manifests, store = [], {}, Store(given.runs / "quality_vs_peers")

    def run(role: str, dataset: str, method: str, variant: str, seed: int) -> float:
        settings = {"dataset": dataset, "method": method, "variant": variant, "seed": seed}
        done = store.get(train, **settings, steps=given.steps, draws=given.draws)
        name = f"{dataset}/{method}/{variant}/seed{seed}"
        manifests[name] = done.manifest
        row = done.rows[0] | {"role": role}
        rows.append(row)
        print(f"{role:10} {name}: W2 {row['w2']:.4f}", flush=True)
        return row["w2"]

    for dataset in given.sets:
        pairs = metrics.real_pairs(dataset, zoo.POINTS)
        floor = metrics.real_floor(metrics.w2, pairs, given.seeds * given.draws)
        rows.append(
            {"dataset": dataset, "method": "data against data", "role": "floor", "w2": floor.mean}
        )
        chosen = []
        for method, variants in VARIANTS.items():
            searched = {v: run("search", dataset, method, v, SEARCH_SEED) for v in variants}
            chosen += [
                (method, next(iter(variants)), "defaults"),
                (method, min(searched, key=searched.get), "best found"),
            ]
        for (method, variant, role), seed in itertools.product(chosen, range(given.seeds)):
            run(role, dataset, method, variant, seed)
    table = write_table(given.out, "quality_vs_peers", rows, runs=manifests)
    shown = (
        table[table.role != "search"]
        .groupby(["dataset", "method", "role", "variant"], dropna=False)
        .w2
    )
    print(shown.agg(["mean", "min", "max"]).round(4).to_string())


if __name__ == "__main__":
    main()
