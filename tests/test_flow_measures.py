"""Measures of a model's flow, against values known in closed form."""

import pytest
import torch
from exact import MEAN, STD, GaussianNet

from iflow_lib.analytic import GaussianFlow, MixtureFlow
from iflow_lib.data import Standardization
from iflow_lib.metrics import (
    anchor_variance,
    exact_samples,
    jump_error,
    rms_distance,
    straightness,
)
from iflow_lib.model import FlowMap
from iflow_lib.paths import PoissonFlow, RectifiedFlow, VarianceExploding, VariancePreserving
from iflow_lib.sampling import sample


def test_straightness():
    """Gaussian data: x(t) = (1 - t) mean + S_t / S_1 (...), so S(Z) = E z^2 int (S'_t - (S_1 - S_0))^2 dt per element."""
    model = FlowMap(GaussianNet((1,)), RectifiedFlow())
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    spread = ((1 - t) ** 2 * STD**2 + t**2).sqrt()
    slope = (t - (1 - t) * STD**2) / spread
    expected = float(torch.trapezoid((slope - (1 - STD)) ** 2, t))
    assert straightness(model, 4000, 200) == pytest.approx(expected, rel=0.1)

    class Straight(GaussianNet):
        def forward(self, x, t, s):
            return self.gain * torch.ones_like(x)

    for path in (RectifiedFlow(), VarianceExploding(), PoissonFlow(8)):
        assert straightness(FlowMap(Straight(), path), 50, 10) < 1e-12
    with pytest.raises(ValueError, match="at least 2 steps"):
        straightness(model, 10, 1)


def test_straightness_is_that_of_the_standardized_data():
    """``sample`` returns the units of the original data, in which the line would be another one."""
    model = FlowMap(GaussianNet(), VariancePreserving())
    expected = straightness(model, 50, 10)
    model.scaling = Standardization(torch.tensor([3.0, -2.0]), torch.tensor([10.0, 0.1]))
    assert straightness(model, 50, 10) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "path", [RectifiedFlow(), VarianceExploding(), VariancePreserving()], ids=lambda p: p.name
)
def test_jump_error(path):
    """Zero for the exact network, and the known size of a displacement for a wrong one."""
    flow = GaussianFlow(path, torch.full((2,), MEAN).double(), STD**2 * torch.eye(2).double())
    net = GaussianNet()
    model = FlowMap(net, path)
    middle = float(path.time(torch.tensor(0.5)))
    for t, s in ((None, 0.0), (None, middle), (middle, 0.0)):
        assert jump_error(model, flow, 200, t=t, s=s) < 1e-6
    with torch.no_grad():
        net.shift.fill_(0.1)  # moves every end by tau_max * 0.1; the ends spread by STD
    assert jump_error(model, flow, 2000) == pytest.approx(0.1 * path.tau_max / STD, rel=0.05)


def test_jump_error_by_the_reference_solver():
    path = PoissonFlow(8)
    flow = MixtureFlow(path, torch.zeros(1, 2), std=0.5)
    net = GaussianNet()
    assert (
        0.05 < jump_error(FlowMap(net, path), flow, 100) < 10
    )  # the Gaussian's map is not PFGM++'s


@pytest.mark.parametrize("path", [RectifiedFlow(), VarianceExploding()], ids=repr)
def test_exact_samples(path):
    """Of Gaussian data they are one jump of the exact map, by a solver; and a mean of other data is as far as they spread."""
    model = FlowMap(GaussianNet((2,)), path)
    flow = GaussianFlow(path, torch.as_tensor(MEAN).expand(2), STD**2 * torch.eye(2))
    ends = exact_samples(model, flow, 300, seed=4, tolerance=1e-8)
    jumps = sample(model, 300, seed=4).x
    assert rms_distance(jumps, ends) < 1e-5 < 0.1 < rms_distance(jumps.flip(0), ends)
    mean = ends.mean(0).expand(300, 2)
    assert rms_distance(mean, ends) == pytest.approx(float(ends.var(0, correction=0).sum()) ** 0.5)
    model.scaling = Standardization(torch.tensor(5.0), torch.tensor(2.0))
    moved = exact_samples(model, flow, 300, seed=4, tolerance=1e-8)
    assert rms_distance(moved, 5 + 2 * ends) < 1e-6


def test_rms_distance():
    x = torch.zeros(4, 2)
    y = torch.tensor([[3.0, 4.0], [0, 0], [0, 0], [0, 0]])
    assert rms_distance(x, y) == 2.5
    with pytest.raises(ValueError, match="pair by pair: got 3 and 4"):
        rms_distance(x[:3], y)


def test_anchor_variance_in_closed_form():
    """x_0 ~ N(0, 1), x_t = x_0 + z, anchor = x_0 + half a unit of noise: precisions add."""
    g = torch.Generator().manual_seed(0)
    x_0, z, w = torch.randn(3, 20_000, 1, generator=g, dtype=torch.float64)
    found = anchor_variance(x_0, x_0 + 0.5 * w, x_0 + z)
    assert found.without == pytest.approx(1 / 2, rel=0.05)
    assert found.knowing == pytest.approx(1 / (1 + 1 + 4), rel=0.08)
    assert found.at_sampling == pytest.approx(found.without, rel=0.08)
    with pytest.raises(ValueError, match="equally many"):
        anchor_variance(x_0, x_0[:5], x_0)
