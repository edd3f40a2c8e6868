"""A long table of measurements on a grid of equal time steps, one series for each entity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..utils import check_int
from .clock import known_zone, moments

#: Where the grid of time steps begins.
EPOCH = pd.Timestamp("1970-01-01", tz="UTC")
#: The most numbers that one entity may take on its grid of time steps: a stray stamp makes it long.
MOST_CELLS = 200_000_000


@dataclass(frozen=True, eq=False)
class Regular:
    """The measurements of one entity at equal steps.

    Attributes:
        entity: Its name, or None.
        first: Number of the first step, counted from ``OnGrid.origin``.
        values: What was measured (steps, C), NaN in gaps that are not filled.
        observed: True where a value was measured, (steps, C).
    """

    entity: Any
    first: int
    values: np.ndarray
    observed: np.ndarray


@dataclass(frozen=True, eq=False)
class OnGrid:
    """A long table on its grid of time steps: one ``Regular`` for each entity, and what was counted."""

    series: tuple[Regular, ...]
    channels: tuple[str, ...]
    origin: pd.Timestamp
    counts: Mapping[str, int]
    notes: tuple[str, ...]


def on_grid(
    df: pd.DataFrame,
    time: str,
    entity: str | None,
    channels: Sequence[str] | None,
    every: pd.Timedelta,
    max_gap: int = 3,
    bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
    timezone: str | None = None,
    offset: str | pd.Timedelta = "0h",
) -> OnGrid:
    """Put a long table on a grid of equal time steps; arguments and errors are those of ``windows``."""
    notes: list[str] = []
    max_gap = check_int("max_gap", max_gap, 0)
    names = _channels(df, time, entity, channels, notes)
    if timezone is not None:
        known_zone(timezone)
    table = pd.DataFrame({name: _numbers(df[name]) for name in names}, index=df.index)
    counts = _outside(table, bounds or {})
    codes: np.ndarray = np.zeros(len(df), dtype=np.int64)
    labels = pd.Index([None])
    if entity is not None:
        found, labels = pd.factorize(df[entity], sort=True)
        codes = np.asarray(found)
    at, note = moments(df[time], codes, timezone)
    notes += [] if note is None else [note]
    known = np.asarray(at.notna()) & (codes >= 0)
    if not known.any():
        raise ValueError(f"no row has both a time in {time!r} and an entity: expected one at least")
    moment = np.where(known, at.tz_localize(None).to_numpy().view(np.int64), 0)  # nanoseconds
    shift = int(_delta("offset", offset).value)
    grid = np.floor_divide(moment - shift, every.value)
    counts["rows without a time or an entity"] = int((~known).sum())
    for name in ("rows out of order", "rows with a repeated stamp", "rows averaged with another"):
        counts[name] = 0
    counts["values filled in short gaps"] = 0
    array, series = table.to_numpy(dtype=np.float64), []
    for code, label in enumerate(labels):
        rows = np.flatnonzero(known & (codes == code))
        if not len(rows):
            continue
        counts["rows out of order"] += int((np.diff(moment[rows]) < 0).sum())
        rows = rows[np.argsort(moment[rows], kind="stable")]
        once = np.concatenate([[True], np.diff(moment[rows]) > 0])
        counts["rows with a repeated stamp"] += int((~once).sum())
        rows = rows[once]
        first, dense = _dense(grid[rows], array[rows], every)
        counts["rows averaged with another"] += len(rows) - len(np.unique(grid[rows]))
        observed = ~np.isnan(dense)
        counts["values filled in short gaps"] += _fill(dense, max_gap)
        series.append(Regular(label, first, dense, observed))
    origin = EPOCH + pd.Timedelta(shift, "ns")
    return OnGrid(tuple(series), tuple(names), origin, counts, tuple(notes))


def _channels(
    df: Any, time: str, entity: str | None, channels: Sequence[str] | None, notes: list[str]
) -> list[str]:
    """Return the names of the channels; ValueError unless all columns are as they must be."""
    if not isinstance(df, pd.DataFrame):
        raise ValueError(f"windows takes a pandas DataFrame, got a {type(df).__name__}")
    if not len(df):
        raise ValueError("the table has no rows: expected one row for each entity and moment")
    twice = df.columns[df.columns.duplicated()].unique().tolist()
    if twice:
        raise ValueError(f"the table has several columns {twice[0]!r}: rename or drop them")
    keys = [time] if entity is None else [time, entity]
    if isinstance(channels, str):
        channels = [channels]
    given = list(channels) if channels is not None else []
    for what, name in [("time", time), ("entity", entity), *(("channel", n) for n in given)]:
        if name is not None and name not in df.columns:
            known = ", ".join(map(str, df.columns[:12]))
            raise ValueError(f"the table has no {what} column {name!r}: its columns are {known}")
    if channels is not None:
        if not given or len(set(given)) < len(given) or set(given) & set(keys):
            raise ValueError(
                f"channels must be different columns, and not {' or '.join(keys)}: got {given}"
            )
        return given
    rest = [name for name in df.columns if name not in keys]
    found = [n for n in rest if _is_numeric(df[n]) and bool(df[n].notna().any())]
    left = [str(n) for n in rest if n not in found]
    if not found:
        raise ValueError(
            "the table has no column of numbers beside its time: name the measured columns by channels=[...]"
        )
    if left:
        notes.append(f"left out, without numbers: {', '.join(left)}")
    return found


def _is_numeric(column: pd.Series) -> bool:
    kind = column.dtype
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_complex_dtype(kind)


def _numbers(column: pd.Series) -> pd.Series:
    """Return a column as float64 with NaN; ValueError unless it holds finite numbers."""
    if not _is_numeric(column):
        told = column.dropna()
        example = f", such as {told.iloc[0]!r:.40}" if len(told) else ""
        raise ValueError(
            f"the channel {column.name!r} holds {column.dtype} values{example}: expected numbers; leave it "
            "out of channels, or convert it by pandas.to_numeric"
        )
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if bool(np.isinf(values).any()):
        raise ValueError(
            f"the channel {column.name!r} holds {int(np.isinf(values).sum()):,} infinite values: replace them "
            "by NaN, which counts as a gap"
        )
    if bool(np.isnan(values).all()):
        raise ValueError(f"the channel {column.name!r} holds no value at all: leave it out")
    return pd.Series(values, index=column.index)


def _outside(table: pd.DataFrame, bounds: Mapping[str, Any]) -> dict[str, int]:
    """Make values outside the bounds missing, in place, and count them."""
    counts = {}
    for name, pair in bounds.items():
        if name not in table.columns or not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(
                f"bounds must be pairs for channels, as in {{{str(table.columns[0])!r}: (0, 100)}}; got "
                f"{name!r}: {pair!r:.40}"
            )
        low, high = (bound for bound in pair)
        bad = pd.Series(False, index=table.index)
        bad |= table[name] < (-np.inf if low is None else low)
        bad |= table[name] > (np.inf if high is None else high)
        table.loc[bad.to_numpy(), name] = np.nan
        counts[f"values of {name} outside its bounds"] = int(bad.sum())
        if bool(table[name].isna().all()):
            raise ValueError(f"no value of {name!r} lies within its bounds {tuple(pair)}")
    return counts


def _delta(name: str, value: Any) -> pd.Timedelta:
    try:
        return pd.Timedelta(value).as_unit("ns")
    except (ValueError, TypeError):
        raise ValueError(f'{name} must be a length of time such as "5h", got {value!r}') from None


def _dense(grid: np.ndarray, values: np.ndarray, step: pd.Timedelta) -> tuple[int, np.ndarray]:
    """Return the number of the first step, and the means within each step from there on, NaN where none is."""
    first, steps = int(grid[0]), int(grid[-1] - grid[0]) + 1
    if steps * values.shape[1] > MOST_CELLS:
        raise ValueError(
            f"from the first stamp to the last there are {steps:,} steps of {step}, for {len(grid):,} rows: "
            "give every= as the data are spaced, and look for stray stamps"
        )
    dense = np.full((steps, values.shape[1]), np.nan)
    where, inverse, many = np.unique(grid - first, return_inverse=True, return_counts=True)
    if len(where) == len(grid):
        dense[where] = values
    else:
        present = ~np.isnan(values)
        total, number = (np.zeros((len(where), values.shape[1])) for _ in range(2))
        np.add.at(total, inverse, np.where(present, values, 0.0))
        np.add.at(number, inverse, present)
        with np.errstate(invalid="ignore"):
            dense[where] = total / number
        alone = np.flatnonzero(many[inverse] == 1)
        dense[grid[alone] - first] = values[alone]
    return first, dense


def _fill(dense: np.ndarray, max_gap: int) -> int:
    """Fill short gaps between measurements (steps, C), in place, and return how many values."""
    filled = 0
    for column in dense.T:
        gap = np.isnan(column)
        known = np.flatnonzero(~gap)
        if not max_gap or not bool(gap.any()) or not len(known):
            continue
        before = np.searchsorted(known, np.flatnonzero(gap)) - 1
        inside = (before >= 0) & (before < len(known) - 1)
        at, before = np.flatnonzero(gap)[inside], before[inside]
        short = known[before + 1] - known[before] - 1 <= max_gap
        at = at[short]
        values = np.interp(at, known, column[known])
        levels = np.unique(column[known])
        if 1 < len(levels) < len(known) / 2:  # the measurements lie on a coarse grid
            middle = (levels[1:] + levels[:-1]) / 2
            values = levels[np.searchsorted(middle, values)]
        column[at] = values
        filled += len(at)
    return filled
