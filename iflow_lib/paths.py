"""Paths from data to noise: one canonical line, many clocks.

A path joins data ``x_0`` to noise ``z``:  ``x_t = alpha(t) x_0 + sigma(t) z``, data at ``t = 0``, noise at ``t_max``.
Divide by ``alpha + sigma`` and every such path is the same straight line,

    x_t / (alpha(t) + sigma(t)) = (1 - tau) x_0 + tau z,        tau = sigma / (alpha + sigma) in [0, 1],

run with another clock ``t -> tau`` and, for PFGM++, another noise law. Networks, objectives and samplers work on
the line only, so they know nothing of the families. Because a change of scale and clock maps solutions of the
probability-flow ODE onto each other, the flow map on the line is the flow map of every family.

This module imports nothing of ours.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Shape (B,) -> (B, 1, ..., 1), so that a time multiplies a batch of any rank."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


@dataclass(frozen=True)
class PathSample:
    """One draw from a path. ``x_t, x_0, noise, velocity``: (B, ...); ``t``: (B,).

    ``velocity`` is conditional: ``alpha'(t) x_0 + sigma'(t) z``. Its mean given ``x_t`` is the velocity of the ODE.
    """

    x_t: Tensor
    x_0: Tensor
    noise: Tensor
    t: Tensor
    velocity: Tensor


class Path:
    """A clock and a noise law. Sub-classes give ``alpha, sigma`` and their derivatives, and the inverse clock."""

    #: Largest time: pure noise (on a line with tau < 1, as good as).
    t_max: float = 1.0
    #: Mean and standard deviation of ``logit(tau)`` for training times; ``logit(tau) = ln(sigma / alpha)``.
    time_density: tuple[float, float] = (0.0, 1.0)

    # ------------------------------------------------------------------ the clock
    def alpha(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def alpha_dot(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def sigma_dot(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def time(self, tau: Tensor) -> Tensor:
        """The inverse clock: line time ``tau`` -> time ``t`` of this path."""
        raise NotImplementedError

    def scale(self, t: Tensor) -> Tensor:
        """``alpha + sigma``: what ``x_t`` is divided by to reach the line."""
        return self.alpha(t) + self.sigma(t)

    def tau(self, t: Tensor) -> Tensor:
        """The clock: time ``t`` of this path -> line time ``tau``."""
        return self.sigma(t) / self.scale(t)

    @property
    def tau_max(self) -> float:
        """Line time of ``t_max``: 1 for the rectified path, 80/81 for VE and PFGM++."""
        return float(self.tau(torch.tensor(self.t_max, dtype=torch.float64)))

    def check_times(self, t: Tensor, s: Tensor | None = None) -> None:
        """Raise ValueError unless ``0 <= s <= t <= t_max`` holds everywhere."""
        for name, value in (("t", t), ("s", s)):
            if value is not None and not bool(((value >= 0) & (value <= self.t_max)).all()):
                raise ValueError(
                    f"{name} is outside this path: {type(self).__name__} has times in [0, {self.t_max:g}], "
                    f"got values from {float(value.min()):g} to {float(value.max()):g}"
                )
        if s is not None and not bool((s <= t).all()):
            raise ValueError("s must not be later than t: a jump goes from t back to s <= t (data is at time 0)")

    # ------------------------------------------------------------------ the line
    def to_line(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(x_t, t) -> (x_line, tau)``. Shapes (B, ...) and (B,)."""
        return x / expand(self.scale(t), x), self.tau(t)

    def from_line(self, x_line: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """``(x_line, tau) -> (x_t, t)``. Shapes (B, ...) and (B,)."""
        t = self.time(tau)
        return x_line * expand(self.scale(t), x_line), t

    # ------------------------------------------------------------------ the noise law
    def noise(self, shape, *, generator: torch.Generator | None = None, device=None, dtype=None) -> Tensor:
        """Noise ``z`` of the given shape (B, ...). Drawn where the generator lives (CPU by default), then moved."""
        source = generator.device if generator is not None else "cpu"
        return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(device or source)

    def prior(self, shape, *, generator: torch.Generator | None = None, device=None, dtype=None) -> Tensor:
        """Start of sampling at ``t_max``: ``sigma(t_max) z``, shape (B, ...)."""
        sigma_max = float(self.sigma(torch.tensor(self.t_max, dtype=torch.float64)))
        return sigma_max * self.noise(shape, generator=generator, device=device, dtype=dtype)

    def perturb(
        self, *, x_0: Tensor, t: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> PathSample:
        """Draw ``x_t = alpha(t) x_0 + sigma(t) z``.

        x_0: data (B, ...); t: times (B,) in [0, t_max]; noise: (B, ...), drawn from the path's law if not given.
        Raises ValueError for times of another shape or outside the path, or noise of another shape.
        """
        if t.shape != x_0.shape[:1]:
            raise ValueError(f"t must have shape ({len(x_0)},), one time for each example; got {tuple(t.shape)}")
        self.check_times(t)
        if noise is None:
            noise = self.noise(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
        elif noise.shape != x_0.shape:
            raise ValueError(f"noise must have the shape of x_0, {tuple(x_0.shape)}; got {tuple(noise.shape)}")
        x_t = expand(self.alpha(t), x_0) * x_0 + expand(self.sigma(t), x_0) * noise
        velocity = expand(self.alpha_dot(t), x_0) * x_0 + expand(self.sigma_dot(t), x_0) * noise
        return PathSample(x_t=x_t, x_0=x_0, noise=noise, t=t, velocity=velocity)

    # ------------------------------------------------------------------ times
    def sample_times(
        self, n: int, *, density: tuple[float, float] | None = None, generator: torch.Generator | None = None, device=None
    ) -> Tensor:
        """``n`` training times (n,): ``ln(sigma / alpha) = logit(tau)`` is normal, cut at ``t_max``.

        density: its mean and standard deviation, by default the path's ``time_density``. For VE and PFGM++ that is the
        log-normal law of EDM (arXiv 2206.00364), for the rectified path the logit-normal one: the same family.
        """
        mean, std = density or self.time_density
        source = generator.device if generator is not None else "cpu"
        tau = torch.sigmoid(mean + std * torch.randn(n, generator=generator, device=source))
        return self.time(tau.clamp(max=self.tau_max)).clamp(max=self.t_max).to(device or source)

    def grid(self, steps: int) -> Tensor:
        """Sampling times for a solver, from ``t_max`` down to 0, shape (steps + 1,), float64. Uniform in t."""
        return torch.linspace(self.t_max, 0.0, steps + 1, dtype=torch.float64)

    # ------------------------------------------------------------------ identity
    def config(self) -> dict:
        """Constructor arguments, for ``save_pretrained`` and result tables."""
        return {}

    @property
    def name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.config().items())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(repr(self))


class RectifiedFlow(Path):
    """``x_t = (1 - t) x_0 + t z``, t in [0, 1]: the line itself (Rectified Flow, arXiv 2209.03003, data at t = 0)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)  # (1 - t) + t, without its rounding

    def tau(self, t: Tensor) -> Tensor:
        return t

    def time(self, tau: Tensor) -> Tensor:
        return tau


class VarianceExploding(Path):
    """``x_t = x_0 + t z``, t = sigma in [0, 80] (EDM's clock, arXiv 2206.00364); on the line ``tau = t / (1 + t)``.

    ``t_min`` is the last positive time of the solver's grid (rho = 7), as in EDM.
    """

    t_max = 80.0
    t_min = 0.002
    rho = 7.0
    time_density = (-1.2, 1.2)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time(self, tau: Tensor) -> Tensor:
        t = tau / (1 - tau)  # in float32 the last time comes back as 80.0004: rounding must not leave the path
        return torch.where(tau <= self.tau_max, t.clamp(max=self.t_max), t)

    def grid(self, steps: int) -> Tensor:
        """EDM's grid (rho = 7): ``steps`` times from ``t_max`` to ``t_min``, then 0; shape (steps + 1,), float64."""
        ramp = torch.linspace(0, 1, max(steps, 2), dtype=torch.float64)[:steps]
        high, low = self.t_max ** (1 / self.rho), self.t_min ** (1 / self.rho)
        grid = torch.cat([(high + ramp * (low - high)) ** self.rho, torch.zeros(1, dtype=torch.float64)])
        grid[0] = self.t_max  # exactly
        return grid


class PoissonFlow(VarianceExploding):
    """PFGM++ (arXiv 2302.04265): the VE clock with a heavy-tailed noise law.

    The kernel ``p_r(x | y) ~ (|x - y|^2 + r^2)^(-(N + aug_dim) / 2)`` with ``r = sigma sqrt(aug_dim)`` is the law of
    ``x = y + sigma z``, where ``z = sqrt(aug_dim) R u``, ``R^2 = B / (1 - B)``, ``B ~ Beta(N / 2, aug_dim / 2)`` and
    ``u`` is uniform on the sphere. A ratio of two chi-squares has the law of ``R^2``, so with ``g ~ N(0, I_N)``

        z = g sqrt(aug_dim / chi2),       chi2 ~ chi-square with aug_dim degrees of freedom,

    a multivariate Student t: the same law, drawn with one scalar more than a Gaussian. ``aug_dim -> infinity`` is VE.

    aug_dim: augmented dimension, > 0 (the paper's D; it tries 64 to 2048 on CIFAR-10). The variance of z is
    ``aug_dim / (aug_dim - 2)``, finite for aug_dim > 2.
    """

    def __init__(self, aug_dim: float = 128):
        if not (math.isfinite(aug_dim) and aug_dim > 0):
            raise ValueError(f"aug_dim must be a positive number, got {aug_dim!r} (VarianceExploding is the limit)")
        self.aug_dim = aug_dim

    def noise(self, shape, *, generator: torch.Generator | None = None, device=None, dtype=None) -> Tensor:
        gauss = super().noise(shape, generator=generator, device=device, dtype=dtype)
        source = generator.device if generator is not None else "cpu"
        half = torch.full((len(gauss),), self.aug_dim / 2, dtype=torch.float64, device=source)
        chi2 = 2 * torch._standard_gamma(half, generator=generator)  # the public Gamma takes no generator
        # float32 first, then the device: mps has no float64
        return gauss * expand((self.aug_dim / chi2).sqrt().to(gauss.dtype).to(gauss.device), gauss)

    def config(self) -> dict:
        return {"aug_dim": self.aug_dim}


PATHS: dict[str, type[Path]] = {p.__name__: p for p in (RectifiedFlow, VarianceExploding, PoissonFlow)}
