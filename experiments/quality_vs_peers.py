"""One-step quality beside rectified-flow-pytorch's MeanFlow and SplitMeanFlow. ``python experiments/quality_vs_peers.py``

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

Writes quality_vs_peers.csv and .manifest.json into --out (results/reference/bench); finished runs are kept in
results/runs/quality_vs_peers and not trained again. --steps, --seeds and --draws shorten it.
"""

import itertools
import random
import re
from dataclasses import dataclass
from functools import partial

import torch

import iflow_lib as ifl
from experiments.common import distances, kept, parser, save
from iflow_lib import data as data_sets
from iflow_lib import metrics
from iflow_lib.objectives import Objective

SETS = ("eight_gaussians", "checkerboard")
POINTS, SEARCH_SEED = 2000, 100
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


def train(method: str, variant: str, dataset: str, seed: int, steps: int, draws: int) -> dict:
    """Train one run and measure one jump: W2 of each draw."""
    torch.manual_seed(seed)
    random.seed(seed)
    model = ifl.FlowMap(ifl.MLP(dim=2, hidden=128, layers=4), ifl.RectifiedFlow())
    settings, ours = VARIANTS[method][variant], VARIANTS[method] is INTEGRAL
    if method == "IntegralIdentity":
        settings = {"derivative": "jvp", **settings}
    objective = getattr(ifl, method)(**settings) if ours else Peer(method, tuple(settings.items()))
    config = ifl.TrainConfig(
        steps=steps, batch_size=512, lr=2e-3, seed=seed, device="cpu", progress=False
    )
    trained = ifl.fit(model, objective, data_sets.load(dataset), config)

    def draw(k: int) -> torch.Tensor:
        if ours:
            return ifl.sample(trained.model, POINTS, 1, "map", k).x
        torch.manual_seed(k)
        peer, _ = objective.build(trained.model)
        return peer.sample(batch_size=POINTS, steps=1)

    return {"w2": distances(draw, dataset, seed, draws), "manifest": trained.manifest}


def main() -> None:
    options = parser(__doc__, steps=4000, seeds=3, draws=10)
    options.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    arguments = options.parse_args()
    rows, manifests, steps, draws = [], {}, arguments.steps, arguments.draws

    def run(role: str, dataset: str, method: str, variant: str, seed: int) -> float:
        name = re.sub(r"[ ,]+", "_", f"{dataset}-{method}-{variant}-{steps}-{draws}-{seed}")
        done = kept(
            arguments.runs / "quality_vs_peers",
            name,
            partial(train, method, variant, dataset, seed, steps, draws),
        )
        manifests[name] = done["manifest"]
        value = sum(done["w2"]) / len(done["w2"])
        rows.append(
            {
                "dataset": dataset,
                "method": method,
                "variant": variant,
                "role": role,
                "seed": seed,
                "steps": steps,
                "nfe": 1,
                "w2": value,
                "seconds": done["manifest"]["seconds"],
            }
        )
        print(f"{role:10} {name}: W2 {value:.4f}", flush=True)
        return value

    for dataset in arguments.sets:
        floor = metrics.real_floor(
            metrics.w2, metrics.real_pairs(dataset, POINTS), arguments.seeds * draws
        )
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
        for (method, variant, role), seed in itertools.product(chosen, range(arguments.seeds)):
            run(role, dataset, method, variant, seed)
    table = save(arguments.out, "quality_vs_peers", rows, manifests)
    shown = (
        table[table.role != "search"]
        .groupby(["dataset", "method", "role", "variant"], dropna=False)
        .w2
    )
    print(shown.agg(["mean", "min", "max"]).round(4).to_string())


if __name__ == "__main__":
    main()
