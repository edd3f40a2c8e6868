"""Laws in the plane: five that everything uses, and three that are held out.

No setting of the library is chosen on the three that are held out (docs/protocol.md). Every law has mean 0 and standard deviation 1 per coordinate. The constants are worked out in closed
form, so that a draw of any size follows the same law. Each function takes the number of points and
a generator, and returns points (n, 2) in float64 with the number of the component (n,) that each
came from, or None.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from .registry import register_dataset


class Modes(NamedTuple):
    """Equally likely Gaussians that a law is a mixture of.

    Attributes:
        centres: Their centres, (k, 2), float64.
        std: The standard deviation of each.
    """

    centres: torch.Tensor
    std: float


def modes(name: str) -> Modes | None:
    """Return the Gaussians of a law in the plane, None if it is no mixture of them.

    With them the exact flow is known: ``analytic.MixtureFlow(path, *modes("eight_gaussians"))``.

    Args:
        name: A set in the plane.
    """
    if name == "eight_gaussians":
        angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        return Modes(math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1), 0.1)
    if name == "twenty_five_gaussians":
        side, scale = torch.arange(5, dtype=torch.float64) - 2, math.sqrt(2 + 0.1**2)
        return Modes(torch.cartesian_prod(side, side) / scale, 0.1 / scale)
    return None


@register_dataset("eight_gaussians", seed_id=0, kind="plane")
def eight_gaussians(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw from eight equally likely Gaussians on a ring of radius sqrt(2).

    Each has standard deviation 0.1, so that a coordinate has variance 1 + 0.01.
    """
    component = rng.integers(8, size=n)
    angle = component * (math.pi / 4)
    centre = math.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], 1)
    return centre + 0.1 * rng.standard_normal((n, 2)), component


@register_dataset("checkerboard", seed_id=1, kind="plane")
def checkerboard(n: int, rng: np.random.Generator) -> tuple[np.ndarray, None]:
    """Draw uniformly from the 8 dark squares of a 4 x 4 board with its sides at +-sqrt(3)."""
    column, pair = rng.integers(4, size=n), rng.integers(2, size=n)
    row = 2 * pair + column % 2
    # on [0, 4]^2, where a uniform coordinate has variance 4/3
    board = np.stack([column, row], 1) + rng.random((n, 2))
    return (board - 2) * math.sqrt(3 / 4), None


@register_dataset("two_moons", seed_id=2, kind="plane")
def two_moons(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw from the half circles of scikit-learn's ``make_moons``, noise 0.05 before scaling."""
    component = rng.integers(2, size=n)
    angle = math.pi * rng.random(n)
    x = np.where(component == 0, np.cos(angle), 1 - np.cos(angle))
    y = np.where(component == 0, np.sin(angle), 0.5 - np.sin(angle))
    noise = 0.05
    variance = np.array([0.75, 0.5 - 4 / math.pi**2 + (2 / math.pi - 0.25) ** 2]) + noise**2
    points = np.stack([x - 0.5, y - 0.25], 1) + noise * rng.standard_normal((n, 2))
    return points / np.sqrt(variance), component


@register_dataset("spiral", seed_id=3, kind="plane")
def spiral(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw from two arms r = theta < 3 pi, uniform in area, with noise 0.3 before scaling."""
    component = rng.integers(2, size=n)
    end, noise = 3 * math.pi, 0.3
    theta = end * np.sqrt(rng.random(n))
    direction = np.stack([np.cos(theta), np.sin(theta)], 1)
    curve = ((1 - 2 * component) * theta)[:, None] * direction
    variance = end**2 / 4 + np.array([0.75, -0.75]) + noise**2  # E[theta^2 cos^2], E[theta^2 sin^2]
    return (curve + noise * rng.standard_normal((n, 2))) / np.sqrt(variance), component


@register_dataset("pinwheel", seed_id=4, kind="plane")
def pinwheel(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw from five bent arms (Johnson et al. 2016, arXiv 1603.06277).

    The radial deviation is 0.3, the tangential one 0.05 and the rate 0.25, before scaling.
    """
    component = rng.integers(5, size=n)
    radial, tangential = 1 + 0.3 * rng.standard_normal(n), 0.05 * rng.standard_normal(n)
    angle = 2 * math.pi / 5 * component + 0.25 * np.exp(radial)
    x = np.cos(angle) * radial - np.sin(angle) * tangential
    y = np.sin(angle) * radial + np.cos(angle) * tangential
    variance = (1 + 0.3**2 + 0.05**2) / 2  # of either coordinate, by five-fold symmetry
    return np.stack([x, y], 1) / math.sqrt(variance), component


@register_dataset("rings", seed_id=9, kind="plane_held_out")
def rings(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw uniformly from three circles of radius 1, 2 and 3, with noise 0.1 before scaling."""
    component = rng.choice(3, size=n, p=np.array([1, 2, 3]) / 6)  # as long as they are
    angle, noise = 2 * math.pi * rng.random(n), 0.1
    circle = (1 + component)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    variance = (1 + 2**3 + 3**3) / 6 / 2 + noise**2  # E[r^2] / 2
    return (circle + noise * rng.standard_normal((n, 2))) / math.sqrt(variance), component


@register_dataset("twenty_five_gaussians", seed_id=10, kind="plane_held_out")
def twenty_five_gaussians(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw from 25 equally likely Gaussians on a 5 x 5 grid of spacing 1, deviation 0.1, scaled."""
    component, deviation = rng.integers(25, size=n), 0.1
    centre = np.stack([component // 5, component % 5], 1) - 2
    points = centre + deviation * rng.standard_normal((n, 2))
    return points / math.sqrt(2 + deviation**2), component


@register_dataset("s_curve", seed_id=11, kind="plane_held_out")
def s_curve(n: int, rng: np.random.Generator) -> tuple[np.ndarray, None]:
    """Draw from scikit-learn's ``make_s_curve`` seen from its side, noise 0.05 before scaling."""
    angle, noise = 3 * math.pi * (rng.random(n) - 0.5), 0.05
    curve = np.stack([np.sin(angle), np.sign(angle) * (np.cos(angle) - 1)], 1)
    variance = np.array([0.5, 1.5 + 4 / (3 * math.pi)]) + noise**2
    return (curve + noise * rng.standard_normal((n, 2))) / np.sqrt(variance), None
