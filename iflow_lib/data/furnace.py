"""A furnace with three heated zones, whose law is known exactly.

Each zone follows its set-point with a lag, exchanges heat with its neighbours and loses some to the
hall. Set-points are held for a while and then change, as recipes do. All of it is linear and all
noise is Gaussian, so a window of measurements is Gaussian too: mean, covariance, autocorrelation,
step response and what is left to know when a part is given are matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..utils import check_int
from .registry import register_dataset

if TYPE_CHECKING:
    import pandas as pd

#: Columns of a window: three set-points, three measured temperatures.
CHANNELS = ("set_1", "set_2", "set_3", "zone_1", "zone_2", "zone_3")
ZONES = 3


@dataclass(frozen=True)
class Furnace:
    """Three zones in a row. Temperatures are in degrees Celsius, times in minutes.

    With zone temperatures x, set-points r and the hall at h,

        dx_i/dt = (r_i - x_i) / lag_i + exchange (sum over neighbours j of (x_j - x_i)) + loss (h - x_i),

    which is solved exactly over a step, during which r is constant; then noise is added to x. What
    is measured is x plus the noise of the sensors. Set-points are held for ``hold`` steps. The next
    ones are ``r' = m + persistence (r - m) + noise``. Windows begin where set-points change.

    Args:
        set_points: Mean m of the set-points.
        spread: Standard deviation of a set-point.
        alike: Correlation of two set-points at the same time, in (-0.5, 1).
        persistence: Correlation of a set-point with the next one, in [0, 1).
        hold: Steps for which set-points are held.
        lag: How slowly each zone follows its set-point.
        exchange: Exchange of heat between neighbours, per minute.
        loss: Loss of heat to the hall, per minute.
        hall: Temperature of the hall.
        disturbance: Standard deviation of the noise that a step adds to a zone.
        sensor: Standard deviation of the noise of a sensor.
        every: Minutes between two measurements.
    """

    set_points: tuple[float, float, float] = (820.0, 900.0, 860.0)
    spread: float = 12.0
    alike: float = 0.5
    persistence: float = 0.3
    hold: int = 12
    lag: tuple[float, float, float] = (12.0, 18.0, 15.0)
    exchange: float = 0.02
    loss: float = 0.002
    hall: float = 25.0
    disturbance: float = 1.0
    sensor: float = 0.5
    every: float = 5.0

    def __post_init__(self) -> None:
        check_int("hold", self.hold)
        positive = (*self.lag, self.spread, self.every)
        if min(positive) <= 0 or min(self.exchange, self.loss, self.disturbance, self.sensor) < 0:
            raise ValueError(
                "lags, spread and every must be above 0, and the other sizes at least 0"
            )
        if not (-0.5 < self.alike < 1 and 0 <= self.persistence < 1):
            raise ValueError(
                f"alike must be in (-0.5, 1) and persistence in [0, 1), got {self.alike}, {self.persistence}"
            )

    @cached_property
    def _step(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """F, G and c of ``x' = F x + G r + c``, one step of the zones."""
        from scipy.linalg import expm  # late: importing the package is to be quick

        neighbours = np.array([[-1.0, 1, 0], [1, -2, 1], [0, 1, -1]])
        rate = np.diag(1 / np.array(self.lag))
        a = self.exchange * neighbours - self.loss * np.eye(ZONES) - rate
        f = expm(a * self.every)
        effect = np.linalg.solve(a, f - np.eye(ZONES))
        return f, effect @ rate, effect @ np.full(ZONES, self.loss * self.hall)

    @cached_property
    def _set_point_covariance(self) -> np.ndarray:
        same = np.full((ZONES, ZONES), self.alike) + (1 - self.alike) * np.eye(ZONES)
        return self.spread**2 * same

    def _moves(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """M and Q of ``(r, x)' = M (r, x) + noise of covariance Q``, from step k to the next."""
        f, g, _ = self._step
        changes = (k + 1) % self.hold == 0
        keep = self.persistence if changes else 1.0
        m = np.block([[keep * np.eye(ZONES), np.zeros((ZONES, ZONES))], [g, f]])
        new = self._set_point_covariance * (1 - keep**2)
        return m, _blocks(new, self.disturbance**2 * np.eye(ZONES))

    @cached_property
    def _first(self) -> np.ndarray:
        """Covariance (6, 6) of set-points and true temperatures where a window begins."""
        from scipy.linalg import solve_discrete_lyapunov

        over, noise = np.eye(2 * ZONES), np.zeros((2 * ZONES, 2 * ZONES))
        for k in range(self.hold):
            m, q = self._moves(k)
            over, noise = m @ over, m @ noise @ m.T + q
        return solve_discrete_lyapunov(over, noise)

    def mean(self, length: int = 24) -> np.ndarray:
        """Return the mean of a window, (length, 6): the same at every step."""
        f, g, c = self._step
        r = np.array(self.set_points)
        x = np.linalg.solve(np.eye(ZONES) - f, g @ r + c)
        return np.tile(np.concatenate([r, x]), (check_int("length", length), 1))

    def covariance(self, length: int = 24) -> np.ndarray:
        """Return the covariance of a flattened window, (length * 6, length * 6)."""
        n, now = 2 * ZONES, self._first
        out = np.zeros((length, n, length, n))
        sensors = _blocks(np.zeros((ZONES, ZONES)), self.sensor**2 * np.eye(ZONES))
        for k in range(length):
            later = now
            out[k, :, k] = now + sensors
            for j in range(k + 1, length):
                later = self._moves(j - 1)[0] @ later
                out[j, :, k], out[k, :, j] = later, later.T
            m, q = self._moves(k)
            now = m @ now @ m.T + q
        return out.reshape(length * n, length * n)

    def autocovariance(self, lags: int, length: int = 24) -> np.ndarray:
        """Return the covariance of each channel with itself and others some steps earlier.

        Args:
            lags: The largest lag, in steps, below ``length``.
            length: Steps of a window.

        Returns:
            For each lag h the mean over the window of ``Cov(channel i at k + h, channel j at k)``,
            (lags + 1, 6, 6).

        Raises:
            ValueError: If a window has no two steps so far apart.
        """
        if check_int("lags", lags, 0) >= length:
            raise ValueError(f"lags must be below the length of a window, {length}; got {lags}")
        parts = self.covariance(length).reshape(length, 2 * ZONES, length, 2 * ZONES)
        return np.stack(
            [
                np.mean([parts[k + h, :, k] for k in range(length - h)], axis=0)
                for h in range(lags + 1)
            ]
        )

    def autocorrelation(self, lags: int, length: int = 24) -> np.ndarray:
        """Return the autocovariance of each channel over its variance, (lags + 1, 6)."""
        own = np.diagonal(self.autocovariance(lags, length), axis1=1, axis2=2)
        return own / own[0]

    def step_response(self, steps: int) -> np.ndarray:
        """Return what one degree more of a set-point does to the zones.

        Args:
            steps: The most steps after the change.

        Returns:
            For each step h, zone i and set-point j: the rise of zone i h steps after set-point j
            rose by one degree and stayed, (steps + 1, 3, 3).
        """
        f, g, _ = self._step
        rises = [np.zeros((ZONES, ZONES))]
        for _ in range(check_int("steps", steps, 0)):
            rises.append(f @ rises[-1] + g)
        return np.stack(rises)

    def given(self, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the law of a window, of which a part is given.

        Args:
            window: What is given (length, 6), NaN where nothing is.

        Returns:
            Mean (length, 6) and covariance (length * 6, length * 6) given that part; what is given
            has itself as mean, and no variance.
        """
        window = np.asarray(window, dtype=np.float64)
        mean, cov = self.mean(len(window)).ravel(), self.covariance(len(window))
        known = ~np.isnan(window.ravel())
        # set-points that are held are equal: the covariance has no inverse
        gain = cov[:, known] @ np.linalg.pinv(
            cov[np.ix_(known, known)], rcond=1e-10, hermitian=True
        )
        out = mean + gain @ (window.ravel()[known] - mean[known])
        out[known] = window.ravel()[known]
        rest = cov - gain @ cov[known]
        rest[known], rest[:, known] = 0, 0
        return out.reshape(window.shape), rest

    def simulate(self, n: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """Draw windows by following the furnace step by step.

        Args:
            n: Number of windows, each with a past of its own.
            length: Steps of a window.
            rng: Source of chance.

        Returns:
            Set-points and measured temperatures, (n, length, 6) in float64.
        """
        f, g, c = self._step
        start = rng.multivariate_normal(self.mean(1)[0], self._first, n, method="eigh")
        r, x = start[:, :ZONES], start[:, ZONES:]
        out = np.empty((n, length, 2 * ZONES))
        m, keep = np.array(self.set_points), self.persistence
        new = np.linalg.cholesky(self._set_point_covariance * (1 - keep**2))
        for k in range(length):
            if k and k % self.hold == 0:
                r = m + keep * (r - m) + rng.standard_normal((n, ZONES)) @ new.T
            out[:, k, :ZONES] = r
            out[:, k, ZONES:] = x + self.sensor * rng.standard_normal((n, ZONES))
            x = x @ f.T + r @ g.T + c + self.disturbance * rng.standard_normal((n, ZONES))
        return out

    def frame(self, steps: int, seed: int = 0, start: str = "2024-01-01T00:00Z") -> pd.DataFrame:
        """Return one long run as a table with a column ``time`` and the six channels.

        Args:
            steps: Number of rows.
            seed: Seed of the run.
            start: Moment of the first row. Set-points change there and every ``hold`` steps.
        """
        import pandas as pd

        run = self.simulate(1, check_int("steps", steps), np.random.default_rng([seed, 12]))[0]
        time = pd.date_range(start, periods=steps, freq=pd.Timedelta(minutes=self.every))
        return pd.DataFrame({"time": time, **dict(zip(CHANNELS, run.T))})


def _blocks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the matrix with two square blocks on its diagonal."""
    return np.block([[a, np.zeros_like(a)], [np.zeros_like(b), b]])


@register_dataset("furnace", seed_id=12, kind="draws")
def furnace(n: int, rng: np.random.Generator) -> tuple[np.ndarray, None]:
    """Draw windows of 24 steps of the furnace, (n, 24, 6) in degrees Celsius."""
    return Furnace().simulate(n, 24, rng), None
