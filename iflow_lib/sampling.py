"""Sampling: one jump, several jumps, or a solver; every network call is counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .data import TensorData
from .model import FlowMap
from .utils import pick_device, check_int

METHODS = ("map", "euler", "heun", "rk45", "anchor")
#: Noise is always drawn in blocks of this many samples, so that it does not depend on the batch size of the network.
NOISE_BLOCK = 256


@dataclass(frozen=True)
class SampleResult:
    """``x``: samples (n, ...) on the CPU; ``nfe``: network calls per sample; ``trajectory``: (points, n, ...) in the
    path's own scale with ``times`` (points,), or None."""

    x: Tensor
    nfe: int
    trajectory: Tensor | None = None
    times: Tensor | None = None


def initial_noise(model: FlowMap, n: int, seed: int = 0):
    """The starting points on the line in blocks (<= NOISE_BLOCK, ...), drawn on the CPU in float32.

    The same seed gives the same noise on every device and for every batch size; more samples only add to the end.
    """
    generator = torch.Generator().manual_seed(seed)
    tau_max = model.path.tau_max
    for start in range(0, n, NOISE_BLOCK):
        # always a whole block: torch's normal stream depends on how many numbers are asked for at once
        z = model.path.noise(
            (NOISE_BLOCK, *model.data_shape), generator=generator, dtype=torch.float32
        )
        yield tau_max * z[: n - start]


def line_grid(model: FlowMap, method: str, steps: int) -> Tensor:
    """Line times from ``tau_max`` to 0, shape (steps + 1,), float64.

    Solvers use the path's own grid in its own clock (uniform for the rectified path, EDM's for VE and PFGM++); jumps
    need no accuracy from their grid and use equal parts of the line.
    """
    if method == "map":
        return torch.linspace(model.path.tau_max, 0.0, steps + 1, dtype=torch.float64)
    return model.path.tau(model.path.grid(steps))


class _Calls:
    """The network with labels, guidance and counting: ``u(x, t, s, anchor)`` with times as numbers."""

    def __init__(self, model: FlowMap, labels: Tensor | None, guidance: float):
        self.model, self.labels, self.guidance, self.count = model, labels, guidance, 0

    def __call__(self, x: Tensor, t: float, s: float, anchor: Tensor | None = None) -> Tensor:
        times = x.new_full((len(x),), t), x.new_full((len(x),), s)
        if anchor is None and self.model.anchored:
            anchor = torch.zeros_like(x)  # "no anchor"
        self.count += 1
        u = self.model(x, *times, anchor, self.labels)
        if self.guidance == 1:
            return u
        self.count += 1
        free = self.model(x, *times, anchor, torch.full_like(self.labels, -1))
        return free + self.guidance * (u - free)


def _integrate(u: _Calls, x: Tensor, grid: Tensor, method: str, record: list | None) -> Tensor:
    """Move x (B, ...) on the line along the grid to its end."""
    anchor, times = None, grid.tolist()
    if method == "map" and u.model.anchored and len(times) > 2:
        anchor = x - times[0] * u(
            x, times[0], 0.0
        )  # the first call estimates the end, the others use it
        times = torch.linspace(times[0], 0.0, len(times) - 1, dtype=torch.float64).tolist()
    for t, s in zip(times[:-1], times[1:]):
        if record is not None:
            record.append(x)
        if method == "map":
            x = x - (t - s) * u(x, t, s, anchor)
            continue
        v = u(x, t, t)
        if method == "heun":
            v = (v + u(x - (t - s) * v, s, s)) / 2
        x = x - (t - s) * v
    if record is not None:
        record.append(x)
    return x


def _adaptive(
    u: _Calls, x: Tensor, tau_max: float, tolerance: float, record: list | None
) -> Tensor:
    """Dormand and Prince's Runge-Kutta pair of order 5(4), adaptive, by scipy; one common step for the batch."""
    from scipy.integrate import solve_ivp

    def velocity(tau, y):
        point = torch.from_numpy(y).reshape(x.shape).to(x)
        return u(point, tau, tau).double().cpu().numpy().ravel()

    start = x.double().cpu().numpy().ravel()
    solution = solve_ivp(
        velocity, (tau_max, 0.0), start, method="RK45", rtol=tolerance, atol=tolerance
    )
    if not solution.success:
        raise RuntimeError(f"rk45 stopped before the end: {solution.message}")
    states = [torch.from_numpy(y.copy()).reshape(x.shape).to(x) for y in solution.y.T]
    if record is not None:
        record += [states[0], states[-1]]
    return states[-1]


def _refine(
    u: _Calls, x: Tensor, tau_max: float, nfe: int, generator: torch.Generator, record: list | None
) -> Tensor:
    """As published: f(anchor, z, t_max) from a Gaussian anchor, again and again at the same (z, t_max)."""
    anchor = torch.randn(x.shape, generator=generator).to(x)
    for _ in range(nfe):
        if record is not None:
            record.append(anchor)
        anchor = x - tau_max * u(x, tau_max, 0.0, anchor)
    if record is not None:
        record.append(anchor)
    return anchor


def _check_labels(
    model: FlowMap, labels, n: int, guidance: float, steps_of: int, nfe: int, method: str
) -> Tensor | None:
    if labels is not None:
        labels = torch.as_tensor(labels)
        labels = labels.expand(n) if labels.ndim == 0 else labels
        if not model.classes:
            raise ValueError("labels were given to a network without classes")
        fits = labels.shape == (n,) and not labels.is_floating_point()
        if not fits or not bool(((labels >= -1) & (labels < model.classes)).all()):
            raise ValueError(
                f"labels must be {n} whole numbers in [0, {model.classes}), or one for all"
            )
    if guidance != 1:
        if labels is None:
            raise ValueError("guidance needs labels")
        if method != "rk45" and nfe % (2 * steps_of):
            raise ValueError(
                f"with guidance {method} makes {2 * steps_of} network calls a step: nfe must be a multiple of "
                f"that, got {nfe}"
            )
    return labels


@torch.no_grad()
def sample(
    model: FlowMap,
    n: int,
    nfe: int = 1,
    method: str = "map",
    seed: int = 0,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    trajectory: bool = False,
    labels=None,
    guidance: float = 1.0,
    times=None,
    tolerance: float = 1e-5,
) -> SampleResult:
    """Draw ``n`` samples with exactly ``nfe`` network calls each.

    method: "map", ``nfe`` jumps (a model trained for jumps; an anchored one spends its first call of several on the
    anchor); "euler", ``nfe`` steps; "heun", ``nfe / 2`` steps of two calls (an odd nfe is an error: nothing is rounded);
    "rk45", adaptive, to ``tolerance``: nfe is what it took, the mean over batches rounded up, and the argument is
    ignored; "anchor", ``nfe`` refinements of a Gaussian anchor at the same noise and ``t_max``, as published
    (arXiv 2504.20179), for an anchored model. On the line an Euler step is the exponential integrator (DDIM) step of
    every path.
    labels: classes (n,), or one for all; guidance: w in ``u = u_free + w (u_class - u_free)`` (arXiv 2207.12598), which
    makes every call two unless it is 1. times: for "map", "euler" and "heun", your own grid in the path's clock, from
    ``t_max`` down to 0, instead of the default one with as many steps.
    batch_size bounds memory and does not change the noise; device: None keeps the model's. Samples are returned on the
    CPU. The same seed gives the same noise everywhere; see ``initial_noise``.

    Raises ValueError for an unknown method or device, n < 1, nfe < 1, batch_size < 1, an nfe that does not divide, labels
    that do not fit the network, or times that are not a grid.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    n, nfe, batch_size = (
        check_int("n", n),
        check_int("nfe", nfe),
        check_int("batch_size", batch_size),
    )
    steps_of = 2 if method == "heun" else 1
    if nfe % steps_of:
        raise ValueError(f"heun makes two network calls a step, so nfe must be even; got {nfe}")
    if method == "anchor" and not model.anchored:
        raise ValueError('method="anchor" needs a network built with anchor=True')
    labels = _check_labels(model, labels, n, guidance, steps_of, nfe, method)
    steps = nfe // steps_of // (2 if guidance != 1 and method != "rk45" else 1)
    grid = (
        line_grid(model, method, steps) if times is None else _own_grid(model, times, steps, method)
    )
    if device is not None:
        model = model.to(pick_device(device))
    target = next(model.parameters(), torch.empty(0, device=device and pick_device(device)))
    was_training = model.training
    model.eval()
    ends, paths, pending, counts, done = [], [], [], [], 0
    anchors = torch.Generator().manual_seed(seed + 1)
    try:
        for block, last in _with_last(initial_noise(model, n, seed)):
            pending.append(block)
            while pending and (sum(map(len, pending)) >= batch_size or last):
                z = torch.cat(pending)
                pending = [z[batch_size:]] if len(z) > batch_size else []
                x, record = z[:batch_size].to(target), [] if trajectory else None
                u = _Calls(
                    model,
                    None if labels is None else labels[done : done + len(x)].to(x.device),
                    guidance,
                )
                if method == "rk45":
                    x = _adaptive(u, x, model.path.tau_max, tolerance, record)
                elif method == "anchor":
                    x = _refine(u, x, model.path.tau_max, steps, anchors, record)
                else:
                    x = _integrate(u, x, grid, method, record)
                done += len(x)
                ends.append(x.cpu())
                counts.append(u.count * len(x))
                if record is not None:
                    paths.append(torch.stack(record).cpu())
    finally:
        model.train(was_training)
    x, calls = torch.cat(ends), -(-sum(counts) // n)
    scale_0 = float(model.path.scale(torch.zeros(1)))  # 1 on every path: the data are not rescaled
    if not trajectory:
        return SampleResult(x=x * scale_0, nfe=calls)
    if method == "anchor":  # anchors are estimates of the data, all at the same time
        return SampleResult(
            x=x * scale_0, nfe=calls, trajectory=torch.cat(paths, dim=1), times=None
        )
    if method == "rk45":
        grid = grid[[0, -1]]
    elif method == "map" and model.anchored and len(grid) > 2:
        grid = torch.linspace(float(grid[0]), 0.0, len(grid) - 1, dtype=torch.float64)
    at = model.path.time(grid)
    scales = model.path.scale(at).to(x).reshape((-1,) + (1,) * x.ndim)
    return SampleResult(
        x=x * scale_0, nfe=calls, trajectory=torch.cat(paths, dim=1) * scales, times=at
    )


def _own_grid(model: FlowMap, times, steps: int, method: str) -> Tensor:
    """Line times of a grid given in the path's clock. ValueError unless it falls from t_max to 0 in ``steps`` steps."""
    times = torch.as_tensor(times, dtype=torch.float64)
    if method not in ("map", "euler", "heun") or method == "map" and model.anchored:
        raise ValueError(
            f"{method} takes no times" + (" with an anchored network" if method == "map" else "")
        )
    if (
        times.shape != (steps + 1,)
        or times[0] != model.path.t_max
        or times[-1] != 0
        or not bool((times.diff() < 0).all())
    ):
        raise ValueError(
            f"times must fall from {model.path.t_max:g} to 0 in {steps} steps, so {steps + 1} numbers; got "
            f"{tuple(times.shape)} from {float(times[0]):g} to {float(times[-1]):g}"
        )
    grid = model.path.tau(times)
    grid[0] = model.path.tau_max
    return grid


def reflow(
    model: FlowMap,
    n: int,
    *,
    nfe: int = 100,
    method: str = "euler",
    seed: int = 0,
    batch_size: int = 256,
    labels=None,
):
    """Coupled pairs for the next rectified flow: noise and where the model's own ODE takes it (arXiv 2209.03003).

    ``fit(new_model, FlowMatching(), reflow(model, n), ...)`` trains the 2-RF; ``Distillation()`` in place of
    ``FlowMatching()`` the one-step model. Returns a data set with ``x``, ``noise`` and, if given, ``labels``.
    Arguments as for ``sample``. Raises ValueError on other paths than RectifiedFlow.
    """
    if model.path.tau_max != 1:
        raise ValueError(f"reflow is defined on RectifiedFlow, not on {model.path.name}")
    noise = torch.cat(list(initial_noise(model, n, seed)))
    out = sample(model, n, nfe, method, seed, batch_size=batch_size, labels=labels)
    kept = None if labels is None else torch.as_tensor(labels).expand(n).clone()
    return TensorData(out.x, labels=kept, name=f"reflow of {n}", noise=noise)


def _with_last(blocks):
    """Pairs (block, is it the last one)."""
    blocks = iter(blocks)
    current = next(blocks)
    for following in blocks:
        yield current, False
        current = following
    yield current, True
