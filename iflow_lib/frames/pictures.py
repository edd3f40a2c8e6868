"""What the page of ``quality`` draws: distributions of columns, and curves of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .kinds import NUMBERS, as_numbers
from .scores import codes, lagged_correlations

if TYPE_CHECKING:  # heavy, and needed only where a frame is at hand
    import pandas as pd

Array = NDArray[Any]

#: Columns and channels beyond these are not drawn.
MOST = 24
_BINS = 24
_BARS = 8


@dataclass(frozen=True)
class Picture:
    """Two rows of numbers over the same places: real and synthetic.

    Attributes:
        title: What is drawn.
        kind: "steps" for a histogram, "bars" for categories, "line" for a curve.
        real: Values of held-out real rows (k,).
        synthetic: Values of synthetic rows (k,).
        labels: One for each bar; else for the left end and the right end.
    """

    title: str
    kind: str
    real: tuple[float, ...]
    synthetic: tuple[float, ...]
    labels: tuple[str, ...]


def histograms(
    real: pd.DataFrame, synthetic: pd.DataFrame, kinds: Mapping[Any, str]
) -> list[Picture]:
    """Draw the distribution of each column.

    Args:
        real: Held-out real rows.
        synthetic: Synthetic rows.
        kinds: Kind of each column that counts.

    Returns:
        A picture for each of the first columns.
    """
    return [
        _histogram(str(name), as_numbers(real[name]), as_numbers(synthetic[name]), kind)
        if kind in NUMBERS
        else _bars(real[name], synthetic[name], kind)
        for name, kind in list(kinds.items())[:MOST]
    ]


def curves(real: Array, synthetic: Array, channels: Sequence[str], lags: int) -> list[Picture]:
    """Draw the distribution of each channel, its mean over a window and its autocorrelation.

    Args:
        real: Held-out real windows (n, T, C).
        synthetic: Synthetic windows (m, T, C).
        channels: Names of the channels.
        lags: The longest lag.

    Returns:
        Three pictures for each of the first channels.
    """
    found = [lagged_correlations(windows, lags) for windows in (real, synthetic)]
    pictures = []
    for c, name in list(enumerate(channels))[:MOST]:
        means = [tuple(windows[..., c].mean(0).tolist()) for windows in (real, synthetic)]
        itself = [tuple(np.nan_to_num(r[:, c, c]).tolist()) for r in found]
        pictures += [
            _histogram(name, real[..., c].ravel(), synthetic[..., c].ravel(), "continuous"),
            Picture(
                f"{name}: mean by step", "line", means[0], means[1], ("0", str(real.shape[1] - 1))
            ),
            Picture(
                f"{name}: autocorrelation by lag", "line", itself[0], itself[1], ("0", str(lags))
            ),
        ]
    return pictures


def _histogram(title: str, real: Array, synthetic: Array, kind: str) -> Picture:
    """Shares in bins over the middle 99 % of the real values; what is outside goes into the ends."""
    values = [v[~np.isnan(v)] for v in (real, synthetic)]
    low, high = np.quantile(values[0], [0.005, 0.995]) if len(values[0]) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    bins, ends = _BINS, (_end(low, kind), _end(high, kind))
    if kind == "whole" and high - low < _BINS:  # a bin for each whole number
        low, high = np.floor(low), np.ceil(high)
        ends, bins = (_end(low, kind), _end(high, kind)), int(high - low) + 1
        low, high = low - 0.5, high + 0.5
    counts = [np.histogram(v.clip(low, high), bins=bins, range=(low, high))[0] for v in values]
    heights = [tuple((c / max(1, len(v))).tolist()) for c, v in zip(counts, values)]
    return Picture(title, "steps", heights[0], heights[1], ends)


def _bars(real: pd.Series, synthetic: pd.Series, kind: str) -> Picture:
    """Shares of the most frequent categories, of the others together and of missing values."""
    import pandas as pd

    coded = codes(real, synthetic, kind)
    both = pd.concat([real.astype(object), synthetic.astype(object)], ignore_index=True)
    levels = pd.factorize(both)[1]
    shares = [np.bincount(c[c >= 0], minlength=len(levels)) / len(c) for c in coded]
    order = np.argsort(-shares[0], kind="stable")
    shown, others = order[:_BARS], order[_BARS:]
    labels = [str(levels[i]) for i in shown]
    heights = [s[shown].tolist() for s in shares]
    if len(others):
        labels.append(f"{len(others):,} others")
        heights = [h + [float(s[others].sum())] for h, s in zip(heights, shares)]
    if any((c < 0).any() for c in coded):
        labels.append("missing")
        heights = [h + [float((c < 0).mean())] for h, c in zip(heights, coded)]
    return Picture(str(real.name), "bars", tuple(heights[0]), tuple(heights[1]), tuple(labels))


def _end(value: float, kind: str) -> str:
    """An end of an axis as text."""
    if kind == "date":
        return str(np.datetime64(int(value), "ns").astype("datetime64[m]")).replace("T", " ")
    return f"{value:.4g}"
