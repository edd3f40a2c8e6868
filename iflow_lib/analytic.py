"""Closed-form truth: velocity, posterior mean and flow map where they are known exactly, in float64.

All methods take points and times in a path's own scale and clock, as ``FlowMap`` does. Everything follows from
the posterior mean ``E[x_0 | x_t]``: the noise is what is left, ``E[z | x_t] = (x_t - alpha E[x_0 | x_t]) / sigma``, and the
velocity of the probability-flow ODE is ``alpha' E[x_0 | x_t] + sigma' E[z | x_t]``.

This module imports nothing of ours; a path is anything with alpha, sigma, their derivatives and the line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def _column(t: Tensor) -> Tensor:
    return t.double()[:, None]


def _axes(cov: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return variances (N,) along the axes (N, N) of a covariance; ValueError if it is not one."""
    if cov.shape != (n, n) or not torch.allclose(cov, cov.T):
        raise ValueError(
            f"cov must be a symmetric matrix of shape ({n}, {n}), got {tuple(cov.shape)}"
        )
    variances, axes = torch.linalg.eigh(cov.double())  # ascending
    if variances[0] < -1e-10 * variances[-1].abs():
        raise ValueError(
            f"cov must be positive semi-definite, its smallest eigenvalue is {float(variances[0]):g}"
        )
    return variances.clamp(min=0), axes


class ExactFlow:
    """What follows from the two posterior means, which the classes below give in closed form.

    Args:
        path: The path, such as ``RectifiedFlow()``.
        shape: Shape of one example.
    """

    #: Line time at which the reference solver stops.
    earliest = 0.0

    def __init__(self, path: Any, shape: Sequence[int]) -> None:
        self.path, self.shape = path, tuple(shape)

    def _ends(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[x_0 | x] and E[z | x], each (B, N), for x (B, N), alpha and sigma (B, 1) or (1, 1)."""
        raise NotImplementedError

    def ends(self, *, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return both posterior means.

        Args:
            x: Points ``x_t``, (B, ...).
            t: Times (B,) in the path's clock.

        Returns:
            ``E[x_0 | x_t = x]`` and ``E[z | x_t = x]``, each (B, N).

        Raises:
            ValueError: If a shape is wrong or a time is not on the path.
        """
        if tuple(x.shape[1:]) != self.shape or t.shape != x.shape[:1]:
            raise ValueError(
                f"x must have shape (B, {', '.join(map(str, self.shape))}) and t shape (B,), got "
                f"{tuple(x.shape)} and {tuple(t.shape)}"
            )
        self.path.check_times(t)
        t = t.double()
        return self._ends(
            x.double().flatten(1), _column(self.path.alpha(t)), _column(self.path.sigma(t))
        )

    def posterior_mean(self, *, x: Tensor, t: Tensor) -> Tensor:
        """Return ``E[x_0 | x_t = x]``, shape of x; arguments and errors as for ``ends``."""
        return self.ends(x=x, t=t)[0].reshape(x.shape)

    def velocity(self, *, x: Tensor, t: Tensor) -> Tensor:
        """Return ``v(x, t) = alpha'(t) E[x_0 | x] + sigma'(t) E[z | x]``, shape of x.

        Arguments and errors are those of ``ends``. The velocity is infinite at t = 0 on VP.
        """
        x_0, z = self.ends(x=x, t=t)
        t = t.double()
        v = _column(self.path.alpha_dot(t)) * x_0 + _column(self.path.sigma_dot(t)) * z
        return v.reshape(x.shape)

    def flow_map(self, *, x: Tensor, t: float, s: float, tolerance: float = 1e-9) -> Tensor:
        """Solve the ODE from time t back to time s by a reference solver (DOP853, 8th order).

        It is solved on the line, where the velocity ``E[z | x] - E[x_0 | x]`` stays finite on every path.

        Args:
            x: Points at time t, (B, ...).
            t: The start, a number.
            s: The end, a number with ``0 <= s <= t <= t_max``.
            tolerance: Absolute and relative error of a step of the solver.

        Returns:
            The points at time s, shape of x.

        Raises:
            ValueError: If a time is not on the path, or s > t.
            RuntimeError: If the solver stops before the end.
        """
        from scipy.integrate import solve_ivp

        ends = torch.tensor([t, s], dtype=torch.float64)
        self.path.check_times(ends[:1], ends[1:])
        start, end = self.path.tau(ends).clamp(min=self.earliest).tolist()
        scale_t, scale_s = self.path.scale(ends).tolist()
        n = len(x)

        def line_velocity(tau: float, y: Any) -> Any:
            one = torch.ones(1, 1, dtype=torch.float64)  # one time for all
            x_0, z = self._ends(torch.from_numpy(y).reshape(n, -1), (1 - tau) * one, tau * one)
            return (z - x_0).flatten().numpy()

        y = (x.double() / scale_t).flatten().numpy()
        if start == end or n == 0:
            return x.double().clone()
        solution = solve_ivp(
            line_velocity, (start, end), y, method="DOP853", rtol=tolerance, atol=tolerance
        )
        if not solution.success:
            raise RuntimeError(f"the reference solver stopped: {solution.message}")
        return torch.from_numpy(solution.y[:, -1]).reshape(x.shape) * scale_s


class GaussianFlow(ExactFlow):
    """Data N(mean, cov) and Gaussian noise: everything in closed form.

    ``x_t ~ N(alpha mean, C_t)`` with ``C_t = alpha^2 cov + sigma^2 I``; the posterior mean is linear in x, and the flow map
    carries quantiles to quantiles along the axes of cov:

        x_s = alpha_s mean + C_s^(1/2) C_t^(-1/2) (x_t - alpha_t mean).

    Args:
        path: A path with Gaussian noise.
        mean: The mean, with the shape of one example.
        cov: The covariance (N, N), symmetric and positive semi-definite; N is the number of elements of the mean.

    Raises:
        ValueError: If the path is PoissonFlow, or cov is not such a matrix.
    """

    def __init__(self, path: Any, mean: Tensor, cov: Tensor) -> None:
        super().__init__(path, mean.shape)
        if getattr(path, "aug_dim", None) is not None:
            raise ValueError(
                "GaussianFlow needs a path with Gaussian noise; under PoissonFlow use MixtureFlow"
            )
        self.mean = mean.double().flatten()
        self.variances, self.axes = _axes(cov, mean.numel())

    def _ends(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = alpha**2 * self.variances + sigma**2
        along = (x - alpha * self.mean) @ self.axes / variance  # C_t^-1 (x - alpha mean)
        x_0 = self.mean + (alpha * self.variances * along) @ self.axes.T
        return x_0, (sigma * along) @ self.axes.T

    def _weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight alpha (B, 1) of the mean, and the standard deviations (B, N) along the axes."""
        alpha, sigma = _column(self.path.alpha(t.double())), _column(self.path.sigma(t.double()))
        return alpha, (alpha**2 * self.variances + sigma**2).sqrt()

    def jump(self, *, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the exact flow map from (x, t) to time s.

        Args:
            x: Points at times t, (B, ...).
            t: Times, (B,).
            s: Target times ``s <= t``, (B,).

        Returns:
            The points at times s, shape of x.

        Raises:
            ValueError: If a time is not on the path, or s > t.
        """
        self.path.check_times(t, s)
        (alpha_t, spread_t), (alpha_s, spread_s) = self._weights(t), self._weights(s)
        along = (x.double().flatten(1) - alpha_t * self.mean) @ self.axes
        return (alpha_s * self.mean + (along * spread_s / spread_t) @ self.axes.T).reshape(x.shape)

    def average_velocity(self, *, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return ``(x_t - x_s) / (t - s)`` for s < t, in the path's clock; arguments as for ``jump``."""
        span = (t - s).double().reshape(-1, *[1] * (x.ndim - 1))
        return (x.double() - self.jump(x=x, t=t, s=s)) / span


class MixtureFlow(ExactFlow):
    """A finite data set, or one Gaussian N(y_i, cov) around each point: exact on every path, PFGM++ included.

        E[x_0 | x_t] = sum_i w_i m_i,      w_i ~ weights_i p(x_t | i),      m_i the mean of x_0 given x_t and i.

    With Gaussian noise ``p(x | i) = N(alpha y_i, alpha^2 cov + sigma^2 I)``. PFGM++ (``path.aug_dim``) on a data set has
    ``p(x | i) ~ (|x - alpha y_i|^2 + r^2)^(-(N + aug_dim) / 2)``, ``r = sigma sqrt(aug_dim)`` (arXiv 2302.04265, eq. 4);
    around Gaussians, its noise is a mixture of Gaussians over chi-square scales, summed by quadrature in log(chi2).

    Args:
        path: Any path.
        points: The data points y_i, (M, ...).
        std: Standard deviation of the Gaussian around each point, 0 for none.
        weights: Positive weights of the points, (M,); None makes them equal.
        cov: Covariance (N, N) of the Gaussian around each point, in place of std.

    Raises:
        ValueError: If there are no points, std is negative, or weights or cov do not fit.
    """

    def __init__(
        self,
        path: Any,
        points: Tensor,
        std: float = 0.0,
        weights: Tensor | None = None,
        cov: Tensor | None = None,
    ) -> None:
        super().__init__(path, points.shape[1:])
        if len(points) < 1 or not math.isfinite(std) or std < 0:
            raise ValueError(f"need at least one point and std >= 0, got {len(points)} and {std!r}")
        device = points.device
        weights = torch.ones(len(points), device=device) if weights is None else weights
        if weights.shape != points.shape[:1] or not bool((weights > 0).all()):
            raise ValueError(
                f"weights must be {len(points)} positive numbers, got shape {tuple(weights.shape)}"
            )
        self.points = points.double().flatten(1)
        n = self.points.shape[1]
        self.log_weights = (weights.double() / weights.double().sum()).log()
        same = torch.eye(n, dtype=torch.float64, device=device) * std**2
        self.variances, self.axes = _axes(same if cov is None else cov, n)
        self.smooth = bool(self.variances.max() > 0)
        if not self.smooth:
            # at 0 the velocity (x - y) / tau is 0 / 0; from here on the points move by tau |z - y|
            self.earliest = 1e-9
        self.aug_dim = getattr(path, "aug_dim", None)
        if self.aug_dim is not None and self.smooth:
            # the nodes of the quadrature: u = ln(chi2 / aug_dim), wide, and finer than its own spread
            step = min(0.25, 0.5 / math.sqrt(n + self.aug_dim))
            u = torch.arange(-40.0, 5.0, step, dtype=torch.float64, device=device)
            self.scales = (-u).exp()  # aug_dim / chi2
            # the density of u, up to a constant
            self.log_scale_weights = self.aug_dim / 2 * (u - u.exp())

    def _ends(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        # x less the centre of each component: (B, M, N), along the axes of cov
        gap = (x[:, None] - alpha[..., None] * self.points) @ self.axes
        if self.aug_dim is not None and self.smooth:
            w, drift, noise = self._heavy_tailed(gap, alpha, sigma)
        elif self.aug_dim is not None:
            square = gap.square().sum(-1) + self.aug_dim * sigma**2
            power = (x.shape[1] + self.aug_dim) / 2
            w = torch.softmax(self.log_weights - power * torch.log(square), dim=1)
            drift = torch.zeros_like(x)
            noise = (w[..., None] * gap).sum(1) / sigma**2
        else:
            variance = alpha**2 * self.variances + sigma**2  # (B, N)
            square = (gap.square() / (2 * variance[:, None])).sum(-1)
            w = torch.softmax(self.log_weights - square, dim=1)
            drift = noise = (w[..., None] * gap).sum(1) / variance
        x_0 = w @ self.points + (alpha * self.variances * drift) @ self.axes.T
        return x_0, (sigma * noise) @ self.axes.T

    def _heavy_tailed(
        self, gap: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for Gaussians under PFGM++'s noise, weights (B, M), drift and noise (B, N), by quadrature over K scales."""
        variance = alpha[..., None] ** 2 * self.variances[:, None]
        precision = 1 / (variance + sigma[..., None] ** 2 * self.scales)  # (B, N, K)
        log_p = (
            self.log_scale_weights
            + precision.log().sum(1, keepdim=True) / 2
            - gap.square() @ precision / 2
        )
        log_p = log_p + self.log_weights[:, None]
        p = torch.softmax(log_p.flatten(1), dim=1).reshape(log_p.shape)  # (B, M, K)
        drift = (gap * (p @ precision.mT)).sum(1)
        noise = (gap * (p @ (self.scales * precision).mT)).sum(1)
        return p.sum(-1), drift, noise
