"""Baselines: what a model of tables or windows is worth must be seen beside them.

- ``bootstrap``: training rows once more. No model can match columns and pairs much better, and it
  makes nothing new.
- ``independent_columns``: every column by itself. It matches each column and no pair.
- ``gaussian_copula``: every column, and the correlations of their normal scores.
- ``gaussian``: for windows, the normal distribution with the data's mean and covariance.

All take a data frame, or windows (B, T, C) as an array, and give back the same: columns and dtypes,
categories, missing values. The index of a frame is a new one from 0. All but ``gaussian`` give only
values that were observed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..utils import check_int, check_seed
from .kinds import windows_array

if TYPE_CHECKING:  # heavy, and needed only where a frame is made
    import pandas as pd

Array = NDArray[Any]


def bootstrap(data: Any, n: int, seed: int = 0) -> Any:
    """Draw rows, or windows, with replacement.

    Args:
        data: A data frame, or windows (B, T, C).
        n: Number of rows or windows to make.
        seed: Seed of the draw.

    Returns:
        A data frame of n rows, or an array (n, T, C).

    Raises:
        ValueError: If there are no rows, or the data are neither.
    """
    data, rng = _checked(data, n, seed)
    return _take(data, rng.integers(len(data), size=n))


def independent_columns(data: Any, n: int, seed: int = 0) -> Any:
    """Draw each column from its own values with replacement, independently of the others.

    In windows a column is a channel: its curves stay whole, and those of different channels are of
    different windows.

    Args:
        data: A data frame, or windows (B, T, C).
        n: Number of rows or windows to make.
        seed: Seed of the draw.

    Returns:
        A data frame of n rows, or an array (n, T, C).

    Raises:
        ValueError: If there are no rows, or the data are neither.
    """
    data, rng = _checked(data, n, seed)
    if isinstance(data, np.ndarray):
        picks = rng.integers(len(data), size=(n, data.shape[2]))
        return np.stack([data[picks[:, c], :, c] for c in range(data.shape[2])], axis=2)
    return _joined(data, [rng.integers(len(data), size=n) for _ in data.columns])


def gaussian_copula(data: Any, n: int, seed: int = 0) -> Any:
    """Draw from a Gaussian copula with the observed marginals.

    Each column becomes its normal scores z = Phi^-1((rank - 1/2) / rows). Ties get random ranks, a
    missing value is one more value, below the others, and categories are in their order. Rows are
    drawn from a normal distribution with the correlations of z, and each z is taken back to the
    observed value of its rank (Nelsen 2006, An Introduction to Copulas, section 2.9).

    In windows every channel at every time is a column.

    Args:
        data: A data frame, or windows (B, T, C).
        n: Number of rows or windows to make.
        seed: Seed of the ranks of ties, and of the draw.

    Returns:
        A data frame of n rows, or an array (n, T, C).

    Raises:
        ValueError: If there are fewer than two rows, or the data are neither.
    """
    from scipy.special import ndtr, ndtri

    data, rng = _checked(data, n, seed, least=2)
    rows = len(data)
    windows = isinstance(data, np.ndarray)
    columns = data.reshape(rows, -1).T if windows else [_codes(data[c]) for c in data.columns]
    # the last key of lexsort counts first: rows by value, ties at random
    orders = np.stack([np.lexsort((rng.random(rows), column)) for column in columns], axis=1)
    scores = np.empty(orders.shape)
    np.put_along_axis(scores, orders, ndtri((np.arange(rows) + 0.5) / rows)[:, None], axis=0)
    drawn = _normal(np.atleast_2d(np.corrcoef(scores, rowvar=False)), n, rng)
    ranks = np.minimum((ndtr(drawn) * rows).astype(int), rows - 1)
    picks = np.take_along_axis(orders, ranks, axis=0)
    if windows:
        return np.take_along_axis(data.reshape(rows, -1), picks, axis=0).reshape(n, *data.shape[1:])
    return _joined(data, list(picks.T))


def gaussian(windows: Any, n: int, seed: int = 0) -> Array:
    """Draw windows from the normal distribution with the mean and covariance of all their values.

    Args:
        windows: Windows (B, T, C).
        n: Number of windows to make.
        seed: Seed of the draw.

    Returns:
        Windows (n, T, C).

    Raises:
        ValueError: If there are fewer than two windows, or it is no such array.
    """
    data, rng = _checked(windows, n, seed, least=2)
    if not isinstance(data, np.ndarray):
        raise ValueError(
            "gaussian takes windows (B, T, C), got a data frame: gaussian_copula takes one"
        )
    flat = data.reshape(len(data), -1)
    drawn = flat.mean(0) + _normal(np.atleast_2d(np.cov(flat, rowvar=False)), n, rng)
    return drawn.reshape(n, *data.shape[1:])


# ------------------------------------------------------------------------------------------- parts


def _checked(data: Any, n: int, seed: int, least: int = 1) -> tuple[Any, np.random.Generator]:
    """The data as a frame or an array, and the generator of a draw."""
    import pandas as pd

    from .schema import check_frame

    check_int("n", n)
    if isinstance(data, pd.DataFrame):
        check_frame(data)
    else:
        data = windows_array(data)
    if len(data) < least:
        raise ValueError(f"a baseline needs at least {least} rows, got {len(data)}: give more data")
    return data, np.random.default_rng(check_seed(seed))


def _take(data: Any, rows: Array) -> Any:
    """Rows of a frame, with a new index, or windows of an array."""
    return data[rows] if isinstance(data, np.ndarray) else data.iloc[rows].reset_index(drop=True)


def _joined(frame: pd.DataFrame, picks: list[Array]) -> pd.DataFrame:
    """A frame whose columns are taken each from rows of its own."""
    import pandas as pd

    columns = [_take(frame[name], rows) for name, rows in zip(frame.columns, picks)]
    return pd.concat(columns, axis=1)


def _codes(column: pd.Series) -> Array:
    """Whole numbers in the order of a column's values; -1 where one is missing."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy()
    try:
        return pd.factorize(column, sort=True)[0]
    except TypeError:  # values of mixed types have no order: any will do
        return pd.factorize(column)[0]


def _normal(covariance: Array, n: int, rng: np.random.Generator) -> Array:
    """Normal draws (n, d). Eigenvalues serve where the covariance is singular."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(min=0))
    return rng.standard_normal((n, len(values))) @ root.T
