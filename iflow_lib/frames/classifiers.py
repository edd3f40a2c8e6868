"""Measures by classifiers and neighbours: can samples be told from data, and can they teach?

scikit-learn does the work; it is imported where it is used (the extra ``frames``).
"""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: The classifiers that try to tell samples from data.
CLASSIFIERS = ("random forest", "gradient boosting")
FOLDS = 5
#: Trees of the random forest.
TREES = 100


def scikit_learn(module: str) -> Any:
    """Import a module of scikit-learn.

    Args:
        module: Its name below ``sklearn``.

    Raises:
        ImportError: If scikit-learn is not installed; one line that says how to.
    """
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError('quality needs scikit-learn: pip install "iflow-lib[frames]"') from error


def c2st_auc(real: Array, synthetic: Array, classifier: str, seed: int = 0) -> float:
    """Compute how well a classifier tells samples from data (Lopez-Paz and Oquab 2017, 1610.06545).

    Args:
        real: Rows of data (n, d); NaN is a missing value.
        synthetic: As many synthetic rows (n, d).
        classifier: "random forest" or "gradient boosting".
        seed: Seed of the classifier and the folds.

    Returns:
        The area under the ROC curve on the fold that is left out, mean over five folds. 0.5 is
        perfect, 1 a full separation.
    """
    ensemble, selection = scikit_learn("ensemble"), scikit_learn("model_selection")
    if classifier == "random forest":
        model = ensemble.RandomForestClassifier(TREES, random_state=seed)
    else:
        model = ensemble.HistGradientBoostingClassifier(early_stopping=False, random_state=seed)
    rows = np.concatenate([real, synthetic])
    is_synthetic = np.repeat([0, 1], [len(real), len(synthetic)])
    folds = selection.StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    scores = selection.cross_val_score(model, rows, is_synthetic, cv=folds, scoring="roc_auc")
    return float(scores.mean())


def utility(
    train: tuple[Array, Array], test: tuple[Array, Array], *, classes: bool, seed: int = 0
) -> float:
    """Compute how well gradient boosting predicts real test rows from the rows it is given.

    Args:
        train: Rows (n, d) to learn from, real or synthetic, and what is to be predicted (n,).
        test: Real rows (m, d) that nothing has learned from, and the same (m,).
        classes: Whether a class is predicted, by codes, or a number.
        seed: Seed of the model.

    Returns:
        The macro-averaged F1 for classes, R^2 for numbers. 1 is perfect; a constant has an R^2 of 0.
    """
    ensemble, metrics = scikit_learn("ensemble"), scikit_learn("metrics")
    (rows, known), (unseen, truth) = train, test
    if len(np.unique(known)) == 1:
        predicted = np.full(len(truth), known[0])
    else:
        kind = "HistGradientBoostingClassifier" if classes else "HistGradientBoostingRegressor"
        model = getattr(ensemble, kind)(early_stopping=False, random_state=seed)
        predicted = model.fit(rows, known).predict(unseen)
    if classes:
        present = np.unique(truth)  # a class that no test row has cannot be scored
        return float(
            metrics.f1_score(truth, predicted, labels=present, average="macro", zero_division=0)
        )
    return float(metrics.r2_score(truth, predicted))


class Nearness(NamedTuple):
    """How near rows are to training rows, beside rows that were held out.

    Attributes:
        nearer: Share of pairs of a row and a held-out row in which the row is nearer to the
            training rows; ties count half. 0.5 is perfect, 1 says copies.
        ratio: Median distance of the rows to the nearest training row, divided by that of held-out
            rows. 1 is perfect, 0 says copies. NaN where held-out rows lie on training rows.
    """

    nearer: float
    ratio: float


def nearness(train: Array, held_out: Array, rows: Array) -> Nearness:
    """Compute how near rows are to training rows, beside rows that were held out.

    Args:
        train: Training rows as points (n, d).
        held_out: Held-out rows (m, d).
        rows: The rows in question (k, d).
    """
    from scipy.stats import mannwhitneyu

    tree = scikit_learn("neighbors").NearestNeighbors(n_neighbors=1).fit(train)
    # squares of nearly equal points are rounded to some 1e-8: that is no distance
    far, near = (tree.kneighbors(points)[0][:, 0].round(7) for points in (held_out, rows))
    nearer = mannwhitneyu(far, near, method="asymptotic").statistic / (len(far) * len(near))
    middle = float(np.median(far))
    return Nearness(float(nearer), float(np.median(near)) / middle if middle else math.nan)


def copies(train: Array, rows: Array) -> float:
    """Compute the share of rows that are equal to a training row in every column.

    Args:
        train: Training rows (n, d); NaN equals NaN.
        rows: The rows in question (k, d).
    """
    known, asked = (
        [row.tobytes() for row in np.nan_to_num(part, nan=-2e30) + 0.0]  # no -0.0
        for part in (train, rows)
    )
    training = set(known)
    return float(np.mean([row in training for row in asked]))
