"""The scale of a channel: from measured values to numbers near a standard normal, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from .columns import EDGE, REPEATED, Ranks

#: How the values of a channel are scaled.
SCALES = ("scores", "standard")


@dataclass
class ChannelScale:
    """Scale the values of one channel.

    With "scores" a value becomes its normal score: its place among the measured ones, u in (0, 1),
    as ``Phi^-1(u)``. A value that was measured often has the middle of its places, so that smooth
    curves stay smooth. With "standard" mean and standard deviation are taken away.

    Where values repeat, as those of a sensor with a coarse grid do, only measured ones come back.
    Others come back on the grid of the data, if they have one, and within their range.

    Attributes:
        kind: "scores" or "standard".
        ranks: The measured values and how often each was seen.
        mean: Mean of the values.
        std: Standard deviation of the values; 1 where all are the same.
    """

    kind: str
    ranks: Ranks
    mean: float
    std: float

    @classmethod
    def fit(
        cls,
        values: np.ndarray,
        kind: str,
        beyond: bool = False,
        observed: np.ndarray | None = None,
    ) -> ChannelScale:
        """Learn the scale of a channel.

        Values repeat where a new one is seldom one that was not measured yet: a set-point that is
        held for hours is one value, not many.

        Args:
            values: Windows of one channel (B, T).
            kind: "scores" or "standard".
            beyond: Whether values outside the measured range may come back.
            observed: Which values were measured, (B, T); None for all.
        """
        changes = np.ones(values.shape, dtype=bool)
        changes[:, 1:] = values[:, 1:] != values[:, :-1]
        known = values if observed is None else values[observed]
        repeated = len(np.unique(known)) <= REPEATED * max(1, int(changes.sum()))
        ranks = Ranks.fit(known.ravel(), (-np.inf, np.inf), beyond=beyond or not repeated)
        ranks.beyond = beyond
        return cls(kind, ranks, float(known.mean()), float(known.std()) or 1.0)

    @property
    def scores(self) -> np.ndarray:
        """The numbers of the measured values in their order, (K,)."""
        if self.kind == "standard":
            return (self.ranks.levels - self.mean) / self.std
        return ndtri((self.ranks.low + self.ranks.high) / 2).clip(-EDGE, EDGE)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return the numbers of values of any shape."""
        if self.kind == "standard":
            return (values - self.mean) / self.std
        return np.interp(values, self.ranks.levels, self.scores)

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Return the values of numbers of any shape."""
        levels, scores = self.ranks.levels, self.scores
        if not self.ranks.between:
            middle = (scores[1:] + scores[:-1]) / 2
            return levels[np.searchsorted(middle, z)]
        values = z * self.std + self.mean
        if self.kind == "scores":
            inside = np.interp(z, scores, levels)
            # beyond the ends, on as a normal law of this spread would
            out = np.minimum(z - scores[0], 0) + np.maximum(z - scores[-1], 0)
            values = inside + (self.std * out if self.ranks.beyond else 0.0)
        return self._on_grid(values)

    def _on_grid(self, values: np.ndarray) -> np.ndarray:
        """Return values on the grid of the data and within their range."""
        if self.ranks.grid is not None:
            decimals, steps = self.ranks.grid
            first = round(float(self.ranks.levels[0]) * 10**decimals)
            ticks = np.rint((values * 10**decimals - first) / steps) * steps
            values = (first + ticks) / 10**decimals
        if self.ranks.beyond:
            return values
        return values.clip(self.ranks.levels[0], self.ranks.levels[-1])

    def outside(self, values: np.ndarray) -> int:
        """Return how many of some values, NaN aside, lie outside the measured range."""
        levels = self.ranks.levels
        return int(((values < levels[0]) | (values > levels[-1])).sum())

    def config(self) -> dict[str, Any]:
        """Return what builds it again, as JSON values."""
        return {
            "kind": self.kind,
            "ranks": self.ranks.config(),
            "mean": self.mean,
            "std": self.std,
        }

    @classmethod
    def build(cls, config: dict[str, Any]) -> ChannelScale:
        """Build what ``config`` describes."""
        return cls(config["kind"], Ranks.build(config["ranks"]), config["mean"], config["std"])
