"""Windows of a long table, and ``SeriesFlow``: the law, what is given, the units, and bad input."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from exact import one_line

import iflow_lib as ifl
from iflow_lib.data.furnace import CHANNELS, Furnace
from iflow_lib.frames import SeriesFlow, Windows, windows
from iflow_lib.frames.calendar import features
from iflow_lib.frames.scales import ChannelScale

HOUR = pd.Timedelta("1h")


def table(hours=240, entities=("A", "B"), start="2024-01-01T00:00Z", seed=0):
    """Hourly values of two sensors: a warm day, a whole number, and who measured it."""
    rng, parts = np.random.default_rng(seed), []
    for k, name in enumerate(entities):
        time = pd.date_range(start, periods=hours, freq="h")
        warm = 20 + 5 * k + 8 * np.sin(2 * np.pi * np.arange(hours) / 24) + rng.normal(0, 1, hours)
        parts.append(
            pd.DataFrame(
                {
                    "time": time,
                    "site": name,
                    "warm": warm.round(1),
                    "count": rng.integers(0, 5, hours),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


# ---------------------------------------------------------------- windows


def test_windows_are_the_rows():
    df = table()
    cut = windows(df, "time", "site")
    assert cut.values.shape == (20, 24, 2) and cut.channels == ("warm", "count") and len(cut) == 20
    assert cut.starts[1] == pd.Timestamp("2024-01-02T00:00Z") and cut.length == 24
    np.testing.assert_array_equal(cut.values[1, :, 0], df.warm[24:48])
    assert cut.entities.tolist() == ["A"] * 10 + ["B"] * 10 and cut.observed.all()
    assert not any(cut.counts.values()) and cut.notes == ()
    back = cut.frame()
    assert list(back.columns) == ["window", "site", "time", "warm", "count"]
    pd.testing.assert_frame_equal(back[["time", "site", "warm", "count"]], df, check_dtype=False)
    assert back["count"].dtype == df["count"].dtype and back["site"].dtype == object
    assert "20 windows of 24 steps" in repr(cut)


def test_order_and_repeated_stamps_do_not_matter():
    df = table()
    clean = windows(df, "time", "site")
    mixed = df.sample(frac=1, random_state=0)
    again = windows(mixed, "time", "site")
    np.testing.assert_array_equal(again.values, clean.values)
    assert again.counts["rows out of order"] > 100
    wrong = df.iloc[:7].assign(warm=-99.0)  # the first of two stays
    twice = windows(pd.concat([df, wrong]), "time", "site")
    np.testing.assert_array_equal(twice.values, clean.values)
    assert twice.counts["rows with a repeated stamp"] == 7


def test_short_gaps_are_filled_and_long_ones_cost_windows():
    df = table(entities=("A",)).astype({"count": float})
    df.loc[30:32, "warm"] = np.nan  # three hours of the second day
    df = df.drop(index=range(76, 80))  # four of the fourth
    cut = windows(df, "time", channels=["warm", "count"])
    assert len(cut) == 9 and cut.counts["windows left out for a long gap"] == 1
    assert cut.counts["values filled in short gaps"] == 3 and int((~cut.observed).sum()) == 3
    line = np.interp([1, 2, 3], [0, 4], [df.warm[29], df.warm[33]])
    assert np.abs(cut.values[1, 6:9, 0] - line).max() <= 0.6  # to a value that was measured
    levels = df.warm.dropna().unique()
    assert np.isin(cut.values[1, :, 0].round(1), levels.round(1)).all()
    assert len(windows(df, "time", channels=["warm", "count"], max_gap=0)) == 8
    assert len(windows(df, "time", channels=["warm", "count"], max_gap=4)) == 10


def test_gaps_at_the_ends_are_not_filled():
    df = table(hours=50, entities=("A",))
    df.loc[:1, "warm"] = np.nan
    assert len(windows(df, "time", channels=["warm"])) == 1


def test_rows_within_a_step_are_averaged():
    df = pd.DataFrame({"time": pd.date_range("2024-01-01", periods=96, freq="30min", tz="UTC")})
    df["x"] = np.arange(96.0)
    cut = windows(df, "time", length=12)
    np.testing.assert_allclose(cut.values[0, :, 0], np.arange(12) * 2 + 0.5)
    assert cut.counts["rows averaged with another"] == 48
    df.loc[0, "x"] = np.nan  # a mean of what is there
    assert windows(df, "time", length=12).values[0, 0, 0] == 1


def test_bounds_take_out_what_cannot_be():
    df = table(entities=("A",))
    df.loc[100, "warm"] = 1048.0
    cut = windows(df, "time", channels=["warm"], bounds={"warm": (None, 100)})
    assert cut.values.max() < 50 and cut.counts["values of warm outside its bounds"] == 1


def test_offset_and_stride():
    df = table(entities=("A",))
    late = windows(df, "time", offset="5h", channels=["warm"])
    assert (late.starts.hour == 5).all() and len(late) == 9
    many = windows(df, "time", stride=1, channels=["warm"])
    assert len(many) == 240 - 23
    np.testing.assert_array_equal(many.values[5, :, 0], df.warm[5:29])


@pytest.mark.parametrize("stride", [24, 6, 1])
@pytest.mark.parametrize("block", [None, 48])
def test_train_and_test_share_no_moment(stride, block):
    cut = windows(table(hours=2400), "time", "site", stride=stride)
    train, test = cut.split(test=0.3, seed=1, block=block)
    assert train.stamps.intersection(test.stamps).empty
    lost = cut.counts | train.counts
    assert len(train) + len(test) + lost["windows between train and test"] == len(cut)
    if stride == 24 and block is None:
        assert lost["windows between train and test"] == 0 and len(test) == 60
    again = cut.split(test=0.3, seed=1, block=block)[1]
    other = cut.split(test=0.3, seed=2, block=block)[1]
    assert np.array_equal(again.values, test.values)
    assert set(other.positions) != set(test.positions)


def test_windows_of_no_date_are_split_by_entity():
    values = np.random.default_rng(0).normal(size=(12, 4, 1))
    whose = np.repeat(["a", "b", "c", "d"], 3).astype(object)
    cut = Windows(values, ("x",), np.tile([0, 4, 8], 4), HOUR, entities=whose, entity="file")
    train, test = cut.split(0.25)
    assert len(test) == 3 and not set(train.entities) & set(test.entities)
    assert train.starts is None and "time" in cut.frame() and cut.frame().time[3] == 3 * HOUR


# ---------------------------------------------------------------- clocks


def test_time_zones_are_one_moment():
    df = table(entities=("A",))
    clean = windows(df, "time", channels=["warm"])
    for zone in ("Asia/Tokyo", "America/New_York"):
        cut = windows(df.assign(time=df.time.dt.tz_convert(zone)), "time", channels=["warm"])
        np.testing.assert_array_equal(cut.values, clean.values)
        assert (cut.starts == clean.starts).all() and cut.timezone == zone
        assert str(cut.frame().time.dtype) == f"datetime64[ns, {zone}]"
    text = df.assign(time=df.time.dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    assert (windows(text, "time", channels=["warm"]).starts == clean.starts).all()
    mixed = df.assign(
        time=[f"{t:%Y-%m-%d %H:%M}+09:00" for t in df.time.dt.tz_convert("Asia/Tokyo")]
    )
    assert (windows(mixed, "time", channels=["warm"]).starts == clean.starts).all()


def test_stamps_without_a_zone_are_utc_and_said():
    df = table(entities=("A",))
    naive = df.assign(time=df.time.dt.tz_localize(None))
    cut = windows(naive, "time", channels=["warm"])
    assert (cut.starts == windows(df, "time", channels=["warm"]).starts).all()
    assert len(cut.notes) == 1 and "are read as UTC: give timezone=" in cut.notes[0]


@pytest.mark.parametrize("day", ["2024-03-30", "2024-10-26"])
def test_days_on_which_the_clock_is_changed(day):
    """What a wall clock in Berlin shows, an hour twice or never, is what was measured in UTC."""
    df = table(hours=96, entities=("A", "B"), start=f"{day}T00:00Z")
    local = df.assign(time=df.time.dt.tz_convert("Europe/Berlin").dt.tz_localize(None))
    cut = windows(local, "time", "site", timezone="Europe/Berlin")
    np.testing.assert_array_equal(cut.values, windows(df, "time", "site").values)
    assert not any(cut.counts.values()) and "read as Europe/Berlin" in cut.notes[0]
    plain = windows(local, "time", "site")  # as UTC: an hour is missing, or there twice
    changed = (
        plain.counts["values filled in short gaps"],
        plain.counts["rows with a repeated stamp"],
    )
    assert changed == ((4, 0) if "03" in day else (0, 2))


def test_a_stamp_that_the_clock_skipped_is_left_out():
    df = pd.DataFrame({"time": pd.date_range("2024-03-31", periods=60, freq="h"), "x": 1.0})
    cut = windows(df, "time", length=12, timezone="Europe/Berlin")
    assert cut.counts["rows without a time or an entity"] == 1


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "change, options, words",
    [
        (lambda d: d.iloc[:0], {}, "the table has no rows"),
        (lambda d: d.to_numpy(), {}, "windows takes a pandas DataFrame, got a ndarray"),
        (lambda d: d.drop(columns="time"), {}, "the table has no time column 'time'"),
        (lambda d: d, dict(entity="who"), "the table has no entity column 'who'"),
        (lambda d: d, dict(channels=["hot"]), "the table has no channel column 'hot'"),
        (lambda d: d, dict(channels=["warm", "warm"]), "channels must be different columns"),
        (lambda d: d, dict(channels=[]), "channels must be different columns"),
        (
            lambda d: d,
            dict(channels=["site"], entity=None),
            "the channel 'site' holds object values, such as 'A'",
        ),
        (lambda d: d[["time", "site"]], {}, "no column of numbers beside its time"),
        (lambda d: d.assign(warm=np.inf), {}, "the channel 'warm' holds 480 infinite values"),
        (lambda d: d.assign(warm=np.nan), dict(channels=["warm"]), "holds no value at all"),
        (lambda d: pd.concat([d, d[["warm"]]], axis=1), {}, "several columns 'warm'"),
        (lambda d: d.assign(time=1), {}, "the time column 'time' holds numbers"),
        (lambda d: d.assign(time="soon"), {}, "holds 'soon', which is no date"),
        (lambda d: d.assign(time=pd.NaT), {}, "no row has both a time in 'time' and an entity"),
        (lambda d: d.iloc[:5], {}, "no window of 24 steps"),
        (lambda d: d, dict(every="5min"), "no window of 24 steps of 0 days 00:05:00 is left"),
        (lambda d: d, dict(every="1us"), "give every= as the data are spaced"),
        (lambda d: d, dict(every="1M"), 'every must be a fixed length of time such as "1h"'),
        (lambda d: d, dict(every="0h"), "every must be a fixed length of time"),
        (lambda d: d, dict(length=1), "length must be a whole number of at least 2"),
        (lambda d: d, dict(timezone="Mars"), 'timezone must be a name such as "Europe/Berlin"'),
        (lambda d: d, dict(offset="soon"), "offset must be a length of time"),
        (lambda d: d, dict(bounds={"hot": (0, 1)}), "bounds must be pairs for channels"),
        (lambda d: d, dict(bounds={"warm": (900, 1000)}), "no value of 'warm' lies within"),
    ],
)
def test_what_windows_refuse(change, options, words):
    with pytest.raises(ValueError) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        windows(change(table()), **{"time": "time", "entity": "site", **options})
    assert words in one_line(error)


def test_stamps_with_and_without_a_zone_are_refused():
    df = table(entities=("A",))
    text = df.time.dt.strftime("%Y-%m-%dT%H:%M:%S")
    with pytest.raises(ValueError) as error:
        windows(df.assign(time=[t + "Z" * (i % 2) for i, t in enumerate(text)]), "time")
    assert "has stamps with a time zone and stamps without one" in one_line(error)


def test_an_entity_with_too_few_rows_is_left_out_and_named():
    df = pd.concat([table(), table(hours=10, entities=("C",))])
    cut = windows(df, "time", "site")
    assert set(cut.entities) == {"A", "B"}
    assert cut.notes == ("left out, with fewer than 24 steps: C (1 of 3)",)


def test_text_columns_are_left_out_and_named():
    cut = windows(table().assign(note="x", empty=np.nan), "time", "site")
    assert cut.channels == ("warm", "count")
    assert cut.notes == ("left out, without numbers: note, empty",)


def test_splits_that_leave_nothing_are_refused():
    cut = windows(table(hours=48), "time", "site")
    for options, words in (
        (dict(test=0), "test must be a share in (0, 1)"),
        (dict(block=480), "leaves none for one side"),
    ):
        with pytest.raises(ValueError) as error:
            cut.split(**options)
        assert words in one_line(error)


# ---------------------------------------------------------------- scales and calendars


@pytest.mark.parametrize("kind", ["scores", "standard"])
def test_measured_values_come_back(kind):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 20, (50, 24)) * 1.15078
    fine = rng.lognormal(size=(50, 24))
    for values in (coarse, fine, np.full((50, 24), 7.0)):
        scale = ChannelScale.fit(values, kind)
        np.testing.assert_allclose(scale.decode(scale.encode(values)), values, rtol=2e-2)
        made = scale.decode(3 * rng.standard_normal((100, 24)))
        assert made.min() >= values.min() and made.max() <= values.max()
        again = ChannelScale.build(json.loads(json.dumps(scale.config())))
        np.testing.assert_array_equal(
            again.decode(scale.encode(values)), scale.decode(scale.encode(values))
        )
    scale = ChannelScale.fit(coarse, kind)
    assert np.isin(scale.decode(rng.standard_normal(1000)), coarse).all()
    if kind == "scores":
        z = ChannelScale.fit(fine, kind).encode(fine)
        assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.02
    wide = ChannelScale.fit(fine, kind, beyond=True)
    assert wide.decode(np.array([9.0]))[0] > fine.max()
    assert scale.outside(np.array([-1.0, 5.0, np.nan, 99.0])) == 2


def test_a_held_value_is_one_value_not_many():
    """Set-points that are held for half a window are not taken for a sensor with a coarse grid."""
    values = np.repeat(np.random.default_rng(0).normal(800, 10, (200, 2)), 12, axis=1)
    made = ChannelScale.fit(values, "scores").decode(np.random.default_rng(1).normal(size=1000))
    assert np.isin(made, values).mean() < 0.5


def test_calendar_features_follow_the_clock():
    stamps = pd.date_range("2024-01-01T05:00Z", periods=24 * 366, freq="h")
    found = features(stamps, ("hour", "weekday", "month"), "America/New_York")
    assert found.shape == (len(stamps), 6)
    np.testing.assert_allclose(found[0], 2**0.5 * np.array([1, 0, 1, 0, 1, 0]), atol=1e-12)
    np.testing.assert_allclose(found[6, :2], 2**0.5 * np.array([0, 1]), atol=1e-12)
    np.testing.assert_allclose(found.var(0), 1, atol=0.02)
    with pytest.raises(ValueError) as error:
        SeriesFlow(calendar=("moon",))
    assert "calendar must be some of hour, weekday, month" in one_line(error)


# ---------------------------------------------------------------- SeriesFlow

SMALL = dict(width=8, steps=20, batch_size=32)


@pytest.fixture(scope="module")
def flow():
    """A small model of two sites, hardly trained: for everything but its law."""
    return SeriesFlow(24, time="time", entity="site", stride=1, **SMALL).fit(table(hours=120))


def test_samples_have_the_form_of_the_data(flow):
    df = table(hours=120)
    made = flow.sample(40, seed=1)
    assert isinstance(made, Windows) and made.values.shape == (40, 24, 2) and made.starts is None
    assert set(made.entities) == {"A", "B"} and flow.entities == ["A", "B"]
    frame = made.frame()
    assert list(frame.columns) == ["window", "site", "time", "warm", "count"]
    assert frame.dtypes["count"] == df.dtypes["count"]
    assert (
        frame["count"].isin(df["count"]).all() and frame.warm.round(1).isin(df.warm.round(1)).all()
    )
    assert len(frame) == 40 * 24 and frame.time.max() == 23 * HOUR
    assert set(flow.sample(5, entity="B").entities) == {"B"}
    assert flow.sample(3, nfe=2).values.shape == (3, 24, 2)


def test_more_samples_only_add_to_the_end(flow):
    few, many = flow.sample(7, seed=3), flow.sample(30, seed=3)
    assert np.array_equal(few.values, many.values[:7])
    assert few.entities.tolist() == many.entities[:7].tolist()
    assert not np.array_equal(few.values, flow.sample(7, seed=4).values)


def test_saved_and_loaded_to_the_bit(flow, tmp_path):
    flow.save(tmp_path / "m")
    again = SeriesFlow.load(tmp_path / "m")
    assert sorted(f.name for f in (tmp_path / "m").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert np.array_equal(again.sample(9, seed=2).values, flow.sample(9, seed=2).values)
    history = table(hours=40)
    pd.testing.assert_frame_equal(again.forecast(history, n=2), flow.forecast(history, n=2))
    twin = SeriesFlow(24, time="time", entity="site", stride=1, **SMALL).fit(table(hours=120))
    assert np.array_equal(twin.sample(9, seed=2).values, flow.sample(9, seed=2).values)
    ifl.FlowMap(ifl.MLP(2, 8), ifl.RectifiedFlow()).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="holds no SeriesFlow: expected a folder from its save"):
        SeriesFlow.load(tmp_path / "other")


def test_given_parts_stay_as_they_are(flow):
    plan = np.array([1.0, 3.0] * 12)
    made = flow.sample(6, seed=1, given={"count": plan})
    assert np.array_equal(made.values[:, :, 1], np.tile(plan, (6, 1)))
    assert made.values[:, :, 0].std(0).min() > 0
    part = np.full((24, 2), np.nan)
    part[:5] = [20.1, 2.0]
    assert np.array_equal(flow.sample(6, given=part).values[:, :5], np.tile(part[:5], (6, 1, 1)))
    with pytest.warns(UserWarning, match="24 given values lie outside the measured range"):
        flow.sample(2, given={"warm": np.full(24, 99.0)})


def test_a_forecast_goes_on_from_the_last_row(flow):
    history = table(hours=100, seed=5)
    made = flow.forecast(history, n=3, horizon=6)
    assert list(made.columns) == ["sample", "site", "time", "warm", "count"]
    assert len(made) == 2 * 3 * 6 and made["sample"].tolist()[:7] == [0] * 6 + [1]
    last = history.time.max()
    assert sorted(set(made.time)) == [last + (k + 1) * HOUR for k in range(6)]
    assert made.time.dtype == history.time.dtype
    assert len(flow.forecast(history)) == 2 * 12
    future = pd.DataFrame(
        {"time": last + (1 + np.arange(12)) * HOUR, "site": "A", "count": [4, 0] * 6}
    )
    planned = flow.forecast(history, horizon=12, future=future)
    assert planned[planned.site == "A"]["count"].tolist() == [4, 0] * 6
    gap = history.drop(index=[95, 97])  # inside the history: drawn, not refused
    assert len(flow.forecast(gap, horizon=6)) == 12


def test_a_calendar_gives_samples_moments():
    df = table(hours=24 * 15)
    told = SeriesFlow(
        24,
        bounds={"warm": (-50, 50)},
        time="time",
        entity="site",
        calendar=("hour", "month"),
        timezone="Europe/Berlin",
        **SMALL,
    ).fit(df)
    made = told.sample(20, seed=1)
    assert set(made.starts) <= set(windows(df, "time", "site").starts) and len(set(made.starts)) > 5
    asked = told.sample(4, starts="2024-07-01T00:00+02:00", entity="A")
    assert set(asked.starts) == {pd.Timestamp("2024-06-30T22:00Z")}
    assert np.array_equal(told.sample(3, seed=1).values, made.values[:3])
    future = df[["time", "site", "count"]]  # bounds are of a channel that it lacks
    rest = told.forecast(df.iloc[: 24 * 15 - 7], future=future)
    assert rest.time.max() <= df.time.max()


def test_a_forecast_keeps_to_where_windows_begin():
    """Trained on whole days, a model goes on with the day that has begun."""
    day = SeriesFlow(24, time="time", channels=["warm"], **SMALL).fit(table(600, ("A",)))
    history = table(24 * 3 + 15, ("A",))
    made = day.forecast(history)
    assert made.time.min() == history.time.max() + HOUR and len(made) == 9
    for hours, options in ((24 * 3 + 15, dict(horizon=10)), (24 * 3, {})):
        with pytest.raises(ValueError) as error:
            day.forecast(table(hours, ("A",)), **options)
        assert "windows of this model begin every 24 steps" in one_line(error)


def test_what_series_refuse(flow, tmp_path):
    df = table()
    cut = windows(df, "time", "site")
    fresh = SeriesFlow(24, time="time", entity="site", **SMALL)
    plain = SeriesFlow(24, time="time", channels=["warm"], conditions=False, **SMALL)
    plain.fit(table(600, ("A",)))
    for call, words in (
        (lambda: SeriesFlow(3), "length must be a whole number of at least 4"),
        (lambda: SeriesFlow(network="rnn"), "network must be one of unet, transformer"),
        (lambda: SeriesFlow(scale="log"), "scale must be one of scores, standard"),
        (lambda: SeriesFlow(every="1M"), "every must be a fixed length of time"),
        (lambda: SeriesFlow(polish=2), "polish must be in [0, 1], got 2"),
        (lambda: SeriesFlow(coupling="best"), "coupling must be one of"),
        (lambda: fresh.sample(2), "nothing was fitted yet: call fit(df) first"),
        (lambda: fresh.save(tmp_path / "none"), "nothing was fitted yet"),
        (lambda: fresh.fit(df.iloc[:100]), "4 windows are too few to learn from"),
        (lambda: fresh.fit(df.drop(columns="site")), "the table has no entity column 'site'"),
        (lambda: SeriesFlow(12).fit(cut), "give SeriesFlow(length=24)"),
        (lambda: SeriesFlow(24, channels=["x"]).fit(cut), "the windows have the channels ['warm'"),
        (lambda: flow.sample(0), "n must be a whole number of at least 1"),
        (lambda: flow.sample(2, entity="C"), "the model knows no site 'C': it learned A, B"),
        (lambda: flow.sample(2, starts="2024-01-01"), "was told no calendar"),
        (lambda: flow.sample(2, given={"hot": 1}), "given must name channels, warm, count"),
        (
            lambda: flow.sample(2, given={"warm": [1.0]}),
            "must have shape (24,) or (2, 24), got (1,)",
        ),
        (lambda: flow.sample(2, given=np.zeros((3, 24, 2))), "given must have shape (24, 2)"),
        (lambda: flow.sample(2, given=np.full((24, 2), np.inf)), "given values must be finite"),
        (lambda: flow.forecast(df.drop(columns="warm")), "no channel column 'warm'"),
        (lambda: flow.forecast(df.assign(site="C")), "the model knows no site 'C'"),
        (lambda: flow.forecast(df, horizon=24), "horizon must be below 24"),
        (lambda: flow.forecast(df, future=df[["time", "site"]]), "future has no channel"),
        (lambda: flow.forecast(df.iloc[:0]), "the table has no rows"),
        (lambda: plain.sample(2, given={"warm": np.ones(24)}), "conditions=False"),
        (lambda: plain.forecast(table(40, ("A",))), "with conditions=True"),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert words in one_line(error)
    assert not list(tmp_path.iterdir())


def test_many_entities_are_learned_as_one():
    df = table(hours=24, entities=[f"s{k}" for k in range(70)])
    with pytest.warns(UserWarning, match="70 entities are more than 64"):
        made = SeriesFlow(24, time="time", entity="site", **SMALL).fit(df)
    assert made.entities == [] and made.sample(2).entities is None


def test_a_transformer_and_windows_of_no_date():
    values = np.random.default_rng(0).normal(size=(40, 5, 2))
    cut = Windows(values, ("a", "b"), np.zeros(40, dtype=int), HOUR)
    flow = SeriesFlow(5, network="transformer", width=8, steps=5, batch_size=16).fit(cut)
    assert flow.sample(3).values.shape == (3, 5, 2)
    assert "SeriesFlow(5 steps of 0 days 01:00:00 x a, b" in repr(flow)


@pytest.mark.long
def test_one_jump_learns_the_furnace():
    """Mean, spread and correlation of short windows, and what a given set-point does, after a short training."""
    plant = Furnace(hold=4)
    x = plant.simulate(1500, 8, np.random.default_rng(0))
    cut = Windows(x, CHANNELS, np.zeros(len(x), dtype=int), pd.Timedelta("5min"))
    flow = SeriesFlow(8, every="5min", width=16, steps=500, batch_size=64).fit(cut)
    made = flow.sample(1024, seed=1).values.reshape(1024, -1)
    cov = plant.covariance(8)
    sd = np.sqrt(np.diagonal(cov))
    assert np.abs((made.mean(0) - plant.mean(8).ravel()) / sd).max() < 0.25
    assert np.abs(made.std(0) / sd - 1).mean() < 0.15
    found, truth = np.corrcoef(made.T), cov / np.outer(sd, sd)
    assert np.abs(found - truth).mean() < 0.1
    plan = np.full(8, plant.set_points[1])
    low, high = (
        flow.sample(512, seed=2, given={"set_2": plan + shift}).values.mean(0)
        for shift in (-15, 15)
    )
    window = np.full((2, 8, 6), np.nan)
    window[:, :, 1] = plan + np.array([[-15.0], [15.0]])
    exact = plant.given(window[1])[0] - plant.given(window[0])[0]
    error = np.abs((high - low) - exact)[:, 3:].mean() / np.abs(exact)[:, 3:].mean()
    assert error < 0.3
    assert torch.equal(torch.from_numpy(low[:, 1]), torch.from_numpy(plan - 15))
