"""Tables: what columns are, that they come back as they were, and that a law is learned."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import iflow_lib as ifl
from iflow_lib.frames import Schema, TableFlow, schema
from iflow_lib.frames.columns import ColumnCode, Order, Ranks
from iflow_lib.frames.leftout import LeftOut
from iflow_lib.frames.schema import LEARNED
from iflow_lib.frames.storage import check_values

pytestmark = pytest.mark.filterwarnings("ignore:.*rows are few:UserWarning")
RNG = np.random.default_rng(0)


def small(**settings):
    """A model whose training says nothing, for what does not depend on it."""
    return TableFlow(steps=2, hidden=8, layers=1, **settings)


def every_type(n=60):
    """A column of every type that is taken; those with a question mark have missing values."""
    rng = np.random.default_rng(1)
    hole = rng.random(n) < 0.2
    hole[:2] = True, False
    days = pd.Timestamp("2020-03-01") + pd.to_timedelta(rng.integers(0, 90, n), unit="D")
    letters = rng.choice(list("abcd"), n).astype(object)
    ints, floats = rng.integers(-3, 90, n), rng.normal(size=n)

    def masked(values, dtype):
        return pd.Series(values).astype(dtype).mask(hole)

    return pd.DataFrame(
        {
            "int8": ints.astype("int8"),
            "uint16": ints.astype("uint16") // 3000,
            "int64": 2**60 + ints,
            "Int64?": masked(ints, "Int64"),
            "float32": np.round(floats, 1).astype("float32"),
            "float64?": pd.Series(floats).mask(hole),
            "Float64?": masked(floats, "Float64"),
            "bool": ints > 40,
            "boolean?": masked(ints > 40, "boolean"),
            "object?": np.where(hole, None, letters),
            "nan?": np.where(hole, np.nan, letters),
            "string?": pd.Series(letters).mask(hole).astype("string"),
            "truths?": pd.Series(np.where(hole, None, ints > 40), dtype=object),
            "category?": pd.Series(
                pd.Categorical(
                    np.where(hole, None, letters), categories=list("dcbaxy"), ordered=True
                )
            ),
            "numbered": pd.Series(pd.Categorical(ints % 3, categories=[5, 2, 1, 0])),
            "date": days,
            "zoned?": pd.Series(days).dt.tz_localize("Europe/Berlin").mask(hole),
            "seconds": pd.Series(days).astype("datetime64[s]"),
            "durations": pd.to_timedelta(ints, unit="h"),
            "written": days.strftime("%d.%m.%Y"),
            "constant": 7,
            "nothing": np.nan,
            "id": np.arange(100, 100 + n),
            "code": [f"P{i:04d}" for i in range(n)],
            "text": [f"note number {i} on this" for i in range(n)],
            3: floats,
        },
    ).rename_axis("row")


def test_every_type_comes_back():
    frame = every_type()
    made = small().fit(frame).sample(200, seed=1)
    assert list(made.columns) == list(frame.columns)
    assert made.dtypes.to_dict() == frame.dtypes.to_dict()
    assert made.index.equals(pd.RangeIndex(200)) and made.index.name == "row"
    for name in frame:
        was, now = frame[name], made[name]
        if name in ("id", "code", "text"):
            continue
        assert not now.isna().any() or was.isna().any(), name
        seen, there = was.dropna(), now.dropna()
        if isinstance(was.dtype, pd.CategoricalDtype):
            assert set(there) <= set(seen)
        elif was.dtype == object or str(was.dtype) == "string":
            assert set(map(type, there)) <= set(map(type, seen))
            if name != "written":
                assert set(there) <= set(seen)
        elif len(seen):
            assert seen.min() <= there.min() and there.max() <= seen.max(), name
    lost = {name: {type(v) for v in made[name][made[name].isna()]} for name in ("object?", "nan?")}
    assert lost == {"object?": {type(None)}, "nan?": {float}}  # both have some at 200 rows
    assert made["nothing"].isna().all() and (made["constant"] == 7).all()
    assert made["id"].tolist() == list(range(160, 360))
    assert made["code"].tolist()[:2] == ["P0060", "P0061"] and made["text"].isna().all()
    assert (np.round(made["float32"].astype(float), 1).astype("float32") == made["float32"]).all()
    assert (
        pd.to_datetime(made["written"], format="%d.%m.%Y").between("2020-03-01", "2020-05-30").all()
    )
    assert (
        made["zoned?"].dropna().dt.tz_localize(None).dt.time.astype(str) == "00:00:00"
    ).mean() > 0.9


def test_arrow_types_come_back():
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"a": [1, 2, None, 4] * 10, "b": [0.5, None, 2.5, 7.25] * 10})
    frame["a"], frame["b"] = (
        frame["a"].astype("int64[pyarrow]"),
        frame["b"].astype("double[pyarrow]"),
    )
    frame["c"] = pd.Series(["x", "y", None, "x"] * 10, dtype="string[pyarrow]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = small().fit(frame).sample(50)
    assert made.dtypes.to_dict() == frame.dtypes.to_dict()
    assert set(made["a"].dropna()) <= {1, 2, 4} and set(made["b"].dropna()) <= {0.5, 2.5, 7.25}


NUMBERS = st.one_of(
    st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=60),
    st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=60),
    st.lists(st.integers(0, 5), min_size=2, max_size=60),
    st.lists(st.decimals(-999, 999, places=2).map(float), min_size=2, max_size=60),
)
TYPES = ["int64", "Int64", "float64", "Float64", "float32"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    values=NUMBERS,
    dtype=st.sampled_from(TYPES),
    holes=st.integers(0, 2**60),
    beyond=st.booleans(),
    seed=st.integers(0, 99),
)
def test_numbers_keep_type_and_support(values, dtype, holes, beyond, seed):
    if dtype in ("int64", "Int64"):
        values = [int(v) for v in values]
    series = pd.Series(values).astype(dtype).rename("x")
    if dtype != "int64":
        series = series.mask([bool(holes >> i & 1) for i in range(len(series))])
    if series.dropna().empty:
        return
    code = ColumnCode.fit(series, "continuous", beyond=beyond)
    code = ColumnCode.build(json.loads(json.dumps(code.config())))
    rng = np.random.default_rng(seed)
    again = code.decode(code.encode(series, rng))
    assert again.dtype == series.dtype and (again.isna() == series.isna()).all()
    made = code.decode(4 * rng.standard_normal((300, code.width)))
    assert made.dtype == series.dtype and made.name == "x"
    assert not made.isna().any() or series.isna().any()
    if not code.value.between:  # repeated numbers: they come back exactly, and no others
        assert (again.dropna() == series.dropna()).all()
        assert set(made.dropna()) <= set(series.dropna())
    if not beyond:
        assert series.min() <= made.min() and made.max() <= series.max()
    elif series.nunique() > 1:
        assert (
            made.dropna().between(series.min(), series.max()).mean() < 1 or len(made.dropna()) < 50
        )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    values=st.lists(st.text(max_size=5) | st.none(), min_size=2, max_size=40),
    dtype=st.sampled_from(["object", "string", "category"]),
    most=st.sampled_from([1, 16]),
)
def test_classes_keep_type_and_support(values, dtype, most):
    series = pd.Series(values, dtype=object).astype(dtype).rename("x")
    if series.dropna().empty:
        return
    if any("\0" in value for value in values if value):
        with pytest.raises(ValueError, match="column 'x' has texts with a NUL character"):
            check_values(series, "x")
        return
    check_values(series, "x")
    code = ColumnCode.fit(series, "category", most_classes=most)
    code = ColumnCode.build(json.loads(json.dumps(code.config())))
    rng = np.random.default_rng(0)
    pd.testing.assert_series_equal(code.decode(code.encode(series, rng)), series)
    made = code.decode(4 * rng.standard_normal((300, code.width)))
    assert made.dtype == series.dtype and set(made.dropna()) <= set(series.dropna())


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data(), n=st.integers(10, 30))
def test_any_frame_that_is_accepted_comes_back(data, n):
    columns = {
        "whole": st.integers(-9, 9),
        "number": st.floats(-1e3, 1e3),
        "maybe": st.floats(0, 1) | st.none(),
        "name": st.sampled_from(["a", "b", "c"]),
        "flag": st.booleans(),
        "day": st.datetimes(
            min_value=pd.Timestamp("2000-01-01"), max_value=pd.Timestamp("2030-01-01")
        ),
        "free": st.text(max_size=8) | st.none(),
    }
    chosen = data.draw(st.lists(st.sampled_from(sorted(columns)), min_size=1, unique=True))
    frame = pd.DataFrame(
        {name: data.draw(st.lists(columns[name], min_size=n, max_size=n)) for name in chosen},
        index=pd.Index(range(5, 5 + n), name=data.draw(st.sampled_from([None, "i"]))),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            flow = TableFlow(steps=1, hidden=4, layers=1, batch_size=4).fit(frame)
        except ValueError as error:
            assert "\n" not in str(error)
            return
    made = flow.sample(20)
    assert made.dtypes.to_dict() == frame.dtypes.to_dict() and list(made) == chosen
    assert made.index.equals(pd.RangeIndex(20)) and made.index.name == frame.index.name
    for name in chosen:
        if flow.schema[name].kind in ("continuous", "whole", "date"):
            assert made[name].dropna().between(frame[name].min(), frame[name].max()).all()
        elif flow.schema[name].kind in LEARNED:
            assert set(made[name].dropna()) <= set(frame[name].dropna())


KINDS = {
    "continuous": [RNG.normal(size=40), pd.to_timedelta(RNG.integers(0, 99, 40), unit="s")],
    "whole": [RNG.integers(0, 30, 40), RNG.integers(0, 30, 40).astype(float)],
    "two-valued": [RNG.random(40) < 0.5, ["yes", "no"] * 20, [3, 8] * 20],
    "category": [["a", "b", "c", "d"] * 10, pd.Categorical(["a", "b"] * 20)],
    "date": [
        pd.date_range("2020", periods=40),
        pd.date_range("2020", periods=40).strftime("%Y-%m-%d"),
    ],
    "constant": [[1.5] * 40, [None] * 40, ["x"] * 40],
    "identifier": [np.arange(40)[::-1], [f"a{i}" for i in range(40)]],
    "text": [[f"the {i} words of a note" for i in range(40)]],
}


@pytest.mark.parametrize("kind, values", [(k, v) for k, many in KINDS.items() for v in many])
def test_kinds(kind, values):
    found = schema(pd.DataFrame({"x": values}))
    assert found["x"].kind == kind
    assert Schema.from_json(found.to_json()) == found
    assert kind in repr(found) and found["x"].plan in repr(found)


def test_a_schema_says_what_was_seen_and_can_be_edited():
    frame = pd.DataFrame({"a": [0.0] * 30 + [0.25, 1.5, 9.75] * 10, "b": np.arange(60) % 7})
    frame.loc[0, "a"] = np.nan
    found = schema(frame)
    assert (found["a"].step, found["a"].heavy, found["a"].missing) == (0.25, 0.0, round(1 / 60, 6))
    assert "steps of 0.25" in found["a"].plan and "missing" in found["a"].plan
    assert (found["b"].low, found["b"].high) == ("0", "6")
    found["b"].kind = "category"
    flow = small(schema=found).fit(frame)
    assert (
        not isinstance(flow._codes[1].value, Ranks)
        and flow.sample(9)["b"].dtype == frame["b"].dtype
    )
    found["b"].kind = "number"
    with pytest.raises(ValueError, match="kind of column 'b' must be one of"):
        small(schema=found).fit(frame)
    with pytest.raises(ValueError, match="no schema"):
        Schema.from_json("{}")


def test_the_grid_and_gaps_between_numbers():
    values = pd.Series(np.round(RNG.normal(40, 5, 500), 1)).where(
        lambda x: (x < 38) | (x > 42), 35.0
    )
    code = ColumnCode.fit(values.rename("x"), "continuous")
    made = code.decode(RNG.standard_normal((2000, 1)).astype("float32"))
    assert (np.round(made, 1) == made).all()
    assert abs((made == 35.0).mean() - (values == 35.0).mean()) < 0.05  # a heavy value stays one
    masses = pd.Series(25 * RNG.integers(110, 250, 300)).rename("x")
    made = ColumnCode.fit(masses, "whole").decode(RNG.standard_normal((500, 1)))
    assert (made % 25 == 0).all() and made.nunique() > 50


def test_many_classes_take_one_number():
    labels = pd.Series([f"c{i}" for i in np.minimum(RNG.geometric(0.01, 5000), 900)], name="x")
    code = ColumnCode.fit(labels, "category")
    assert isinstance(code.value, Order) and code.width == 1
    made = code.decode(RNG.standard_normal((20000, 1)).astype("float32"))
    top = labels.value_counts(normalize=True).head(20)
    assert (made.value_counts(normalize=True).reindex(top.index) - top).abs().max() < 0.004


def a_law(n=1500, seed=0):
    """A class, a number that depends on it, and a third column that is sometimes missing."""
    rng = np.random.default_rng(seed)
    group = rng.choice(["a", "b", "c"], n, p=[0.5, 0.3, 0.2])
    place = pd.Series(group).map({"a": -2.0, "b": 0.0, "c": 3.0}).to_numpy()
    number = np.round(place + 0.5 * rng.normal(size=n), 2)
    other = pd.Series(number + 0.5 * rng.normal(size=n)).mask(
        (group == "c") & (rng.random(n) < 0.6)
    )
    return pd.DataFrame({"group": group, "number": number, "other": other})


@pytest.fixture(scope="module")
def learned():
    return TableFlow(
        steps=1200, hidden=48, layers=3, batch_size=128, coupling="independent", polish=0.2
    ).fit(a_law())


def test_a_law_is_learned_in_one_jump(learned):
    law, made = a_law(4000, seed=9), learned.sample(4000, seed=1)
    shares = law["group"].value_counts(normalize=True)
    assert (made["group"].value_counts(normalize=True) - shares).abs().max() < 0.06
    means = [frame.groupby("group")["number"].mean() for frame in (law, made)]
    assert (means[0] - means[1]).abs().max() < 0.6  # independent columns would be 3 apart
    lost = made["other"].isna().groupby(made["group"]).mean()
    assert abs(lost["c"] - 0.6) < 0.15 and lost["a"] < 0.06
    assert made[["number", "other"]].corr().iloc[0, 1] > 0.9
    assert set(made["group"]) == {"a", "b", "c"}
    assert (made["number"] * 100).round(9).mod(1).eq(0).all()


def test_a_condition_holds_and_moves_the_rest(learned):
    made = learned.sample(800, seed=2, condition={"group": "c"})
    assert (made["group"] == "c").all()
    assert abs(made["number"].mean() - 3.0) < 0.6 and abs(made["other"].isna().mean() - 0.6) < 0.2
    by_number = learned.sample(800, seed=2, condition={"number": -2.0, "other": None})
    assert (by_number["number"] == -2.0).all() and by_number["other"].isna().all()
    asked = pd.DataFrame({"group": ["a", "c"] * 100})
    rows = learned.sample(200, condition=asked)
    pd.testing.assert_series_equal(rows["group"], asked["group"])
    assert rows["number"][1::2].mean() - rows["number"][::2].mean() > 4


def test_missing_cells_are_filled_in(learned):
    frame = a_law(300, seed=4).set_index(pd.Index(range(1000, 1300), name="row"))
    holed = frame.copy()
    holed.loc[1000:1099, "number"] = np.nan
    holed.loc[1100:, "group"] = None
    full = learned.impute(holed, seed=0)
    assert not full.isna().any().any() and full.index.equals(frame.index)
    assert full.dtypes.equals(holed.dtypes)
    there = holed.notna()
    pd.testing.assert_frame_equal(full.where(there), holed.where(there))
    error = (full["number"] - frame["number"]).loc[1000:1099]
    assert error.abs().mean() < 1.2  # a draw from the whole column is 2.4 off
    assert (full["group"] == frame["group"]).loc[1100:].mean() > 0.48  # by chance 0.38
    pd.testing.assert_frame_equal(learned.impute(frame.dropna()), frame.dropna())


def test_samples_are_the_same_to_the_bit(learned, tmp_path):
    learned.save(tmp_path / "model")
    loaded = TableFlow.load(tmp_path / "model")
    for options in ({}, {"nfe": 3}, {"condition": {"group": "b"}}):
        one, other = (flow.sample(50, seed=3, **options) for flow in (learned, loaded))
        pd.testing.assert_frame_equal(one, other)
    assert not one.equals(learned.sample(50, seed=4, condition={"group": "b"}))
    pd.testing.assert_frame_equal(learned.sample(1500, seed=5)[:50], learned.sample(50, seed=5))
    twice = [TableFlow(steps=4, hidden=8).fit(a_law(100)).sample(20) for _ in range(2)]
    pd.testing.assert_frame_equal(*twice)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert loaded.schema == learned.schema and repr(loaded) == repr(learned)


def test_blocks_do_not_show(learned, monkeypatch):
    whole = learned.sample(5000, seed=6)
    monkeypatch.setattr(ifl.frames.table, "CHUNK", 1500)
    pd.testing.assert_frame_equal(learned.sample(5000, seed=6), whole)


def test_without_conditions():
    flow = small(conditions=False).fit(a_law(100))
    assert flow.model.data_shape == (6,) and len(flow.sample(5)) == 5
    with pytest.raises(ValueError, match="conditions=False"):
        flow.sample(5, condition={"group": "a"})


def test_beyond_the_support_only_if_asked():
    frame = pd.DataFrame({"x": RNG.normal(size=400), "n": RNG.poisson(3, 400).astype("uint8")})
    made = [small(beyond_support=beyond).fit(frame).sample(4000) for beyond in (False, True)]
    assert made[0]["x"].between(frame["x"].min(), frame["x"].max()).all()
    assert not made[1]["x"].between(frame["x"].min(), frame["x"].max()).all()
    assert made[1]["x"].abs().max() < 8 and made[1].dtypes.equals(frame.dtypes)


def test_ten_rows_warn():
    with pytest.warns(UserWarning, match="10 rows are few"):
        made = small().fit(a_law(10)).sample(5)
    assert len(made) == 5


def frame_of(**columns):
    return pd.DataFrame({"ok": np.arange(20) % 7, **columns})


MIXED = pd.Series([1, "a"] * 10, dtype=object)
BAD_FRAMES = {
    "no frame": ([[1, 2]], "must be a pandas DataFrame"),
    "empty": (pd.DataFrame(), "has no columns"),
    "header only": (pd.DataFrame({"a": []}), "has no rows, only a header"),
    "one row": (frame_of().head(1), "1 rows are too few"),
    "twice": (pd.concat([frame_of(), frame_of()], axis=1), "two columns named 'ok'"),
    "a tuple": (pd.DataFrame({("a", 1): range(20)}), "names must be strings"),
    "lists": (frame_of(x=[[1]] * 20), "type list: expected one value"),
    "infinities": (frame_of(x=[np.inf] * 3 + [1.0] * 17), "3 infinite values"),
    "all missing": (pd.DataFrame({"x": [np.nan] * 20}), "no column is left"),
    "constant": (pd.DataFrame({"x": [5] * 20}), "no column is left"),
    "mixed": (frame_of(x=MIXED), "mixes values of type int and str"),
    "NUL": (frame_of(x=["", "\0"] * 10), "has texts with a NUL character"),
    "untyped numbers": (frame_of(x=pd.Series(range(20), dtype=object)), "pd.to_numeric"),
    "untyped dates": (frame_of(x=[pd.Timestamp("2020").date()] * 20), "pd.to_datetime"),
    "complex": (frame_of(x=np.ones(20, dtype=complex)), "type complex128"),
    "periods": (frame_of(x=pd.period_range("2020", periods=20)), "period"),
    "huge": (frame_of(x=np.full(20, 2**63, dtype="uint64")), "beyond"),
    "odd categories": (frame_of(x=pd.cut(np.arange(20), 3)), "Interval"),
}


@pytest.mark.parametrize("frame, message", BAD_FRAMES.values(), ids=list(BAD_FRAMES))
def test_a_bad_frame_is_refused_in_one_line(frame, message):
    with pytest.raises(ValueError, match=message) as caught:
        small().fit(frame)
    assert "\n" not in str(caught.value)


def wide(n=20):
    return pd.DataFrame(RNG.integers(0, 9, (n, 5000)), columns=[f"c{i}" for i in range(5000)])


BAD_CALLS = {
    "not fitted": (lambda f: TableFlow().sample(3), "nothing was fitted"),
    "not fitted to save": (lambda f: TableFlow().save("nowhere"), "nothing was fitted"),
    "unknown column": (lambda f: f.sample(3, condition={"weight": 1}), "no condition can be on"),
    "unknown class": (
        lambda f: f.sample(3, condition={"group": "z"}),
        "never was 'z': expected one",
    ),
    "outside": (
        lambda f: f.sample(3, condition={"number": 99.0}),
        "never was 99.0: expected values",
    ),
    "no number": (lambda f: f.sample(3, condition={"number": "big"}), "of type float64"),
    "never missing": (lambda f: f.sample(3, condition={"number": None}), "never was missing"),
    "wrong length": (
        lambda f: f.sample(3, condition={"number": [1.0, 2.0]}),
        "2 values for 3 rows",
    ),
    "no dict": (lambda f: f.sample(3, condition="a"), "must be a dict"),
    "no rows": (lambda f: f.sample(0), "n must be"),
    "other columns": (
        lambda f: f.impute(a_law(9).drop(columns="other").assign(q=1)),
        "lacks 'other'",
    ),
    "other values": (
        lambda f: f.impute(a_law(9).assign(group="z", other=np.nan)),
        "never was 'z'",
    ),
    "other schema": (lambda f: small(schema=f.schema).fit(frame_of()), "the schema is of other"),
    "no schema": (lambda f: TableFlow(schema={"a": 1}), "schema must be"),
    "steps": (lambda f: TableFlow(steps=0), "steps must be"),
    "polish": (lambda f: TableFlow(polish=2), "polish must be"),
    "coupling": (lambda f: TableFlow(coupling="best"), "coupling must be"),
    "too many columns": (lambda f: small().fit(wide()), "5,000 columns are more than 4,096"),
    "too wide": (
        lambda f: small(most_classes=5000).fit(
            pd.DataFrame({"x": [f"c{i % 5000}" for i in range(10100)]})
        ),
        "a row becomes 5,000 numbers, more than 4,096",
    ),
    "wrong kind": (lambda f: of_kind("group", "continuous"), "holds no numbers"),
    "no constant": (lambda f: of_kind("number", "constant"), "different values"),
    "no text": (lambda f: of_kind("number", "text"), "holds no texts"),
    "no id": (lambda f: of_kind("number", "identifier"), "no whole numbers or texts"),
}


def of_kind(name, kind):
    found = schema(a_law(100))
    found[name].kind = kind
    return small(schema=found).fit(a_law(100))


@pytest.mark.parametrize("call, message", BAD_CALLS.values(), ids=list(BAD_CALLS))
def test_a_bad_call_is_refused_in_one_line(call, message, learned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        call(learned)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_folder_of_another_model_is_refused(tmp_path):
    ifl.FlowMap(ifl.MLP(dim=2), ifl.RectifiedFlow()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no TableFlow"):
        TableFlow.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        TableFlow.load(tmp_path / "none")


def test_identifiers_go_on_and_do_not_overflow():
    ids = LeftOut.fit(pd.Series([f"x-{i}" for i in range(7, 12)], name="i"), "identifier")
    assert ids.make(0, 2).tolist() == ["x-12", "x-13"] and ids.make(5, 1).tolist() == ["x-17"]
    odd = LeftOut.fit(pd.Series(["blue", "red"], name="i"), "identifier")
    assert odd.make(0, 2).tolist() == ["i_1", "i_2"]
    short = LeftOut.fit(pd.Series(range(100), dtype="int8", name="i"), "identifier")
    assert short.make(0, 28).max() == 127
    with pytest.raises(ValueError, match="no room for identifiers"):
        short.make(0, 29)


# ---------------------------------------------------------------------- data frames that ship


def test_frames_by_name():
    penguins, weather = ifl.data.frame("penguins"), ifl.data.frame("weather")
    assert penguins.shape == (344, 8) and int(penguins.isna().sum().sum()) == 19
    assert weather.shape == (26115, 15) and round(weather["wind_speed"].max(), 2) == 1048.36
    assert str(weather["time_hour"].dtype) == "datetime64[ns, UTC]"
    assert (
        weather["wind_gust"].isna().sum() == 20778
        and weather["wind_speed"].iloc[0] == 10.357019999999999
    )
    found = schema(penguins)
    assert [found[name].kind for name in ("species", "bill_length_mm", "body_mass_g", "sex")] == [
        "category",
        "continuous",
        "whole",
        "two-valued",
    ]
    with pytest.raises(ValueError, match="unknown data frame"):
        ifl.data.frame("iris")


def test_randhie_comes_from_statsmodels(monkeypatch):
    pytest.importorskip("statsmodels")
    assert ifl.data.frame("randhie").shape == (20190, 10)
    monkeypatch.setitem(__import__("sys").modules, "statsmodels.datasets", None)
    with pytest.raises(ImportError, match="pip install statsmodels"):
        ifl.data.frame("randhie")


def test_a_frame_of_ones_own():
    @ifl.data.register_frame("mine_in_a_test")
    def mine():
        return pd.DataFrame({"a": [1]})

    assert ifl.data.frame("mine_in_a_test").shape == (1, 1)
    with pytest.raises(ValueError, match="registered already"):
        ifl.data.register_frame("mine_in_a_test")(lambda: None)
    del ifl.data.FRAMES["mine_in_a_test"]
