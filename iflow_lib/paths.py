"""Paths from data to noise: one canonical line, many clocks.

A path joins data ``x_0`` to noise ``z``:  ``x_t = alpha(t) x_0 + sigma(t) z``, data at ``t = 0``,
noise at ``t_max``. Divide by ``alpha + sigma`` and every such path is the same straight line,

    x_t / (alpha(t) + sigma(t)) = (1 - tau) x_0 + tau z,    tau = sigma / (alpha + sigma),

with tau in [0, 1], run with another clock ``t -> tau`` and, for PFGM++, another noise law.
Networks, objectives and samplers work on the line only, so they know nothing of the families.
Because a change of scale and clock maps solutions of the probability-flow ODE onto each other, the
flow map on the line is the flow map of every family.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from .registry import Registry, first_line, plain
from .utils import check_int

PathClass = TypeVar("PathClass", bound="type[Path]")


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Give times as many dimensions as a batch has, so that they multiply it example by example.

    Args:
        t: One number for each example, shape (B,).
        x: A batch of any rank, (B, ...).

    Returns:
        The numbers of t in shape (B, 1, ..., 1).
    """
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class PathSample:
    """One draw from a path.

    Args:
        x_t: Points on the path, (B, ...).
        x_0: Data, (B, ...).
        noise: The noise z, (B, ...).
        t: Times in the path's clock, (B,).
        velocity: The conditional velocity ``alpha'(t) x_0 + sigma'(t) z``, (B, ...). Its mean given
            ``x_t`` is the velocity of the probability-flow ODE.
    """

    x_t: Tensor
    x_0: Tensor
    noise: Tensor
    t: Tensor
    velocity: Tensor


class Path:
    """A clock and a noise law.

    A path of your own gives ``alpha``, ``sigma``, their derivatives ``alpha_dot`` and
    ``sigma_dot``, the inverse clock ``time``, and ``config`` if its constructor takes arguments;
    ``register_path`` lets its models be saved. Everything else follows from these. With a ``noise``
    of its own it gives ``radial_log_density`` as well, where there is one.
    """

    #: The largest time, where x_t is noise (or as good as noise, where the line ends at tau < 1).
    t_max: float = 1.0
    #: The law of training times: see ``sample_times``.
    time_density: tuple[float, float] | str = (0.0, 1.0)
    #: The kind of grid that solvers use: see ``grid``.
    grid_kind: str = "uniform"

    # ------------------------------------------------------------------ the clock
    def alpha(self, t: Tensor) -> Tensor:
        """Return the weight of the data at times t (B,)."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Return the weight of the noise at times t (B,)."""
        raise NotImplementedError

    def alpha_dot(self, t: Tensor) -> Tensor:
        """Return the derivative of ``alpha`` at times t (B,)."""
        raise NotImplementedError

    def sigma_dot(self, t: Tensor) -> Tensor:
        """Return the derivative of ``sigma`` at times t (B,)."""
        raise NotImplementedError

    def time(self, tau: Tensor) -> Tensor:
        """Return the times t (B,) of this path at line times tau (B,): the inverse of ``tau``."""
        raise NotImplementedError

    def scale(self, t: Tensor) -> Tensor:
        """Return ``alpha + sigma`` at times t (B,), by which ``x_t`` is divided on the line."""
        return self.alpha(t) + self.sigma(t)

    def tau(self, t: Tensor) -> Tensor:
        """Return the line times ``sigma / (alpha + sigma)`` (B,) at times t (B,)."""
        return self.sigma(t) / self.scale(t)

    @property
    def tau_max(self) -> float:
        """The line time of ``t_max``: 1 for the rectified path, 80/81 for VE and PFGM++."""
        return float(self.tau(torch.tensor(self.t_max, dtype=torch.float64)))

    def check_times(self, t: Tensor, s: Tensor | None = None) -> None:
        """Check that ``0 <= s <= t <= t_max`` holds everywhere.

        Args:
            t: Times of any shape.
            s: Target times of the same shape, or None.

        Raises:
            ValueError: If it does not hold, or a time is NaN.
        """
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
        """Carry points of this path to the line.

        Args:
            x: Points ``x_t``, (B, ...).
            t: Their times, (B,).

        Returns:
            The points on the line, (B, ...), and their line times, (B,).
        """
        return x / expand(self.scale(t), x), self.tau(t)

    def from_line(self, x_line: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Carry points of the line to this path: the inverse of ``to_line``.

        Args:
            x_line: Points on the line, (B, ...).
            tau: Their line times, (B,).

        Returns:
            The points ``x_t``, (B, ...), and their times, (B,).
        """
        t = self.time(tau)
        return x_line * expand(self.scale(t), x_line), t

    # ------------------------------------------------------------------ the noise law
    def noise(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw noise z from the path's law: standard normal unless a path says otherwise.

        Args:
            shape: Shape of a batch, (B, ...).
            generator: Source of randomness. The numbers are drawn where it lives, which is the CPU
                by default.
            device: Where the result goes; None leaves it where it was drawn.
            dtype: Type of the result.

        Returns:
            The noise, of the given shape.
        """
        source = generator.device if generator is not None else "cpu"
        z = torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype)
        return z.to(device or source)

    def radial_log_density(self, square: Tensor, dim: int) -> Tensor:
        """Return the log density of the noise z, up to a constant, which depends on ``|z|^2`` alone.

        A path with its own ``noise`` gives it too, if its noise has such a density: objectives then
        weigh by it which examples may have made a point (``batch_velocity``).

        Args:
            square: ``|z|^2``, the sum over the elements, of any shape; it may be infinite.
            dim: How many elements z has.

        Returns:
            The log densities, shape of square.
        """
        return square * -0.5

    @property
    def has_radial_density(self) -> bool:
        """Whether ``radial_log_density`` is that of ``noise``: no later class changes noise alone."""
        for cls in type(self).__mro__:
            if "radial_log_density" in vars(cls):
                return True
            if "noise" in vars(cls):
                return False
        return False

    def prior(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw the start of sampling, ``sigma(t_max) z``; arguments as for ``noise``."""
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

        Args:
            x_0: Data, (B, ...).
            t: Times (B,) in [0, t_max].
            noise: The noise z, (B, ...); None draws it from the path's law.
            generator: Source of randomness for the noise.

        Returns:
            The points with what they were made of, and their conditional velocity.

        Raises:
            ValueError: If the times have another shape or leave the path, or the noise has another
                shape.
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
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw training times in this path's clock.

        Args:
            n: How many times.
            density: "uniform" in t; or the mean and standard deviation of a normal law of
                ``ln(sigma / alpha) = logit(tau)``, cut at ``t_max``. On the rectified path, where
                sigma / alpha = t / (1 - t), that is the logit-normal law (arXiv 2403.03206); on VE
                and PFGM++, where it is t itself, it is EDM's log-normal law (arXiv 2206.00364).
                None takes ``time_density``.
            generator: Source of randomness.
            device: Where the result goes; None leaves it where it was drawn.

        Returns:
            The times, (n,).

        Raises:
            ValueError: If the density is another one.
        """
        density = self.time_density if density is None else density
        source = generator.device if generator is not None else "cpu"
        if density == "uniform":
            t = self.t_max * torch.rand(n, generator=generator, device=source)
            return t.to(device or source)
        if (
            isinstance(density, str)
            or not hasattr(density, "__len__")
            or len(density) != 2
            or not density[1] >= 0
        ):
            raise ValueError(
                f'density must be "uniform" or a mean and a standard deviation, got {density!r}'
            )
        mean, std = density
        tau = torch.sigmoid(mean + std * torch.randn(n, generator=generator, device=source))
        return self.time(tau.clamp(max=self.tau_max)).clamp(max=self.t_max).to(device or source)

    def grid(self, steps: int, kind: str | None = None) -> Tensor:
        """Return a solver's times, from ``t_max`` down to 0.

        Args:
            steps: How many steps the solver makes.
            kind: "uniform" in t; or "rho", EDM's grid with rho = 7 (arXiv 2206.00364, eq. 5):
                ``steps`` noise levels ``sigma / alpha`` between that of ``t_max`` (80 at most) and
                0.002, evenly spaced in their seventh root, and then 0. None takes ``grid_kind``.

        Returns:
            The times, (steps + 1,), float64.

        Raises:
            ValueError: If the kind is another one, or steps is not a whole number of at least 1.
        """
        kind, steps = kind or self.grid_kind, check_int("steps", steps)
        if kind not in ("uniform", "rho"):
            raise ValueError(f'kind must be "uniform" or "rho", got {kind!r}')
        if kind == "uniform":
            return torch.linspace(self.t_max, 0.0, steps + 1, dtype=torch.float64)
        last = min(self.tau_max, 80 / 81)
        high, low = (last / (1 - last)) ** (1 / 7), 0.002 ** (1 / 7)
        part = torch.linspace(0, 1, max(steps, 2), dtype=torch.float64)[:steps]
        level = (high + part * (low - high)) ** 7
        times = torch.cat([self.time(level / (1 + level)), torch.zeros(1, dtype=torch.float64)])
        times[0] = self.t_max  # exactly, also where that is pure noise
        return times

    # ------------------------------------------------------------------ identity
    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, for saved models and result tables."""
        return {}

    @property
    def name(self) -> str:
        """The name of the class."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.config().items())})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Path)
            and type(self) is type(other)
            and self.config() == other.config()
        )

    def __hash__(self) -> int:
        return hash(type(self))  # 8 and 8.0 are equal, and so are paths with them


#: Paths by name, for models on disk.
PATHS = Registry("path", Path, "ifl.Path")


def register_path(cls: PathClass) -> PathClass:
    """Register a class of paths, so that models on it are saved and loaded; a class decorator.

    Args:
        cls: A class that extends ``Path``. Where its constructor takes arguments, ``config()``
            returns them as a dict of JSON values.

    Returns:
        The class itself.

    Raises:
        ValueError: If it is not such a class, has no ``config()``, or its name is taken.
    """
    return PATHS.add(cls)


def check_path(path: Path, data_shape: Sequence[int]) -> None:
    """Check the methods of a path at some times. The paths of this module are known to be right.

    Args:
        path: The path.
        data_shape: The shape of one example, for a draw of noise.

    Raises:
        ValueError: If a method is missing or wrong; it names the method.
    """
    if type(path).__module__ == __name__:
        return

    def call(method: str, shape: tuple[int, ...], *args: Any, **options: Any) -> Tensor:
        try:
            out = getattr(path, method)(*args, **options)
        except NotImplementedError:
            raise wrong(method, "is missing: a path of your own must give it") from None
        except Exception as error:  # a user's method may raise anything
            raise wrong(method, f"fails: {first_line(error)}") from error
        if not isinstance(out, Tensor) or out.shape != shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise wrong(method, f"must return a tensor of shape {shape}, got {got}")
        return out

    def wrong(method: str, what: str) -> ValueError:
        return ValueError(f"{method} of the path {path.name} {what}")

    if not (_is_finite(path.t_max) and path.t_max > 0):
        raise wrong("t_max", f"must be a positive number, got {path.t_max!r}")
    t = torch.linspace(0, path.t_max, 5, dtype=torch.float64, device="cpu")
    for method, start in (("alpha", 1), ("sigma", 0)):
        at_0 = float(call(method, (5,), t)[0])
        if not abs(at_0 - start) < 1e-3:
            raise wrong(method, f"must be {start} at t = 0, where x_t is the data; got {at_0:g}")
        call(f"{method}_dot", (5,), t)
    tau = call("tau", (5,), t)
    if not bool((tau >= 0).all() & (tau <= 1 + 1e-6).all() & (tau.diff() > 0).all()):
        raise wrong("tau", f"must rise within [0, 1] from t = 0 to t_max; got {tau.tolist()}")
    back = call("time", (5,), tau)
    if not torch.allclose(back.to(t), t, rtol=1e-3, atol=1e-3 * path.t_max):
        raise wrong("time", f"must be the inverse of tau; got {back.tolist()} for {t.tolist()}")
    inside = path.t_max * t.new_tensor([0.13, 0.37, 0.61, 0.89])  # where a path has no kinks
    step = 1e-4 * path.t_max
    for method in ("alpha", "sigma"):
        after, before = (call(method, (4,), inside + side).double() for side in (step, -step))
        slope, given = (after - before) / (2 * step), call(f"{method}_dot", (4,), inside).double()
        scale = float(torch.maximum(after.abs(), before.abs()).max()) / path.t_max
        off = ~torch.isclose(given, slope, rtol=1e-2, atol=1e-3 * scale)
        if bool(off.any()):
            i = int(off.nonzero()[0])
            raise wrong(
                f"{method}_dot",
                f"must be the derivative of {method}: at t = {inside[i]:g} that is {slope[i]:.4g}, "
                f"got {given[i]:.4g}",
            )
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        call("sample_times", (2,), 2, generator=torch.Generator())
        shape, options = (2, *data_shape), {"device": "cpu", "dtype": torch.float64}
        state = torch.get_rng_state()
        one, two = (
            call("noise", shape, shape, generator=torch.Generator(), **options) for _ in range(2)
        )
        if one.dtype != torch.float64:
            raise wrong(
                "noise", f"must have the dtype that is asked for, torch.float64, not {one.dtype}"
            )
        if not torch.equal(one, two) or not torch.equal(torch.get_rng_state(), state):
            raise wrong("noise", "must draw from generator= alone: equal generators, equal noise")
    square = torch.linspace(0, 4, 6, dtype=torch.float64, device="cpu").reshape(2, 3)
    density = call("radial_log_density", (2, 3), square, math.prod(data_shape))
    if bool(density.isnan().any()):
        raise wrong("radial_log_density", "must return numbers, got NaN")


@register_path
class RectifiedFlow(Path):
    """The line itself, ``x_t = (1 - t) x_0 + t z``, t in [0, 1] (arXiv 2209.03003)."""

    def alpha(self, t: Tensor) -> Tensor:
        """Return ``1 - t``."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Return ``t``."""
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        """Return -1."""
        return -torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)

    def scale(self, t: Tensor) -> Tensor:
        """Return 1, which is ``(1 - t) + t`` without its rounding."""
        return torch.ones_like(t)

    def tau(self, t: Tensor) -> Tensor:
        """Return ``t``."""
        return t

    def time(self, tau: Tensor) -> Tensor:
        """Return ``tau``."""
        return tau


@register_path
class VariancePreserving(Path):
    """The path with ``alpha^2 + sigma^2 = 1`` (arXiv 2011.13456).

    ``alpha = exp(-t^2 beta_d / 4 - t beta_min / 2)``.
    t is in [0, 1]. At t = 1 a trace of the data is left (alpha = 0.0066): pure noise stands in for
    it, as it does for VE at 80.

    Args:
        beta_min: Rate of the noise at t = 0, positive.
        beta_d: Rise of that rate until t = 1, at least 0.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, beta_min: float = 0.1, beta_d: float = 19.9) -> None:
        if not (_is_finite(beta_min) and _is_finite(beta_d) and beta_min > 0 and beta_d >= 0):
            raise ValueError(f"need beta_min > 0 and beta_d >= 0, got {beta_min!r} and {beta_d!r}")
        self.beta_min, self.beta_d = plain(beta_min), plain(beta_d)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t * t * self.beta_d - 0.5 * t * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        """Return ``exp(-t^2 beta_d / 4 - t beta_min / 2)``."""
        return self._log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """Return ``sqrt(1 - alpha^2)``, exact for small t."""
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def alpha_dot(self, t: Tensor) -> Tensor:
        """Return ``-(beta_min + beta_d t) alpha / 2``."""
        return -0.5 * (self.beta_min + self.beta_d * t) * self.alpha(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        """Return ``(beta_min + beta_d t) alpha^2 / (2 sigma)``, which is infinite at t = 0."""
        return 0.5 * (self.beta_min + self.beta_d * t) * self.alpha(t) ** 2 / self.sigma(t)

    def time(self, tau: Tensor) -> Tensor:
        """Solve ``beta_d t^2 + 2 beta_min t = 2 ln(1 + (sigma / alpha)^2)``."""
        # since alpha^2 = 1 / (1 + (sigma / alpha)^2)
        wanted = 2 * torch.log1p((tau / (1 - tau)) ** 2)
        t = wanted / (self.beta_min + (self.beta_min**2 + self.beta_d * wanted).sqrt())
        # rounding must not leave the path
        return torch.where(tau <= self.tau_max, t.clamp(max=self.t_max), t)

    def config(self) -> dict[str, Any]:
        """Return beta_min and beta_d."""
        return {"beta_min": self.beta_min, "beta_d": self.beta_d}


@register_path
class VarianceExploding(Path):
    """EDM's clock: ``x_t = x_0 + t z``, t = sigma in [0, 80] (arXiv 2206.00364).

    On the line ``tau = t / (1 + t)``.     As in EDM, training times are log-normal with mean -1.2
    and deviation 1.2, and the grid has rho = 7 and ends at 0.002.
    """

    t_max = 80.0
    time_density = (-1.2, 1.2)
    grid_kind = "rho"

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return ``t``."""
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        """Return 0."""
        return torch.zeros_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(t)

    def time(self, tau: Tensor) -> Tensor:
        """Return ``tau / (1 - tau)``."""
        t = tau / (1 - tau)
        # in float32 the last time comes back as 80.0004: rounding must not leave the path
        return torch.where(tau <= self.tau_max, t.clamp(max=self.t_max), t)


@register_path
class PoissonFlow(VarianceExploding):
    """PFGM++ (arXiv 2302.04265): the VE clock with a heavy-tailed noise law.

    The kernel ``p_r(x | y) ~ (|x - y|^2 + r^2)^(-(N + aug_dim) / 2)`` with ``r = sigma
    sqrt(aug_dim)`` is the law of ``x = y + sigma z``, where ``z = sqrt(aug_dim) R u``, ``R^2 = B /
    (1 - B)``, ``B ~ Beta(N / 2, aug_dim / 2)`` and ``u`` is uniform on the sphere. A ratio of two
    chi-squares has the law of ``R^2``, so with ``g ~ N(0, I_N)``

        z = g sqrt(aug_dim / chi2),       chi2 ~ chi-square with aug_dim degrees of freedom,

    is a multivariate Student t: the same law, drawn with one scalar more than a Gaussian. ``aug_dim
    -> infinity`` is VE.

    Args:
        aug_dim: Augmented dimension, positive: the paper's D, of which it tries 64 to 2048 on
            CIFAR-10. The variance of z is ``aug_dim / (aug_dim - 2)``, finite for aug_dim > 2.

    Raises:
        ValueError: If aug_dim is not a positive number.
    """

    def __init__(self, aug_dim: float = 128) -> None:
        if not (_is_finite(aug_dim) and aug_dim > 0):
            raise ValueError(
                f"aug_dim must be a positive number, got {aug_dim!r} (VarianceExploding is the limit)"
            )
        self.aug_dim = plain(aug_dim)

    def noise(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw ``z = g sqrt(aug_dim / chi2)``; arguments as for ``Path.noise``."""
        gauss = super().noise(shape, generator=generator, device=device, dtype=dtype)
        source = generator.device if generator is not None else "cpu"
        half = torch.full((len(gauss),), self.aug_dim / 2, dtype=torch.float64, device=source)
        # torch's public Gamma takes no generator
        chi2 = 2 * torch._standard_gamma(half, generator=generator)
        # float32 first, then the device: mps has no float64
        return gauss * expand((self.aug_dim / chi2).sqrt().to(gauss.dtype).to(gauss.device), gauss)

    def radial_log_density(self, square: Tensor, dim: int) -> Tensor:
        """Return ``-(dim + aug_dim) / 2 ln(1 + |z|^2 / aug_dim)``; arguments as for ``Path``."""
        return torch.log1p(square / self.aug_dim) * (-(dim + self.aug_dim) / 2)

    def config(self) -> dict[str, Any]:
        """Return aug_dim."""
        return {"aug_dim": self.aug_dim}
