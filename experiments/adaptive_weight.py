"""Why additivity and terminal velocity collapsed with the adaptive weight. ``python -m experiments.adaptive_weight``

``power`` gives each example the weight ``1 / (|e|^2 + 1e-3)^p``. The target of the identity holds data wherever it is taken, so the
error e of all examples stays as large as the noise of the data. The targets of additivity and of terminal velocity are made of the
model alone where s < t. There e falls towards zero, for any model that agrees with itself, whatever it has learned; where s = t it
does not. So by its own error a pair weighs many times as much as the velocity that it is to agree with.

Digits 8x8, rectified, a U-Net of width 16, 800 steps of batch 64, three seeds: each objective without the weight, with that of its own
error, and with that of the error of the velocity, which the library takes. Frechet distance of 2,000 samples to the test images in 64
principal components over the variance in them, at 1, 2 and 4 jumps and after 32 Euler steps of the same model, and the mean weight of
pairs over that of examples with s = t, in the last step.

Writes adaptive_weight.csv and its manifest into --out (results/reference/bench). What --runs keeps is not run again.
"""

import itertools

import torch

import iflow_lib as ifl
from experiments.common import choices, command_line, excerpt, finished
from experiments.store import Store, write_runs
from iflow_lib import data, zoo

SHARED = {k: v for k, v in zoo.PAIRS.items() if k != "power"} | {"time_density": (0.0, 1.0)}
OBJECTIVES = {
    "IntegralIdentity": (ifl.IntegralIdentity, {"gap": 0.02, "tangent": "network"}),
    "IntegralAdditivity": (ifl.IntegralAdditivity, {}),
    "TerminalVelocity": (ifl.TerminalVelocity, {"derivative": "difference"}),
}
POWERS = (0.0, 0.5, 1.0)


def weighed_by(kind: type, own_error: bool) -> type:
    """The objective, which notes the weights of its last step, with those of its own error if that is wanted."""

    class Noted(kind):
        def weighted(self, error, extra=None, judged_by=None):
            judged_by = None if own_error else judged_by
            size = (error if judged_by is None else judged_by).detach().square().flatten(1).sum(1)
            weights = (size + 1e-3) ** -self.power
            k = self.pairs(len(weights), error.shape[1:])
            Noted.share = float(weights[:k].mean() / weights[k:].mean())
            return super().weighted(error, extra, judged_by)

    Noted.__name__ = Noted.__qualname__ = kind.__name__
    return Noted


def train(
    objective: str, power: float, own_error: bool, seed: int, steps: int, samples: int
) -> tuple[list[dict], dict]:
    """Rows and manifest of one run."""
    torch.set_num_threads(1)
    kind, settings = OBJECTIVES[objective]
    noted = weighed_by(kind, own_error)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ifl.FlowMap(ifl.UNet(1, 8, width=16, blocks=1), ifl.RectifiedFlow())
    config = ifl.TrainConfig(steps, batch_size=64, lr=4e-3, seed=seed, device="cpu", progress=False)
    run = finished(
        ifl.fit(model, noted(power=power, **SHARED, **settings), data.load("digits"), config)
    )
    row = {"objective": objective, "power": power, "weight": "own error" if own_error else "as is"}
    row |= {"seed": seed, "steps": steps, "pair_over_equal": noted.share}
    rows = []
    for method, nfe in (("map", 1), ("map", 2), ("map", 4), ("euler", 32)):
        x = ifl.sample(run.model, samples, nfe, method, seed=1000 + seed).x
        value = zoo.image_distances("digits", x)["frechet_pca"]
        rows.append(row | {"method": method, "nfe": nfe, "frechet_pca": value})
    return rows, excerpt(run.manifest, "objective", "path", "data", "seconds", "versions")


def main(arguments=None) -> None:
    options = command_line(__doc__, seeds=3, steps=800, samples=2000)
    choices(options, "--objectives", OBJECTIVES)
    given, runs = options.parse_args(arguments), {}
    for seed, objective, power in itertools.product(range(given.seeds), given.objectives, POWERS):
        for own_error in (False, True) if power and objective != "IntegralIdentity" else (False,):
            settings = {"objective": objective, "power": power, "own_error": own_error}
            settings |= {"seed": seed, "steps": given.steps, "samples": given.samples}
            runs[f"{objective}/power{power}/own{own_error:d}/seed{seed}"] = (train, settings)
    table = write_runs(given.out, "adaptive_weight", Store(given.runs / "adaptive_weight"), runs)
    cells = table.groupby(["objective", "power", "weight", "method", "nfe"], sort=False)
    print(cells.frechet_pca.mean().unstack(["method", "nfe"]).round(3).to_string())


if __name__ == "__main__":
    main()
