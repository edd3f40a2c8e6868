"""Scores of columns and pairs of columns, by their published definitions. 1 is good, 0 is bad.

They are those of SDMetrics (docs.sdv.dev/sdmetrics): KSComplement, TVComplement,
MissingValueSimilarity, CorrelationSimilarity and ContingencySimilarity; scipy computes them.
tests/test_frames_quality.py holds numbers that SDMetrics 0.32 gave. Three things are decided here:

- Numbers beside categories are binned by the bins of the real column, for both columns, as
  ``ContingencySimilarity(continuous_column_names=...)`` does. SDMetrics' report bins each column by
  its own range, and so a shifted column would go unseen.
- A correlation is not defined where a column is constant. A constant synthetic column beside a real
  one that varies counts as uncorrelated; a pair whose real columns are constant has no score.
- SDMetrics adds a millionth of a row for each category that only the synthetic column has. We do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .kinds import CATEGORIES, NUMBERS, as_numbers

if TYPE_CHECKING:  # heavy, and needed only where frames are compared
    import pandas as pd

Array = NDArray[Any]
Pair = tuple[Any, Any]

#: Decimals to which SDMetrics rounds numbers before it compares their distributions.
_DECIMALS = 14


def ks_complement(real: Array, synthetic: Array) -> float:
    """Compute KSComplement of two columns of numbers: 1 - max |F_real - F_synthetic|.

    Args:
        real: Numbers (n,); NaN is left out.
        synthetic: Numbers (m,).

    Returns:
        The score; NaN where a column has no values.
    """
    from scipy.stats import ks_2samp

    real, synthetic = (c[~np.isnan(c)].round(_DECIMALS) for c in (real, synthetic))
    if not (len(real) and len(synthetic)):
        return math.nan
    return 1 - float(ks_2samp(real, synthetic, method="asymp").statistic)  # the method of p alone


def tv_complement(real: Array, synthetic: Array) -> float:
    """Compute TVComplement of two columns of categories: 1 - sum |p_real - p_synthetic| / 2.

    Args:
        real: Codes (n,), whole numbers; -1, a missing value, is left out.
        synthetic: Codes (m,), the same number for the same category.

    Returns:
        The score; NaN where a column has no values.
    """
    real, synthetic = real[real >= 0], synthetic[synthetic >= 0]
    if not (len(real) and len(synthetic)):
        return math.nan
    return _overlap(real, synthetic)


def missing_similarity(real: Array, synthetic: Array) -> float:
    """Compute MissingValueSimilarity: 1 - |share missing in real - share missing in synthetic|.

    Args:
        real: Whether each value is missing (n,).
        synthetic: The same (m,).

    Returns:
        The score.
    """
    return 1 - abs(float(real.mean()) - float(synthetic.mean()))


def correlation_similarity(real: tuple[Array, Array], synthetic: tuple[Array, Array]) -> float:
    """Compute CorrelationSimilarity, 1 - |r_real - r_synthetic| / 2, of Pearson's r.

    Rows in which one of the two is missing are left out.

    Args:
        real: Two columns of numbers, (n,) each.
        synthetic: The same two columns, (m,) each.

    Returns:
        The score; NaN where the real correlation is not defined.
    """
    r_real, r_synthetic = _pearson(*real), _pearson(*synthetic)
    return 1 - abs(r_real - (0.0 if math.isnan(r_synthetic) else r_synthetic)) / 2


def contingency_similarity(real: tuple[Array, Array], synthetic: tuple[Array, Array]) -> float:
    """Compute ContingencySimilarity: 1 - sum |p_real - p_synthetic| / 2 over pairs of categories.

    A missing value is a category of its own.

    Args:
        real: Two columns of codes, (n,) each, -1 for a missing value.
        synthetic: The same two columns, (m,) each.

    Returns:
        The score.
    """
    width = 2 + max(int(real[1].max()), int(synthetic[1].max()))  # with a place for missing
    joint = [(a.astype(np.int64) + 1) * width + b + 1 for a, b in (real, synthetic)]
    return _overlap(*joint)


def column_shapes(
    real: pd.DataFrame, synthetic: pd.DataFrame, kinds: Mapping[Any, str]
) -> dict[Any, float]:
    """Score each column: KSComplement for numbers and dates, TVComplement for categories.

    Args:
        real: Real rows.
        synthetic: Synthetic rows, with the same columns.
        kinds: Kind of each column that counts.

    Returns:
        ``{column: score}``.
    """
    return {
        name: ks_complement(as_numbers(real[name]), as_numbers(synthetic[name]))
        if kind in NUMBERS
        else tv_complement(*codes(real[name], synthetic[name], kind))
        for name, kind in kinds.items()
    }


def missing_values(
    real: pd.DataFrame, synthetic: pd.DataFrame, names: Iterable[Any]
) -> dict[Any, float]:
    """Score the share of missing values of each column in which either has some.

    Args:
        real: Real rows.
        synthetic: Synthetic rows, with the same columns.
        names: Columns that count.

    Returns:
        ``{column: score}``.
    """
    missing = {name: [f[name].isna().to_numpy() for f in (real, synthetic)] for name in names}
    return {
        name: missing_similarity(*pair)
        for name, pair in missing.items()
        if pair[0].any() or pair[1].any()
    }


def pair_trends(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    kinds: Mapping[Any, str],
    pairs: Iterable[Pair],
) -> dict[Pair, float]:
    """Score pairs of columns.

    Two columns of numbers or dates by CorrelationSimilarity, two of categories by
    ContingencySimilarity, and so one of each, with the numbers in bins.

    Args:
        real: Real rows.
        synthetic: Synthetic rows, with the same columns.
        kinds: Kind of each column.
        pairs: Pairs of columns.

    Returns:
        ``{(column, column): score}``.
    """
    pairs = list(pairs)
    used = dict.fromkeys(name for pair in pairs for name in pair)
    numbers = {
        name: (as_numbers(real[name]), as_numbers(synthetic[name]))
        for name in used
        if kinds[name] in NUMBERS
    }
    coded = {name: codes(real[name], synthetic[name], kinds[name]) for name in used}
    scores = {}
    for a, b in pairs:
        both = a in numbers and b in numbers
        columns = (numbers[a], numbers[b]) if both else (coded[a], coded[b])
        score = correlation_similarity if both else contingency_similarity
        scores[a, b] = score((columns[0][0], columns[1][0]), (columns[0][1], columns[1][1]))
    return scores


def codes(real: pd.Series, synthetic: pd.Series, kind: str, bins: int = 10) -> tuple[Array, Array]:
    """Return two columns as codes that mean the same in both, -1 for a missing value.

    Args:
        real: The real column.
        synthetic: The synthetic column.
        kind: Its kind. Numbers and dates go into bins of equal width over the range of the real
            column; the outer ones are open.
        bins: Number of bins.

    Returns:
        Whole numbers (n,) and (m,).
    """
    import pandas as pd

    if kind in CATEGORIES:
        both = pd.concat([real.astype(object), synthetic.astype(object)], ignore_index=True)
        joint = pd.factorize(both)[0]
        return joint[: len(real)], joint[len(real) :]
    values = as_numbers(real), as_numbers(synthetic)
    edges = np.histogram_bin_edges(values[0][~np.isnan(values[0])], bins=bins)
    edges[0], edges[-1] = -np.inf, np.inf
    binned = [np.where(np.isnan(v), -1, np.digitize(v, edges)) for v in values]
    return binned[0], binned[1]


def lagged_correlations(windows: Array, lags: int) -> Array:
    """Compute the correlation of each channel with each other one some steps later.

        r[k, i, j] = corr(x_i(t), x_j(t + k)),   over all windows and all t at once

    Args:
        windows: Windows (B, T, C).
        lags: The longest lag, below T.

    Returns:
        Correlations (lags + 1, C, C); NaN where a channel is constant.
    """
    result = []
    for lag in range(lags + 1):
        early, late = (
            w.reshape(-1, w.shape[2])
            for w in (windows[:, : windows.shape[1] - lag], windows[:, lag:])
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            early, late = ((w - w.mean(0)) / w.std(0) for w in (early, late))
        result.append(early.T @ late / len(early))
    return np.stack(result)


def _pearson(a: Array, b: Array) -> float:
    from scipy.stats import pearsonr

    kept = ~(np.isnan(a) | np.isnan(b))
    a, b = a[kept], b[kept]
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return math.nan
    return float(pearsonr(a, b)[0])


def _overlap(real: Array, synthetic: Array) -> float:
    """1 - the total variation distance of two columns of codes."""
    values, joint = np.unique(np.concatenate([real, synthetic]), return_inverse=True)
    shares = [
        np.bincount(part, minlength=len(values)) / len(part)
        for part in (joint[: len(real)], joint[len(real) :])
    ]
    return 1 - float(np.abs(shares[0] - shares[1]).sum()) / 2
