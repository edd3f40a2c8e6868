"""The gap of ``IntegralIdentity``: how large a share of a jump its finite piece takes.

A jump from t to s is cut at ``m = t - a (t - s)``, and a in (0, 1] is the gap. It is a number, or a
schedule that falls over the training (alpha-Flow, arXiv 2510.20771; SoFlow, arXiv 2512.15657).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .base import check_number

SCHEDULES = ("geometric", "sigmoid")
#: A number in (0, 1], or a schedule by name: ("geometric", first, last), ("sigmoid", gamma, last).
Gap = float | str | tuple[str, float, float]


def check_gap(gap: Any) -> None:
    """Check that ``gap`` is a number in (0, 1] or a schedule.

    Args:
        gap: What was given for a gap: see ``gap_at``.

    Raises:
        ValueError: If it is neither, or a number of it is out of its range.
    """
    if _is_number(gap):
        if not 0 < gap <= 1:
            raise ValueError(
                f"gap must be in (0, 1], got {gap}: give a number such as 0.02, or None for the derivative"
            )
        return
    if not (isinstance(gap, (tuple, list)) and len(gap) == 3 and gap[0] in SCHEDULES):
        raise ValueError(
            "gap must be a number in (0, 1], ('geometric', first, last), ('sigmoid', gamma, last), 'auto' or None; "
            f"got {gap!r:.60}"
        )
    name, one, last = gap
    if name == "geometric":
        _check_end("first", one, "('geometric', 1, 0.01)")
        _check_end("last", last, "('geometric', 1, 0.01)")
    else:
        check_number("gamma of a sigmoid gap", one, least=1e-3)
        _check_end("last", last, "('sigmoid', 25, 0.005)", most=0.5)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _check_end(name: str, value: Any, example: str, most: float = 1) -> None:
    if not (_is_number(value) and 0 < value <= most):
        raise ValueError(
            f"the {name} gap must be in (0, {most:g}], got {value!r:.60}: give a schedule such as {example}"
        )


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

    Returns:
        A number in (0, 1].

    Raises:
        ValueError: For a schedule over fewer than two steps.
    """
    if not isinstance(gap, (tuple, list)):
        return float(gap)
    name, one, last = gap
    if steps < 2:
        raise ValueError(
            f"a {name} gap falls over a training of at least two steps, not {steps}: train longer, or give one "
            "number; where you call the objective yourself, give it Batch(x_0, step=..., steps=...)"
        )
    p = min(step / (steps - 1), 1.0)
    if name == "geometric":
        return one ** (1 - p) * last**p
    a = 0.5 * (1 - math.tanh(one * (p - 0.5) / 2))  # the same without overflow
    return 1.0 if a > 1 - last else max(a, last)
