"""Does each objective learn what it says? ``python benchmarks/exactness.py [--quick] [--device D] [--out DIR]``

On Gaussian data everything is known (``iflow_lib.analytic``). For every path and dimension, each objective trains one
network and is compared with the truth, as a relative RMS error (the divisor is the spread of the exact values):

- IntegralIdentity, IntegralAdditivity, ConsistencyTraining: the jump from t_max to 0 with the exact flow map;
- FlowMatching: the velocity on the line, at points of the path and training times of the path, with the exact one;
- X0Regression without an anchor: its jump to 0 with the exact posterior mean, at the same points; and from t_max with
  the flow map and with the mean of the data, to show which of the two it is.

Writes exactness.csv and exactness.manifest.json into --out (results/reference/bench); finished runs are kept in
results/runs/exactness and not run again. --quick: a tenth of the steps.
"""
import argparse
import json
import time
from pathlib import Path

import pandas as pd
import torch

import iflow_lib as ifl
from iflow_lib.analytic import GaussianFlow, MixtureFlow
from iflow_lib.checkpoints import write_atomic
from iflow_lib.diagnostics import jump_error

ROOT = Path(__file__).resolve().parent.parent
PATHS = {"rectified": ifl.RectifiedFlow, "ve": ifl.VarianceExploding, "vp": ifl.VariancePreserving,
         "pfgmpp": lambda: ifl.PoissonFlow(aug_dim=128)}
OBJECTIVES = {"FlowMatching": ifl.FlowMatching, "IntegralIdentity": ifl.IntegralIdentity,
              "IntegralAdditivity": ifl.IntegralAdditivity, "ConsistencyTraining": ifl.ConsistencyTraining,
              "X0Regression": ifl.X0Regression}
BOUNDS = {2: {"flow_map": 0.03, "velocity": 0.03, "posterior_mean": 0.03},
          32: {"flow_map": 0.06, "velocity": 0.03, "posterior_mean": 0.03}}


def gaussian(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (dim,) and covariance (dim, dim): standard deviations from 0.3 to 1 along random axes."""
    generator = torch.Generator().manual_seed(dim)
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    return torch.linspace(-0.5, 0.5, dim).double(), axes @ torch.diag(torch.linspace(0.3, 1, dim).double() ** 2) @ axes.T


def truth(path, mean, cov):
    """The exact flow of the Gaussian on this path."""
    if isinstance(path, ifl.PoissonFlow):
        return MixtureFlow(path, mean[None], cov=cov)
    return GaussianFlow(path, mean, cov)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    spread = (exact - exact.mean(0)).square().mean().sqrt()
    return float((found.double().cpu() - exact).square().mean().sqrt() / spread)


def measure(objective: str, model, flow, data: torch.Tensor, mean: torch.Tensor, n: int = 1000) -> dict:
    """{quantity: relative RMS error} of a trained model."""
    if objective not in ("FlowMatching", "X0Regression"):
        return {"flow_map": jump_error(model, flow, n, seed=1)}
    path, like = model.path, next(model.parameters())
    generator = torch.Generator().manual_seed(1)
    t = path.sample_times(n, generator=generator).double().clamp(min=1e-3 * path.t_max)
    x = path.perturb(x_0=data[:n].double(), t=t, generator=generator).x_t
    line, tau = path.to_line(x, t)
    with torch.no_grad():
        if objective == "FlowMatching":
            x_0, z = flow._at(x, t)
            return {"velocity": relative(model(line.to(like), tau.to(like), tau.to(like)), z - x_0)}
        found = model.jump(x=x.to(like), t=t.to(like), s=torch.zeros_like(t).to(like))
        start = path.prior((n, *model.data_shape), generator=generator)
        end = model.jump(x=start.to(like), t=torch.full((n,), path.t_max).to(like), s=torch.zeros(n).to(like))
    return {"posterior_mean": relative(found, flow.posterior_mean(x=x, t=t)),
            "jump_is_flow_map": jump_error(model, flow, n, seed=1),
            "jump_is_data_mean": float((end.double().cpu() - mean).square().mean().sqrt() / (data - mean).square().mean().sqrt())}


def run(path_name: str, objective: str, dim: int, seed: int, steps: int, device: str) -> dict:
    mean, cov = gaussian(dim)
    generator = torch.Generator().manual_seed(100 + seed)
    root = torch.linalg.cholesky(cov)
    data = mean + torch.randn(200_000, dim, generator=generator, dtype=torch.float64) @ root.T
    path = PATHS[path_name]()
    torch.manual_seed(seed)
    model = ifl.FlowMap(ifl.MLP(dim=dim, hidden=128, layers=4), path)
    config = ifl.TrainConfig(steps=steps, batch_size=512, lr=2e-3, seed=seed, device=device, progress=False)
    started = time.perf_counter()
    trained = ifl.fit(model, OBJECTIVES[objective](), data.float(), config)
    fresh = mean + torch.randn(2000, dim, generator=generator, dtype=torch.float64) @ root.T
    found = measure(objective, trained.model, truth(path, mean, cov), fresh, mean)
    return {"path": path_name, "objective": objective, "dim": dim, "seed": seed, "steps": steps, "found": found,
            "seconds": round(time.perf_counter() - started, 1), "manifest": trained.manifest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dims", type=int, nargs="+", default=(2, 32), choices=(2, 32))
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "reference" / "bench")
    arguments = parser.parse_args()
    rows, manifests = [], {}
    for dim in arguments.dims:
        steps = {2: 6000, 32: 12000}[dim] // (10 if arguments.quick else 1)
        for path in PATHS:
            for objective in OBJECTIVES:
                for seed in range(arguments.seeds):
                    name = f"{path}-{objective}-{dim}-{steps}-{seed}"
                    file = ROOT / "results" / "runs" / "exactness" / f"{name}.json"
                    if not file.is_file():
                        write_atomic(file, json.dumps(run(path, objective, dim, seed, steps, arguments.device)))
                    done = json.loads(file.read_text())
                    manifests[name] = done["manifest"]
                    for quantity, value in done["found"].items():
                        rows.append({"path": path, "objective": objective, "dim": dim, "seed": seed, "steps": steps,
                                     "quantity": quantity, "relative_rms": value,
                                     "bound": BOUNDS[dim].get(quantity), "seconds": done["seconds"]})
                    print(name, {k: round(v, 4) for k, v in done["found"].items()}, f"{done['seconds']:.0f} s", flush=True)
    table = pd.DataFrame(rows)
    write_atomic(arguments.out / "exactness.csv", table.to_csv(index=False, float_format="%.5g", lineterminator="\n"))
    write_atomic(arguments.out / "exactness.manifest.json", json.dumps(manifests, indent=1) + "\n")
    mean = table.groupby(["dim", "objective", "quantity", "path"]).relative_rms.mean().unstack("path").round(4)
    print(mean.to_string())


if __name__ == "__main__":
    main()
