"""What each column of a data frame is, and what a model will do with it: an editable schema."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from .storage import check_values, date_format_of

#: What a column may be, and what is done with it.
KINDS = {
    "continuous": "normal scores of its ranks; values between the observed ones",
    "whole": "normal scores of its ranks; whole numbers",
    "two-valued": "a class of two",
    "category": "one-hot up to 16 classes, else ranks by frequency",
    "date": "normal scores of its ranks; dates between the observed ones",
    "constant": "left out, and written back as it is",
    "identifier": "left out; new ones are numbered on",
    "text": "left out; samples have it missing",
}
#: Kinds that a model learns.
LEARNED = ("continuous", "whole", "two-valued", "category", "date")
#: Strings that are mostly distinct are text, if they have as many words as this on average.
WORDS = 3
#: A value with such a share of a number column is named in the schema.
HEAVY = 0.2


@dataclass
class Column:
    """One column of a schema. ``kind`` may be changed before the fit; the rest is what was seen.

    Attributes:
        kind: One of ``KINDS``.
        dtype: Its type in the frame.
        why: Why it has this kind.
        missing: Share of missing values.
        distinct: Number of distinct values, missing ones apart.
        low: Smallest number or date, as text, or None.
        high: Largest, likewise.
        step: Grid that all numbers lie on, such as 0.1 or 25, in the units of the column, or None.
        heavy: The value that a large share of the numbers has, such as 0, or None.
    """

    kind: str
    dtype: str = ""
    why: str = ""
    missing: float = 0.0
    distinct: int = 0
    low: str | None = None
    high: str | None = None
    step: float | None = None
    heavy: float | None = None

    @property
    def plan(self) -> str:
        """What a model does with it."""
        said = KINDS.get(self.kind, f"unknown kind: give one of {', '.join(KINDS)}")
        notes = []
        if self.missing and self.kind in LEARNED:
            notes.append("missing or not is learned too")
        if self.step is not None and self.kind in ("continuous", "whole"):
            notes.append(f"steps of {self.step:g}")
        if self.heavy is not None and self.kind in ("continuous", "whole"):
            notes.append(f"many are {self.heavy:g}")
        return "; ".join([said, *notes])


class Schema(dict[Any, Column]):
    """The columns of a frame by name, in their order. ``print`` shows them as a table.

    A kind is changed by ``schema["age"].kind = "category"``; then give the schema to ``TableFlow``.
    """

    def table(self) -> pd.DataFrame:
        """Return a row for each column: its kind, why, and what is done with it."""
        rows = [
            {
                "column": name,
                "kind": column.kind,
                "dtype": column.dtype,
                "missing": f"{column.missing:.1%}" if column.missing else "",
                "distinct": column.distinct,
                "range": f"{column.low} to {column.high}" if column.low is not None else "",
                "why": column.why,
                "plan": column.plan,
            }
            for name, column in self.items()
        ]
        return pd.DataFrame(rows).set_index("column") if rows else pd.DataFrame()

    def __repr__(self) -> str:
        """Return the table as text."""
        return self.table().to_string(max_colwidth=None)

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def check(self) -> None:
        """Raise ValueError if a kind is unknown."""
        for name, column in self.items():
            if not isinstance(column, Column) or column.kind not in KINDS:
                kind = getattr(column, "kind", column)
                raise ValueError(
                    f"the kind of column {name!r} must be one of {', '.join(KINDS)}, got {kind!r}"
                )

    def to_json(self) -> str:
        """Return the schema as JSON text."""
        return json.dumps([[name, asdict(column)] for name, column in self.items()], indent=1)

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Read what ``to_json`` wrote.

        Args:
            text: The JSON text.

        Raises:
            ValueError: If it is none.
        """
        known = {field.name for field in fields(Column)}
        try:
            rows = json.loads(text)
            if not isinstance(rows, list):
                raise TypeError("no list")
            schema = cls({name: Column(**column) for name, column in rows})
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"no schema in this text: expected what to_json wrote, columns with {sorted(known)}"
            ) from error
        schema.check()
        return schema


def check_frame(frame: Any, what: str = "the data") -> pd.DataFrame:
    """Return a data frame whose columns can be told apart.

    Args:
        frame: What a user gives.
        what: What it is called in errors.

    Raises:
        ValueError: If it is none, has no columns or rows, or names that are not distinct strings or
            whole numbers.
    """
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{what} must be a pandas DataFrame, got a {type(frame).__name__}")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(f"{what} has two columns named {twice!r}: rename or drop one")
    odd = [name for name in frame.columns if not isinstance(name, (str, int, np.integer))]
    if odd:
        raise ValueError(
            f"{what} has a column named {odd[0]!r}: names must be strings or whole numbers, so rename it"
        )
    if not len(frame.columns) or not len(frame):
        lacks = "columns" if not len(frame.columns) else "rows, only a header"
        raise ValueError(f"{what} has no {lacks}: give a frame with data")
    return frame


def schema(frame: pd.DataFrame) -> Schema:
    """Look at a data frame and say what each column is, and what will be done with it.

    Args:
        frame: The data frame. It is left as it is.

    Returns:
        The schema, which can be edited: ``schema["age"].kind = "category"``.

    Raises:
        ValueError: If a column cannot be read: one line that names it and says what to do.
    """
    check_frame(frame)
    return Schema({_name(name): _look(frame[name], name) for name in frame.columns})


def _name(name: Any) -> Any:
    return int(name) if isinstance(name, np.integer) else name


def _look(series: pd.Series, name: Any) -> Column:
    """Return what one column is."""
    check_values(series, name)
    values = series.dropna()
    distinct = values.nunique()
    kind, why = _kind(series, values, distinct)
    column = Column(
        kind=kind,
        why=why,
        dtype=str(series.dtype),
        missing=round(float(series.isna().mean()), 6),
        distinct=int(distinct),
    )
    numbers = types.is_numeric_dtype(series.dtype) and not types.is_bool_dtype(series.dtype)
    dates = types.is_datetime64_any_dtype(series.dtype) or types.is_timedelta64_dtype(series.dtype)
    if distinct and (numbers or dates):
        column.low, column.high = str(values.min()), str(values.max())
    if distinct and numbers:
        column.step = _step(values)
        counts = values.value_counts()
        if distinct > 2 and counts.iloc[0] >= HEAVY * len(values):
            column.heavy = float(counts.index[0])
    return column


def _kind(series: pd.Series, values: pd.Series, distinct: int) -> tuple[str, str]:
    """Return the kind of a column and the reason."""
    dtype, n = series.dtype, len(values)
    if distinct == 0:
        return "constant", "all values are missing"
    if distinct == 1 and n == len(series):
        return "constant", "all values are the same"
    if isinstance(dtype, pd.CategoricalDtype):
        return "category", "ordered categories" if dtype.ordered else "its type is category"
    if types.is_bool_dtype(dtype):
        return "two-valued", "true or false"
    if types.is_datetime64_any_dtype(dtype):
        return "date", "its type is a date"
    if types.is_timedelta64_dtype(dtype):
        return "continuous", "durations"
    if types.is_numeric_dtype(dtype):
        return _kind_of_numbers(values, distinct)
    if distinct <= 2:
        return "two-valued", f"{distinct} distinct values"
    if date_format_of(values):
        return "date", "all texts are dates"
    if distinct == n and n >= 10 or distinct > max(20, n / 2):
        words = values.astype(str).str.split().str.len().mean()
        if words >= WORDS:
            return "text", f"{distinct} distinct texts of {words:.0f} words"
        if distinct == n:
            return "identifier", "every text is another one"
        return "text", f"{distinct} distinct texts in {n} rows"
    return "category", f"{distinct} distinct texts"


def _kind_of_numbers(values: pd.Series, distinct: int) -> tuple[str, str]:
    if distinct == 2:
        return "two-valued", "two distinct numbers"
    numbers = values.to_numpy(dtype=float, na_value=np.nan)
    if not (np.round(numbers) == numbers).all():
        return "continuous", f"{distinct} distinct numbers"
    if distinct == len(values) and distinct >= 10 and np.ptp(numbers) == distinct - 1:
        return "identifier", "running numbers, each once"
    return "whole", "all are whole numbers"


def _step(values: pd.Series) -> float | None:
    from .columns import decimal_grid

    grid = decimal_grid(values.to_numpy(dtype=float, na_value=np.nan))
    return None if grid is None else grid[1] / 10 ** grid[0]


def names(columns: Iterable[Any]) -> str:
    """Return names of columns for a message, the first few of them."""
    found = [repr(name) for name in columns]
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(found[:5]) + more
