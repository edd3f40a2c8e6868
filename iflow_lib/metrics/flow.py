"""Measures of a model's own flow: is it straight, are its jumps exact, what does an anchor tell?"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model import FlowMap
from ..sampling import initial_noise, sample
from .transport import point_sets


def straightness(model: FlowMap, n: int = 1000, steps: int = 100, seed: int = 0) -> float:
    """Compute how far the trajectories of the model's own ODE are from straight lines.

        S(Z) = int_0^1 E |(Z_1 - Z_0) - dZ_t/dt|^2 dt

    (Rectified Flow, arXiv 2209.03003, eq. 8, for each example, summed over its elements), on the
    line x_t / (alpha + sigma) of the model's path, by Euler's method. It is 0 only if all of them
    are straight.

    Args:
        model: A model whose velocity ``u(x, t, t)`` was learned.
        n: Number of trajectories.
        steps: Steps of each; with one any velocity looks straight, with 100 the value is right to
            about a per cent.
        seed: Seed of the noise at which the trajectories start.

    Returns:
        S(Z), in squared units of the data that the model was trained on.

    Raises:
        ValueError: For fewer than 2 steps, and as ``sample``.
    """
    if steps < 2:
        raise ValueError(f"straightness needs at least 2 steps, got {steps}")
    walk = sample(model, n, steps, "euler", seed, trajectory=True, original_scale=False)
    trajectory, times = walk.trajectory, walk.times
    assert trajectory is not None and times is not None  # they were asked for

    def column(values: Tensor) -> Tensor:
        return values.to(trajectory).reshape(-1, *[1] * (trajectory.ndim - 1))

    points, tau = trajectory / column(model.path.scale(times)), model.path.tau(times)
    tau = tau.to(trajectory)
    gaps = tau[1:] - tau[:-1]
    velocity = (points[1:] - points[:-1]) / column(gaps)
    chord = (points[-1] - points[0]) / (tau[-1] - tau[0])
    square = (velocity - chord).flatten(2).square().sum(2).mean(1)
    return float((square * gaps.abs()).sum() / (tau[-1] - tau[0]).abs())


def jump_error(
    model: FlowMap,
    flow: Any,
    n: int = 1000,
    *,
    t: float | None = None,
    s: float = 0.0,
    seed: int = 0,
) -> float:
    """Compute how far the learned jump is from the exact flow map, relative to its spread.

        RMS(jump - exact) / RMS(exact - E exact)

    Args:
        model: The model whose ``jump`` is tested.
        flow: The exact flow of the data on the model's path, from ``iflow_lib.analytic``.
        n: Number of points.
        t: Time at which the jump starts. None starts at the prior, t_max; at another time, the
            points are carried there from the prior by the exact flow.
        s: Time at which the jump ends.
        seed: Seed of the points.

    Returns:
        The relative error: 0 is exact, 1 is as bad as the mean of the exact ends.
    """
    path = model.path
    x = torch.cat(list(initial_noise(model, n, seed))).double() / path.tau_max
    x = x * float(path.sigma(torch.tensor(path.t_max, dtype=torch.float64)))
    start = path.t_max if t is None else float(t)

    def exact(x: Tensor, t: float, s: float) -> Tensor:
        if hasattr(flow, "jump"):
            return flow.jump(x=x, t=torch.full((n,), t).double(), s=torch.full((n,), s).double())
        return flow.flow_map(x=x, t=t, s=s)

    if start != path.t_max:
        x = exact(x, path.t_max, start)
    end = exact(x, start, float(s))
    like = next(model.parameters())
    with torch.no_grad():
        learned = model.jump(
            x=x.to(like), t=torch.full((n,), start).to(like), s=torch.full((n,), float(s)).to(like)
        )
    spread = (end - end.mean(0)).square().mean().sqrt()
    return float((learned.double().cpu() - end).square().mean().sqrt() / spread)


def exact_samples(
    model: FlowMap, flow: Any, n: int = 1000, *, seed: int = 0, tolerance: float = 1e-5
) -> Tensor:
    """Compute where the exact flow takes the noise that ``sample(model, n, seed=seed)`` starts from.

    So a sample can be compared with the very point that it stands for, by ``rms_distance``: two
    models may have the same distribution of samples, and only one of them the right map.

    Args:
        model: The model; only its path, its data's shape and their scale count.
        flow: The exact flow of the data on the model's path, from ``iflow_lib.analytic``.
        n: Number of points. A thousand take a tenth of a second on a CPU core, on PFGM++ with a
            mixture of Gaussians two seconds.
        seed: The seed of the samples.
        tolerance: Absolute and relative error of a step of the reference solver.

    Returns:
        The ends (n, ...) in float64, in the units of the data.
    """
    path = model.path
    line = torch.cat(list(initial_noise(model, n, seed))).double()
    x = line * float(path.scale(torch.tensor(path.t_max, dtype=torch.float64)))
    ends: Tensor = flow.flow_map(x=x, t=path.t_max, s=0.0, tolerance=tolerance)
    return ends if model.scaling is None else model.scaling.undo(ends)


def rms_distance(x: Any, y: Any) -> float:
    """Compute the root of the mean squared distance of points to their partners.

    Args:
        x: Points (n, ...).
        y: As many points, in the same order.

    Returns:
        The distance, in the units of the points. A single point that ends in a wrong mode counts
        for many that are a little off.

    Raises:
        ValueError: If there are not equally many, or as ``w2``.
    """
    x, y = point_sets(x, y)
    if len(x) != len(y):
        raise ValueError(f"points are compared pair by pair: got {len(x)} and {len(y)}")
    return float((x - y).square().sum(1).mean().sqrt())


class AnchorVariance(NamedTuple):
    """Mean squared error for each element of the best guess of x_0, with and without the anchor.

    By the law of total variance, ``knowing`` is at most ``without``.

    Attributes:
        without: E Var(x_0 | x_t), when x_t alone is known.
        knowing: E Var(x_0 | x_t, a), when the anchor a is known too.
        at_sampling: The same as ``knowing`` for an anchor drawn from N(0, I), as in sampling; it
            tells nothing, so the value equals ``without``.
    """

    without: float
    knowing: float
    at_sampling: float


def anchor_variance(
    x_0: Tensor, anchor: Tensor, x_t: Tensor, *, neighbours: int = 20, seed: int = 0
) -> AnchorVariance:
    """Estimate the variances of the paper's accuracy theorem from draws, by nearest neighbours.

        Var(x_0 | x_t) = E[Var(x_0 | x_t, a) | x_t] + Var(E[x_0 | x_t, a] | x_t)

    (arXiv 2504.20179.) Each conditional mean is that of the nearest other draws in standardized x_t
    or (x_t, a), with the factor k / (k + 1) that undoes the noise of the mean. The estimate is
    biased upward in many dimensions, where neighbours are far; it is meant for the plane and for
    low-dimensional features.

    Args:
        x_0: Data (n, ...).
        anchor: The anchor of each draw (n, ...), in the shape of ``x_0``.
        x_t: The noisy state of each draw (n, ...).
        neighbours: The number k of neighbours.
        seed: Seed of the anchors that tell nothing.

    Returns:
        The three variances.

    Raises:
        ValueError: If the three do not have equally many draws, or there are too few.
    """
    from sklearn.neighbors import NearestNeighbors

    (x_t, x_0), (anchor, _) = point_sets(x_t, x_0), point_sets(anchor, x_0)
    if not (len(x_0) == len(anchor) == len(x_t)) or not 1 <= neighbours < len(x_0):
        raise ValueError(
            f"need equally many x_0, anchors and x_t, and more than {neighbours} neighbours; got "
            f"{len(x_0)}, {len(anchor)}, {len(x_t)}"
        )

    def error(*known: Tensor) -> float:
        parts = [(a - a.mean(0)) / a.std(0).clamp(min=1e-12) / math.sqrt(a.shape[1]) for a in known]
        given = torch.cat(parts, dim=1).numpy()
        search = NearestNeighbors(n_neighbors=neighbours + 1).fit(given)
        nearest = search.kneighbors(given, return_distance=False)[:, 1:]  # the first is the draw
        mean = x_0[torch.from_numpy(nearest)].mean(1)
        return float((x_0 - mean).square().mean() * neighbours / (neighbours + 1))

    # another seed than the one that the caller drew x_0 with
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    nothing = torch.randn(anchor.shape, generator=generator, dtype=anchor.dtype)
    return AnchorVariance(error(x_t), error(x_t, anchor), error(x_t, nothing))
