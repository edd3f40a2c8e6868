"""Five laws in the plane.

In the plane every law has mean 0 and standard deviation 1 per coordinate, with the constants worked out in
closed form, so that a draw of any size follows the same law:

- eight_gaussians: equal weights, means on a ring of radius sqrt(2), standard deviation 0.1 (overall 1.005)
- checkerboard: uniform on the 8 dark squares of a 4 x 4 board with sides at +-sqrt(3)
- two_moons: the half circles of scikit-learn's ``make_moons``, noise 0.05 before scaling
- spiral: two arms r = theta, theta in [0, 3 pi], uniform in area, noise 0.3 before scaling
- pinwheel: five bent arms (Johnson et al. 2016, arXiv 1603.06277), radial 0.3, tangential 0.05, rate 0.25
"""

from __future__ import annotations

import math

import numpy as np

# ---- laws in the plane: (n, rng) -> points (n, 2) float64, component (n,) or None


def _eight_gaussians(n, rng):
    k = rng.integers(8, size=n)
    angle = k * (math.pi / 4)
    return math.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.standard_normal(
        (n, 2)
    ), k


def _checkerboard(n, rng):
    column, pair = rng.integers(4, size=n), rng.integers(2, size=n)
    row = 2 * pair + column % 2
    board = np.stack([column, row], 1) + rng.random(
        (n, 2)
    )  # on [0, 4]^2; uniform on [0, 4] has variance 4/3
    return (board - 2) * math.sqrt(3 / 4), None


def _two_moons(n, rng):
    k = rng.integers(2, size=n)
    t = math.pi * rng.random(n)
    x = np.where(k == 0, np.cos(t), 1 - np.cos(t))
    y = np.where(k == 0, np.sin(t), 0.5 - np.sin(t))
    noise = 0.05
    variance = np.array([0.75, 0.5 - 4 / math.pi**2 + (2 / math.pi - 0.25) ** 2]) + noise**2
    return (np.stack([x - 0.5, y - 0.25], 1) + noise * rng.standard_normal((n, 2))) / np.sqrt(
        variance
    ), k


def _spiral(n, rng):
    k = rng.integers(2, size=n)
    end, noise = 3 * math.pi, 0.3
    theta = end * np.sqrt(rng.random(n))
    curve = ((1 - 2 * k) * theta)[:, None] * np.stack([np.cos(theta), np.sin(theta)], 1)
    variance = end**2 / 4 + np.array([0.75, -0.75]) + noise**2  # E[theta^2 cos^2], E[theta^2 sin^2]
    return (curve + noise * rng.standard_normal((n, 2))) / np.sqrt(variance), k


def _pinwheel(n, rng):
    k = rng.integers(5, size=n)
    radial, tangential = 1 + 0.3 * rng.standard_normal(n), 0.05 * rng.standard_normal(n)
    angle = 2 * math.pi / 5 * k + 0.25 * np.exp(radial)
    x = np.cos(angle) * radial - np.sin(angle) * tangential
    y = np.sin(angle) * radial + np.cos(angle) * tangential
    return np.stack([x, y], 1) / math.sqrt((1 + 0.3**2 + 0.05**2) / 2), k  # by five-fold symmetry


_PLANE = {
    "eight_gaussians": _eight_gaussians,
    "checkerboard": _checkerboard,
    "two_moons": _two_moons,
    "spiral": _spiral,
    "pinwheel": _pinwheel,
}
