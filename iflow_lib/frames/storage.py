"""How a column is stored: from a series to plain numbers, and back to its own type."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

#: Ways in which texts write dates; the first that gives every text back is taken.
DATE_FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%Y/%m/%d",
)
#: Largest whole number.
LARGEST = 2**62
#: How missing values of untyped columns are written, by what is found.
MISSING: dict[str, Any] = {"None": None, "NaN": np.nan, "NA": pd.NA, "NaT": pd.NaT}


def check_values(series: pd.Series, name: Any) -> None:
    """Check that a column holds values that can be learned and written back.

    Args:
        series: The column.
        name: Its name, for the error.

    Raises:
        ValueError: If it holds infinities, lists, values of several types, or a type that is not
            known here.
    """
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        found = {type(label) for label in dtype.categories.tolist()}
        if not all(issubclass(kind, (str, bool, int, float)) for kind in found):
            raise ValueError(
                f"column {name!r} has categories of type {_types(found)}: expected texts or numbers, so "
                "rename its categories"
            )
    elif types.is_object_dtype(dtype):
        _check_objects(series, name)
    elif types.is_complex_dtype(dtype) or not (
        types.is_numeric_dtype(dtype)
        or types.is_datetime64_any_dtype(dtype)
        or types.is_timedelta64_dtype(dtype)
        or types.is_string_dtype(dtype)
    ):
        raise ValueError(
            f"column {name!r} has the type {dtype}: expected numbers, texts, categories or dates, so "
            "convert or drop it"
        )
    elif isinstance(dtype, pd.SparseDtype):
        raise ValueError(f"column {name!r} is sparse: give it as df[{name!r}].sparse.to_dense()")
    elif types.is_float_dtype(dtype):
        numbers = series.to_numpy(dtype=float, na_value=np.nan)
        infinite = int(np.isinf(numbers).sum())
        if infinite:
            raise ValueError(
                f"column {name!r} has {infinite} infinite values: replace them by numbers, or by NaN for "
                "missing"
            )
        finite = numbers[np.isfinite(numbers)] / 4
        if len(finite) and np.ptp(finite) > 1e306:
            raise ValueError(f"column {name!r} has numbers beyond 1e306: divide it")
    elif types.is_integer_dtype(dtype):
        ends = series.dropna().agg(["min", "max"]).fillna(0)
        if int(ends["min"]) < -LARGEST or int(ends["max"]) > LARGEST:
            raise ValueError(
                f"column {name!r} has whole numbers beyond {LARGEST:,}: make it text, or divide it"
            )
    if not types.is_object_dtype(dtype) and not isinstance(dtype, pd.CategoricalDtype):
        _check_name_of(dtype, name)
    labels = dtype.categories if isinstance(dtype, pd.CategoricalDtype) else series
    if _is_text(labels.dtype) and any("\0" in x for x in labels if isinstance(x, str)):
        # pandas compares texts up to their first NUL: different ones would be taken for one
        raise ValueError(
            f"column {name!r} has texts with a NUL character, which pandas cannot tell from shorter ones: "
            "remove it from them"
        )


def _check_name_of(dtype: Any, name: Any) -> None:
    try:
        same = pd.api.types.pandas_dtype(name_of(dtype)) == dtype
    except TypeError:
        same = False
    if not same:
        raise ValueError(
            f"column {name!r} has the type {dtype}, which cannot be written to a file: convert it first"
        )


def name_of(dtype: Any) -> str:
    """Return the name by which pandas makes this type again."""
    if isinstance(dtype, pd.StringDtype) and str(dtype) == "string":
        return f"string[{dtype.storage}]"
    return str(dtype)


def _check_objects(series: pd.Series, name: Any) -> None:
    """Check that an untyped column holds texts or truth values, and nothing else."""
    values = series[~series.isna()]
    found = set(map(type, values))
    if found <= {str} or found <= {bool, np.bool_}:
        return
    if any(issubclass(kind, (list, dict, set, tuple, np.ndarray)) for kind in found):
        raise ValueError(
            f"column {name!r} holds values of type {_types(found)}: expected one value in each cell, so "
            "give every part a column of its own"
        )
    if len(found) > 1:
        raise ValueError(
            f"column {name!r} mixes values of type {_types(found)}: make it one type, for example by "
            f"pd.to_numeric(df[{name!r}]) or df[{name!r}].astype(str)"
        )
    dated = all(issubclass(kind, datetime.date) for kind in found)
    hint = "pd.to_datetime" if dated else "pd.to_numeric"
    raise ValueError(
        f"column {name!r} holds values of type {_types(found)} in an untyped column: convert it, for "
        f"example by {hint}(df[{name!r}])"
    )


def _types(found: set[type]) -> str:
    return " and ".join(sorted(kind.__name__ for kind in found))


def date_format_of(values: pd.Series) -> str | None:
    """Return how texts write dates, or None if not all of them are dates.

    Args:
        values: Texts, none missing.
    """
    texts = values.drop_duplicates()
    if types.is_bool_dtype(values.dtype) or not isinstance(texts.iloc[0], str):
        return None
    for style in DATE_FORMATS:
        try:
            if (
                pd.to_datetime(texts.iloc[:1], format=style).dt.strftime(style).iloc[0]
                != texts.iloc[0]
            ):
                continue
            dates = pd.to_datetime(texts, format=style)
        except (ValueError, TypeError):
            continue
        if (dates.dt.strftime(style) == texts.astype(object)).all():
            return style
    return None


@dataclass(frozen=True)
class Storage:
    """How a column is stored. Its values are numbers, or codes of labels.

    Attributes:
        dtype: Name of its type; for categories that of the labels.
        labels: What codes stand for, in their order; None for numbers and dates.
        category: Whether the type is a category: "ordered", "unordered" or None.
        missing: How missing values of an untyped column are written, a key of ``MISSING``.
        style: How texts write dates, or None.
    """

    dtype: str
    labels: list[Any] | None = None
    category: str | None = None
    missing: str = "NaN"
    style: str | None = None

    @classmethod
    def of(cls, series: pd.Series, labelled: bool, dated: bool = False) -> Storage:
        """Find out how a column is stored.

        Args:
            series: The column, which ``check_values`` has passed.
            labelled: Whether its values are classes.
            dated: Whether texts are dates.
        """
        dtype = series.dtype
        if isinstance(dtype, pd.CategoricalDtype):
            kind = "ordered" if dtype.ordered else "unordered"
            labels = dtype.categories.tolist()
            return cls(name_of(dtype.categories.dtype), labels, category=kind)
        missing = "NaN"
        if types.is_object_dtype(dtype):
            kinds = series[series.isna()].map(_missing_kind)
            missing = str(kinds.mode().iloc[0]) if len(kinds) else "NaN"
        style = date_format_of(series.dropna()) if dated and _is_text(dtype) else None
        seen = sorted(series.dropna().unique().tolist()) if labelled else None
        return cls(name_of(dtype), seen, missing=missing, style=style)

    def split(self, series: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of a column, int64 or float64 (n,), and where they are missing (n,).

        A label that is not known has the code -1. Values that are missing are 0.
        """
        missing = series.isna().to_numpy(dtype=bool)
        if self.labels is not None:
            known = pd.Index(self.labels, dtype=object)
            codes = known.get_indexer(pd.Index(series.astype(object)))
            return np.where(missing, 0, codes), missing
        if self.style is not None:
            series = pd.to_datetime(series.astype(object), format=self.style).dt.tz_localize(None)
            values = series.to_numpy(dtype="datetime64[ns]").view(np.int64)
        elif types.is_datetime64_any_dtype(series.dtype) or types.is_timedelta64_dtype(
            series.dtype
        ):
            values = series.to_numpy(dtype=self._plain(series)).view(np.int64)
        elif self.whole:
            filled = series.to_numpy(dtype=np.int64, na_value=0) if missing.any() else series
            values = np.asarray(filled, dtype=np.int64)
        else:
            values = series.to_numpy(dtype=np.float64, na_value=np.nan)
            short = types.pandas_dtype(getattr(series.dtype, "numpy_dtype", series.dtype))
            if short in (np.float32, np.float16):  # 0.1 is to be 0.1, and not 0.10000000149
                values = values.astype(short).astype(str).astype(np.float64)
        return np.where(missing, values.dtype.type(0), values), missing

    @staticmethod
    def _plain(series: pd.Series) -> np.dtype:
        letter = "m" if types.is_timedelta64_dtype(series.dtype) else "M"
        unit = getattr(series.dtype, "unit", None) or np.datetime_data(series.to_numpy().dtype)[0]
        return np.dtype(f"{letter}8[{unit}]")

    @property
    def whole(self) -> bool:
        """Whether numbers are of an integer type."""
        return types.is_integer_dtype(types.pandas_dtype(self.dtype))

    @property
    def numpy_dtype(self) -> str:
        """Name of numpy's type for numbers and dates: of dates without their zone, of nullable ones within."""
        dtype = types.pandas_dtype(self.dtype)
        if types.is_datetime64_any_dtype(dtype) or types.is_timedelta64_dtype(dtype):
            kind = "timedelta64" if types.is_timedelta64_dtype(dtype) else "datetime64"
            return f"{kind}[{self._unit(dtype)}]"
        return str(getattr(dtype, "numpy_dtype", dtype))

    @staticmethod
    def _unit(dtype: Any) -> str:
        """Return the tick of dates or durations, such as "ns"."""
        return getattr(dtype, "unit", None) or np.datetime_data(dtype)[0]

    def join(self, values: np.ndarray, missing: np.ndarray) -> pd.Series:
        """Return the column of values and missing ones in its own type: the inverse of ``split``."""
        if self.category is not None:
            categories = pd.Index(self.labels or [], dtype=self.dtype)
            codes = np.where(missing, -1, values).tolist()
            kind = pd.CategoricalDtype(categories, ordered=self.category == "ordered")
            return pd.Series(pd.Categorical.from_codes(codes, dtype=kind))
        if self.style is not None:
            dates = pd.Series(values.astype("datetime64[ns]"))
            return self._typed(dates.dt.strftime(self.style).to_numpy(dtype=object), missing)
        if self.labels is not None:
            found = np.empty(len(self.labels), dtype=object)
            found[:] = self.labels
            return self._typed(found[values], missing)
        dtype = types.pandas_dtype(self.dtype)
        if types.is_datetime64_any_dtype(dtype) or types.is_timedelta64_dtype(dtype):
            return self._dates(values, missing, dtype)
        if missing.any() and isinstance(dtype, np.dtype):  # of floats: integers have none missing
            return pd.Series(np.where(missing, np.nan, values).astype(dtype))
        if isinstance(dtype, np.dtype):
            return pd.Series(values.astype(dtype))
        base = pd.array(values, dtype="Int64" if self.whole else "Float64")
        base[missing] = pd.NA
        return pd.Series(base).astype(dtype)

    def _dates(self, values: np.ndarray, missing: np.ndarray, dtype: Any) -> pd.Series:
        letter = "m" if types.is_timedelta64_dtype(dtype) else "M"
        ticks = values.astype(np.int64).view(f"{letter}8[{self._unit(dtype)}]")
        series = pd.Series(np.where(missing, np.array("NaT", dtype=ticks.dtype), ticks))
        zone = getattr(dtype, "tz", None)
        return series if zone is None else series.dt.tz_localize("UTC").dt.tz_convert(zone)

    def _typed(self, found: np.ndarray, missing: np.ndarray) -> pd.Series:
        """Return texts, truth values or numbers in the type of the column."""
        found = found.copy()
        found[missing] = MISSING[self.missing] if self.dtype == "object" else pd.NA
        if self.dtype == "object":
            return pd.Series(found, dtype=object)
        dtype = types.pandas_dtype(self.dtype)
        if isinstance(dtype, np.dtype):
            found[missing] = np.nan
            return pd.Series(found.astype(dtype))
        return pd.Series(found, dtype=object).astype(dtype)


def _missing_kind(value: Any) -> str:
    return "None" if value is None else {pd.NA: "NA", pd.NaT: "NaT"}.get(value, "NaN")


def _is_text(dtype: Any) -> bool:
    return types.is_object_dtype(dtype) or types.is_string_dtype(dtype)
