"""What is asked of a ``SeriesFlow``: parts that are given, and windows that go on from a history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .windows import Windows


def given_values(given: Any, n: int, length: int, names: Sequence[str]) -> np.ndarray:
    """Return what is given as (n, T, C) or (1, T, C), NaN where nothing is.

    Args:
        given: What ``SeriesFlow.sample`` takes.
        n: Number of windows.
        length: Steps of a window.
        names: The channels of the model.

    Raises:
        ValueError: If it names other channels, has another shape, or is infinite.
    """
    if isinstance(given, Mapping):
        wrong = [name for name in given if name not in names]
        if wrong or not given:
            raise ValueError(f"given must name channels, {', '.join(names)}; got {wrong or given}")
        whole: np.ndarray = np.full((1, length, len(names)), np.nan)
        for name, plan in given.items():
            values = np.asarray(plan, dtype=np.float64)
            if values.shape not in ((length,), (n, length)):
                raise ValueError(
                    f"what is given of {name!r} must have shape ({length},) or ({n}, {length}), "
                    f"got {values.shape}"
                )
            if values.ndim == 2 and len(whole) < n:
                whole = np.repeat(whole, n, axis=0)
            whole[:, :, names.index(name)] = values
    else:
        whole = np.asarray(given.values if isinstance(given, Windows) else given, dtype=float)
        whole = whole[None] if whole.ndim == 2 else whole
        shape = (length, len(names))
        if whole.shape not in ((n, *shape), (1, *shape)):
            raise ValueError(
                f"given must have shape {shape} or {(n, *shape)}, NaN where nothing is given; got "
                f"{whole.shape}"
            )
    if np.isinf(whole).any():
        raise ValueError("given values must be finite, or NaN where nothing is given")
    return whole


def phase_of(cut: Windows) -> tuple[int, int]:
    """Return remainder and stride of the first steps of windows: all are ``remainder`` modulo ``stride``."""
    first = int(cut.positions[0])
    stride = int(np.gcd.reduce(cut.positions - first)) or 1
    return first % stride, stride


def lay(
    window: np.ndarray, values: np.ndarray, at: int, columns: Any, after: int | None = None
) -> None:
    """Write values (steps, C) into a window from step ``at`` on, in place; what lies outside is dropped."""
    steps = np.arange(len(values)) + at
    inside = (steps >= (after or 0)) & (steps < len(window))
    if not inside.any():
        return
    part = window[:, columns]
    part[steps[inside]] = values[inside]
    window[:, columns] = part


def where_to_begin(end: int, horizon: int | None, length: int, phase: Sequence[int]) -> int:
    """Return the first step of the window that goes on from step ``end``.

    Args:
        end: The first step that is not known.
        horizon: How many steps must be left in the window; None for half of it, or what is nearest.
        length: Steps of a window.
        phase: Where windows begin, see ``phase_of``.

    Raises:
        ValueError: If no window begins where it is needed.
    """
    remainder, stride = phase
    wanted = horizon if horizon is not None else length // 2
    known = np.arange(1, length)
    known = known[(end - known) % stride == remainder]
    if horizon is not None:
        known = known[length - known >= horizon]
    if not len(known):
        room = "any step" if horizon is None else f"{horizon} steps"
        raise ValueError(
            f"windows of this model begin every {stride} steps, and none leaves room for {room} "
            "after this history: fit with a smaller stride, such as stride=1, or give another end"
        )
    return end - int(known[np.abs(length - known - wanted).argmin()])
