"""What quality and baselines need to know of data: the kinds of columns, and windows as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # heavy, and needed only where a frame is at hand
    import pandas as pd

Array = NDArray[Any]

#: Kinds of columns that are compared as numbers, and those that are compared as categories.
NUMBERS = ("continuous", "whole", "date")
CATEGORIES = ("two-valued", "category")
#: All kinds; columns of the others are left out.
KINDS = (*NUMBERS, *CATEGORIES, "constant", "identifier", "text")


def column_kinds(frame: pd.DataFrame) -> dict[Any, str]:
    """Return the kind of each column, as ``schema`` finds it."""
    from .schema import schema

    return {name: column.kind for name, column in schema(frame).items()}


def read_dates(
    frames: Mapping[str, pd.DataFrame], kinds: Mapping[Any, str]
) -> dict[str, pd.DataFrame]:
    """Return frames in which dates that are texts have become dates.

    Args:
        frames: Frames by what errors call them; the first one says how dates are written.
        kinds: Kind of each column that counts.

    Returns:
        The frames; those that are changed are copies.

    Raises:
        ValueError: If a frame has other texts than such dates.
    """
    import pandas as pd

    from .storage import date_format_of

    first = next(iter(frames.values()))
    dates = [name for name, kind in kinds.items() if kind == "date"]
    texts = [name for name in dates if isinstance(first[name].dropna().iloc[0], str)]
    styles = {name: date_format_of(first[name].dropna()) for name in texts}
    read = {}
    for what, frame in frames.items():
        read[what] = frame.copy(deep=False) if styles else frame
        for name, style in styles.items():
            try:
                read[what][name] = pd.to_datetime(frame[name], format=style)
            except (ValueError, TypeError):
                raise ValueError(
                    f"{what}: the column {name!r} has other values than dates written as {style}, which "
                    "those of real_train are: give it in the same type"
                ) from None
    return read


def windows_array(windows: Any, name: str = "windows") -> Array:
    """Return windows as a float array (B, T, C).

    Args:
        windows: An array or a tensor (B, T, C), or an object with such ``values``.
        name: What they are, for errors.

    Raises:
        ValueError: If it is something else, or not all values are finite.
    """
    values = getattr(windows, "values", windows)
    try:  # of a tensor, values is a method
        array = np.asarray(windows if callable(values) else values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 3 or not array.size:
        raise ValueError(
            f"{name} must be a data frame or windows (B, T, C) of numbers, got {described(windows)}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold NaN or infinite values: leave such windows out")
    return array


def described(data: Any) -> str:
    """The type of some data, with its shape if it has one."""
    shape = getattr(data, "shape", None)
    return type(data).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")


def as_numbers(column: pd.Series) -> Array:
    """Return a column's values as float64 with NaN where one is missing; dates as nanoseconds.

    Args:
        column: Numbers, truth values, dates or time differences.

    Returns:
        An array (n,).

    Raises:
        ValueError: If the values are no numbers, or one is infinite.
    """
    import pandas as pd

    missing = column.isna().to_numpy()
    if pd.api.types.is_datetime64_any_dtype(column):
        column = column.dt.tz_convert(None) if column.dt.tz is not None else column
        whole = column.to_numpy().astype("datetime64[ns]").astype(np.int64)
        values = np.where(missing, np.nan, whole.astype(np.float64))
    elif pd.api.types.is_timedelta64_dtype(column):
        whole = column.to_numpy().astype("timedelta64[ns]").astype(np.int64)
        values = np.where(missing, np.nan, whole.astype(np.float64))
    else:
        try:
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError):
            raise ValueError(
                f"the column {column.name!r} holds values that are no numbers, as {_example(column)!r}"
            ) from None
    if np.isinf(values).any():
        raise ValueError(
            f"the column {column.name!r} holds infinite values: replace them or leave them out"
        )
    return values


def _example(column: pd.Series) -> str:
    texts = [v for v in column if isinstance(v, str)]
    return f"{(texts or list(column))[0]}"[:40]
