"""Measures of a model's flow, against values known in closed form."""

import pytest
import torch
from exact import MEAN, STD, GaussianNet

from iflow_lib.analytic import GaussianFlow, MixtureFlow
from iflow_lib.metrics import anchor_variance, jump_error, straightness
from iflow_lib.model import FlowMap
from iflow_lib.paths import PoissonFlow, RectifiedFlow, VarianceExploding, VariancePreserving


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
