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
    #: Law of training times (``sample_times``) and kind of sampling grid (``grid``).
    time_density: tuple[float, float] | str = (0.0, 1.0)
    grid_kind: str = "uniform"

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
            raise ValueError(
                "s must not be later than t: a jump goes from t back to s <= t (data is at time 0)"
            )

    # ------------------------------------------------------------------ the line
    def to_line(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(x_t, t) -> (x_line, tau)``. Shapes (B, ...) and (B,)."""
        return x / expand(self.scale(t), x), self.tau(t)

    def from_line(self, x_line: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """``(x_line, tau) -> (x_t, t)``. Shapes (B, ...) and (B,)."""
        t = self.time(tau)
        return x_line * expand(self.scale(t), x_line), t

    # ------------------------------------------------------------------ the noise law
    def noise(
        self, shape, *, generator: torch.Generator | None = None, device=None, dtype=None
    ) -> Tensor:
        """Noise ``z`` of the given shape (B, ...). Drawn where the generator lives (CPU by default), then moved."""
        source = generator.device if generator is not None else "cpu"
        return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(
            device or source
        )

    def prior(
        self, shape, *, generator: torch.Generator | None = None, device=None, dtype=None
    ) -> Tensor:
        """Start of sampling at ``t_max``: ``sigma(t_max) z``, shape (B, ...)."""
        sigma_max = float(self.sigma(torch.tensor(self.t_max, dtype=torch.float64)))
        return sigma_max * self.noise(shape, generator=generator, device=device, dtype=dtype)

    def perturb(
        self,
        *,
        x_0: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        """Draw ``x_t = alpha(t) x_0 + sigma(t) z``.

        x_0: data (B, ...); t: times (B,) in [0, t_max]; noise: (B, ...), drawn from the path's law if not given.
        Raises ValueError for times of another shape or outside the path, or noise of another shape.
        """
        if t.shape != x_0.shape[:1]:
            raise ValueError(
                f"t must have shape ({len(x_0)},), one time for each example; got {tuple(t.shape)}"
            )
        self.check_times(t)
        if noise is None:
            noise = self.noise(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
        elif noise.shape != x_0.shape:
            raise ValueError(
                f"noise must have the shape of x_0, {tuple(x_0.shape)}; got {tuple(noise.shape)}"
            )
        x_t = expand(self.alpha(t), x_0) * x_0 + expand(self.sigma(t), x_0) * noise
        velocity = expand(self.alpha_dot(t), x_0) * x_0 + expand(self.sigma_dot(t), x_0) * noise
        return PathSample(x_t=x_t, x_0=x_0, noise=noise, t=t, velocity=velocity)

    # ------------------------------------------------------------------ times
    def sample_times(
        self,
        n: int,
        *,
        density: tuple[float, float] | str | None = None,
        generator: torch.Generator | None = None,
        device=None,
    ) -> Tensor:
        """``n`` training times (n,) of this path's clock.

        density: "uniform", in t; or (mean, std) of a normal law of ``ln(sigma / alpha) = logit(tau)``, cut at ``t_max``:
        on the rectified path, where sigma / alpha = t / (1 - t), that is the logit-normal law (arXiv 2403.03206); on VE
        and PFGM++, where it is t itself, the log-normal one of EDM (arXiv 2206.00364). Default: ``time_density``.
        Raises ValueError for another density.
        """
        density = self.time_density if density is None else density
        source = generator.device if generator is not None else "cpu"
        if density == "uniform":
            return (self.t_max * torch.rand(n, generator=generator, device=source)).to(
                device or source
            )
        if isinstance(density, str) or len(density) != 2 or not density[1] >= 0:
            raise ValueError(
                f'density must be "uniform" or a mean and a standard deviation, got {density!r}'
            )
        tau = torch.sigmoid(
            density[0] + density[1] * torch.randn(n, generator=generator, device=source)
        )
        return self.time(tau.clamp(max=self.tau_max)).clamp(max=self.t_max).to(device or source)

    def grid(self, steps: int, kind: str | None = None) -> Tensor:
        """Sampling times for a solver, from ``t_max`` down to 0, shape (steps + 1,), float64.

        kind: "uniform" in t; or "rho", EDM's (rho = 7): ``steps`` noise levels ``sigma / alpha`` between that of
        ``t_max`` (80 at most) and 0.002, evenly spaced in their seventh root, then 0. Default: ``grid_kind``.
        """
        kind = kind or self.grid_kind
        if kind not in ("uniform", "rho"):
            raise ValueError(f'kind must be "uniform" or "rho", got {kind!r}')
        if kind == "uniform":
            return torch.linspace(self.t_max, 0.0, steps + 1, dtype=torch.float64)
        last = min(self.tau_max, 80 / 81)
        high, low = (last / (1 - last)) ** (1 / 7), 0.002 ** (1 / 7)
        ratio = (
            high + torch.linspace(0, 1, max(steps, 2), dtype=torch.float64)[:steps] * (low - high)
        ) ** 7
        grid = torch.cat([self.time(ratio / (1 + ratio)), torch.zeros(1, dtype=torch.float64)])
        grid[0] = self.t_max  # exactly, also where that is pure noise
        return grid

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


class VariancePreserving(Path):
    """``alpha^2 + sigma^2 = 1``, ``alpha = exp(-t^2 beta_d / 4 - t beta_min / 2)``, t in [0, 1] (arXiv 2011.13456).

    beta_min: rate of noise at t = 0; beta_d: its rise until t = 1. At t = 1 a trace of the data is left (alpha = 0.0066):
    pure noise stands in for it, as it does for VE at 80.
    """

    def __init__(self, beta_min: float = 0.1, beta_d: float = 19.9):
        if not (math.isfinite(beta_min) and math.isfinite(beta_d) and beta_min > 0 and beta_d >= 0):
            raise ValueError(f"need beta_min > 0 and beta_d >= 0, got {beta_min!r} and {beta_d!r}")
        self.beta_min, self.beta_d = beta_min, beta_d

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t * t * self.beta_d - 0.5 * t * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -0.5 * (self.beta_min + self.beta_d * t) * self.alpha(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        """Infinite at t = 0, where sigma starts like a square root."""
        return 0.5 * (self.beta_min + self.beta_d * t) * self.alpha(t) ** 2 / self.sigma(t)

    def time(self, tau: Tensor) -> Tensor:
        wanted = 2 * torch.log1p(
            (tau / (1 - tau)) ** 2
        )  # beta_d t^2 + 2 beta_min t, since alpha^2 = 1 / (1 + ratio^2)
        t = wanted / (self.beta_min + (self.beta_min**2 + self.beta_d * wanted).sqrt())
        return torch.where(
            tau <= self.tau_max, t.clamp(max=self.t_max), t
        )  # rounding must not leave the path

    def config(self) -> dict:
        return {"beta_min": self.beta_min, "beta_d": self.beta_d}


class VarianceExploding(Path):
    """``x_t = x_0 + t z``, t = sigma in [0, 80] (EDM's clock, arXiv 2206.00364); on the line ``tau = t / (1 + t)``.

    Training times are log-normal with mean -1.2 and deviation 1.2, the grid has rho = 7 and ends at 0.002, as in EDM.
    """

    t_max = 80.0
    time_density = (-1.2, 1.2)
    grid_kind = "rho"

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time(self, tau: Tensor) -> Tensor:
        t = tau / (
            1 - tau
        )  # in float32 the last time comes back as 80.0004: rounding must not leave the path
        return torch.where(tau <= self.tau_max, t.clamp(max=self.t_max), t)


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
            raise ValueError(
                f"aug_dim must be a positive number, got {aug_dim!r} (VarianceExploding is the limit)"
            )
        self.aug_dim = aug_dim

    def noise(
        self, shape, *, generator: torch.Generator | None = None, device=None, dtype=None
    ) -> Tensor:
        gauss = super().noise(shape, generator=generator, device=device, dtype=dtype)
        source = generator.device if generator is not None else "cpu"
        half = torch.full((len(gauss),), self.aug_dim / 2, dtype=torch.float64, device=source)
        chi2 = 2 * torch._standard_gamma(
            half, generator=generator
        )  # the public Gamma takes no generator
        # float32 first, then the device: mps has no float64
        return gauss * expand((self.aug_dim / chi2).sqrt().to(gauss.dtype).to(gauss.device), gauss)

    def config(self) -> dict:
        return {"aug_dim": self.aug_dim}


PATHS: dict[str, type[Path]] = {
    p.__name__: p for p in (RectifiedFlow, VarianceExploding, VariancePreserving, PoissonFlow)
}
