"""Each objective learns what it says, on Gaussian data, where the truth is known: experiments/exactness.py on a small
budget, with looser bounds. And each of these tests fails when its objective is wrong: a line of it is changed."""

import sys
import types
from pathlib import Path

import pytest
import torch

import iflow_lib as ifl
from iflow_lib import objectives

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import exactness

DIM = 3
#: objective -> quantity, bound on its relative RMS error, gradient steps
BUDGETS = {
    "FlowMatching": ("velocity", 0.12, 250),
    "IntegralIdentity": ("flow_map", 0.18, 500),
    "IntegralAdditivity": ("flow_map", 0.18, 250),
    "ConsistencyTraining": ("flow_map", 0.25, 250),
    "X0Regression": ("posterior_mean", 0.08, 250),
}


def trained(path_name, objective, steps):
    """What the benchmark measures of a small network after a short training."""
    mean, cov = exactness.gaussian(DIM)
    draws = torch.randn(
        20_000, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    data = mean + draws @ torch.linalg.cholesky(cov).T
    path = exactness.PATHS[path_name]()
    torch.manual_seed(0)
    model = ifl.FlowMap(exactness.Gated(DIM, hidden=32), path)
    lr = (
        5e-3 if objective.name == "IntegralIdentity" else 1e-2
    )  # it feeds on its own derivative: gently
    config = ifl.TrainConfig(
        steps=steps, batch_size=256, lr=lr, ema=0.99, device="cpu", progress=False
    )
    run = ifl.fit(model, objective, data.float(), config)
    return exactness.measure(
        objective.name, run.model, exactness.truth(path, mean, cov), data[:2000], mean
    )


@pytest.mark.parametrize("path", exactness.PATHS)
@pytest.mark.parametrize("name", BUDGETS)
def test_objective_learns_what_it_says(name, path):
    quantity, bound, steps = BUDGETS[name]
    found = trained(path, exactness.OBJECTIVES[name](), steps)
    assert found[quantity] < bound
    if (
        name == "X0Regression"
    ):  # its jump from pure noise is the mean of the data, and nowhere near the flow map
        assert found["jump_is_data_mean"] < 0.15 and found["jump_is_flow_map"] > 0.9


@pytest.mark.parametrize(
    "name, right, wrong",
    [
        ("FlowMatching", "- (z - x_0)).square()", "- (z - 0.5 * x_0)).square()"),
        ("IntegralIdentity", "velocity[:k] - slope", "velocity[:k] + slope"),
        (
            "IntegralAdditivity",
            "model(x - expand(now - middle, x) * early, middle",
            "model(x, middle",
        ),
        ("ConsistencyTraining", "target = end(r)", "target = x_0"),
        (
            "X0Regression",
            "loss = self._distance(estimate, x_0)",
            "loss = self._distance(estimate, x_t)",
        ),
    ],
)
def test_a_wrong_objective_fails(name, right, wrong, monkeypatch):
    source = sys.modules[getattr(ifl, name).__module__]
    text = Path(source.__file__).read_text(encoding="utf-8")
    assert text.count(right) == 1
    broken = types.ModuleType("iflow_lib.broken")
    broken.__package__ = "iflow_lib"
    monkeypatch.setitem(sys.modules, broken.__name__, broken)  # dataclasses look their module up
    exec(compile(text.replace(right, wrong), f"{name}, broken", "exec"), broken.__dict__)
    broken.Batch = objectives.Batch
    quantity, bound, steps = BUDGETS[name]
    found = trained("rectified", getattr(broken, name)(), steps)[quantity]
    assert found > 1.5 * bound, f"{found:.3f} without the right line"
