"""Quality of synthetic data: scores by their definitions, measures that see what is wrong, one page."""

import itertools
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from exact import one_line

from iflow_lib.frames import classifiers, scores
from iflow_lib.frames.baselines import bootstrap, independent_columns
from iflow_lib.frames.classifiers import c2st_auc, copies, nearness, utility
from iflow_lib.frames.features import Features
from iflow_lib.frames.quality import quality
from iflow_lib.frames.schema import schema

# ------------------------------------------------------------------------------ published scores

KINDS = {
    "number": "continuous",
    "whole": "whole",
    "date": "date",
    "letter": "category",
    "truth": "two-valued",
}


def rows_without_chance(shift):
    """Sixty rows of every kind, with gaps, that are the same on every machine."""
    i = np.arange(60) + shift
    frame = pd.DataFrame(
        {
            "number": np.sin(i * 1.7) * 3 + 0.02 * shift + 0.1 * (i % 3),
            "whole": i * i % 7 + (i % 3),
            "date": pd.Timestamp("2024-01-01") + pd.to_timedelta((i * 37) % 100, unit="h"),
            "letter": np.array(list("abcd"))[(i * 3 + i * i // 4 + shift) % 9 % 4].astype(object),
            "truth": i % 5 < 2 + (shift > 0),
        }
    )
    frame.loc[i % 6 == 1, "number"] = np.nan
    frame.loc[i % 7 == 2 + (shift > 0), "letter"] = None
    frame.loc[i % 13 == 3, "date"] = pd.NaT
    return frame


#: What SDMetrics 0.32.0 says of rows_without_chance(0) and (25): KSComplement and TVComplement,
#: MissingValueSimilarity, CorrelationSimilarity, and ContingencySimilarity with the numbers (dates
#: as nanoseconds) named in continuous_column_names. It is not installed here.
SDMETRICS = {
    "number": 0.8,
    "whole": 0.9833333333333333,
    "date": 0.9818181818181818,
    "letter": 0.8216440422322775,
    "truth": 0.8,
    "missing letter": 0.9833333333333334,
    "missing number": 1.0,
    "missing date": 1.0,
    ("number", "whole"): 0.941226817020575,
    ("number", "date"): 0.9698418997059254,
    ("number", "letter"): 0.4999999999999999,
    ("number", "truth"): 0.6499999999999999,
    ("whole", "date"): 0.9656020122839375,
    ("whole", "letter"): 0.5499999999999999,
    ("whole", "truth"): 0.7666666666666667,
    ("date", "letter"): 0.6333333333333333,
    ("date", "truth"): 0.8,
    ("letter", "truth"): 0.7333333333333334,
}


def test_scores_are_those_of_sdmetrics():
    real, synthetic = rows_without_chance(0), rows_without_chance(25)
    found = scores.column_shapes(real, synthetic, KINDS)
    missing = scores.missing_values(real, synthetic, KINDS)
    found |= {f"missing {name}": score for name, score in missing.items()}
    found |= scores.pair_trends(real, synthetic, KINDS, itertools.combinations(KINDS, 2))
    assert found == pytest.approx(SDMETRICS, abs=1e-9)


def test_what_sdmetrics_leaves_open():
    real = pd.DataFrame({"x": np.arange(20.0), "c": list("ab") * 10, "k": [1.0] * 20})
    kinds = {"x": "continuous", "c": "two-valued", "k": "continuous"}
    pairs = [("x", "c"), ("x", "k")]
    shifted = scores.pair_trends(real, real.assign(x=real["x"] + 1000), kinds, pairs)
    assert shifted["x", "c"] == pytest.approx(0.1)  # all in the last of ten bins
    assert np.isnan(shifted["x", "k"])  # no correlation with a constant
    line = real.assign(k=real["x"])
    assert scores.pair_trends(line, real, kinds, pairs)["x", "k"] == pytest.approx(0.5)
    dates = pd.Series(pd.date_range("2024", periods=9, tz="UTC"))
    assert scores.column_shapes(
        dates.to_frame("d"), dates.dt.as_unit("s").to_frame("d"), {"d": "date"}
    ) == {"d": 1.0}


def test_lagged_correlations_of_an_autoregression():
    """x(t + 1) = 0.8 x(t) + noise has the correlation 0.8^k; the other channel follows it by a step."""
    rng = np.random.default_rng(0)
    x = np.zeros((4000, 12))
    x[:, 0] = rng.normal(size=4000) / 0.6
    for t in range(11):
        x[:, t + 1] = 0.8 * x[:, t] + rng.normal(size=4000)
    windows = np.stack([x[:, 1:], x[:, :-1]], axis=2)
    found = scores.lagged_correlations(windows, 4)
    np.testing.assert_allclose(found[:, 0, 0], 0.8 ** np.arange(5), atol=0.02)
    np.testing.assert_allclose(found[1:, 0, 1], 0.8 ** np.arange(4), atol=0.02)
    np.testing.assert_allclose(found[:4, 1, 0], 0.8 ** np.arange(1, 5), atol=0.02)


# --------------------------------------------------------------------- classifiers and neighbours


def test_c2st_between_normal_distributions(monkeypatch):
    """The best AUC for two unit normals d apart is Phi(d / sqrt(2)); trees come near it."""
    monkeypatch.setattr(classifiers, "TREES", 30)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 2)), rng.normal(size=(300, 2))
    far = b + [2.0, 0]
    for classifier in classifiers.CLASSIFIERS:
        assert c2st_auc(a, b, classifier) == pytest.approx(0.5, abs=0.08)
        assert 0.85 < c2st_auc(a, far, classifier) < 0.94  # Phi(sqrt(2)) = 0.921


def test_nearness_and_copies():
    rng = np.random.default_rng(0)
    train, held, fresh = rng.normal(size=(3, 1000, 2))
    same = nearness(train, held, fresh)
    assert same.nearer == pytest.approx(0.5, abs=0.06) and same.ratio == pytest.approx(1, abs=0.2)
    assert nearness(train, held, train[:50]) == pytest.approx((1.0, 0.0), abs=1e-6)
    assert nearness(train, held, fresh + 9).nearer < 0.05
    assert np.isnan(nearness(train, train, fresh).ratio)
    gap = np.array([[1.0, np.nan], [2.0, 3.0]])
    assert copies(gap, np.array([[1.0, np.nan], [1.0, 3.0], [np.nan, 1.0], [2.0, 3.0]])) == 0.5


def test_utility():
    rng = np.random.default_rng(0)
    x, unseen = rng.normal(size=(2, 400, 2))
    number, label = (lambda v: v[:, 0]), (lambda v: (v[:, 0] > 0).astype(int))
    assert utility((x, number(x)), (unseen, number(unseen)), classes=False) > 0.95
    assert utility((x, label(x)), (unseen, label(unseen)), classes=True) > 0.95
    shuffled = (x, rng.permutation(number(x)))
    assert utility(shuffled, (unseen, number(unseen)), classes=False) < 0.1
    one = (x, np.zeros(400, int))  # always the same class: its F1 is 2/3, the other's is 0
    assert utility(one, (unseen, np.arange(400) % 2), classes=True) == pytest.approx(1 / 3)


def test_features_keep_apart_what_differs():
    train = pd.DataFrame({"x": [1.0, 2.0, None, 4.0], "c": ["a", "a", "b", None]})
    features = Features(train, {"x": "continuous", "c": "category"})
    new = pd.DataFrame({"x": [1.0, 4.0, None, 1e9], "c": ["a", None, "z", "b"]})
    points, trees = features.for_distances(new), features.for_trees(new)
    assert np.isfinite(points).all() and len(np.unique(points, axis=0)) == 4
    assert np.isnan(trees[:, 0]).tolist() == [False, False, True, False]
    categories = points[:, 2:]
    apart = np.linalg.norm(categories[:, None] - categories[None], axis=2)
    np.testing.assert_allclose(apart, 1 - np.eye(4), atol=1e-12)


# ------------------------------------------------------------------------------------ whole tables


def plant(rows, seed):
    """Rows of a plant: numbers that hang together, a category, a date, gaps, a number of each row."""
    rng = np.random.default_rng(seed)
    load = rng.normal(size=rows)
    frame = pd.DataFrame(
        {
            "id": [f"row {i + 1000 * seed}" for i in range(rows)],
            "load": load,
            "<b>heat</b>": np.round(2 * load + 0.5 * rng.normal(size=rows), 1),
            "line": np.where(load > 0.4, "north", "south"),
            "site": "one",
            "day": pd.Timestamp("2024-01-01")
            + pd.to_timedelta(rng.integers(0, 90, rows), unit="D"),
            "alarm": pd.array(load + 0.3 * rng.normal(size=rows) > 0.8, dtype="boolean"),
        }
    )
    frame.loc[rng.random(rows) < 0.1, "<b>heat</b>"] = np.nan
    return frame


@pytest.fixture(scope="module")
def found():
    """The quality of fresh draws of the law itself: a perfect sampler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "TREES", 15)
        yield quality(plant(150, 0), plant(150, 1), plant(300, 2), target="alarm", seeds=2)


def test_a_perfect_sampler_scores_as_real_rows_do(found):
    top = found.summary()
    for measure in ("column shapes", "missing values", "pair trends"):
        assert top.loc[measure, "synthetic"] == pytest.approx(top.loc[measure, "real"], abs=0.04)
    for measure in ("C2ST, random forest", "C2ST, gradient boosting", "nearer than held-out"):
        assert top.loc[measure, "synthetic"] == pytest.approx(0.5, abs=0.1), measure
        assert top.loc[measure, "real"] == pytest.approx(0.5, abs=0.1), measure
    assert top.loc["distance to training rows", "synthetic"] == pytest.approx(1, abs=0.25)
    trained = top.loc["trained on it, tested on real"]
    assert trained["synthetic"] == pytest.approx(trained["real"], abs=0.1) and trained["real"] > 0.7
    assert top.loc["equal to a training row", "synthetic"] == 0


def test_every_measure_sees_what_it_is_for(found):
    top = found.summary()
    assert top.loc["pair trends", "independent"] < top.loc["pair trends", "synthetic"] - 0.05
    assert top.loc["C2ST, random forest", "independent"] > 0.75
    trained = top.loc["trained on it, tested on real"]
    assert trained["independent"] < trained["synthetic"] - 0.2
    assert top.loc["nearer than held-out", "bootstrap"] == 1
    assert top.loc["distance to training rows", "bootstrap"] == 0
    assert top.loc["equal to a training row", "bootstrap"] == 1


def test_tidy_table_and_text(found):
    table = found.table()
    assert not table.duplicated(["measure", "of", "source"]).any()
    assert set(table["source"]) == {
        *("synthetic", "real", "bootstrap", "Gaussian copula", "independent"),
    }
    assert (table["seeds"] == 2).all() and (table["interval"] >= 0).all()
    shapes = table[(table["measure"] == "column shapes") & (table["source"] == "synthetic")]
    assert set(shapes["of"]) == {"all", "load", "<b>heat</b>", "line", "day", "alarm"}
    assert shapes["value"].iloc[0] == pytest.approx(shapes["value"].iloc[1:].mean())
    assert "load | <b>heat</b>" in set(table["of"])
    text = str(found)
    assert "0.5 is perfect" in text and "±" in text
    assert "150 training rows, 150 held-out rows, 300 synthetic rows; 150 of each" in text
    assert "Left out: id (identifier), site (constant)." in text
    assert "share synthetic rows" not in text  # two seeds of 150 rows: there were 300


class Tags(HTMLParser):
    """What is open while a page is read, and every address in it."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page(found, tmp_path):
    file = tmp_path / "new folder" / "quality.html"
    found.to_html(file)
    text = file.read_text(encoding="utf-8")
    tags = Tags(text)
    assert not tags.open and not tags.addresses
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert "<b>heat" not in text and "&lt;b&gt;heat" in text
    assert len(re.findall("<svg", text)) == 9 + 5  # measures, columns
    assert "nan" not in re.sub("<style>.*</style>", "", text, flags=re.S).lower()
    assert [f.name for f in file.parent.iterdir()] == ["quality.html"]


def test_the_same_seeds_give_the_same_numbers(monkeypatch):
    monkeypatch.setattr(classifiers, "TREES", 3)
    parts = plant(40, 0), plant(30, 1), [plant(20, 2), plant(50, 3)]
    once, again = (quality(*parts, baselines=False) for _ in range(2))
    pd.testing.assert_frame_equal(once.values, again.values)
    assert set(once.values["seed"]) == {0, 1} and "20 + 50 synthetic rows; 20 of each" in str(once)
    shared = quality(
        plant(40, 0), plant(30, 1), plant(40, 2), baselines=False, seeds=2, max_rows=10
    )
    assert "give 80 rows" in str(shared) and "got 10 rows of each side" in str(shared)


# ----------------------------------------------------------------------------------------- windows


def curves(n, seed, phi=0.9):
    """Two channels: an autoregression, and the same a step later with some noise."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 9))
    x[:, 0] = rng.normal(size=n) / np.sqrt(1 - phi * phi)
    for t in range(8):
        x[:, t + 1] = phi * x[:, t] + rng.normal(size=n)
    return np.stack([x[:, 1:], x[:, :-1] + 0.3 * rng.normal(size=(n, 8))], axis=2)


def test_windows(monkeypatch, tmp_path):
    monkeypatch.setattr(classifiers, "TREES", 15)
    found = quality(curves(200, 0), curves(200, 1), curves(400, 2), seeds=2, target="0")
    top = found.summary()
    for measure in ("column shapes", "pair trends", "autocorrelation", "cross-correlation"):
        assert top.loc[measure, "synthetic"] == pytest.approx(top.loc[measure, "real"], abs=0.03)
        assert top.loc[measure, "synthetic"] > 0.95
    assert top.loc["C2ST, random forest", "synthetic"] == pytest.approx(0.5, abs=0.1)
    assert top.loc["nearer than held-out", "synthetic"] == pytest.approx(0.5, abs=0.1)
    assert top.loc["cross-correlation", "independent"] < 0.8
    assert top.loc["autocorrelation", "independent"] > 0.95
    assert top.loc["equal to a training row", "bootstrap"] == 1
    # the law is normal: what is learned from a Gaussian fit serves as well
    trained = top.loc["trained on it, tested on real"]
    assert trained["Gaussian"] == pytest.approx(trained["real"], abs=0.15) and trained["real"] > 0.3
    found.to_html(tmp_path / "page.html")
    assert "0: autocorrelation by lag" in (tmp_path / "page.html").read_text()
    wrong = quality(curves(50, 0), curves(50, 1), curves(50, 2, phi=0.2), seeds=1, baselines=False)
    assert wrong.summary().loc["autocorrelation", "synthetic"] < 0.85


class Cut:
    """Windows with names, as ``frames.windows`` makes them."""

    def __init__(self, values):
        self.values, self.channels = values, ("heat", "load")


def test_windows_with_names_and_a_constant_channel(monkeypatch):
    monkeypatch.setattr(classifiers, "TREES", 3)
    parts = [curves(20, seed) for seed in range(3)]
    named = quality(*map(Cut, parts), seeds=1, baselines=False, target="heat")
    assert {"heat", "load", "heat | load"} < set(named.table()["of"])
    for part in parts:
        part[..., 1] = 4.0
    flat = quality(*parts, seeds=1, baselines=False)
    assert "Left out, because constant: 1." in str(flat)


# --------------------------------------------------------------------------------------- bad input

P = plant(20, 0)
W = curves(20, 0)
DAYS = P.assign(day=P["day"].dt.strftime("%d.%m.%Y"))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: quality(P, P, P.drop(columns="day")), "synthetic lacks day"),
        (lambda: quality(P, P.assign(more=1), P), "real_test has more more"),
        (lambda: quality(P, P, P.iloc[:9]), "synthetic has 9 rows, quality needs at least 10"),
        (lambda: quality(P, P.iloc[:0], P), "real_test has no rows, only a header"),
        (lambda: quality(P, P, []), "empty list"),
        (lambda: quality(P, P, [P, P.iloc[:3]]), "synthetic[1] has 3 rows"),
        (lambda: quality(P, P, W), "synthetic must be a pandas DataFrame, got a ndarray"),
        (lambda: quality(W, W, P), "synthetic must be"),
        (lambda: quality([1, 2], W, W), "real_train must be a data frame or windows (B, T, C)"),
        (lambda: quality(P, P, P, target="gone"), "there is no column 'gone' to predict"),
        (lambda: quality(P, P, P, target="id"), "'id' cannot be predicted: it is left out"),
        (lambda: quality(P[["id", "site"]], P, P), "real_test has load, <b>heat</b>"),
        (lambda: quality(*[P[["id", "site"]]] * 3), "no column can be compared: id (identifier)"),
        (lambda: quality(P, P, P.assign(load="x")), "synthetic: the column 'load' holds values"),
        (lambda: quality(P, P, P.assign(load=np.inf)), "'load' holds infinite values"),
        (lambda: quality(P.assign(load=np.inf), P, P), "column 'load' has 20 infinite values"),
        (lambda: quality(DAYS, DAYS, DAYS.assign(day="soon")), "than dates written as %d.%m.%Y"),
        (lambda: quality(P, P, P.assign(line=0)), "the column 'line' (int64) has no value of"),
        (lambda: quality(P, P, P, kinds={"gone": "whole"}), "kinds names 'gone'"),
        (lambda: quality(P, P, P, kinds={"load": "real"}), "the kind of 'load' must be one of"),
        (lambda: quality(P, P, P, kinds=["whole"]), "kinds must be a schema"),
        (lambda: quality(P, P, P, lags=3), "lags belongs to windows"),
        (lambda: quality(P, P, P, seeds=0), "seeds must be a whole number"),
        (lambda: quality(P, P, P, max_rows=5), "max_rows must be a whole number of at least 10"),
        (lambda: quality(*[P[["load", "load"]]] * 3), "real_train has two columns named 'load'"),
        (lambda: quality(W, W, W[:, :5]), "synthetic has windows of (5, 2), real_train of (8, 2)"),
        (lambda: quality(W, W[:4], W), "real_test has 4 rows"),
        (lambda: quality(W, W * np.nan, W), "real_test hold NaN"),
        (lambda: quality(W, W, W, target="heat"), "there is no channel 'heat'"),
        (lambda: quality(W, W, W, lags=8), "lags must be below the 8 steps"),
        (lambda: quality(W, W, W, kinds={}), "kinds belongs to data frames"),
        (lambda: quality(W * 0, W, W), "every channel of real_train is constant"),
        (lambda: quality(*[W[:, :3]] * 3), "at least 4 steps, got 3"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in one_line(error)


def test_of_many_pairs_some_are_compared(monkeypatch):
    monkeypatch.setattr(classifiers, "TREES", 3)
    rng = np.random.default_rng(0)
    parts = [pd.DataFrame(rng.normal(size=(12, 50))) for _ in range(3)]
    found = quality(*parts, seeds=1, baselines=False)
    assert "1,000 of 1,225 pairs" in str(found)
    pairs = found.values[found.values["measure"] == "pair trends"]
    assert len(pairs) == 2 * 1001  # and their mean


def test_dates_may_be_texts(monkeypatch):
    monkeypatch.setattr(classifiers, "TREES", 3)
    parts = P, plant(20, 1), plant(20, 2)
    texts = [part.assign(day=part["day"].dt.strftime("%d/%m/%Y")) for part in parts]
    found = [quality(*three, seeds=1, baselines=False).values for three in (parts, texts)]
    pd.testing.assert_frame_equal(*found)


def test_a_schema_says_the_kinds(monkeypatch):
    monkeypatch.setattr(classifiers, "TREES", 3)
    kinds = schema(P)
    kinds["line"].kind = "text"
    found = quality(P, P, P, kinds=kinds, seeds=1, baselines=False)
    assert "line (text)" in str(found) and "line" not in set(found.values["of"])


def test_a_target_of_many_classes_is_not_predicted(monkeypatch):
    monkeypatch.setattr(classifiers, "TREES", 3)
    many = pd.DataFrame({"x": np.arange(120.0) % 7, "c": [f"c{i % 60}" for i in range(120)]})
    with pytest.raises(ValueError, match="it has 60 classes, at most 50 are predicted"):
        quality(many, many, many, target="c")
    found = quality(many, many, many, seeds=1, baselines=False)
    assert found.predicted == "R² of x from the other columns"


def test_without_scikit_learn_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(
        ImportError, match=r'^quality needs scikit-learn: pip install "iflow-lib\[frames\]"$'
    ):
        quality(P, P, P)


def test_copies_of_copies_are_seen_in_the_baselines_alone():
    """Rows drawn twice are copies; columns drawn apart are none, and match each column."""
    data = plant(60, 0)
    kinds = {"load": "continuous", "line": "two-valued"}
    apart = scores.column_shapes(data, independent_columns(data, 600), kinds)
    assert min(apart.values()) > 0.9
    features = Features(data, kinds)
    assert copies(features.for_trees(data), features.for_trees(bootstrap(data, 60))) == 1
