"""Baselines of tables and windows: types, values and dependences that they keep, and those that they lose."""

import numpy as np
import pandas as pd
import pytest
from exact import one_line

from iflow_lib.frames.baselines import bootstrap, gaussian, gaussian_copula, independent_columns

FRAMES = [bootstrap, independent_columns, gaussian_copula]


def mixed(rows=400, seed=0):
    """A column of each type, correlated, with missing values of each sort."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    y = 0.8 * x + 0.6 * rng.normal(size=rows)
    frame = pd.DataFrame(
        {
            "float": x.astype("float32"),
            "grid": np.round(y, 1),
            "small": pd.array((10 * y).astype(int), dtype="Int8"),
            "flag": x > 0,
            "maybe": pd.array(y > 0, dtype="boolean"),
            "level": pd.Categorical.from_codes(
                np.digitize(x, [-1, 0.5]), ["low", "mid", "high", "never"], ordered=True
            ),
            "name": np.where(y > 0.3, "a", "b").astype(object),
            "when": pd.to_datetime("2024-01-01", utc=True) + pd.to_timedelta(np.round(x), unit="D"),
        },
        index=np.arange(rows) * 7,
    )
    for name in ("grid", "small", "maybe", "level", "name", "when"):
        frame.loc[rng.random(rows) < 0.1, name] = None
    return frame


@pytest.mark.parametrize("baseline", FRAMES, ids=lambda f: f.__name__)
def test_frames_come_back_with_their_types_and_observed_values(baseline):
    data = mixed()
    made = baseline(data, 250, seed=3)
    assert len(made) == 250 and made.index.equals(pd.RangeIndex(250))
    pd.testing.assert_series_equal(made.dtypes, data.dtypes)
    assert list(made["level"].cat.categories) == ["low", "mid", "high", "never"]
    for name in data:
        assert set(made[name].dropna()) <= set(data[name].dropna()), name
        assert made[name].isna().mean() == pytest.approx(data[name].isna().mean(), abs=0.07)
    pd.testing.assert_frame_equal(made, baseline(data, 250, seed=3))
    assert not made.equals(baseline(data, 250, seed=4))


def test_each_baseline_keeps_its_dependences():
    data = mixed(3000)
    truth = data[["float", "grid"]].corr().iloc[0, 1]
    assert truth > 0.7
    kept = {f: f(data, 3000, seed=1)[["float", "grid"]].corr().iloc[0, 1] for f in FRAMES}
    assert kept[bootstrap] == pytest.approx(truth, abs=0.05)
    assert kept[independent_columns] == pytest.approx(0, abs=0.06)
    # the missing values, as one value below the others, cost the copula some
    assert 0.5 < kept[gaussian_copula] < truth + 0.03
    rows = {tuple(map(str, row)) for row in data.to_numpy()}
    assert all(tuple(map(str, row)) in rows for row in bootstrap(data, 50).to_numpy())
    assert sum(tuple(map(str, row)) in rows for row in gaussian_copula(data, 50).to_numpy()) < 10


def test_the_copula_of_normal_data_is_their_normal_distribution():
    """For normal columns the copula is exact: correlations within their sampling error."""
    rng = np.random.default_rng(0)
    covariance = np.array([[1, 0.6, -0.3], [0.6, 1, 0.2], [-0.3, 0.2, 1]])
    data = pd.DataFrame(rng.multivariate_normal(np.zeros(3), covariance, size=4000))
    made = gaussian_copula(data, 4000, seed=1)
    np.testing.assert_allclose(made.corr(), covariance, atol=0.05)


def test_windows():
    rng = np.random.default_rng(0)
    level = rng.normal(size=(2000, 1, 1))
    windows = level + 0.5 * rng.normal(size=(2000, 4, 2))
    inside, across = 0.8, 0.8  # var 1 of the level in a variance of 1.25
    for baseline in (bootstrap, gaussian_copula, gaussian, independent_columns):
        made = baseline(windows, 2000, seed=2)
        assert made.shape == (2000, 4, 2)
        found = np.corrcoef(made.reshape(2000, -1), rowvar=False)
        assert found[0, 2] == pytest.approx(inside, abs=0.05)  # a channel with itself, one step on
        expected = 0 if baseline is independent_columns else across
        assert found[0, 1] == pytest.approx(expected, abs=0.07)  # two channels
        assert np.array_equal(made, baseline(windows, 2000, seed=2))
    assert np.isin(gaussian_copula(windows, 20), windows).all()
    assert not np.isin(gaussian(windows, 20), windows).any()
    made = gaussian(windows, 2000, seed=2).reshape(2000, -1)
    np.testing.assert_allclose(made.mean(0), windows.reshape(2000, -1).mean(0), atol=0.1)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: bootstrap(mixed(5).iloc[:0], 3), "no rows, only a header"),
        (lambda: gaussian_copula(mixed(1), 3), "at least 2 rows, got 1"),
        (lambda: gaussian_copula(mixed(9), 0), "n must be a whole number of at least 1"),
        (lambda: gaussian_copula(mixed(9), 3, seed=-1), "seed must be"),
        (lambda: gaussian(mixed(9), 3), "gaussian_copula takes one"),
        (lambda: bootstrap(np.zeros((5, 4)), 3), "ndarray of shape (5, 4)"),
        (lambda: bootstrap([["a"]], 3), "windows (B, T, C)"),
        (lambda: bootstrap(np.full((5, 4, 1), np.nan), 3), "NaN or infinite"),
        (lambda: bootstrap(pd.DataFrame(), 3), "no columns"),
        (lambda: bootstrap(mixed(9)[["flag", "flag"]], 3), "two columns named 'flag'"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in one_line(error)
