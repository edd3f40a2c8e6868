"""Windows (B, T, C) of equal length, cut from a long table of measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from ..utils import check_int, check_seed
from .clock import known_zone, spacing
from .regular import on_grid


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of a series: the same number of steps each, the same channels.

    Args:
        values: What was measured (B, T, C), float64, in the units of the data, without gaps.
        channels: Names of the C channels.
        positions: Number of the first step of each window (B,), counted in steps from ``origin``.
        every: Length of a step.
        origin: The moment of step 0, in UTC; None where windows belong to no date, as synthetic
            ones do that were not asked for a date.
        entities: The entity of each window (B,), or None.
        observed: True where a value was measured, False where a short gap was filled, (B, T, C).
        time: Name of the time column in ``frame``.
        entity: Name of the entity column in ``frame``, or None.
        dtypes: The original type of each channel, by its name.
        timezone: The zone of the clock that calendars are read from, and that ``frame`` shows.
        counts: What was counted on the way, by name.
        notes: What was assumed or left out, one sentence each.
    """

    values: np.ndarray
    channels: tuple[str, ...]
    positions: np.ndarray
    every: pd.Timedelta
    origin: pd.Timestamp | None = None
    entities: np.ndarray | None = None
    observed: np.ndarray | None = None
    time: str = "time"
    entity: str | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)
    timezone: str = "UTC"
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def length(self) -> int:
        """Steps of a window."""
        return self.values.shape[1]

    @property
    def starts(self) -> pd.DatetimeIndex | None:
        """The moments at which the windows begin, (B,) in UTC, or None."""
        if self.origin is None:
            return None
        return pd.DatetimeIndex(self.origin + self.positions * self.every)

    @property
    def stamps(self) -> pd.DatetimeIndex | None:
        """The moments of all steps, (B * T,) in UTC, or None."""
        if self.origin is None:
            return None
        steps = (self.positions[:, None] + np.arange(self.length)).ravel()
        return pd.DatetimeIndex(self.origin + steps * self.every)

    def __getitem__(self, index: Any) -> Windows:
        """Return some of the windows: a slice, a mask, or an array of numbers."""
        index = np.arange(len(self))[index]
        if index.ndim == 0:
            index = index[None]
        return replace(
            self,
            values=self.values[index],
            positions=self.positions[index],
            entities=None if self.entities is None else self.entities[index],
            observed=None if self.observed is None else self.observed[index],
        )

    def __repr__(self) -> str:
        """Return the shape, and what was counted and assumed."""
        b, t, c = self.values.shape
        shown = f"{b:,} windows of {t} steps of {self.every} x {c}: {', '.join(self.channels)}"
        counted = [f"  {name}: {n:,}" for name, n in self.counts.items() if n]
        return "\n".join([shown, *counted, *(f"  {note}" for note in self.notes)])

    def frame(self) -> pd.DataFrame:
        """Return the windows as a long table.

        Returns:
            One row a step: ``window``, a running number; the entity, if there is one; the time, in
            the zone of ``timezone``, or the time since the window began where the windows belong to
            no date; and the channels in their original types, whole numbers rounded.
        """
        b, t, _ = self.values.shape
        table: dict[str, Any] = {"window": np.repeat(np.arange(b), t)}
        if self.entity is not None and self.entities is not None:
            table[self.entity] = pd.Series(np.repeat(self.entities, t)).infer_objects()
        stamps = self.stamps
        since = pd.TimedeltaIndex(np.tile(np.arange(t), b) * self.every)
        table[self.time] = since if stamps is None else stamps.tz_convert(self.timezone)
        for i, name in enumerate(self.channels):
            column = pd.Series(self.values[:, :, i].ravel())
            table[name] = _as_type(column, self.dtypes.get(name, "float64"))
        return pd.DataFrame(table)

    def split(
        self, test: float = 0.25, seed: int = 0, block: int | None = None
    ) -> tuple[Windows, Windows]:
        """Return windows to train on and windows to test on, which share no moment.

        Time is cut into blocks, and each block goes to one side for all entities at once: sensors
        that stand near each other measure nearly the same at the same time. Windows that reach over
        the border to a block of the other side are left out. Windows that belong to no date are
        split by entity, as audio is by file; without entities, window by window.

        Args:
            test: Share of the blocks that are for testing, in (0, 1).
            seed: Seed of the choice.
            block: Steps of a block. None takes one window where windows do not overlap, else eight.

        Returns:
            Train and test.

        Raises:
            ValueError: If there are too few blocks to have one on each side.
        """
        if not isinstance(test, (int, float)) or not 0 < test < 1:
            raise ValueError(f"test must be a share in (0, 1), got {test!r}")
        rng = np.random.default_rng([check_seed(seed), 7])
        if self.origin is None:
            parts = np.arange(len(self)) if self.entities is None else self.entities
            first = last = pd.factorize(parts)[0]
        else:
            apart = _smallest_distance(self.positions, self.entities)
            if block is None:
                block = self.length if apart >= self.length else 8 * self.length
            block = check_int("block", block)
            begin = self.positions - self.positions.min()
            first, last = begin // block, (begin + self.length - 1) // block
        blocks = np.unique(np.concatenate([first, last]))
        n = max(1, round(test * len(blocks)))
        if n >= len(blocks):
            raise ValueError(
                f"the windows lie in {len(blocks)} block(s), which leaves none for one side: give a smaller "
                "block, or more data"
            )
        chosen = np.zeros(int(blocks.max()) + 1, dtype=bool)
        chosen[rng.permutation(blocks)[:n]] = True
        total = np.concatenate([[0], np.cumsum(chosen)])
        inside = (
            total[last + 1] - total[first]
        )  # how many of the blocks of a window are for testing
        train, held = self[inside == 0], self[inside == last - first + 1]
        if not len(train) or not len(held):
            raise ValueError(
                f"{len(self)} windows in blocks of {block} steps leave no window on one side: give a larger "
                "block, or more data"
            )
        lost = {"windows between train and test": len(self) - len(train) - len(held)}
        return tuple(replace(part, counts={**self.counts, **lost}) for part in (train, held))  # type: ignore[return-value]


def windows(
    df: pd.DataFrame,
    time: str,
    entity: str | None = None,
    channels: Sequence[str] | None = None,
    *,
    every: str | pd.Timedelta = "1h",
    length: int = 24,
    stride: int | None = None,
    max_gap: int = 3,
    bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
    timezone: str | None = None,
    offset: str | pd.Timedelta = "0h",
) -> Windows:
    """Cut a long table of measurements into windows.

    Time is UTC throughout, where no clock is ever changed. Rows are put in the order of time; of
    rows of one entity with the same stamp the first stays. Rows that fall into the same step are
    averaged. Gaps of at most ``max_gap`` steps between two measurements are filled on a straight
    line, rounded to a measured value where these lie on a coarse grid. Windows with a longer gap
    are left out. All this is counted in the result.

    Args:
        df: One row for each entity and moment.
        time: Name of the column of time stamps.
        entity: Name of the column that says whose measurement it is; None for one series.
        channels: Names of the measured columns. None takes every column of numbers.
        every: Length of a step.
        length: Steps of a window, at least 2.
        stride: Steps between the starts of two windows; None takes ``length``: windows then share no row.
        max_gap: Longest gap that is filled, in steps; 0 fills none.
        bounds: Least and largest possible value of a channel, as in ``{"wind_speed": (0, 100)}``;
            None is no bound. Values outside count as missing, as those of a broken sensor.
        timezone: Zone of stamps that carry none, as in "Europe/Berlin". Without it they are UTC.
        offset: Windows begin at whole multiples of ``stride`` steps since 1970-01-01T00:00Z plus
            this: days begin at midnight in UTC, and with ``offset="5h"`` at midnight in New York's winter.

    Returns:
        The windows, with counts and notes.

    Raises:
        ValueError: If a column is missing, repeated or not numeric, a value is infinite, the stamps
            are no dates, or no window is left; with one line that says what to do.
    """
    length, step = check_int("length", length, 2), spacing("every", every)
    stride = length if stride is None else check_int("stride", stride)
    parts = on_grid(df, time, entity, channels, step, max_gap, bounds, timezone, offset)
    counts, notes = dict(parts.counts), list(parts.notes)
    counts["windows left out for a long gap"] = 0
    cut: list[tuple[np.ndarray, ...]] = []
    short: list[str] = []
    for number, one in enumerate(parts.series):
        if len(one.values) < length:
            short.append(str(one.entity))
            continue
        begin = np.arange(-one.first % stride, len(one.values) - length + 1, stride)
        index = begin[:, None] + np.arange(length)
        whole = ~np.isnan(one.values[index]).any((1, 2))
        counts["windows left out for a long gap"] += int((~whole).sum())
        index, begin = index[whole], begin[whole]
        which = np.full(len(begin), number)
        cut.append((one.values[index], one.observed[index], one.first + begin, which))
    if short:
        shown = ", ".join(short[:5]) + (", ..." if len(short) > 5 else "")
        where = f"{shown} ({len(short)} of {len(parts.series)})" if entity else "the table"
        notes.append(f"left out, with fewer than {length} steps: {where}")
    if not sum(len(part[0]) for part in cut):
        left_out = counts["windows left out for a long gap"]
        raise ValueError(
            f"no window of {length} steps of {step} is left of {len(df):,} rows: {len(short)} of "
            f"{len(parts.series)} series are shorter, and {left_out:,} windows have a gap of more than "
            f"{max_gap} steps; give a smaller length, every= as the data are spaced, fewer channels, or a "
            "larger max_gap"
        )
    values, seen, positions, numbers = (np.concatenate(arrays) for arrays in zip(*cut))
    labels = np.asarray([one.entity for one in parts.series], dtype=object)
    return Windows(
        values=values,
        channels=parts.channels,
        positions=positions,
        every=step,
        origin=parts.origin,
        entities=None if entity is None else labels[numbers],
        observed=seen,
        time=time,
        entity=entity,
        dtypes={name: str(df[name].dtype) for name in parts.channels},
        timezone=timezone or _zone_of(df[time]),
        counts=counts,
        notes=tuple(notes),
    )


def _zone_of(column: pd.Series) -> str:
    """Return the zone of a column of dates, by which calendars are read: UTC unless it names one."""
    zone = getattr(column.dtype, "tz", None)
    try:
        return "UTC" if zone is None else known_zone(str(zone))
    except ValueError:  # a fixed distance from UTC, without a name
        return "UTC"


def _smallest_distance(positions: np.ndarray, entities: np.ndarray | None) -> int:
    """Return the fewest steps between the starts of two windows of one entity."""
    parts = np.zeros(len(positions)) if entities is None else pd.factorize(entities)[0]
    order = np.lexsort((positions, parts))
    apart = np.diff(positions[order])[np.diff(parts[order]) == 0]
    return int(apart.min()) if len(apart) else np.iinfo(np.int64).max


def _as_type(column: pd.Series, dtype: str) -> pd.Series:
    """Return float64 values in the original type of a channel."""
    kind = pd.api.types.pandas_dtype(dtype)
    if pd.api.types.is_bool_dtype(kind):
        return (column > 0.5).astype(dtype)  # type: ignore[call-overload]
    if pd.api.types.is_integer_dtype(kind):
        return column.round().astype(dtype)  # type: ignore[call-overload]
    return column.astype(dtype)  # type: ignore[call-overload]
