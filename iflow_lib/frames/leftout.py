"""Columns that are left out of a model, and how samples get them: constants, identifiers, texts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from .storage import Storage


@dataclass
class LeftOut:
    """How a column is written that a model leaves out.

    Attributes:
        name: Name of the column.
        kind: "constant", "identifier" or "text".
        storage: How it is stored.
        value: The value of a constant, or the first number of new identifiers.
        missing: Whether a constant is missing.
        prefix: What stands before the number of an identifier of text.
        digits: Digits of that number, filled with zeros.
    """

    name: Any
    kind: str
    storage: Storage
    value: int | float = 0
    missing: bool = False
    prefix: str = ""
    digits: int = 0

    @classmethod
    def fit(cls, series: pd.Series, kind: str) -> LeftOut:
        """Find out how to write a column; ValueError if it is not of this kind."""
        name, dtype = series.name, series.dtype
        text = types.is_object_dtype(dtype) or types.is_string_dtype(dtype)
        if kind == "constant":
            return cls._constant(series)
        if kind == "text":
            if not (text or isinstance(dtype, pd.CategoricalDtype)):
                raise ValueError(
                    f'column {name!r} of type {dtype} holds no texts: its kind cannot be "text"'
                )
            storage = Storage.of(series.iloc[:0], True)
            missing = Storage.of(series, False).missing if types.is_object_dtype(dtype) else "NaN"
            labels = storage.labels or [""]
            return cls(name, kind, Storage(storage.dtype, labels, storage.category, missing))
        if text:
            values = series.dropna().astype(str)
            prefix = os.path.commonprefix(values.tolist())
            rest = values.str[len(prefix.rstrip("0123456789")) :]
            numbered = bool(len(rest)) and bool(rest.str.fullmatch(r"\d{1,15}").all())
            if not numbered:
                return cls(name, kind, Storage.of(series, False), 1, prefix=f"{name}_")
            prefix = re.sub(r"\d+$", "", prefix)
            digits = int(rest.str.len().min()) if rest.str.len().nunique() == 1 else 0
            first = int(rest.astype("int64").max()) + 1
            return cls(name, kind, Storage.of(series, False), first, prefix=prefix, digits=digits)
        if not types.is_integer_dtype(dtype):
            raise ValueError(
                f"column {name!r} of type {dtype} holds no whole numbers or texts: its kind cannot be "
                '"identifier"'
            )
        return cls(name, kind, Storage.of(series, False), int(series.max()) + 1)

    @classmethod
    def _constant(cls, series: pd.Series) -> LeftOut:
        if series.nunique(dropna=False) > 1:
            raise ValueError(
                f"column {series.name!r} has {series.nunique(dropna=False)} different values: its kind "
                'cannot be "constant"'
            )
        dtype = series.dtype
        labelled = (
            types.is_object_dtype(dtype)
            or types.is_string_dtype(dtype)
            or types.is_bool_dtype(dtype)
        )
        storage = Storage.of(series, labelled)
        if storage.labels == []:
            storage = Storage(storage.dtype, [""], storage.category, storage.missing)
        values, missing = storage.split(series.iloc[:1])
        return cls(series.name, "constant", storage, values[0].item(), bool(missing[0]))

    def make(self, start: int, n: int) -> pd.Series:
        """Return the column for rows start to start + n of a sample.

        Raises:
            ValueError: If its type is too small for so many identifiers.
        """
        if self.kind != "identifier":
            missing = self.missing or self.kind == "text"
            whole = isinstance(self.value, int)
            values = np.full(n, self.value, dtype=np.int64 if whole else np.float64)
            return self.storage.join(values, np.full(n, missing)).rename(self.name)
        numbers = np.arange(self.value + start, self.value + start + n, dtype=np.int64)
        dtype = types.pandas_dtype(self.storage.dtype)
        if types.is_integer_dtype(dtype):
            most = np.iinfo(getattr(dtype, "numpy_dtype", dtype)).max
            if numbers[-1] > most:
                raise ValueError(
                    f"column {self.name!r} of type {dtype} has no room for identifiers up to "
                    f'{numbers[-1]}: give it a wider type, or the kind "whole"'
                )
            return self.storage.join(numbers, np.zeros(n, dtype=bool)).rename(self.name)
        texts = [f"{self.prefix}{number:0{self.digits}d}" for number in numbers.tolist()]
        return pd.Series(texts, dtype=dtype, name=self.name)

    def config(self) -> dict[str, Any]:
        """Return what builds it again, as JSON values."""
        return {**vars(self), "storage": vars(self.storage)}

    @classmethod
    def build(cls, config: dict[str, Any]) -> LeftOut:
        """Build what ``config`` describes."""
        return cls(**{**config, "storage": Storage(**config["storage"])})
