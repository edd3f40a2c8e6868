"""Two-sample measures: against values known in closed form, and zero (or chance) between draws of one law."""

import math

import pytest
import torch
from exact import one_line

from iflow_lib.metrics import (
    c2st,
    copies,
    energy_distance,
    mmd,
    precision_recall,
    real_floor,
    real_pairs,
)


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
    assert energy_distance(normal(4000, 1.0, dim=1), normal(4000, dim=1, seed=1)) == pytest.approx(
        expected, abs=0.06
    )
    assert abs(energy_distance(normal(4000, dim=1), normal(4000, dim=1, seed=1))) < 0.01


def test_mmd_in_closed_form():
    """Gaussian kernel, N(0, 1) and N(m, 1): E k = h / sqrt(h^2 + 2) exp(-m^2 / (2 (h^2 + 2)))."""
    h, m = 1.5, 1.0
    expected = 2 * h / math.sqrt(h * h + 2) * (1 - math.exp(-m * m / (2 * (h * h + 2))))
    assert mmd(normal(4000, m, dim=1), normal(4000, dim=1, seed=1), bandwidth=h) == pytest.approx(
        expected, rel=0.15
    )
    assert abs(mmd(normal(2000), normal(2000, seed=1))) < 3e-3


def test_c2st():
    assert c2st(normal(600), normal(600, seed=1)) == pytest.approx(0.5, abs=0.06)
    best = 0.5 * (1 + math.erf(1 / math.sqrt(2) / 1))  # two unit normals 2 apart: Phi(1)
    assert c2st(normal(600, torch.tensor([2.0, 0])), normal(600, seed=1)) == pytest.approx(
        best, abs=0.04
    )
    assert c2st(normal(300, 10.0), normal(500, seed=1)) > 0.97
    assert c2st(normal(100), normal(100, seed=1), seed=3) == c2st(
        normal(100), normal(100, seed=1), seed=3
    )


def test_precision_recall_density_coverage():
    same = precision_recall(normal(1000), normal(1000, seed=1))
    assert min(same.precision, same.recall) > 0.9 and same.density == pytest.approx(1, abs=0.1)
    assert same.coverage == pytest.approx(1 - 2**-5, abs=0.03)
    narrow = precision_recall(normal(1000, scale=0.1), normal(1000, seed=1))
    assert narrow.precision > 0.95 and narrow.recall < 0.2 and narrow.coverage < 0.4
    wide = precision_recall(normal(1000, scale=10), normal(1000, seed=1))
    assert wide.precision < 0.2 and wide.recall > 0.8
    assert precision_recall(normal(50, 100.0), normal(50)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "metric", [energy_distance, mmd, c2st, lambda x, y: precision_recall(x, y).coverage]
)
def test_every_distance_has_a_floor(metric):
    floor = real_floor(metric, real_pairs("eight_gaussians", 300), pairs=3)
    assert math.isfinite(floor.mean) and floor.pairs == 3


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: energy_distance(normal(5), normal(5, dim=3)), "dimensions"),
        (lambda: mmd(normal(1), normal(5)), "at least 2"),
        (lambda: mmd(normal(5), normal(5), bandwidth=0), "bandwidth must be positive"),
        (lambda: c2st(normal(9), normal(50)), "at least 10"),
        (lambda: precision_recall(normal(5), normal(5)), "smaller than both"),
        (lambda: energy_distance(normal(5) * math.nan, normal(5)), "NaN"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in one_line(error)


def test_copies_of_the_training_data_are_seen():
    """Fresh data are a twentieth, copies all; samples that are wider than the data are farther away."""
    train, fresh, other = (
        torch.randn(500, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)
    )
    assert copies(train[:50] + 1e-4, train, fresh).copies == 1
    found = copies(other, train, fresh)
    assert found.copies < 0.12 and found.nearest == pytest.approx(1, abs=0.15)
    wide = copies(2 * other, train, fresh)
    assert wide.nearest > 1.5 and wide.copies < found.copies
    itself = copies(fresh, train, fresh)
    assert itself.nearest == 1 and itself.copies == pytest.approx(0.05, abs=0.002)
    with pytest.raises(ValueError, match="3 dimensions and y has 2"):
        copies(other, train[:, :2], fresh)
