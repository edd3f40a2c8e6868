"""Columns as numbers: for classifiers, and for distances between rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .kinds import NUMBERS, as_numbers

if TYPE_CHECKING:  # heavy, and needed only where a frame is at hand
    import pandas as pd

Array = NDArray[Any]

#: A category of more levels than this is one column of codes for classifiers, the most frequent first.
#: Distances tell this many of its levels apart.
_ONE_HOT = 20


class Features:
    """Turn rows into numbers, on scales that are taken from the training rows.

    Args:
        train: Training rows.
        kinds: Kind of each column that counts.
    """

    def __init__(self, train: pd.DataFrame, kinds: Mapping[Any, str]) -> None:
        self.kinds = dict(kinds)
        self._numbers: dict[Any, Array] = {}
        self._levels: dict[Any, Any] = {}
        for name, kind in self.kinds.items():
            if kind in NUMBERS:
                values = as_numbers(train[name])
                self._numbers[name] = np.sort(values[~np.isnan(values)])
            else:
                self._levels[name] = train[name].astype(object).value_counts().index

    def codes(self, column: pd.Series) -> Array:
        """Return the codes of a column of categories.

        Args:
            column: The column, of the name that it has in the training rows.

        Returns:
            Whole numbers (n,): 0 for the most frequent category of the training rows, -1 for a
            missing value, the number of categories for one that is not there.
        """
        levels = self._levels[column.name]
        found = levels.get_indexer(column.astype(object))
        found[found < 0] = len(levels)
        return np.where(column.isna(), -1, found)

    def for_trees(self, frame: pd.DataFrame) -> Array:
        """Return rows for classifiers made of trees.

        Numbers and dates are standardized, with NaN where one is missing. Categories are one-hot,
        with a column for missing and one for unknown, or codes if there are many.

        Args:
            frame: Rows.

        Returns:
            An array (n, d).
        """
        columns: list[Array] = []
        for name in self.kinds:
            if name in self._numbers:
                known = self._numbers[name]
                center, spread = (known.mean(), known.std()) if len(known) else (0.0, 1.0)
                columns.append(((as_numbers(frame[name]) - center) / (spread or 1.0))[:, None])
            else:
                codes, levels = self.codes(frame[name]), len(self._levels[name])
                few = levels <= _ONE_HOT
                columns.append(
                    np.eye(levels + 2)[codes + 1] if few else codes[:, None].astype(float)
                )
        # trees compare in float32
        return np.concatenate(columns, axis=1).clip(-1e30, 1e30)

    def for_distances(self, frame: pd.DataFrame) -> Array:
        """Return rows as points, in which each column is about as far across as each other one.

        A number or a date is its share of smaller training values, in [0, 1], so that no outlier
        sets the scale. Two categories are 1 apart, and a missing value is at least 1 from any
        other.

        Args:
            frame: Rows.

        Returns:
            An array (n, d).
        """
        columns: list[Array] = []
        for name in self.kinds:
            if name in self._numbers:
                columns.append(_shares(as_numbers(frame[name]), self._numbers[name]))
            else:
                # the rare levels, beyond those that are told apart, share one
                codes = np.minimum(self.codes(frame[name]), _ONE_HOT)
                columns.append(np.eye(_ONE_HOT + 2)[codes + 1] / np.sqrt(2))
        return np.concatenate(columns, axis=1)


def _shares(values: Array, known: Array) -> Array:
    """Share of known values below each value, and whether it is missing (n, 2)."""
    missing = np.isnan(values)
    if not len(known):
        return np.stack([np.zeros(len(values)), missing], axis=1)
    different, counts = np.unique(known, return_counts=True)
    middle = (np.cumsum(counts) - counts / 2) / len(known)
    shares = np.interp(np.where(missing, different[0], values), different, middle)
    return np.stack([np.where(missing, 0.5, shares), missing], axis=1)
