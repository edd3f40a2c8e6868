"""What ``quality`` measures: of the rows of a table, and of windows of a series."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import scores
from .classifiers import CLASSIFIERS, c2st_auc, copies, nearness, utility
from .features import Features
from .kinds import CATEGORIES

if TYPE_CHECKING:  # heavy, and needed only where a frame is at hand
    import pandas as pd

Array = NDArray[Any]


class Measure(NamedTuple):
    """What a measure is called and what its values mean.

    Attributes:
        best: Its value for a perfect sampler; None where real rows alone say it.
        sense: The same in words.
        about: What it is, in a sentence.
    """

    best: float | None
    sense: str
    about: str


UTILITY = "trained on it, tested on real"

#: Every measure, in the order of the page.
MEASURES = {
    "column shapes": Measure(
        1,
        "1 is good",
        "How alike each column's distribution is: KSComplement of numbers and dates, TVComplement of categories.",
    ),
    "missing values": Measure(
        1, "1 is good", "How alike each column's share of missing values is."
    ),
    "pair trends": Measure(
        1,
        "1 is good",
        "How alike pairs of columns are: CorrelationSimilarity of numbers, else ContingencySimilarity.",
    ),
    "autocorrelation": Measure(
        1,
        "1 is good",
        "1 - |difference of correlations| / 2 of each channel with itself some steps later, mean over lags.",
    ),
    "cross-correlation": Measure(
        1, "1 is good", "The same of two channels, at lag 0 and later, both ways."
    ),
    "C2ST, random forest": Measure(
        0.5,
        "0.5 is perfect",
        "Area under the ROC curve of a classifier that tells the rows from held-out real rows, five folds.",
    ),
    "C2ST, gradient boosting": Measure(0.5, "0.5 is perfect", "The same of another classifier."),
    UTILITY: Measure(
        None,
        "as real is good, more is better",
        "A model learns from the rows and predicts held-out real rows: {utility}.",
    ),
    "nearer than held-out": Measure(
        0.5,
        "0.5 is perfect, 1 is copies",
        "Share of rows that are nearer to a training row than held-out real rows are, over all pairs.",
    ),
    "distance to training rows": Measure(
        1,
        "1 is good, 0 is copies",
        "Median distance to the nearest training row, divided by that of held-out real rows.",
    ),
    "equal to a training row": Measure(
        None,
        "as real is good",
        "Share of rows that equal a training row in every column; of real, of held-out rows.",
    ),
}

#: The columns of a value: which measure, of what (a column, a pair, "all"), and the value.
Value = tuple[str, str, float]
#: In the place of a column: the mean over all of them, or the table as a whole.
ALL = "all"
#: The source whose rows are the floor.
REAL = "real"


class Table:
    """The measures of rows of a table.

    Args:
        train: Training rows.
        test: Held-out real rows.
        kinds: Kind of each column that counts.
        target: The column that is predicted from the others; None measures no prediction.
        pairs: Pairs of columns that are compared.
        max_rows: Classifiers and neighbours get at most this many rows of each.
    """

    def __init__(
        self,
        train: pd.DataFrame,
        test: pd.DataFrame,
        kinds: dict[Any, str],
        target: Any,
        pairs: Sequence[scores.Pair],
        max_rows: int,
    ) -> None:
        self.train, self.test, self.kinds, self.target = train, test, kinds, target
        self.pairs, self.max_rows = pairs, max_rows
        self.features = Features(train, kinds)
        self.train_points = self.features.for_distances(train)
        self.train_rows = self.features.for_trees(train)
        others = {name: kind for name, kind in kinds.items() if name != target}
        self.inputs = Features(train, others) if target is not None and others else None

    def measure(self, rows: pd.DataFrame, source: str, seed: int) -> Iterator[Value]:
        """Measure some rows.

        Args:
            rows: Rows with the columns of the training rows.
            source: Where they come from; "real" are rows of the training data.
            seed: Seed of classifiers and of what they get.
        """
        yield from _each("column shapes", scores.column_shapes(self.test, rows, self.kinds))
        yield from _each("missing values", scores.missing_values(self.test, rows, self.kinds))
        trends = scores.pair_trends(self.test, rows, self.kinds, self.pairs)
        yield from _each("pair trends", {f"{a} | {b}": s for (a, b), s in trends.items()})
        rng = np.random.default_rng(seed)
        some, held = (_some(frame, self.max_rows, rng) for frame in (rows, self.test))
        trees = self.features.for_trees
        yield from _two_sample(trees(held), trees(some), seed)
        if self.inputs is not None:
            yield UTILITY, ALL, self._utility(rows, seed)
        if source == REAL:  # its rows are the training rows: the floor is between held-out rows
            held, some = _halves(self.test, self.max_rows, rng)
        points = self.features.for_distances
        yield from _nearness(self.train_points, points(held), points(some))
        yield "equal to a training row", ALL, copies(self.train_rows, trees(some))

    def _utility(self, rows: pd.DataFrame, seed: int) -> float:
        """How well the target of test rows is predicted by what some rows teach."""
        assert self.inputs is not None
        classes = self.kinds[self.target] in CATEGORIES
        parts = []
        for frame in (rows, self.test):
            known = frame[frame[self.target].notna()]
            target = known[self.target]
            wanted = self.features.codes(target) if classes else scores.as_numbers(target)
            parts.append((self.inputs.for_trees(known), wanted))
        if min(len(part[1]) for part in parts) < 2:
            return float("nan")
        return utility(parts[0], parts[1], classes=classes, seed=seed)


class Series:
    """The measures of windows (B, T, C).

    Args:
        train: Training windows.
        test: Held-out real windows.
        channels: Names of the channels.
        target: The channel that is predicted: its last value from the first three quarters.
        lags: The longest lag of correlations.
        max_rows: Classifiers and neighbours get at most this many windows of each.
    """

    def __init__(
        self,
        train: Array,
        test: Array,
        channels: Sequence[str],
        target: str,
        lags: int,
        max_rows: int,
    ) -> None:
        self.train, self.test, self.channels, self.lags = train, test, list(channels), lags
        self.max_rows, self.target = max_rows, target
        self.center = train.mean((0, 1))
        spread = train.std((0, 1))
        self.spread = np.where(spread > 0, spread, 1.0)
        self.train_points = self._points(train)
        self.correlations = scores.lagged_correlations(test, lags)

    def measure(self, rows: Array, source: str, seed: int) -> Iterator[Value]:
        """Measure some windows.

        Args:
            rows: Windows (n, T, C).
            source: Where they come from; "real" are training windows.
            seed: Seed of classifiers and of what they get.
        """
        flat = [(self.test[..., c].ravel(), rows[..., c].ravel()) for c in range(rows.shape[2])]
        names = self.channels
        shapes = {n: scores.ks_complement(*pair) for n, pair in zip(names, flat)}
        yield from _each("column shapes", shapes)
        yield from self._correlations(scores.lagged_correlations(rows, self.lags))
        rng = np.random.default_rng(seed)
        some, held = (_some(windows, self.max_rows, rng) for windows in (rows, self.test))
        yield from _two_sample(self._points(held), self._points(some), seed)
        yield UTILITY, ALL, self._utility(rows, seed)
        if source == REAL:  # its rows are the training rows: the floor is between held-out rows
            held, some = _halves(self.test, self.max_rows, rng)
        yield from _nearness(self.train_points, self._points(held), self._points(some))
        yield "equal to a training row", ALL, copies(self.train_points, self._points(some))

    def _correlations(self, found: Array) -> Iterator[Value]:
        """How alike correlations at every lag are, of a channel with itself and of two."""
        alike = (
            1 - np.abs(np.nan_to_num(found) - self.correlations) / 2
        )  # NaN where real is constant
        c = range(len(self.channels))
        names = self.channels
        itself = {names[i]: float(alike[1:, i, i].mean()) for i in c}
        two = {
            f"{names[i]} | {names[j]}": float(np.r_[alike[:, i, j], alike[1:, j, i]].mean())
            for i, j in itertools.combinations(c, 2)
        }
        now = {
            f"{names[i]} | {names[j]}": float(alike[0, i, j])
            for i, j in itertools.combinations(c, 2)
        }
        yield from _each("pair trends", now)
        yield from _each("autocorrelation", itself)
        yield from _each("cross-correlation", two)

    def _utility(self, rows: Array, seed: int) -> float:
        """R^2 of the last value of the target, from the first three quarters of a window."""
        steps = rows.shape[1] - max(1, rows.shape[1] // 4)
        channel = self.channels.index(self.target)
        parts = [(self._points(w[:, :steps]), w[:, -1, channel]) for w in (rows, self.test)]
        return utility(parts[0], parts[1], classes=False, seed=seed)

    def _points(self, windows: Array) -> Array:
        return ((windows - self.center) / self.spread).reshape(len(windows), -1)


def _each(measure: str, found: dict[Any, float]) -> Iterator[Value]:
    """The values of each column or pair, and their mean; those that are not defined are left out."""
    defined = {str(of): value for of, value in found.items() if not np.isnan(value)}
    if defined:
        yield measure, ALL, float(np.mean(list(defined.values())))
    for of, value in defined.items():
        yield measure, of, value


def _two_sample(held: Array, some: Array, seed: int) -> Iterator[Value]:
    size = min(len(held), len(some))
    for classifier in CLASSIFIERS:
        yield f"C2ST, {classifier}", ALL, c2st_auc(held[:size], some[:size], classifier, seed)


def _nearness(train: Array, held: Array, some: Array) -> Iterator[Value]:
    found = nearness(train, held, some)
    yield "nearer than held-out", ALL, found.nearer
    yield "distance to training rows", ALL, found.ratio


def _some(rows: Any, most: int, rng: np.random.Generator) -> Any:
    """Some of the rows, in random order."""
    picks = rng.permutation(len(rows))[:most]
    return rows[picks] if isinstance(rows, np.ndarray) else rows.iloc[picks]


def _halves(rows: Any, most: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Two random halves, or as much of them as is allowed."""
    mixed = _some(rows, 2 * most, rng)
    middle = len(mixed) // 2
    return mixed[:middle], mixed[middle:]
