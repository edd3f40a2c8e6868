"""How far back a pair of times looks in ``IntegralIdentity(gap=...)``: a number, or a schedule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .base import check_number

SCHEDULES = ("geometric", "sigmoid")
#: A number in (0, 1], or a schedule by name: ("geometric", first, last), ("sigmoid", gamma, last).
Gap = float | tuple[str, float, float]


def check_gap(gap: Any) -> None:
    """Raise ValueError unless ``gap`` is a number in (0, 1] or a schedule."""
    if isinstance(gap, (int, float, np.number)):
        return _check_part("gap", gap)
    known = isinstance(gap, (tuple, list)) and len(gap) == 3 and gap[0] in SCHEDULES
    if not known:
        raise ValueError(
            "gap must be a number in (0, 1], ('geometric', first, last) or ('sigmoid', gamma, last); "
            f"got {gap!r:.60}"
        )
    if gap[0] == "geometric":
        _check_part("the first gap", gap[1])
        _check_part("the last gap", gap[2])
    else:
        check_number("gamma of a sigmoid gap", gap[1], least=1e-3)
        _check_part("the last gap", gap[2], most=0.5)


def _check_part(name: str, value: Any, most: float = 1) -> None:
    if not (isinstance(value, (int, float, np.number)) and 0 < value <= most):
        raise ValueError(f"{name} must be in (0, {most:g}], got {value!r:.60}")


def gap_at(gap: Gap, step: int, steps: int) -> float:
    """Return the gap of a gradient step.

    With p from 0 at the first step to 1 at the last, a schedule is

        ("geometric", first, last):  first^(1 - p) last^p
        ("sigmoid", gamma, last):    a = 1 / (1 + exp(gamma (p - 1/2))), 1 where a > 1 - last,
                                     and never below last.

    Args:
        gap: A number, or a schedule.
        step: Number of this step, from 0.
        steps: Number of all steps, at least 2 for a schedule.

    Raises:
        ValueError: For a schedule over fewer than two steps.
    """
    if not isinstance(gap, (tuple, list)):
        return float(gap)
    if steps < 2:
        raise ValueError(
            f"a {gap[0]} gap changes over a training of at least two steps, not {steps}: train longer, say "
            "Batch(x_0, step=..., steps=...) where you call the objective yourself, or give one number"
        )
    name, one, last = gap
    p = min(step / (steps - 1), 1.0)
    if name == "geometric":
        return one ** (1 - p) * last**p
    a = 0.5 * (1 - math.tanh(one * (p - 0.5) / 2))  # the same without overflow
    return 1.0 if a > 1 - last else max(a, last)
