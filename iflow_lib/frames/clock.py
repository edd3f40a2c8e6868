"""Time stamps: read as moments in UTC, whatever zone, order or clock change they come with."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

#: A time of day that is followed by a zone, as in 2013-01-01T06:00:00Z or 06:00+09:00.
WITH_ZONE = r"\d\d:\d\d.*(?:[zZ]|[+-]\d\d:?\d\d)$"


def spacing(name: str, value: Any) -> pd.Timedelta:
    """Return a fixed length of time, such as "1h" or "15min".

    Args:
        name: What errors call it.
        value: What ``pandas.Timedelta`` takes.

    Raises:
        ValueError: If it is none, or not above zero.
    """
    try:
        found = pd.Timedelta(value)
        fits = bool(found > pd.Timedelta(0))  # not NaT either
    except (ValueError, TypeError):
        fits = False
    if not fits:
        raise ValueError(
            f'{name} must be a fixed length of time such as "1h", "15min" or "7D", got {value!r}'
        )
    return found.as_unit("ns")


def known_zone(name: str) -> str:
    """Return the name of a time zone; ValueError if there is none of that name."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, TypeError, OSError):
        raise ValueError(
            f'timezone must be a name such as "Europe/Berlin" or "Asia/Tokyo", got {name!r}'
        ) from None
    return name


def moments(
    column: pd.Series, groups: np.ndarray, timezone: str | None
) -> tuple[pd.DatetimeIndex, str | None]:
    """Return a column of time stamps as moments in UTC.

    A clock that is set back shows an hour twice: of two equal stamps of one group, the first is
    taken for summer time. A stamp that the clock skipped is no moment, and becomes NaT.

    Args:
        column: Dates, or text that pandas reads as dates.
        groups: The entity of each row (n,), as numbers: within one, rows are in their order.
        timezone: The zone of stamps that carry none. None reads them as UTC.

    Returns:
        The moments (n,), with NaT where there is none; and what was assumed, in words, or None.

    Raises:
        ValueError: If the column holds no dates.
    """
    found = _dates(column)
    if found.dt.tz is not None:
        return pd.DatetimeIndex(found.dt.tz_convert("UTC")).as_unit("ns"), None
    if timezone is None:
        note = (
            f"the stamps of {column.name!r} carry no time zone and are read as UTC: give timezone=... if "
            "they are local time, whose clock is changed twice a year"
        )
        return pd.DatetimeIndex(found.dt.tz_localize("UTC")).as_unit("ns"), note
    again = pd.DataFrame({"group": groups, "stamp": found.to_numpy()}).duplicated()
    local = pd.DatetimeIndex(found.to_numpy()).tz_localize(
        timezone, ambiguous=~again.to_numpy(), nonexistent="NaT"
    )
    note = f"the stamps of {column.name!r} carry no time zone and are read as {timezone}"
    return local.tz_convert("UTC").as_unit("ns"), note


def _dates(column: pd.Series) -> pd.Series:
    """Return a column as datetime64, with a zone if its stamps have one."""
    if isinstance(column.dtype, pd.PeriodDtype):
        return column.dt.to_timestamp()
    if isinstance(column.dtype, pd.DatetimeTZDtype) or column.dtype.kind == "M":
        return column
    if pd.api.types.is_numeric_dtype(column.dtype):
        raise ValueError(
            f"the time column {column.name!r} holds numbers: expected dates, as "
            f'pd.to_datetime(df[{column.name!r}], unit="s") makes of seconds since 1970'
        )
    told = column.dropna()
    zoned = told.map(
        lambda v: v.tzinfo is not None if hasattr(v, "tzinfo") else None
    )  # of Python's datetimes
    text = zoned.isna()
    zoned = zoned.where(~text, told.astype(str).str.strip().str.contains(WITH_ZONE, regex=True))
    if len(told) and zoned.astype(bool).nunique() > 1:
        raise ValueError(
            f"the time column {column.name!r} has stamps with a time zone and stamps without one: bring all "
            "into one form first"
        )
    utc = bool(len(told) and zoned.iloc[0])
    try:
        found = pd.to_datetime(column, utc=utc, errors="coerce", format="ISO8601")
        if bool((found.isna() & column.notna()).any()):  # another form, the same in every row
            found = pd.to_datetime(column, utc=utc)
    except (ValueError, TypeError, OverflowError):
        bad = pd.to_datetime(told, errors="coerce", utc=True, format="ISO8601").isna()
        example = told[bad].iloc[0] if bool(bad.any()) else told.iloc[0]
        raise ValueError(
            f"the time column {column.name!r} holds {example!r:.40}, which is no date: expected stamps such "
            "as 2013-01-01T06:00:00, or what pandas.to_datetime made of others"
        ) from None
    return found
