"""Each objective learns what it says, on Gaussian data, where the truth is known.

This is experiments/exactness.py on a small budget, with looser bounds. And each of these tests fails when its objective is
wrong: a subclass changes one thing in it.
"""

import pytest
import torch

import iflow_lib as ifl
from experiments import exactness

DIM = 3
#: objective -> quantity, bound on its relative RMS error, gradient steps
BUDGETS = {
    "FlowMatching": ("velocity", 0.12, 250),
    "IntegralIdentity": ("flow_map", 0.18, 500),
    "IntegralIdentity, gap": ("flow_map", 0.18, 500),
    "IntegralAdditivity": ("flow_map", 0.18, 250),
    "TerminalVelocity": ("flow_map", 0.18, 500),
    "ConsistencyTraining": ("flow_map", 0.25, 250),
    "X0Regression": ("posterior_mean", 0.08, 250),
}


def trained(path_name, name, objective, steps):
    """What the experiment measures of a small network after a short training."""
    mean, cov = exactness.gaussian(DIM)
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(20_000, DIM, generator=generator, dtype=torch.float64)
    data = mean + draws @ torch.linalg.cholesky(cov).T
    path = exactness.PATHS[path_name]()
    torch.manual_seed(0)
    model = ifl.FlowMap(exactness.Gated(DIM, hidden=32), path)
    feeds = "Identity" in name or name == "TerminalVelocity"  # on its own derivative: gently
    lr = 5e-3 if feeds else 1e-2
    config = ifl.TrainConfig(
        steps=steps, batch_size=256, lr=lr, ema=0.99, device="cpu", progress=False
    )
    run = ifl.fit(model, objective, data.float(), config)
    exact = exactness.truth(path, mean, cov)
    return exactness.measure(name, run.model, exact, data[:2000], mean)


@pytest.mark.parametrize("path", exactness.PATHS)
@pytest.mark.parametrize("name", BUDGETS)
def test_objective_learns_what_it_says(name, path):
    quantity, bound, steps = BUDGETS[name]
    found = trained(path, name, exactness.OBJECTIVES[name](), steps)
    assert found[quantity] < bound
    if name == "X0Regression":
        # its jump from pure noise is the mean of the data, and nowhere near the flow map
        assert found["jump_is_data_mean"] < 0.15 and found["jump_is_flow_map"] > 0.9


class HalfTheData(ifl.FlowMatching):
    """Regresses on z - x_0 / 2, at the points of the true path."""

    def loss(self, model, x_0, z, t, labels):
        x_t = (1 - t[:, None]) * x_0 + t[:, None] * z
        return (model(x_t, t, t, labels=labels) - (z - 0.5 * x_0)).square().mean(), None


class WithoutTheDerivative(ifl.IntegralIdentity):
    """Leaves out (t - s) du/dt, so that every average velocity is to be the velocity at its start."""

    def total_derivative(self, *arguments):
        return torch.zeros_like(super().total_derivative(*arguments))


class RestWithoutThePiece(ifl.IntegralIdentity):
    """With a gap: looks at x_t at the time m, not at x_m."""

    def both_ends(self, gap, model, x, t, s, velocity, *more):
        return super().both_ends(gap, model, x, t, s, torch.zeros_like(velocity), *more)


class VelocityAtTheStart(ifl.TerminalVelocity):
    """Takes the velocity at the start of the jump, not where it arrives."""

    def loss(self, model, x_0, z, t, s, labels):
        x_t, s, k, rows = self.on_pairs(model, x_0, z, t, s)
        _, rate = self.end_derivative(model, x_t[:k], t[:k], s[:k])
        with torch.no_grad():
            start = model(x_t[:k], t[:k], t[:k])
        target = torch.cat([start + (t - s)[:k, None] * rate, (z - x_0)[k:]])
        return self.weighted(model(x_t, t, s) - target), None


class SecondPartFromTheStart(ifl.IntegralAdditivity):
    """Starts the second part where the first one started, not where it ended."""

    def loss(self, model, x_0, z, t, s, labels, share):
        k, s = len(s), torch.cat([s, t[len(s) :]])
        x_t = (1 - t[:, None]) * x_0 + t[:, None] * z
        middle = s[:k] + share * (t[:k] - s[:k])
        with torch.no_grad():
            early, late = model(x_t[:k], t[:k], middle), model(x_t[:k], middle, s[:k])
            whole = (1 - share)[:, None] * early + share[:, None] * late
        target = torch.cat([whole, (z - x_0)[k:]])
        return self.weighted(model(x_t, t, s, labels=labels) - target), None


class TowardsTheData(ifl.ConsistencyTraining):
    """Compares the jump with the data, the jump from no noise, not with that from a near level."""

    def levels(self, *arguments):
        high, low = super().levels(*arguments)
        return high, torch.zeros_like(low)


class TowardsTheInput(ifl.X0Regression):
    """Regresses on x_t, not on x_0."""

    def loss(self, model, x_0, z, t, labels, anchor):
        x_t = (1 - t[:, None]) * x_0 + t[:, None] * z
        estimate = x_t - t[:, None] * model(x_t, t, torch.zeros_like(t), labels=labels)
        return self.mean_distance(estimate, x_t), estimate.detach()


@pytest.mark.parametrize(
    "wrong, settings",
    [
        (HalfTheData, {}),
        (WithoutTheDerivative, {"gap": None}),
        (RestWithoutThePiece, {"gap": 0.02}),
        (VelocityAtTheStart, {}),
        (SecondPartFromTheStart, {}),
        (TowardsTheData, {}),
        (TowardsTheInput, {}),
    ],
)
def test_a_wrong_objective_fails(wrong, settings):
    name = wrong.__bases__[0].__name__
    quantity, bound, steps = BUDGETS[name]
    found = trained("rectified", name, wrong(**settings), steps)[quantity]
    assert found > 1.5 * bound, f"{found:.3f} although {wrong.__doc__}"
