"""Calendar features: the time of day, of the week and of the year, as points on a circle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

#: What can be told of a moment: the period in days, and how far into it a moment is, in days.
FEATURES = ("hour", "weekday", "month")


def check_features(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of calendar features; ValueError for one that is unknown."""
    given = tuple(names) if not isinstance(names, str) else (names,)
    if not set(given) <= set(FEATURES) or len(set(given)) < len(given):
        raise ValueError(f"calendar must be some of {', '.join(FEATURES)}, got {given!r}")
    return given


def features(stamps: pd.DatetimeIndex, names: Sequence[str], timezone: str) -> np.ndarray:
    """Return calendar features of moments, by the clock of a time zone.

    Args:
        stamps: Moments in UTC (n,).
        names: Some of ``FEATURES``.
        timezone: The zone whose clock and calendar count.

    Returns:
        A cosine and a sine for each name, times sqrt(2) so that they have variance 1, (n, 2 K).
    """
    local = stamps.tz_convert(timezone)
    day = (local.hour + local.minute / 60 + local.second / 3600).to_numpy() / 24
    turns = {
        "hour": day,
        "weekday": (local.dayofweek.to_numpy() + day) / 7,
        "month": (local.dayofyear.to_numpy() - 1 + day) / 365.25,
    }
    angles = 2 * np.pi * np.stack([turns[name] for name in names], axis=1)
    return 2**0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(len(stamps), -1)
