"""Encoders: from the values of a column to numbers that a flow can learn, and back.

A number column becomes normal scores: its value's place among the observed ones, u in (0, 1), as
``z = Phi^-1(u)``. So every column is standard normal, whatever its tails, and comes back with the
observed law. A value that many rows share owns an interval of u, in which each row draws a place:
heavy zeros, coarse grids and whole numbers need nothing else.

A column of few classes becomes one number for each of them, and a jump that ends near one of them is
that one. With many classes it becomes normal scores of their order.
Whether a value is missing is a column of its own, of two classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from .storage import Storage

#: Most classes that become one number each. Above, classes are ordered by frequency.
MOST_CLASSES = 16
#: Most decimals of a grid.
DECIMALS = 6
#: Most distinct numbers that are kept of a column; above, quantiles of them.
LEVELS = 4096
#: Numbers that repeat so often that fewer than this share are distinct come back as observed ones only.
REPEATED = 0.2
#: A number with such a share of the rows, in a column of many distinct ones, is a heavy one.
HEAVY = 0.02
#: Share of its interval, in the middle, in which a value that many rows share draws its places.
SPREAD = 0.5
#: Normal scores stay within this: one value in 30,000 lies outside.
EDGE = 4.0


def decimal_grid(values: np.ndarray) -> tuple[int, int] | None:
    """Return the grid that numbers lie on: decimals d and steps g, so multiples of ``g / 10^d``.

    Args:
        values: Numbers (n,), finite.

    Returns:
        The pair, or None if they need more than ``DECIMALS`` decimals.
    """
    distinct = np.unique(values).astype(np.float64)
    if not len(distinct) or np.abs(distinct).max() * 10**DECIMALS > 2**52:
        return None
    for decimals in range(DECIMALS + 1):
        ticks = np.rint(distinct * 10**decimals)
        if (ticks / 10**decimals == distinct).all():
            gcd = int(np.gcd.reduce(np.diff(ticks).astype(np.int64))) if len(ticks) > 1 else 1
            return decimals, max(gcd, 1)
    return None


@dataclass
class Ranks:
    """Normal scores of the ranks of numbers.

    Attributes:
        levels: Distinct observed values in order (K,), int64 or float64.
        low: Where the interval of each begins in u (K,).
        high: Where it ends (K,).
        between: Whether values between observed ones are made.
        grid: Decimals and steps that made values lie on, see ``decimal_grid``; None for whole
            numbers, whose grid is ``step``, and for numbers without one.
        step: Grid of whole numbers.
        beyond: Whether values outside the observed range are made.
        limits: Range of the column's type.
    """

    levels: np.ndarray
    low: np.ndarray
    high: np.ndarray
    between: bool = False
    grid: tuple[int, int] | None = None
    step: int = 1
    beyond: bool = False
    limits: tuple[float, float] = (-np.inf, np.inf)
    width: int = field(default=1, init=False)

    @classmethod
    def fit(cls, values: np.ndarray, limits: tuple[float, float], beyond: bool = False) -> Ranks:
        """Learn the law of some values (n,), int64 or float64."""
        levels, counts = np.unique(values, return_counts=True)
        ends = np.cumsum(counts) / counts.sum()
        starts = np.concatenate([[0.0], ends[:-1]])
        between = beyond or len(levels) > REPEATED * len(values)
        grid, step = None, 1
        if levels.dtype == np.int64:
            step = max(1, int(np.gcd.reduce(np.diff(levels)))) if len(levels) > 1 else 1
        elif between:
            grid = decimal_grid(levels)
        if between and len(levels) > LEVELS:
            spaced = np.searchsorted(ends, np.linspace(0, 1, LEVELS), side="left")
            heavy = np.flatnonzero(counts >= HEAVY * counts.sum())
            kept = np.unique(
                np.concatenate([[0, len(levels) - 1], spaced, heavy]).clip(0, len(levels) - 1)
            )
            levels, starts, ends = levels[kept], starts[kept], ends[kept]
        return cls(levels, starts, ends, between, grid, step, beyond, limits)

    @property
    def base(self) -> Any:
        """What is taken off before whole numbers, such as dates, become floats; 0 for floats."""
        return self.levels[0] if self.levels.dtype == np.int64 else 0.0

    @property
    def heavy(self) -> np.ndarray:
        """Which values own their whole interval, though values between others are made, (K,)."""
        return self.high - self.low >= HEAVY

    def encode(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return normal scores (n, 1) of values (n,); a value that many share draws its place."""
        place = np.searchsorted(self.levels, values).clip(0, len(self.levels) - 1)
        same = self.levels[place] == values
        inside = 0.5 + SPREAD * (rng.random(len(values)) - 0.5)
        u = self.low[place] + inside * (self.high - self.low)[place]
        if not same.all():  # a value that was not observed, between two that were
            middle = (self.low + self.high) / 2
            offsets = (self.levels - self.base).astype(np.float64)
            asked = (values - self.base).astype(np.float64)
            u = np.where(same, u, np.interp(asked, offsets, middle))
        return ndtri(u).clip(-EDGE, EDGE)[:, None].astype(np.float32)

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Return the values (n,) of normal scores (n, 1)."""
        score = z[:, 0].astype(np.float64)
        u = ndtr(score)
        if not self.between:
            place = np.searchsorted(self.high, u, side="right").clip(0, len(self.levels) - 1)
            return self.levels[place]
        # a heavy value is flat over its interval, another one is a point at its middle
        heavy, middle = self.heavy, (self.low + self.high) / 2
        knots = np.stack([np.where(heavy, self.low, middle), np.where(heavy, self.high, middle)])
        offsets = (self.levels - self.base).astype(np.float64)
        found = np.interp(u, knots.T.ravel(), np.repeat(offsets, 2))
        if self.beyond:
            slope, first, last = self.tail(knots, offsets)
            found += slope * (np.minimum(score - first, 0) + np.maximum(score - last, 0))
        return self._on_grid(found)

    def tail(self, knots: np.ndarray, offsets: np.ndarray) -> tuple[float, float, float]:
        """Return how to go beyond the ends: on, as a normal law of the same spread would.

        Args:
            knots: Where the interval of each level begins and ends in u, (2, K).
            offsets: The levels, counted from ``base``, (K,).

        Returns:
            Units a normal score, and the scores of both ends.
        """
        inner = np.interp(ndtr([-1.0, 1.0]), knots.mean(0), offsets)
        slope = max((inner[1] - inner[0]) / 2, (offsets[-1] - offsets[0]) / 1e3)
        ends = ndtri(np.clip([knots[0, 0], knots[1, -1]], 1e-9, 1 - 1e-9))
        return float(slope), float(ends[0]), float(ends[1])

    def _on_grid(self, offsets: np.ndarray) -> np.ndarray:
        """Return the values ``base + offsets``, on the grid and within the range."""
        first = self.levels[0]
        if self.levels.dtype == np.int64:
            found = self.base + np.rint(offsets / self.step).astype(np.int64) * self.step
        elif self.grid is not None:
            decimals, steps = self.grid
            base = round(float(first) * 10**decimals)
            ticks = base + np.rint((offsets * 10**decimals - base) / steps) * steps
            found = ticks / 10**decimals
        else:
            found = offsets
        lowest, highest = self.limits if self.beyond else (self.levels[0], self.levels[-1])
        return np.clip(found, lowest, highest)

    def covers(self, values: np.ndarray) -> np.ndarray:
        """Return which values (n,) lie in the observed range."""
        inside = (values >= self.levels[0]) & (values <= self.levels[-1])
        return inside | self.beyond

    def config(self) -> dict[str, Any]:
        """Return what builds it again, as JSON values."""
        return {
            "levels": self.levels.tolist(),
            "whole": self.levels.dtype == np.int64,
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "between": bool(self.between),
            "grid": self.grid,
            "step": self.step,
            "beyond": self.beyond,
            "limits": [None if np.isinf(limit) else limit for limit in self.limits],
        }

    @classmethod
    def build(cls, config: dict[str, Any]) -> Ranks:
        """Build what ``config`` describes."""
        low, high = config["limits"]
        return cls(
            np.array(config["levels"], dtype=np.int64 if config["whole"] else np.float64),
            np.array(config["low"]),
            np.array(config["high"]),
            config["between"],
            None if config["grid"] is None else (config["grid"][0], config["grid"][1]),
            config["step"],
            config["beyond"],
            (-np.inf if low is None else low, np.inf if high is None else high),
        )


@dataclass
class OneHot:
    """A number for each of a few classes; of two classes one number is enough.

    The indicators are shifted and scaled, so that a column has mean 0, and variance 1 on average.

    Attributes:
        seen: Codes of the classes in the data (K,), in order.
        share: Share of each (K,).
    """

    seen: np.ndarray
    share: np.ndarray

    @classmethod
    def fit(cls, codes: np.ndarray) -> OneHot:
        """Learn the shares of codes (n,)."""
        seen, counts = np.unique(codes, return_counts=True)
        return cls(seen, counts / len(codes))

    @property
    def width(self) -> int:
        """Number of columns."""
        return 1 if len(self.seen) == 2 else len(self.seen)

    @property
    def scale(self) -> float:
        """By what indicators are multiplied: one over the root of their mean variance."""
        return float(max((self.share * (1 - self.share)).mean(), 1e-4) ** -0.5)

    def encode(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the numbers (n, width) of codes (n,)."""
        z = ((codes[:, None] == self.seen) - self.share) * self.scale
        return z[:, -self.width :].astype(np.float32)

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Return the most likely codes (n,), among the classes that were seen."""
        indicators = z / self.scale + self.share[-self.width :]
        if len(self.seen) == 2:
            indicators = np.concatenate([1 - indicators, indicators], axis=1)
        return self.seen[indicators.argmax(1)]

    def covers(self, codes: np.ndarray) -> np.ndarray:
        """Return which codes (n,) are classes that were seen."""
        return np.isin(codes, self.seen)

    def config(self) -> dict[str, Any]:
        """Return what builds it again, as JSON values."""
        return {"seen": self.seen.tolist(), "share": self.share.tolist()}

    @classmethod
    def build(cls, config: dict[str, Any]) -> OneHot:
        """Build what ``config`` describes."""
        return cls(np.array(config["seen"], dtype=np.int64), np.array(config["share"]))


@dataclass
class Order:
    """Classes as normal scores of their order: one number, for any number of classes.

    Attributes:
        order: Codes in their order (K,), those that were seen.
        ranks: The normal scores of places in that order.
    """

    order: np.ndarray
    ranks: Ranks
    width: int = field(default=1, init=False)

    @classmethod
    def fit(cls, codes: np.ndarray, ordered: bool) -> Order:
        """Learn the shares of codes (n,); without an order of their own, the frequent ones are first."""
        seen, counts = np.unique(codes, return_counts=True)
        order = seen if ordered else seen[np.argsort(-counts, kind="stable")]
        ranks = Ranks.fit(np.argsort(order)[np.searchsorted(seen, codes)], (0, len(order)))
        ranks.between = False
        return cls(order, ranks)

    def encode(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the numbers (n, 1) of codes (n,)."""
        by_code = np.argsort(self.order)
        return self.ranks.encode(by_code[np.searchsorted(self.order[by_code], codes)], rng)

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Return the codes (n,)."""
        return self.order[self.ranks.decode(z)]

    def covers(self, codes: np.ndarray) -> np.ndarray:
        """Return which codes (n,) are classes that were seen."""
        return np.isin(codes, self.order)

    def config(self) -> dict[str, Any]:
        """Return what builds it again, as JSON values."""
        return {"order": self.order.tolist(), "ranks": self.ranks.config()}

    @classmethod
    def build(cls, config: dict[str, Any]) -> Order:
        """Build what ``config`` describes."""
        return cls(np.array(config["order"], dtype=np.int64), Ranks.build(config["ranks"]))


Encoder = Ranks | OneHot | Order
ENCODERS: dict[str, type[Ranks] | type[OneHot] | type[Order]] = {
    "Ranks": Ranks,
    "OneHot": OneHot,
    "Order": Order,
}


def describe(encoder: Encoder | None) -> dict[str, Any] | None:
    """Return what is written of an encoder."""
    return None if encoder is None else {"name": type(encoder).__name__, **encoder.config()}


def build(entry: dict[str, Any] | None) -> Encoder | None:
    """Return the encoder that ``describe`` wrote about."""
    if entry is None:
        return None
    rest = {key: value for key, value in entry.items() if key != "name"}
    return ENCODERS[entry["name"]].build(rest)


@dataclass
class ColumnCode:
    """How one column is encoded: whether it is missing, and its value.

    Attributes:
        name: Name of the column.
        storage: How it is stored.
        value: Encoder of its values.
        missing: Encoder of whether it is missing, or None where it never is.
    """

    name: Any
    storage: Storage
    value: Encoder
    missing: Encoder | None = None

    @classmethod
    def fit(
        cls, series: pd.Series, kind: str, *, beyond: bool = False, most_classes: int = MOST_CLASSES
    ) -> ColumnCode:
        """Learn how to encode a column.

        Args:
            series: The column.
            kind: Its kind, one of ``LEARNED``.
            beyond: Whether numbers outside the observed range may be made.
            most_classes: Most classes that become one number each.

        Raises:
            ValueError: If it has no values of this kind.
        """
        labelled = kind in ("category", "two-valued")
        if labelled and series.dtype.kind in "Mm":
            raise ValueError(
                f"column {series.name!r} holds dates or durations, which cannot be of kind {kind!r}: make it "
                "text first"
            )
        storage = Storage.of(series, labelled, dated=kind == "date")
        if not labelled and not _has_numbers(series, storage):
            raise ValueError(
                f"column {series.name!r} holds no numbers or dates, so its kind cannot be {kind!r}: take "
                '"category", or convert it'
            )
        if not labelled and storage.labels is not None:
            labelled = True
        values, missing = storage.split(series)
        seen = values[~missing]
        if not len(seen):
            raise ValueError(
                f'column {series.name!r} has no values: its kind must be "constant", not {kind!r}'
            )
        value: Encoder
        if not labelled:
            value = Ranks.fit(seen, _limits(storage), beyond)
        elif len(np.unique(seen)) <= most_classes:
            value = OneHot.fit(seen)
        else:
            value = Order.fit(seen, storage.category == "ordered")
        flag = OneHot.fit(missing.astype(np.int64)) if missing.any() else None
        return cls(series.name, storage, value, flag)

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of columns: of the missing flag if there is one, and of the value."""
        return (
            (self.value.width,) if self.missing is None else (self.missing.width, self.value.width)
        )

    @property
    def width(self) -> int:
        """Number of columns."""
        return sum(self.widths)

    def encode(self, series: pd.Series, rng: np.random.Generator) -> np.ndarray:
        """Return the numbers (n, width) of a column; where it is missing, its value is noise."""
        return self.encode_values(*self.storage.split(series), rng)

    def encode_values(
        self, values: np.ndarray, missing: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the numbers (n, width) of values (n,) that are missing where the mask says so."""
        seen = ~missing
        z = rng.standard_normal((len(values), self.value.width)).astype(np.float32)
        if seen.any():
            z[seen] = self.value.encode(values[seen], rng)
        if self.missing is None:
            return z
        return np.concatenate([self.missing.encode(missing.astype(np.int64), rng), z], axis=1)

    def decode(self, z: np.ndarray) -> pd.Series:
        """Return the column in its own type, of numbers (n, width)."""
        missing = np.zeros(len(z), dtype=bool)
        if self.missing is not None:
            missing = self.missing.decode(z[:, : self.missing.width]) == 1
            z = z[:, self.missing.width :]
        return self.storage.join(self.value.decode(z), missing).rename(self.name)

    def config(self) -> dict[str, Any]:
        """Return what builds it again, as JSON values."""
        return {
            "name": self.name,
            "storage": vars(self.storage),
            "value": describe(self.value),
            "missing": describe(self.missing),
        }

    @classmethod
    def build(cls, config: dict[str, Any]) -> ColumnCode:
        """Build what ``config`` describes."""
        value, missing = build(config["value"]), build(config["missing"])
        assert value is not None
        return cls(config["name"], Storage(**config["storage"]), value, missing)


def _has_numbers(series: pd.Series, storage: Storage) -> bool:
    """Whether a column can be read as numbers or dates."""
    text = series.dtype == object or pd.api.types.is_string_dtype(series.dtype)
    return storage.labels is None and (storage.style is not None or not text)


def _limits(storage: Storage) -> tuple[float, float]:
    """Return the range of a type."""
    if storage.style is None and storage.whole:
        dtype = pd.api.types.pandas_dtype(storage.dtype)
        info = np.iinfo(getattr(dtype, "numpy_dtype", dtype))
        return max(int(info.min), -(2**62)), min(int(info.max), 2**62)
    return -np.inf, np.inf
