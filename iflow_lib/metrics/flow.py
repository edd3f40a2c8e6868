"""Of a model: are its trajectories straight, is a jump the flow map, what does an anchor tell?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..sampling import initial_noise, sample
from .transport import _two_sets


def straightness(model, n: int = 1000, steps: int = 100, seed: int = 0) -> float:
    """``S(Z) = int_0^1 E |(Z_1 - Z_0) - dZ_t/dt|^2 dt`` along the model's own ODE on the line; 0 iff it is straight.

    (Rectified Flow, arXiv 2209.03003, eq. 8, per example, summed over its elements.) Euler, ``steps`` steps: with one
    step any velocity looks straight, with 100 the value is right to about a per cent. On every path, read on the line.
    """
    if steps < 2:
        raise ValueError(f"straightness needs at least 2 steps, got {steps}")
    walk = sample(model, n, steps, "euler", seed, trajectory=True)
    scale = (
        model.path.scale(walk.times)
        .to(walk.trajectory)
        .reshape(-1, *[1] * (walk.trajectory.ndim - 1))
    )
    points, tau = walk.trajectory / scale, model.path.tau(walk.times).to(walk.trajectory)
    gaps = (tau[1:] - tau[:-1]).reshape(-1, *[1] * (points.ndim - 1))
    velocity = (points[1:] - points[:-1]) / gaps
    chord = (points[-1] - points[0]) / (tau[-1] - tau[0])
    square = (velocity - chord).flatten(2).square().sum(2).mean(1)
    return float((square * gaps.flatten().abs()).sum() / (tau[-1] - tau[0]).abs())


def jump_error(
    model, flow, n: int = 1000, *, t: float | None = None, s: float = 0.0, seed: int = 0
) -> float:
    """Relative RMS distance of the learned jump from the exact flow map: ``RMS(jump - exact) / RMS(exact - E exact)``.

    flow: from ``analytic``, for the model's path. Points are drawn from the prior (t = t_max) if t is None, and carried
    there by the exact flow otherwise. The divisor is the spread of the exact end points: 1 is as bad as their mean.
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
        found = model.jump(
            x=x.to(like), t=torch.full((n,), start).to(like), s=torch.full((n,), float(s)).to(like)
        )
    spread = (end - end.mean(0)).square().mean().sqrt()
    return float((found.double().cpu() - end).square().mean().sqrt() / spread)


class AnchorVariance(NamedTuple):
    """Mean squared error per element of the best guess of x_0, and what is left of it when the anchor is known too.

    ``without``: E Var(x_0 | x_t); ``knowing``: E Var(x_0 | x_t, a) <= ``without`` (law of total variance).
    ``at_sampling``: the same as ``knowing`` for an anchor drawn from N(0, I), which knows nothing: it equals ``without``.
    """

    without: float
    knowing: float
    at_sampling: float


def anchor_variance(
    x_0: Tensor, anchor: Tensor, x_t: Tensor, *, neighbours: int = 20, seed: int = 0
) -> AnchorVariance:
    """Estimate the variances of the paper's accuracy theorem from draws, by nearest neighbours.

        Var(x_0 | x_t) = E[Var(x_0 | x_t, a) | x_t] + Var(E[x_0 | x_t, a] | x_t)

    x_0, anchor, x_t: (n, ...), n joint draws. Each conditional mean is that of the ``neighbours`` nearest other draws in
    standardised (x_t) or (x_t, a), with the factor k / (k + 1) that undoes the noise of the mean. Biased upward in many
    dimensions, where neighbours are far; meant for the plane and for low-dimensional features.
    """
    from sklearn.neighbors import NearestNeighbors

    (x_t, x_0), (anchor, _) = _two_sets(x_t, x_0), _two_sets(anchor, x_0)
    if not (len(x_0) == len(anchor) == len(x_t)) or not 1 <= neighbours < len(x_0):
        raise ValueError(
            f"need equally many x_0, anchors and x_t, and more than {neighbours} neighbours; got "
            f"{len(x_0)}, {len(anchor)}, {len(x_t)}"
        )

    def error(*known: Tensor) -> float:
        parts = [(a - a.mean(0)) / a.std(0).clamp(min=1e-12) / math.sqrt(a.shape[1]) for a in known]
        given = torch.cat(parts, dim=1).numpy()
        index = (
            NearestNeighbors(n_neighbors=neighbours + 1)
            .fit(given)
            .kneighbors(given, return_distance=False)[:, 1:]
        )
        mean = x_0[torch.from_numpy(index)].mean(1)
        return float((x_0 - mean).square().mean() * neighbours / (neighbours + 1))

    generator = torch.Generator().manual_seed(
        seed + 1_000_003
    )  # not the seed that the caller drew x_0 with
    nothing = torch.randn(anchor.shape, generator=generator, dtype=anchor.dtype)
    return AnchorVariance(error(x_t), error(x_t, anchor), error(x_t, nothing))
