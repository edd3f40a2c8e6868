"""The comparison with the neighbours at equal cost: losses and calls of each are understood, the search is equal, verdicts are right."""

import inspect
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import iflow_lib as ifl
from experiments import peers, plane_quality, vs_peers
from experiments.peers import CONTENDERS
from experiments.readme_tables import vs_peers_table
from experiments.store import Store, read_manifest
from iflow_lib import zoo
from iflow_lib.metrics import support

NEIGHBOURS = [name for name, who in CONTENDERS.items() if not who.ours]


def present(name: str) -> peers.Contender:
    """The contender; without its package the test is skipped."""
    if why := CONTENDERS[name].absent():
        pytest.skip(why)
    return CONTENDERS[name]


@pytest.fixture
def few(monkeypatch):
    """Metrics of few points."""
    support._support_of.cache_clear()
    monkeypatch.setattr(zoo, "POINTS", 60)
    monkeypatch.setattr(support, "SUPPORT", 3000)
    monkeypatch.setattr(plane_quality, "PLACED", 200)
    yield
    support._support_of.cache_clear()


def model_of(net: nn.Module | None = None) -> ifl.FlowMap:
    torch.manual_seed(0)
    net = ifl.MLP(2, 16, 2) if net is None else net
    if hasattr(net, "out"):
        nn.init.normal_(net.out.weight, std=0.3)
    return ifl.FlowMap(net, ifl.RectifiedFlow())


# ---------------------------------------------------------------- what a neighbour's loss learns


SCALE = (
    0.5  # of the data, which are Gaussian: not 1, or the two directions of time would look the same
)


class Exact(nn.Module):
    """The average velocity from N(0, I) to N(0, SCALE^2 I), times 1 + error."""

    data_shape = (2,)

    def __init__(self, error: float):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0 + error))

    def forward(self, x, t, s):
        def width(time):
            return (SCALE**2 * (1 - time) ** 2 + time**2).sqrt()

        velocity = (t - SCALE**2 * (1 - t)) / width(t) ** 2
        apart = t - s
        near = apart.abs() < 1e-3
        # at s = t the limit; a division by nothing would spoil the derivative too
        mean = (1 - width(s) / width(t)) / torch.where(near, torch.ones_like(apart), apart)
        return self.factor * torch.where(near, velocity, mean)[:, None] * x


NO_WEIGHT = {
    "MeanFlow": {"use_adaptive_loss_weight": False},
    "SplitMeanFlow": {"exchange": True, "zero_boundary": True},
    "SoFlow": {
        "adaptive_loss_weight_p": 0.0,
        "lambda_flow_matching": 0.0,
        "r_init": 0.02,
        "r_end": 0.02,
    },
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_neighbour_learns_our_average_velocity(name):
    """Its loss has no slope at the exact one, and has one beside it: so the adapter has times and signs right."""
    who = present(name)
    if name == "OT-CFM":
        pytest.skip("the flow of paired noise is another")
    slopes = {}
    for error in (0.0, 0.2, -0.2):
        model = model_of(Exact(error))
        objective, x = who.objective(NO_WEIGHT.get(name, {}), 100), SCALE * torch.randn(20_000, 2)
        objective.prepare(model, ifl.data.TensorData(x))
        torch.manual_seed(1)
        slopes[error] = 0.0
        for _ in range(4):  # a coin decides what a step is
            model.net.factor.grad = None
            objective(model, x).backward()
            slopes[error] += float(model.net.factor.grad)
    assert abs(slopes[0.0]) < 0.15 * min(slopes[0.2], -slopes[-0.2]), slopes


def test_pairs_by_optimal_transport_go_from_noise_to_data():
    """With the exact velocity of the map x -> SCALE x, which is the optimal one, the loss is nearly nothing."""
    who = present("OT-CFM")

    class Straight(nn.Module):
        data_shape = (2,)

        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(1.0))

        def forward(self, x, t, s):
            return self.factor * (1 - SCALE) / (SCALE + (1 - SCALE) * t)[:, None] * x

    model, x = model_of(Straight()), SCALE * torch.randn(512, 2)
    objective = who.objective({}, 10)
    objective.prepare(model, ifl.data.TensorData(x))
    by_chance = (torch.randn_like(x) - x).square().mean()
    assert objective(model, x) < 0.1 * by_chance


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_neighbour_samples_as_ours_do(name):
    """With the same network and the same noise; but MeanFlow's several steps are Euler's."""
    who, model = present(name), model_of()
    own = {"exchange": True, "zero_boundary": True} if name == "SplitMeanFlow" else {}
    objective = who.objective(own, 10)
    ways = peers.ways(who, objective, (1, 2, 4))
    assert {nfe for _, nfe in ways} == {1, 2, 4}
    for sampler, nfe in ways:
        x = peers.sample(objective, model, sampler, nfe, 300, 3)
        as_euler = who.solver or (name == "MeanFlow" and nfe > 1)
        known = {"own": "euler" if as_euler else "map"}.get(sampler, sampler)
        if sampler == "midpoint":
            y = midpoint(
                model, torch.cat(list(ifl.sampling.initial_noise(model, 300, 3))), nfe // 2
            )
        else:
            y = ifl.sample(model, 300, nfe - (known == "heun"), known, 3).x
        assert torch.allclose(x, y, atol=1e-5), sampler


@torch.no_grad()
def midpoint(model, x, steps):
    for k in range(steps, 0, -1):
        t, m = (torch.full((len(x),), k / steps - part / steps) for part in (0, 0.5))
        half = x - model(x, t, t) / (2 * steps)
        x = x - model(half, m, m) / steps
    return x


def test_an_exact_jump_to_the_data_stays_exact_with_fresh_noise():
    model, who = model_of(Exact(0.0)), CONTENDERS["ConsistencyTraining"]
    objective = who.objective({}, 10)
    assert peers.ways(who, objective, (1, 2, 4)) == [("map", 1), ("renoise", 2), ("renoise", 4)]
    once = peers.sample(objective, model, "map", 1, 20_000, 0)
    for nfe in (2, 4):
        x = peers.sample(objective, model, "renoise", nfe, 20_000, 0)
        assert x.std() == pytest.approx(SCALE, rel=0.02) and not torch.allclose(x, once, atol=0.1)


# ---------------------------------------------------------------- cost


COINS = {
    "MeanFlow": ("prob_default_flow_obj", 0.0, 1.0),
    "SplitMeanFlow": ("prob_default_flow_obj", 0.0, 1.0),
    "SoFlow": ("lambda_flow_matching", 0.0, 1.0),
}


@pytest.mark.parametrize("name", CONTENDERS)
def test_calls_per_step(name):
    """Counted as the network is called. A derivative in forward mode is one call more, with a backward pass if it has a gradient."""
    who, count = present(name), 0.0
    coin, *values = COINS.get(name, ("", None))

    class Counting(ifl.MLP):
        def forward(self, x, *rest, **known):
            nonlocal count
            count += len(x) * (3 if torch.is_grad_enabled() else 1)
            if forward_ad._current_level >= 0:
                count += len(x) * (3 if name == "LSD" else 1)
            return super().forward(x, *rest, **known)

    for value in values:
        model, x = model_of(Counting(2, 8, 1)), torch.randn(64, 2)
        objective = who.objective({} if value is None else {coin: value}, 10)
        objective.prepare(model, ifl.data.TensorData(x), seed=0)
        count = 0.0
        objective(model, ifl.Batch(x), torch.Generator()).backward()
        assert peers.calls_per_step(objective) == count / 64


def test_equal_cost():
    """As many calls for all, up to half a step; and so many steps of FlowMatching, times 1.5."""
    assert vs_peers.equal_steps(peers.calls_per_step(ifl.FlowMatching()), 4000) == 6000
    for calls in (3.25, 3.5, 10):
        assert abs(vs_peers.equal_steps(calls, 4000) * calls - 18_000) <= calls / 2


# ---------------------------------------------------------------- the search


def test_an_equal_search():
    """Rates and octaves of the k-th candidates are the same for all; the first has the defaults of the library and its own."""
    found = {name: who.candidates(8) for name, who in CONTENDERS.items()}
    shared = [{k: v for k, v in one.items() if k != "own"} for one in found["LSD"]]
    for settings in found.values():
        assert [{k: v for k, v in one.items() if k != "own"} for one in settings] == shared
    net = ifl.MLP(2)
    first = {"lr": net.lr, "features": net.features, "frequencies": net.frequencies}
    assert shared[0] == first and len({one["lr"] for one in shared}) == 8
    logs = np.log10([one["lr"] for one in shared[1:]])
    assert (np.abs(np.sort(logs) - (-3 + (np.arange(7) + 0.5) / 7)) < 0.5 / 7 + 0.002).all()
    assert {one["features"] for one in shared[1:]} == set(peers.FEATURES)
    assert all(candidates[0]["own"] == {} for candidates in found.values())
    for name, who in CONTENDERS.items():  # each value of each axis has its turn
        for values in (value for axis in who.space for value in axis[1:]):
            assert any(values.items() <= one["own"].items() for one in found[name]), name


@pytest.mark.parametrize("name", CONTENDERS)
def test_candidates_are_what_their_classes_take(name):
    """Also after a detour through JSON, as their runs are kept."""
    who = present(name)
    for one in json.loads(json.dumps(who.candidates(8))):
        objective = who.objective(one["own"], 10)
        objective.prepare(model_of(), ifl.data.TensorData(torch.randn(8, 2)))
        own = {k: v for k, v in one["own"].items() if k != "coupling"}
        assert json.loads(json.dumps(objective.config())).items() >= own.items()
        if not who.ours and name not in ("OT-CFM", "flow_matching", "SplitMeanFlow"):
            assert own.keys() <= set(inspect.signature(type(objective).neighbour()).parameters)


# ---------------------------------------------------------------- the whole of it, in small


def test_vs_peers(few, tmp_path, monkeypatch, capsys):
    """A neighbour that cannot be imported has a row that says so; a run that was stopped goes on; the table comes at the end."""
    present("SoFlow")
    monkeypatch.setitem(sys.modules, "torchcfm.conditional_flow_matching", None)
    monkeypatch.setattr(vs_peers, "SEARCH_SETS", ("spiral",))
    own, trained, stop = vs_peers.train, 0, 7

    def train(**settings):
        nonlocal trained
        trained += 1
        if trained == stop:
            raise KeyboardInterrupt
        return own(**settings)

    monkeypatch.setattr(vs_peers, "train", train)
    options = "--candidates 2 --short 2 --steps 3 --seeds 2 --draws 2 --sets spiral --contenders"
    options = [*options.split(), "IntegralIdentity", "FlowMatching", "SoFlow", "OT-CFM"]
    options += ["--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    with pytest.raises(KeyboardInterrupt):
        vs_peers.main(options)
    stop = 0
    vs_peers.main(options)
    assert trained == 3 * 2 + 3 * 2 + 1  # searched, result, and the one that was stopped
    files = [tmp_path / f"{name}.csv" for name in ("vs_peers", "vs_peers_runs")]
    result, runs = map(pd.read_csv, files)
    assert list(runs) == vs_peers.COLUMNS
    assert list(runs.role.value_counts().reindex(["candidate", "absent"])) == [3 * 2, 1]
    for name, rows in runs[runs.role == "result"].groupby("contender"):
        scores = {
            k: vs_peers.score(one, CONTENDERS[name].weights)
            for k, one in runs.query("role == 'search' and contender == @name").groupby("candidate")
        }
        assert set(rows.candidate) == {min(scores, key=scores.get)}
        calls = rows.calls_per_step.iloc[0]
        assert set(rows.steps) == {round(1.5 * 3 * 3 / calls)} and set(rows.seed) == {0, 1}
        assert set(rows.nfe) == set(CONTENDERS[name].nfes)
    measured = runs[runs.role.isin(["search", "result"])]
    assert (measured.w2 / measured.floor > 0).all() and measured.seconds.gt(0).all()
    assert measured[measured.role == "search"].floor.nunique() == 1  # of one seed, on other draws
    assert len(result) == 3 * 3 + 3 + 1 and result.groupby(["dataset", "nfe"]).size().sum() == 12
    assert (result.dropna(subset="nfe").groupby("nfe").first().verdict == "first").all()
    last = result.iloc[-1]
    assert last.contender == "OT-CFM" and last.verdict.startswith(
        "not measured: import of torchcfm"
    )
    about = read_manifest(files[1])
    assert about["neighbours"] == peers.versions() and len(about["runs"]) == 6 + 6 + 1 + 2
    before = [file.read_bytes() for file in files]
    vs_peers.main(options)
    assert trained == 13 and [file.read_bytes() for file in files] == before
    assert "OT-CFM (torchcfm) was not measured" in vs_peers_table(result)
    assert capsys.readouterr().out.count("ours_verdict") == 2


def test_when_time_is_up_what_is_kept_still_counts(tmp_path):
    def one(n):
        return [{"w2": n}], {}

    runs = {f"run{n}": (one, {"n": n}) for n in range(3)}
    about = {name: {"role": "floor"} for name in runs}
    store = Store(tmp_path)
    store.get(one, n=1)
    work = vs_peers.Work(store, 1, 1e-9)
    assert not work.do(runs, about) and list(work.table().w2) == [1]
    work = vs_peers.Work(store, 1, 0)
    assert work.do(runs, about) and sorted(work.table().w2) == [0, 1, 2]


def test_a_training_that_diverges_is_infinitely_far_away(few, monkeypatch):
    def diverged(*given):
        raise FloatingPointError("the loss is NaN")

    monkeypatch.setattr(ifl, "fit", diverged)
    settings = CONTENDERS["FlowMatching"].candidates(1)[0]
    rows, how = vs_peers.train("FlowMatching", settings, "spiral", 0, 2, 1, "test", [1, 4])
    assert [(r["sampler"], r["nfe"]) for r in rows] == [("euler", 1), ("euler", 4), ("heun", 4)]
    assert all(row["w2"] == np.inf for row in rows) and "NaN" in how["diverged"]


# ---------------------------------------------------------------- verdicts


def table_of(values: dict) -> pd.DataFrame:
    """Rows of results. values: (contender, sampler) -> ratios of the seeds, of one set at two calls."""
    known = {"role": "result", "dataset": "spiral", "nfe": 2, "steps": 5, "calls_per_step": 3.0}
    known |= {"seconds": 1.0, "off_support": 0.1, "floor": 0.5}
    rows = [
        known | {"contender": name, "sampler": sampler, "seed": seed, "w2": 0.5 * ratio}
        for (name, sampler), ratios in values.items()
        for seed, ratio in enumerate(ratios)
    ]
    return pd.DataFrame(rows, columns=vs_peers.COLUMNS)


def test_verdicts():
    """Tied is whose difference to the first, seed by seed, has an interval with 0 in it: not whose own interval meets the first's."""
    table = table_of({
        ("IntegralIdentity", "map"): [1.0, 1.2, 1.4],
        ("SoFlow", "own"): [1.05, 1.25, 1.45],  # always a bit behind, though seeds differ by more
        ("MeanFlow", "own"): [3.0, 3.0, 3.0],
        ("MeanFlow", "map"): [1.4, 1.1, 1.3],
        ("FlowMatching", "heun"): [9.0, 9.1, 9.0],
        ("LSD", "own"): [1.0, np.inf, 1.0],
    })  # fmt: skip
    absent = {"contender": "OT-CFM", "role": "absent", "note": "torchcfm is not installed"}
    table = pd.concat([table, pd.DataFrame([absent])], ignore_index=True)
    found = vs_peers.verdicts(table).set_index("contender")
    order = ["IntegralIdentity", "SoFlow", "MeanFlow", "FlowMatching", "LSD", "OT-CFM"]
    assert list(found.index) == order
    assert found.verdict["IntegralIdentity"] == "first" and found.verdict["MeanFlow"] == "tied"
    assert found.verdict["SoFlow"] == f"behind IntegralIdentity: {CONTENDERS['SoFlow'].why}"
    assert "needs many calls" in found.verdict["FlowMatching"]
    assert found.verdict["LSD"] == "behind IntegralIdentity: it diverged"
    assert found.verdict["OT-CFM"] == "not measured: torchcfm is not installed"
    assert found.sampler["MeanFlow"] == "map" and found.ratio["MeanFlow"] == pytest.approx(3.8 / 3)
    assert found.behind["SoFlow"] == pytest.approx(0.05) and found.interval["SoFlow"] > 0.4
    beside = vs_peers.ours_beside(vs_peers.verdicts(table)).iloc[0]
    assert (beside.ours, beside.neighbour) == ("IntegralIdentity", "SoFlow")
    shown = vs_peers_table(vs_peers.verdicts(table))
    assert "| spiral | 2 | IntegralIdentity, 1.20 ± 0.50 | SoFlow, 1.25 ± 0.50 | first |" in shown
    assert shown.endswith("OT-CFM (torchcfm) was not measured: torchcfm is not installed")


def test_of_one_seed_nobody_is_behind():
    table = table_of({("IntegralIdentity", "map"): [2.0], ("LSD", "own"): [1.0]})
    assert list(vs_peers.verdicts(table).verdict) == ["first", "tied"]


def test_every_contender_has_a_reason():
    assert all(len(who.why.split()) >= 5 for who in CONTENDERS.values())
    assert vs_peers_table(pd.DataFrame()) == ""


def test_a_neighbour_that_is_not_there(monkeypatch):
    """Its package, or its objective, as an older version lacks it."""
    monkeypatch.setattr(peers, "version", lambda package: None)
    monkeypatch.setattr(peers.LsdFlow, "module", "a_package_that_nobody_has")
    assert CONTENDERS["LSD"].absent() == "rectified-flow-pytorch is not installed"
    monkeypatch.setattr(peers, "version", lambda package: "0.1")
    monkeypatch.setattr(peers.LsdFlow, "module", "math")
    assert CONTENDERS["LSD"].absent() == "rectified-flow-pytorch 0.1 has no LsdFlow"
    assert CONTENDERS["IntegralIdentity"].absent() == ""
