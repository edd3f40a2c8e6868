"""The furnace: its closed forms agree with each other, with algebra and with simulation."""

import numpy as np
import pytest
from exact import one_line
from scipy.integrate import solve_ivp

import iflow_lib as ifl
from iflow_lib.data.furnace import CHANNELS, Furnace

PLANT = Furnace()


def test_mean_is_the_rest_of_the_equation():
    """At the mean nothing moves, written out zone by zone."""
    r, x = PLANT.mean(1)[0, :3], PLANT.mean(1)[0, 3:]
    for i in range(3):
        neighbours = [j for j in (i - 1, i + 1) if 0 <= j < 3]
        rate = (r[i] - x[i]) / PLANT.lag[i] + PLANT.loss * (PLANT.hall - x[i])
        rate += sum(PLANT.exchange * (x[j] - x[i]) for j in neighbours)
        assert abs(rate) < 1e-10
    assert np.array_equal(PLANT.mean(5), np.tile(PLANT.mean(1), (5, 1)))


def test_step_response_is_that_of_the_differential_equation():
    exact = PLANT.step_response(10)
    mean = PLANT.mean(1)[0]
    for j in range(3):
        r = mean[:3] + np.eye(3)[j]

        def rate(t, x, r=r):
            flow = np.array([x[1] - x[0], x[0] + x[2] - 2 * x[1], x[1] - x[2]])
            loss = PLANT.loss * (PLANT.hall - x)
            return (r - x) / np.array(PLANT.lag) + PLANT.exchange * flow + loss

        times = PLANT.every * np.arange(11)
        solved = solve_ivp(rate, (0, times[-1]), mean[3:], t_eval=times, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(solved.y.T - mean[3:], exact[:, :, j], atol=1e-8)
    assert exact[0].max() == 0 and np.all(np.diff(exact, axis=0) > 0)


def test_covariance_repeats_with_the_set_points():
    """The law of a window is that of the next one, and one of a part is a part of it."""
    whole = PLANT.covariance(36)
    np.testing.assert_allclose(whole[72:144, 72:144], PLANT.covariance(12), rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(whole[:60, :60], PLANT.covariance(10), rtol=1e-12)
    np.testing.assert_allclose(whole, whole.T, rtol=1e-12)
    assert np.linalg.eigvalsh(whole).min() > -1e-8
    set_points = whole.reshape(36, 6, 36, 6)[:, :3, :, :3]
    np.testing.assert_allclose(np.diagonal(set_points[5, :, 5]), PLANT.spread**2)
    np.testing.assert_allclose(set_points[0, 0, 13, 0], PLANT.persistence * PLANT.spread**2)
    np.testing.assert_allclose(set_points[0, 0, 0, 1], PLANT.alike * PLANT.spread**2)


def test_one_zone_in_closed_form():
    """Without exchange and with set-points that change at every step, a zone is a sum that can be written down."""
    plant = Furnace(hold=1, exchange=0, persistence=0.4, alike=0.0, loss=0)
    f = np.exp(-plant.every / plant.lag[0])
    g, p, s2 = 1 - f, plant.persistence, plant.spread**2
    cross = g * p * s2 / (1 - f * p)  # Cov(r', x') = p (f Cov(r, x) + g s2)
    variance = (g**2 * s2 + 2 * f * g * cross + plant.disturbance**2) / (1 - f**2)
    cov = plant.covariance(3).reshape(3, 6, 3, 6)
    np.testing.assert_allclose(cov[1, 0, 1, 3], cross, rtol=1e-10)
    np.testing.assert_allclose(cov[1, 3, 1, 3], variance + plant.sensor**2, rtol=1e-10)
    lag_1 = f * variance + g * cross
    np.testing.assert_allclose(plant.autocovariance(1, 3)[1, 3, 3], lag_1, rtol=1e-10)
    rho = plant.autocorrelation(2, 3)
    np.testing.assert_allclose(rho[:, 0], [1, p, p**2], rtol=1e-10)
    np.testing.assert_allclose(rho[1, 3], lag_1 / (variance + plant.sensor**2), rtol=1e-10)


def test_simulation_follows_the_law():
    n = 20_000
    x = PLANT.simulate(n, 24, np.random.default_rng(0)).reshape(n, -1)
    cov = PLANT.covariance(24)
    sd = np.sqrt(np.diagonal(cov))
    centred = (x - PLANT.mean(24).ravel()) / sd
    assert np.abs(centred.mean(0)).max() < 5 / n**0.5
    found, truth = centred.T @ centred / n, cov / np.outer(sd, sd)
    # 5.5 standard errors of a correlation: the largest of ten thousand
    assert np.abs((found - truth) / np.sqrt((1 + truth**2) / n)).max() < 5.5


def test_what_is_left_when_a_part_is_given():
    rng = np.random.default_rng(1)
    plan = np.repeat(rng.normal(PLANT.set_points, 10, (2, 3)), 12, axis=0)
    window = np.full((24, 6), np.nan)
    window[:, :3] = plan
    window[:12, 3:] = PLANT.mean(12)[:, 3:] + rng.normal(0, 5, (12, 3))
    mean, cov = PLANT.given(window)
    known = ~np.isnan(window)
    assert np.array_equal(mean[known], window[known])
    assert np.abs(cov[known.ravel()]).max() == 0 and np.linalg.eigvalsh(cov).min() > -1e-6
    # one degree more in set-point 2 from step 12 on: the difference is the step response
    other = window.copy()
    other[12:, 1] += 1
    rise = PLANT.given(other)[0][12:, 3:] - mean[12:, 3:]
    np.testing.assert_allclose(rise, PLANT.step_response(11)[:, :, 1], atol=1e-6)
    nothing = PLANT.given(np.full((4, 6), np.nan))
    np.testing.assert_allclose(nothing[0], PLANT.mean(4))
    np.testing.assert_allclose(nothing[1], PLANT.covariance(4))


def test_frame_and_data_set():
    table = PLANT.frame(48, seed=3)
    assert list(table.columns) == ["time", *CHANNELS] and len(table) == 48
    assert (table.time.diff().dropna() == np.timedelta64(5, "m")).all()
    held = table["set_1"].diff().dropna().to_numpy() != 0
    assert np.flatnonzero(held).tolist() == [11, 23, 35]
    assert table.equals(PLANT.frame(48, seed=3)) and not table.equals(PLANT.frame(48, seed=4))
    data = ifl.data.load("furnace", n=50, seed=2)
    assert data.x.shape == (50, 24, 6) and float((data.x[:, :, 0] - 820).abs().max()) < 100


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(lag=(1.0, 0.0, 1.0)), "lags, spread and every must be above 0"),
        (dict(sensor=-1.0), "the other sizes at least 0"),
        (dict(alike=1.0), "alike must be in (-0.5, 1)"),
        (dict(persistence=1.0), "persistence in [0, 1)"),
        (dict(hold=0), "hold must be a whole number"),
    ],
)
def test_what_is_no_furnace(options, words):
    with pytest.raises(ValueError) as error:
        Furnace(**options)
    assert words in one_line(error)
    with pytest.raises(ValueError) as error:
        PLANT.autocorrelation(24, 24)
    assert "lags must be below the length of a window, 24; got 24" in one_line(error)
