"""diagnostics: against values known in closed form, and zero (or chance) between draws of one law."""

import hashlib
import math
import pickle
import urllib.error

import pytest
import torch
from exact import MEAN, STD, GaussianNet, one_line

from iflow_lib import metrics as d
from iflow_lib.analytic import GaussianFlow, MixtureFlow
from iflow_lib.metrics import real_floor, real_pairs
from iflow_lib.model import FlowMap
from iflow_lib.paths import PoissonFlow, RectifiedFlow, VarianceExploding, VariancePreserving


def normal(n, shift=0.0, scale=1.0, dim=2, seed=0):
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * x + shift


def test_energy_distance_in_closed_form():
    """N(0, 1) and N(m, 1) on a line: E|a - b| = folded normal means."""

    def folded(m, s):
        return s * math.sqrt(2 / math.pi) * math.exp(-m * m / (2 * s * s)) + m * math.erf(
            m / (s * math.sqrt(2))
        )

    expected = 2 * folded(1.0, math.sqrt(2)) - 2 * folded(0.0, math.sqrt(2))
    assert d.energy_distance(
        normal(4000, 1.0, dim=1), normal(4000, dim=1, seed=1)
    ) == pytest.approx(expected, abs=0.06)
    assert abs(d.energy_distance(normal(4000, dim=1), normal(4000, dim=1, seed=1))) < 0.01


def test_mmd_in_closed_form():
    """Gaussian kernel, N(0, 1) and N(m, 1): E k = h / sqrt(h^2 + 2) exp(-m^2 / (2 (h^2 + 2)))."""
    h, m = 1.5, 1.0
    expected = 2 * h / math.sqrt(h * h + 2) * (1 - math.exp(-m * m / (2 * (h * h + 2))))
    assert d.mmd(normal(4000, m, dim=1), normal(4000, dim=1, seed=1), bandwidth=h) == pytest.approx(
        expected, rel=0.15
    )
    assert abs(d.mmd(normal(2000), normal(2000, seed=1))) < 3e-3


def test_c2st():
    assert d.c2st(normal(600), normal(600, seed=1)) == pytest.approx(0.5, abs=0.06)
    best = 0.5 * (1 + math.erf(1 / math.sqrt(2) / 1))  # two unit normals 2 apart: Phi(1)
    assert d.c2st(normal(600, torch.tensor([2.0, 0])), normal(600, seed=1)) == pytest.approx(
        best, abs=0.04
    )
    assert d.c2st(normal(300, 10.0), normal(500, seed=1)) > 0.97
    assert d.c2st(normal(100), normal(100, seed=1), seed=3) == d.c2st(
        normal(100), normal(100, seed=1), seed=3
    )


def test_precision_recall_density_coverage():
    same = d.precision_recall(normal(1000), normal(1000, seed=1))
    assert min(same.precision, same.recall) > 0.9 and same.density == pytest.approx(1, abs=0.1)
    assert same.coverage == pytest.approx(1 - 2**-5, abs=0.03)
    narrow = d.precision_recall(normal(1000, scale=0.1), normal(1000, seed=1))
    assert narrow.precision > 0.95 and narrow.recall < 0.2 and narrow.coverage < 0.4
    wide = d.precision_recall(normal(1000, scale=10), normal(1000, seed=1))
    assert wide.precision < 0.2 and wide.recall > 0.8
    assert d.precision_recall(normal(50, 100.0), normal(50)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "metric", [d.energy_distance, d.mmd, d.c2st, lambda x, y: d.precision_recall(x, y).coverage]
)
def test_every_distance_has_a_floor(metric):
    floor = real_floor(metric, real_pairs("eight_gaussians", 300), pairs=3)
    assert math.isfinite(floor.mean) and floor.pairs == 3


def test_straightness():
    """Gaussian data: x(t) = (1 - t) mean + S_t / S_1 (...), so S(Z) = E z^2 int (S'_t - (S_1 - S_0))^2 dt per element."""
    model = FlowMap(GaussianNet((1,)), RectifiedFlow())
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    spread = ((1 - t) ** 2 * STD**2 + t**2).sqrt()
    slope = (t - (1 - t) * STD**2) / spread
    expected = float(torch.trapezoid((slope - (1 - STD)) ** 2, t))
    assert d.straightness(model, 4000, 200) == pytest.approx(expected, rel=0.1)

    class Straight(GaussianNet):
        def forward(self, x, t, s):
            return self.gain * torch.ones_like(x)

    for path in (RectifiedFlow(), VarianceExploding(), PoissonFlow(8)):
        assert d.straightness(FlowMap(Straight(), path), 50, 10) < 1e-12
    with pytest.raises(ValueError, match="at least 2 steps"):
        d.straightness(model, 10, 1)


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
        assert d.jump_error(model, flow, 200, t=t, s=s) < 1e-6
    with torch.no_grad():
        net.shift.fill_(0.1)  # moves every end by tau_max * 0.1; the ends spread by STD
    assert d.jump_error(model, flow, 2000) == pytest.approx(0.1 * path.tau_max / STD, rel=0.05)


def test_jump_error_by_the_reference_solver():
    path = PoissonFlow(8)
    flow = MixtureFlow(path, torch.zeros(1, 2), std=0.5)
    net = GaussianNet()
    assert (
        0.05 < d.jump_error(FlowMap(net, path), flow, 100) < 10
    )  # the Gaussian's map is not PFGM++'s


def test_anchor_variance_in_closed_form():
    """x_0 ~ N(0, 1), x_t = x_0 + z, anchor = x_0 + half a unit of noise: precisions add."""
    g = torch.Generator().manual_seed(0)
    x_0, z, w = torch.randn(3, 20_000, 1, generator=g, dtype=torch.float64)
    found = d.anchor_variance(x_0, x_0 + 0.5 * w, x_0 + z)
    assert found.without == pytest.approx(1 / 2, rel=0.05)
    assert found.knowing == pytest.approx(1 / (1 + 1 + 4), rel=0.08)
    assert found.at_sampling == pytest.approx(found.without, rel=0.08)
    with pytest.raises(ValueError, match="equally many"):
        d.anchor_variance(x_0, x_0[:5], x_0)


def test_inception_fid_says_where_the_weights_belong(tmp_path, monkeypatch):
    images = torch.zeros(4, 1, 8, 8)
    with pytest.raises(FileNotFoundError, match="weights-inception-2015-12-05-6726825d.pth"):
        d.inception_fid(images, images, weights=tmp_path / "none.pth")
    (tmp_path / "bad.pth").write_bytes(b"bad")
    with pytest.raises(ValueError, match="6726825d"):
        d.inception_fid(images, images, weights=tmp_path / "bad.pth")

    def no_network(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(FileNotFoundError) as error:
        d.inception_fid(images, images)
    assert "could not be downloaded" in one_line(error) and "hub" in str(error.value)


def test_inception_features(tmp_path, monkeypatch):
    """The whole of it but the published weights, which cannot be shipped: random ones in a file of that form."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    with monkeypatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = fidelity.FeatureExtractorInceptionV3("inception", ["2048"])
    file = tmp_path / "weights.pth"
    torch.save(network.state_dict(), file)
    monkeypatch.setattr(d, "INCEPTION_SHA256", hashlib.sha256(file.read_bytes()).hexdigest()[:8])
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = d._inception_features(d._inception(file), images)
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(found, network(pixels)[0].double())
    assert found.shape == (2, 2048) and not torch.allclose(found[0], found[1])
    with pytest.raises(ValueError, match="more than 2048"):
        d.inception_fid(images, images, weights=file)
    torch.save({"a": torch.nn.Linear(1, 1)}, file)  # a pickle that would run code
    monkeypatch.setattr(d, "INCEPTION_SHA256", hashlib.sha256(file.read_bytes()).hexdigest()[:8])
    with pytest.raises(pickle.UnpicklingError):
        d._inception(file)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: d.energy_distance(normal(5), normal(5, dim=3)), "dimensions"),
        (lambda: d.mmd(normal(1), normal(5)), "at least 2"),
        (lambda: d.mmd(normal(5), normal(5), bandwidth=0), "bandwidth must be positive"),
        (lambda: d.c2st(normal(9), normal(50)), "at least 10"),
        (lambda: d.precision_recall(normal(5), normal(5)), "smaller than both"),
        (lambda: d.energy_distance(normal(5) * math.nan, normal(5)), "NaN"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in one_line(error)
