"""Sampling: one jump, several jumps, or a solver; every network call is counted."""
from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from .flow_map import FlowMap

METHODS = ("map", "euler", "heun")
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


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """"auto" is cuda, else mps, else cpu. ValueError for an unknown name or a device that this machine lacks."""
    name = str(device)
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdecimal()) or name.endswith(":"):
        raise ValueError(f"unknown device {name!r}: expected auto, cpu, cuda or mps")
    found = {"cpu": 1, "cuda": torch.cuda.device_count() if cuda else 0, "mps": int(mps)}[kind]
    if int(index or 0) >= found:
        raise ValueError(f"device {name!r} is not available on this machine: use auto or cpu")
    return torch.device(name)


def whole(name: str, value) -> int:
    """``value`` as an int, numpy's included. ValueError if it is not a whole number of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def initial_noise(model: FlowMap, n: int, seed: int = 0):
    """The starting points on the line in blocks (<= NOISE_BLOCK, ...), drawn on the CPU in float32.

    The same seed gives the same noise on every device and for every batch size; more samples only add to the end.
    """
    generator = torch.Generator().manual_seed(seed)
    tau_max = model.path.tau_max
    for start in range(0, n, NOISE_BLOCK):
        # always a whole block: torch's normal stream depends on how many numbers are asked for at once
        z = model.path.noise((NOISE_BLOCK, *model.data_shape), generator=generator, dtype=torch.float32)
        yield tau_max * z[: n - start]


def line_grid(model: FlowMap, method: str, steps: int) -> Tensor:
    """Line times from ``tau_max`` to 0, shape (steps + 1,), float64.

    Solvers use the path's own grid in its own clock (uniform for the rectified path, EDM's for VE and PFGM++); jumps
    need no accuracy from their grid and use equal parts of the line.
    """
    if method == "map":
        return torch.linspace(model.path.tau_max, 0.0, steps + 1, dtype=torch.float64)
    return model.path.tau(model.path.grid(steps))


@torch.no_grad()
def _integrate(model: FlowMap, x: Tensor, grid: Tensor, method: str, record: list | None) -> tuple[Tensor, int]:
    """Move x (B, ...) on the line along the grid. Returns the end point and the number of network calls."""
    calls = 0

    def u(x: Tensor, t: float, s: float) -> Tensor:
        nonlocal calls
        calls += 1
        return model(x, x.new_full((len(x),), t), x.new_full((len(x),), s))

    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist()):
        if record is not None:
            record.append(x)
        if method == "map":
            x = x - (t - s) * u(x, t, s)
            continue
        v = u(x, t, t)
        if method == "heun":
            v = (v + u(x - (t - s) * v, s, s)) / 2
        x = x - (t - s) * v
    if record is not None:
        record.append(x)
    return x, calls


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
    times=None,
) -> SampleResult:
    """Draw ``n`` samples with exactly ``nfe`` network calls each.

    method: "map", ``nfe`` jumps (a model trained for jumps); "euler", ``nfe`` steps; "heun", ``nfe / 2`` steps of two
    calls (an odd nfe is an error: nothing is rounded). On the line an Euler step is the exponential integrator
    (DDIM) step of every path. times: your own grid in the path's clock, from ``t_max`` down to 0, in place of the default
    one with as many steps. batch_size bounds memory and does not change the noise; device: None keeps the model's.
    Samples are returned on the CPU. The same seed gives the same noise everywhere; see ``initial_noise``.

    Raises ValueError for an unknown method or device, n < 1, nfe < 1, batch_size < 1, an odd nfe with "heun", or
    times that are no such grid.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    n, nfe, batch_size = whole("n", n), whole("nfe", nfe), whole("batch_size", batch_size)
    if method == "heun" and nfe % 2:
        raise ValueError(f"heun makes two network calls a step, so nfe must be even; got {nfe}")
    if device is not None:
        model = model.to(pick_device(device))
    target = next(model.parameters(), torch.empty(0, device=device and pick_device(device)))
    steps = nfe // 2 if method == "heun" else nfe
    grid = line_grid(model, method, steps) if times is None else _own_grid(model, times, steps)
    was_training = model.training
    model.eval()
    ends, paths, pending, calls = [], [], [], nfe
    try:
        for block, last in _with_last(initial_noise(model, n, seed)):
            pending.append(block)
            while pending and (sum(map(len, pending)) >= batch_size or last):
                z = torch.cat(pending)
                pending = [z[batch_size:]] if len(z) > batch_size else []
                record: list[Tensor] | None = [] if trajectory else None
                x, calls = _integrate(model, z[:batch_size].to(target), grid, method, record)
                ends.append(x.cpu())
                if record is not None:
                    paths.append(torch.stack(record).cpu())
    finally:
        model.train(was_training)
    x = torch.cat(ends)
    scale_0 = float(model.path.scale(torch.zeros(1)))  # 1 on every path: the data are not rescaled
    if not trajectory:
        return SampleResult(x=x * scale_0, nfe=calls)
    times = model.path.time(grid)
    scales = model.path.scale(times).to(x).reshape((-1,) + (1,) * x.ndim)
    return SampleResult(x=x * scale_0, nfe=calls, trajectory=torch.cat(paths, dim=1) * scales, times=times)


def _own_grid(model: FlowMap, times, steps: int) -> Tensor:
    """Line times of a grid given in the path's clock. ValueError unless it falls from t_max to 0 in ``steps`` steps."""
    times = torch.as_tensor(times, dtype=torch.float64)
    t_max = model.path.t_max
    if times.shape != (steps + 1,) or times[0] != t_max or times[-1] != 0 or not bool((times.diff() < 0).all()):
        raise ValueError(f"times must fall from {t_max:g} to 0 in {steps} steps, so {steps + 1} numbers; "
                         f"got {times.tolist()}")
    return model.path.tau(times)


def _with_last(blocks):
    """Pairs (block, is it the last one)."""
    blocks = iter(blocks)
    current = next(blocks)
    for following in blocks:
        yield current, False
        current = following
    yield current, True
