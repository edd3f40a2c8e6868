"""How numbers become a verdict. Every rule of experiments/claims.py goes through ``decide``, and every claim through ``combine``.

A ``Rule`` holds one quantity against one threshold, in one place: a part of a claim. ``decide`` takes the mean over training seeds and
its 95 % interval (Student's t), of ratios and distances by their logarithms. The rule *holds* if the whole interval lies on the right
side of the threshold, it *fails* if the whole interval lies on the wrong side, and else it is *undecided*. With fewer than three
training seeds it is undecided too.

``combine`` says what the parts of a claim come to. It names a verdict only if no undecided part could change it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from iflow_lib.metrics import interval

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
NO_VERDICT = "undecided here"
AT_MOST, AT_LEAST = "at most", "at least"
#: A comparison of fewer trainings says nothing.
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Rule:
    """One quantity against one threshold.

    Args:
        place: Where it was measured.
        metric: What was measured.
        quantity: Of what, such as one contender / another.
        direction: ``AT_MOST`` or ``AT_LEAST`` the threshold is what the sentence asks for.
        threshold: What it is held against.
        values: Training seed -> value; in a comparison both sides have the seed, so it is paired. A value may be infinite: not finite
            samples. With another ``unit`` something else -> value.
        unit: What the interval is over.
        seeds: Training seeds behind each value, where it is not one for each.
        known: (mean, low, high) where the table has the interval and not the values.
        difference: The values are differences, which may be negative, and not ratios or distances.
        note: What a reader should know beside it.
    """

    place: str
    metric: str
    quantity: str
    direction: str
    threshold: float
    values: Mapping[Hashable, float] = field(default_factory=dict)
    unit: str = "training seed"
    seeds: int | None = None
    known: tuple[float, float, float] | None = None
    difference: bool = False
    note: str = ""

    def right(self, value: float) -> bool:
        """Whether a value is on the side that the sentence asks for."""
        return value <= self.threshold if self.direction == AT_MOST else value >= self.threshold


@dataclass(frozen=True)
class Finding:
    """What a rule comes to. n: seeds, or repetitions. reason: why it is undecided, or nothing."""

    outcome: str
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    reason: str = ""


def mean_and_interval(values: list[float], difference: bool) -> tuple[float, float, float]:
    """Mean and ends of its 95 % interval. Positive quantities are treated by their logarithms: the mean is geometric.

    Without an interval, as for a single value or where one is not finite, the ends are NaN.
    """
    if any(not math.isfinite(value) or (value <= 0 and not difference) for value in values):
        return sum(values) / len(values), math.nan, math.nan
    scaled = values if difference else [math.log(value) for value in values]
    mean, half = sum(scaled) / len(scaled), interval(scaled)
    ends = (mean, mean - half, mean + half)
    return ends if difference else tuple(math.exp(min(end, 700)) for end in ends)


def decide(rule: Rule) -> Finding:
    """Make the interval of a rule and hold it against the threshold."""
    values = [float(value) for value in rule.values.values()]
    n = len(values) if rule.seeds is None else rule.seeds
    if rule.known is None and not values:
        return Finding(UNDECIDED, reason=rule.note or "nothing was measured")
    mean, low, high = rule.known or mean_and_interval(values, rule.difference)
    found = (mean, low, high, n)
    if n < LEAST_SEEDS:
        return Finding(UNDECIDED, *found, f"{n} {rule.unit}{'s' * (n != 1)}, fewer than three")
    # where samples are not finite there is no interval, and all values must be on one side
    sides = {rule.right(end) for end in ((low, high) if math.isfinite(low) else values)}
    if len(sides) == 2:
        reason = (
            "the interval crosses the threshold" if math.isfinite(low) else "not all are finite"
        )
        return Finding(UNDECIDED, *found, reason)
    return Finding(HOLDS if sides.pop() else FAILS, *found)


def combine(outcomes: Iterable[str]) -> str:
    """Verdict of a claim from the outcomes of its parts.

    Some hold and others fail: partly, whatever the undecided ones would say. All hold, or all fail: reproduced, or not. Else no verdict.
    """
    outcomes = set(outcomes)
    if {HOLDS, FAILS} <= outcomes:
        return PARTLY
    return {frozenset({HOLDS}): REPRODUCED, frozenset({FAILS}): NOT_REPRODUCED}.get(
        frozenset(outcomes), NO_VERDICT
    )


def best_of(verdicts: Iterable[str]) -> str:
    """Verdict of a claim that has several readings: that of the best one, for one reading at most is what was meant."""
    order = (REPRODUCED, PARTLY, NO_VERDICT, NOT_REPRODUCED)
    return min(verdicts, key=order.index)
