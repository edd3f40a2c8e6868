"""How good synthetic rows or windows are, beside what real rows and simple baselines score."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..io import write_atomic
from ..utils import check_int
from .baselines import bootstrap, gaussian, gaussian_copula, independent_columns
from .classifiers import scikit_learn
from .kinds import (
    CATEGORIES,
    KINDS,
    NUMBERS,
    as_numbers,
    column_kinds,
    read_dates,
    windows_array,
)
from .measures import ALL, MEASURES, REAL, Series, Table
from .pictures import Picture, curves, histograms
from .quality_page import page

if TYPE_CHECKING:  # heavy, and needed only where a frame is at hand
    import pandas as pd

Array = NDArray[Any]
Source = Callable[[int], Any]

#: Fewer rows than this of any part cannot be compared: there are five folds.
LEAST_ROWS = 10
#: A target of more classes than this is not predicted.
MOST_CLASSES = 50
#: More pairs of columns than this are not compared: so many are drawn.
MOST_PAIRS = 1000
#: What is being judged.
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Quality:
    """What ``quality`` found. Print it, take its table, or write its page.

    Attributes:
        values: One row for each measure, column or pair ("all" for their mean), source and seed.
            The sources are "synthetic", "real" (the floor: training rows in the place of synthetic
            ones) and the baselines.
        notes: What to know when reading it: what was left out, or measured on a part.
        shapes: How many rows the three parts have, in words.
        predicted: The score of the prediction, in words, "" where nothing was predicted.
        pictures: Distributions and correlations, for the page.
    """

    values: pd.DataFrame
    notes: tuple[str, ...] = ()
    shapes: str = ""
    predicted: str = ""
    pictures: tuple[Picture, ...] = field(default=(), repr=False)

    def table(self) -> pd.DataFrame:
        """Return means over seeds.

        Returns:
            A tidy frame: measure, of, source, value, interval (half the 95 % interval over seeds, by
            Student's t), seeds, best (the value of a perfect sampler, where there is one) and sense.
        """
        from ..metrics import interval

        groups = self.values.groupby(["measure", "of", "source"], sort=False)["value"]
        table = groups.agg(value="mean", interval=interval, seeds="count").reset_index()
        measures = table["measure"].map(MEASURES.__getitem__)
        table["best"] = [measure.best for measure in measures]
        table["sense"] = [measure.sense for measure in measures]
        order = {name: i for i, name in enumerate(MEASURES)}
        return table.sort_values("measure", key=lambda c: c.map(order), kind="stable").reset_index(
            drop=True
        )

    def summary(self) -> pd.DataFrame:
        """Return one row a measure and one column a source, means over columns, pairs and seeds."""
        wide = self._wide("value")
        return wide.assign(sense=[MEASURES[name].sense for name in wide.index])

    def intervals(self) -> pd.DataFrame:
        """Return half the 95 % intervals of ``summary``.

        NaN for a single seed, 0 where all seeds measure the same rows in the same way; neither is
        shown in the text and the page.
        """
        return self._wide("interval")

    def _wide(self, of_what: str) -> pd.DataFrame:
        """The means over columns and pairs: one row a measure, one column a source."""
        top = self.table()
        top = top[top["of"] == ALL]
        wide = top.pivot(index="measure", columns="source", values=of_what)
        wide = wide.reindex(list(dict.fromkeys(top["measure"])))
        return wide[list(dict.fromkeys(top["source"]))].rename_axis(index=None, columns=None)

    def __str__(self) -> str:
        """Return the summary with its intervals, and the notes."""
        summary, halves = self.summary(), self.intervals()
        text = summary.astype(object)
        for source in halves:
            text[source] = [
                f"{value:.3f}" + (f" ± {half:.3f}" if half > 0 else "")
                for value, half in zip(summary[source], halves[source])
            ]
        return "\n".join(
            [self.shapes, "", text.to_string(), "", *(f"- {note}" for note in self.notes)]
        )

    def to_html(self, file: str | os.PathLike[str]) -> None:
        """Write one page that needs nothing else, for light and dark screens.

        Args:
            file: Where to write; written whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        text = page(
            self.table(),
            self.summary(),
            self.intervals(),
            shapes=self.shapes,
            predicted=self.predicted,
            notes=self.notes,
            pictures=self.pictures,
        )
        write_atomic(file, text)


def quality(
    real_train: Any,
    real_test: Any,
    synthetic: Any,
    *,
    target: Any = None,
    seeds: int = 3,
    kinds: Any = None,
    max_rows: int = 1000,
    lags: int | None = None,
    baselines: bool = True,
) -> Quality:
    """Measure how good synthetic rows or windows are.

    Everything is compared with held-out real rows. Beside the synthetic rows stand the floor, which
    is what training rows score in their place, and baselines: training rows drawn again, a Gaussian
    copula, independent columns, for windows also a Gaussian fit. All sources give the same number
    of rows, at most as many as there are training rows. ``MEASURES`` says what is measured; the
    first five follow SDMetrics' published definitions (``scores``).

    For each seed the rows are other ones, where there are enough: give ``seeds`` times as many
    synthetic rows as training rows, or a list of frames, one for each training seed.

    Args:
        real_train: What the model was trained on: a data frame, or windows (B, T, C).
        real_test: Real rows that it has not seen.
        synthetic: Its samples; or a list of them, one for each seed.
        target: The column, or channel, that is predicted; None takes the last one that can be.
            Of windows its last value is predicted from their first three quarters.
        seeds: Number of seeds, for intervals.
        kinds: Kind of each column, as ``schema`` gives it for ``real_train``: a schema, or
            ``{column: kind}`` for some columns. Not for windows.
        max_rows: Classifiers that tell rows apart, and neighbours, get at most this many rows of
            each side.
        lags: Of windows: the longest lag of correlations; None takes half the length.
        baselines: Whether to measure the baselines.

    Returns:
        What was found. ``print`` it.

    Raises:
        ValueError: If the parts have other columns or shapes, fewer than 10 rows, nothing that can
            be compared, or no such target; one line.
        ImportError: Without scikit-learn.
    """
    import pandas as pd

    scikit_learn("ensemble")
    check_int("seeds", seeds)
    check_int("max_rows", max_rows, LEAST_ROWS)
    parts = list(synthetic) if isinstance(synthetic, (list, tuple)) else [synthetic]
    if not parts:
        raise ValueError("synthetic is an empty list: give samples, or a list of them")
    notes: list[str] = []
    setup = _tables if isinstance(real_train, pd.DataFrame) else _windows
    options = {"target": target, "max_rows": max_rows, "kinds": kinds, "lags": lags}
    measures, train, test, parts, pictures = setup(real_train, real_test, parts, notes, **options)
    size = min(len(train), *map(len, parts))
    if len(parts) > 1:
        seeds = len(parts)
    rng = np.random.default_rng(0)
    sources: dict[str, Source] = {
        SYNTHETIC: _synthetic(parts, size, seeds, rng, notes),
        REAL: lambda seed: _rows(train, np.random.default_rng(seed).permutation(len(train))[:size]),
    }
    if baselines:
        sources["bootstrap"] = lambda seed: bootstrap(train, size, seed)
        sources["Gaussian copula"] = lambda seed: gaussian_copula(train, size, seed)
        if isinstance(measures, Series):
            sources["Gaussian"] = lambda seed: gaussian(train, size, seed)
        sources["independent"] = lambda seed: independent_columns(train, size, seed)
    records = [
        (measure, of, source, seed, value)
        for source, rows in sources.items()
        for seed in range(seeds)
        for measure, of, value in measures.measure(rows(seed), source, seed)
    ]
    if min(len(test), size) > max_rows:
        notes.append(
            f"The classifiers that tell rows apart, and neighbours, got {max_rows:,} rows of each side (max_rows)."
        )
    unit = "windows" if isinstance(measures, Series) else "rows"
    given = " + ".join(f"{len(part):,}" for part in parts)
    score = "" if measures.target is None else _predicted(measures)
    return Quality(
        values=pd.DataFrame(records, columns=["measure", "of", "source", "seed", "value"]),
        notes=tuple(notes),
        shapes=f"{len(train):,} training {unit}, {len(test):,} held-out {unit}, {given} synthetic {unit}; "
        f"{size:,} of each source are compared; {seeds} seeds",
        predicted=score,
        pictures=tuple(pictures),
    )


# ---------------------------------------------------------------------------------- tables, windows


def _tables(
    real_train: Any,
    real_test: Any,
    parts: list[Any],
    notes: list[str],
    *,
    target: Any,
    max_rows: int,
    kinds: Any,
    lags: int | None,
) -> tuple[Table, Any, Any, list[Any], list[Picture]]:
    """Check frames, and say what will be measured of them."""
    from .schema import check_frame

    if lags is not None:
        raise ValueError("lags belongs to windows (B, T, C): leave it out for data frames")
    frames = {"real_train": real_train, "real_test": real_test}
    frames |= {_name(i, parts): part for i, part in enumerate(parts)}
    for name, frame in frames.items():
        check_frame(frame, name)
        _check_same_columns(real_train, frame, name)
        _check_rows(frame, name)
    used = _used(real_train, kinds, notes)
    frames = read_dates(frames, used)
    real_train, real_test, *parts = frames.values()
    for name, frame in frames.items():
        _check_types(real_train, frame, name, used)
    target = _table_target(real_train, used, target, notes)
    pairs = list(itertools.combinations(used, 2))
    if len(pairs) > MOST_PAIRS:
        picks = np.sort(np.random.default_rng(0).permutation(len(pairs))[:MOST_PAIRS])
        notes.append(
            f"{MOST_PAIRS:,} of {len(pairs):,} pairs of columns are compared, drawn at random."
        )
        pairs = [pairs[i] for i in picks]
    measures = Table(real_train, real_test, used, target, pairs, max_rows)
    pictures = histograms(real_test, parts[0], used)
    return measures, real_train, real_test, parts, pictures


def _windows(
    real_train: Any,
    real_test: Any,
    parts: list[Any],
    notes: list[str],
    *,
    target: Any,
    max_rows: int,
    kinds: Any,
    lags: int | None,
) -> tuple[Series, Any, Any, list[Any], list[Picture]]:
    """Check windows, and say what will be measured of them."""
    if kinds is not None:
        raise ValueError("kinds belongs to data frames: leave it out for windows (B, T, C)")
    train, test = windows_array(real_train, "real_train"), windows_array(real_test, "real_test")
    arrays = [windows_array(part, _name(i, parts)) for i, part in enumerate(parts)]
    named = {"real_train": train, "real_test": test}
    named |= {_name(i, parts): array for i, array in enumerate(arrays)}
    for name, array in named.items():
        if array.shape[1:] != train.shape[1:]:
            raise ValueError(
                f"{name} has windows of {array.shape[1:]}, real_train of {train.shape[1:]} (steps, channels): "
                "cut them alike"
            )
        _check_rows(array, name)
    steps, width = train.shape[1:]
    if steps < 4:
        raise ValueError(
            f"windows need at least 4 steps, got {steps}: give a table of rows instead"
        )
    channels = [str(c) for c in getattr(real_train, "channels", None) or range(width)]
    constant = np.ptp(train, axis=(0, 1)) == 0
    if constant.all():
        raise ValueError("every channel of real_train is constant: there is nothing to compare")
    if constant.any():
        names = ", ".join(c for c, flat in zip(channels, constant) if flat)
        notes.append(f"Left out, because constant: {names}.")
        channels = [c for c, flat in zip(channels, constant) if not flat]
        train, test = train[..., ~constant], test[..., ~constant]
        arrays = [array[..., ~constant] for array in arrays]
    lags = steps // 2 if lags is None else check_int("lags", lags)
    if lags >= steps:
        raise ValueError(f"lags must be below the {steps} steps of a window, got {lags}")
    target = channels[-1] if target is None else str(target)
    if target not in channels:
        raise ValueError(
            f"there is no channel {target!r} to predict; the channels are {_listed(channels)}"
        )
    measures = Series(train, test, channels, target, lags, max_rows)
    pictures = curves(test, arrays[0], channels, lags)
    return measures, train, test, arrays, pictures


def _predicted(measures: Table | Series) -> str:
    if isinstance(measures, Series):
        return (
            f"R² of the last value of {measures.target} from the first three quarters of a window"
        )
    classes = measures.kinds[measures.target] in CATEGORIES
    return f"{'macro F1' if classes else 'R²'} of {measures.target} from the other columns"


def _synthetic(
    parts: list[Any], size: int, seeds: int, rng: np.random.Generator, notes: list[str]
) -> Source:
    """The synthetic rows of each seed: a frame each, or disjoint parts of one where it has enough."""
    if len(parts) > 1:
        return lambda seed: _rows(
            parts[seed], np.random.default_rng(seed).permutation(len(parts[seed]))[:size]
        )
    (rows,) = parts
    if len(rows) >= seeds * size:
        order = rng.permutation(len(rows))
        return lambda seed: _rows(rows, order[seed * size : (seed + 1) * size])
    if seeds > 1:
        notes.append(
            "The seeds share synthetic rows, so that their intervals are too narrow: give "
            f"{seeds * size:,} rows, or a list with the samples of each training."
        )
    return lambda seed: _rows(rows, np.random.default_rng(seed).permutation(len(rows))[:size])


def _rows(data: Any, picks: Array) -> Any:
    return data[picks] if isinstance(data, np.ndarray) else data.iloc[picks].reset_index(drop=True)


# ------------------------------------------------------------------------------------------- checks


def _name(i: int, parts: Sequence[Any]) -> str:
    return "synthetic" if len(parts) == 1 else f"synthetic[{i}]"


def _check_rows(data: Any, name: str) -> None:
    if len(data) < LEAST_ROWS:
        raise ValueError(
            f"{name} has {len(data)} rows, quality needs at least {LEAST_ROWS}: give more"
        )


def _check_same_columns(train: pd.DataFrame, frame: pd.DataFrame, name: str) -> None:
    lacking = [c for c in train.columns if c not in frame.columns]
    added = [c for c in frame.columns if c not in train.columns]
    if lacking or added:
        what = f"lacks {_listed(lacking)}" if lacking else f"has {_listed(added)} more"
        raise ValueError(f"{name} {what}: it must have the columns of real_train")


def _check_types(
    train: pd.DataFrame, frame: pd.DataFrame, name: str, used: Mapping[Any, str]
) -> None:
    """Check that numbers are numbers, and that categories are those of the training rows."""
    for column, kind in used.items():
        if kind in NUMBERS:
            try:
                as_numbers(frame[column])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            continue
        values = frame[column].dropna().astype(object)
        if len(values) and not values.isin(train[column].dropna().astype(object).unique()).any():
            raise ValueError(
                f"{name}: the column {column!r} ({frame[column].dtype}) has no value of real_train's "
                f"({train[column].dtype}), as {values.iloc[0]!r:.40}: give it in the same type"
            )


def _used(train: pd.DataFrame, kinds: Any, notes: list[str]) -> dict[Any, str]:
    """The columns that are compared, with their kinds; the notes say what is left out."""
    found = column_kinds(train)
    if kinds is not None and not isinstance(kinds, Mapping):
        raise ValueError(
            f"kinds must be a schema or {{column: kind}}, got a {type(kinds).__name__}"
        )
    for name, kind in (kinds or {}).items():
        if name not in found:
            raise ValueError(f"kinds names {name!r}, which is no column of real_train")
        found[name] = str(getattr(kind, "kind", kind))
        if found[name] not in KINDS:
            raise ValueError(
                f"the kind of {name!r} must be one of {', '.join(KINDS)}, got {kind!r}"
            )
    used = {name: kind for name, kind in found.items() if kind in (*NUMBERS, *CATEGORIES)}
    left = [f"{name} ({kind})" for name, kind in found.items() if name not in used]
    if not used:
        raise ValueError(f"no column can be compared: {_listed(left)}")
    if left:
        notes.append(f"Left out: {', '.join(left)}.")
    return used


def _table_target(train: pd.DataFrame, used: dict[Any, str], target: Any, notes: list[str]) -> Any:
    """The column that is predicted, or None."""

    def refused(name: Any) -> str:
        if name not in used:
            return "it is left out of the comparison"
        classes = train[name].nunique()
        if used[name] in CATEGORIES and classes > MOST_CLASSES:
            return f"it has {classes:,} classes, at most {MOST_CLASSES} are predicted"
        return ""

    if target is not None:
        if target not in train.columns:
            raise ValueError(
                f"there is no column {target!r} to predict; the columns are {_listed(list(train.columns))}"
            )
        if refused(target):
            raise ValueError(f"the target {target!r} cannot be predicted: {refused(target)}")
    else:
        target = next((name for name in reversed(list(used)) if not refused(name)), None)
    if target is None or len(used) < 2:
        notes.append("No column is predicted from the others.")
        return None
    return target


def _listed(names: Sequence[Any]) -> str:
    """Names in a row, at most eight of them."""
    shown = ", ".join(map(str, names[:8]))
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
