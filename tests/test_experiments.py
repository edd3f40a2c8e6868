"""The experiments run from their command lines and write tables that README.md can be made from."""

import dataclasses
import hashlib
import importlib
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student
from torch.utils.flop_counter import FlopCounterMode

import iflow_lib as ifl
from experiments import common, plane_quality, readme_tables, searches, store
from iflow_lib import zoo
from iflow_lib.io import weights_digest
from iflow_lib.metrics import support
from iflow_runner.recorder import COLUMNS

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference" / "bench"


@pytest.fixture
def experiment(monkeypatch):
    """``experiment(name, *options)`` does what ``python -m experiments.name *options`` does, in this process, and gives the
    module."""
    # speed.py sets it; so it is taken back
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

    def run(name: str, *options):
        module = importlib.import_module(f"experiments.{name}")
        if options:
            module.main([str(option) for option in options])
        return module

    return run


@pytest.fixture
def small(monkeypatch):
    """Metrics of few points, and a card of a model that says little."""
    own = zoo.evaluate
    monkeypatch.setattr(zoo, "POINTS", 80)
    monkeypatch.setattr(zoo, "evaluate", lambda *a, **b: own(*a, **{"n": 80, **b}))


def names() -> list[str]:
    files = (ROOT / "experiments").glob("*.py")
    return sorted(f.stem for f in files if 'if __name__ == "__main__"' in f.read_text())


def test_an_experiment_is_a_command():
    command = [sys.executable, "-m", "experiments.precision", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--seeds" in done.stdout


def test_the_readme_of_the_experiments_names_each():
    """And each file that it names is there."""
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert [name for name in names() if f"experiments.{name}`" not in text] == []
    for file in (ROOT / "results" / "reference").rglob("*.csv"):
        assert file.name in text, file


# ---------------------------------------------------------------- the store


def count(n: int, offset: int = 0, nfes=(1,)) -> tuple[list[dict], dict]:
    Path(os.environ["CALLS"]).open("a").write("x")
    rows = [{"metric": "w2", "value": 0.1 * n + offset, "nfe": nfe, "seed": n} for nfe in nfes]
    return rows, {"n": n}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """How many times ``count`` was called, in this process or in others."""
    file = tmp_path / "calls"
    monkeypatch.setenv("CALLS", str(file))
    return lambda: len(file.read_text()) if file.exists() else 0


def test_a_run_is_done_once(tmp_path, calls):
    """Other settings are another run, each of them; what is damaged or half-written is no run."""
    kept = store.Store(tmp_path / "runs")
    first = kept.get(count, n=1, nfes=[1])
    assert first.rows == [{"metric": "w2", "value": 0.1, "nfe": 1, "seed": 1}]
    assert first.manifest["settings"] == {"n": 1, "nfes": [1]} and "commit" in first.manifest
    assert kept.get(count, nfes=[1], n=1).rows == first.rows and calls() == 1
    for i, settings in enumerate(({"n": 2, "nfes": [1]}, {"n": 1, "nfes": [2]}, {"n": 1})):
        kept.get(count, **settings)
        assert calls() == 2 + i
    assert len(list((tmp_path / "runs").iterdir())) == 4


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.long)])
def test_runs_that_are_missing_are_added_to_a_table(tmp_path, calls, jobs):
    """Not again what the table has, not again what the store has; but again what had other settings."""
    kept = store.Store(tmp_path / "runs")
    runs = {f"run{n}": (count, {"n": n, "nfes": [1]}) for n in range(3)}
    store.extend_table(tmp_path, "table", kept, {"run1": runs["run1"]}, jobs)
    first = (tmp_path / "table.csv").read_text()
    store.extend_table(
        tmp_path, "table", store.Store(tmp_path / "none"), {"run1": runs["run1"]}, jobs
    )
    assert calls() == 1
    store.extend_table(tmp_path, "table", kept, runs, jobs, about_all=5)
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table) == list(COLUMNS) and list(table.run_id) == ["run0", "run1", "run2"]
    assert first.splitlines()[1] in (tmp_path / "table.csv").read_text() and calls() == 3
    manifest = store.read_manifest(tmp_path / "table.csv")
    assert manifest["runs"]["run2"]["n"] == 2 and manifest["about_all"] == 5
    (tmp_path / "table.csv").unlink()
    (tmp_path / "table.manifest.json").unlink()
    store.extend_table(tmp_path, "table", kept, runs, jobs)
    assert calls() == 3 and pd.read_csv(tmp_path / "table.csv").equals(table)
    runs["run1"] = (count, {"n": 1, "nfes": [1, 2]})
    store.extend_table(tmp_path, "table", kept, runs, jobs)
    table = pd.read_csv(tmp_path / "table.csv")
    assert calls() == 4 and list(table[table.run_id == "run1"].nfe) == [1, 2] and len(table) == 4


def test_a_run_that_fails_or_is_stopped_is_not_kept_and_what_was_done_is(tmp_path, calls):
    def stopped(n):
        run = ifl.TrainRun(
            None, None, {"interrupted": True, "steps_done": n, "config": {"steps": 9}}
        )
        return [], common.finished(run).manifest

    kept = store.Store(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="stopped after 3 of 9 steps"):
        kept.get_all({"a": (count, {"n": 1}), "b": (stopped, {"n": 3}), "c": (count, {"n": 2})})
    assert calls() == 1 and [f.name[:5] for f in tmp_path.glob("*.json")] == ["count"]
    assert list(kept.get_all({"a": (count, {"n": 1})}, minutes=1e-9)) == [] and calls() == 1


def test_a_table_in_markdown():
    shown = common.markdown(["", "a", ""], [["x", "", 1], ["y", 2.5, ""]])
    assert shown == "| | a | |\n|---|---|---|\n| x | | 1 |\n| y | 2.5 | |"


# ---------------------------------------------------------------- the experiments, in small


@pytest.mark.parametrize(
    "name, options, runs",
    [
        (
            "quality_vs_peers",
            ["--steps", "4", "--draws", "2", "--seeds", "1", "--sets", "eight_gaussians"],
            15 + 8,
        ),
        (
            "self_anchor",
            ["--steps", "4", "--draws", "1", "--seeds", "1", "--sets", "checkerboard"],
            6,
        ),
        (
            "precision",
            ["--steps", "4", "--draws", "1", "--seeds", "1", "--sets", "checkerboard"],
            3,
        ),
        ("exactness", ["--shorten", "4000", "--seeds", "1", "--dims", "2"], 32),
    ],
)
def test_table_of_runs(name, options, runs, tmp_path, experiment, small):
    options = ["--out", tmp_path, "--runs", tmp_path / "runs", *options]
    experiment(name, *options)
    table, kept = pd.read_csv(tmp_path / f"{name}.csv"), list((tmp_path / "runs" / name).iterdir())
    reference = pd.read_csv(REFERENCE / f"{name}.csv")
    assert list(table) == list(reference) and len(table) < len(reference)
    assert runs / 2 < len(kept) <= runs
    manifest = json.loads((tmp_path / f"{name}.manifest.json").read_text())
    assert manifest["environment"]["versions"]["torch"] and len(manifest["runs"]) == len(kept)
    times = {file: file.stat().st_mtime_ns for file in kept}
    experiment(name, *options)  # from what is kept
    assert {file: file.stat().st_mtime_ns for file in kept} == times
    assert pd.read_csv(tmp_path / f"{name}.csv").equals(table)


SPEED = "--networks MLP --compile --repetitions 3 --objectives FlowMatching".split()


@pytest.mark.long
def test_speed(tmp_path, experiment):
    """Training steps; a part that is measured again replaces its own rows alone."""
    options = [*SPEED, "--peers", "torchcfm", "--out", tmp_path, "--parts", "training"]
    experiment("speed", *options)
    before, reference = (pd.read_csv(f / "speed.csv") for f in (tmp_path, REFERENCE))
    assert set(reference.part) == {"training", "memory", "sampling", "threads"}
    assert list(before) == list(reference)
    training = before.set_index("contender")
    assert len(training) == 2 + 2 and set(training.index) < set(reference.contender)
    assert training.ratio["FlowMatching"] == 1 and (training.low <= training.ratio).all()
    assert (training.ratio <= training.high).all() and (training.seconds > 0).all()
    experiment("speed", *options, "sampling")
    both = pd.read_csv(tmp_path / "speed.csv")
    sampling = both[both.part == "sampling"].pivot(index="nfe", columns="batch", values="seconds")
    assert list(sampling.index) == [1, 2, 4, 50] and (sampling.loc[50] > 5 * sampling.loc[1]).all()
    assert len(both[both.part == "training"]) == len(before)
    experiment("speed", *options)
    again = pd.read_csv(tmp_path / "speed.csv")
    assert (
        again[again.part == "sampling"]
        .reset_index(drop=True)
        .equals(both[both.part == "sampling"].reset_index(drop=True))
    )
    assert len(store.read_manifest(tmp_path / "speed.csv")["measured"]) == 2


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux")
def test_speed_of_all_neighbours_and_memory(tmp_path, experiment):
    peers = [
        "torchcfm",
        "flow_matching",
        "rectified-flow-pytorch",
        "rectified-flow-pytorch MeanFlow",
    ]
    options = [*SPEED, "X0Regression, per_example", "--out", tmp_path, "--peers", *peers]
    experiment("speed", *options, "--parts", "training", "memory")
    table = pd.read_csv(tmp_path / "speed.csv")
    assert sum(table.part == "training") == 3 + 8
    assert (table[table.part == "memory"].megabytes > 0).all() and sum(table.part == "memory") == 2


def test_what_is_said_of_speed():
    """The bounds that docs/peers.md and docs/scaling.md state, on the measured table."""
    table = pd.read_csv(REFERENCE / "speed.csv")
    ratio = table[table.part == "training"].set_index(["network", "contender"]).ratio
    loops = ["torchcfm", "flow_matching", "rectified-flow-pytorch"]
    for network in ("MLP", "UNet"):
        found = ratio[network]
        assert found["FlowMatching, no clipping"] <= found[loops].min()
        assert 1 <= found[[f"{name} + clipping and EMA" for name in loops]].min()
        assert (
            found["IntegralIdentity"] <= found["rectified-flow-pytorch MeanFlow"]
            and found["IntegralIdentity"] <= 2
        )
        assert found["IntegralIdentity, compiled"] <= 1.5
    jumps = (
        table[(table.part == "sampling") & (table.contender == "eager")]
        .set_index(["network", "batch", "nfe"])
        .ratio
    )
    assert (jumps.xs((256, 50), level=("batch", "nfe")) > 40).all()
    memory = table[table.part == "memory"].set_index(["network", "contender"]).megabytes
    assert {contender for _, contender in memory.index} >= {
        "FlowMatching",
        "IntegralIdentity",
        "IntegralAdditivity",
    }


def test_what_is_said_of_precision():
    """Neither the difference nor bfloat16 is worse than the exact derivative by more than the seeds differ."""
    wide = pd.read_csv(REFERENCE / "precision.csv").pivot(
        index=["dataset", "seed"], columns="variant", values="w2"
    )
    assert len(wide) >= 2 * 3
    for name in ("difference", "jvp, bfloat16"):
        apart = wide[name] - wide["jvp"]
        assert (
            apart.mean() - student.ppf(0.975, len(apart) - 1) * apart.std() / len(apart) ** 0.5 < 0
        )
        assert abs(apart.mean()) < 0.05 * wide["jvp"].mean()


def test_calls_per_step_are_the_network_calls():
    """Counted as the network is called: one for a forward pass, two more where a backward pass follows."""
    count = 0.0

    class Counting(ifl.MLP):
        def forward(self, x, *rest, **known):
            nonlocal count
            count += len(x) * (3 if torch.is_grad_enabled() else 1)
            return super().forward(x, *rest, **known)

    objectives = [make() for make in zoo.KINDS.values()]
    objectives += [
        ifl.IntegralIdentity(equal_share=0.25),
        ifl.IntegralIdentity(tangent="conditional"),
        ifl.IntegralIdentity(gap=0.02, equal_share=0.75),
        ifl.IntegralIdentity(gap=0.02, tangent="conditional"),
        ifl.TerminalVelocity(),
        ifl.EnergyMatching(ifl.IntegralIdentity(gap=0.02)),
        ifl.EnergyMatching(ifl.IntegralAdditivity(), space="random", calls=(1, 2)),
    ]
    objectives += [
        ifl.FlowMapDistillation(
            teacher=ifl.FlowMap(Counting(dim=2), ifl.RectifiedFlow()), equal_share=0.25
        )
    ]
    for objective in objectives:
        net = Counting(
            dim=2,
            hidden=8,
            layers=1,
            anchor=getattr(objective, "anchor", None) not in (None, "none"),
        )
        model, data = ifl.FlowMap(net, ifl.RectifiedFlow()), ifl.data.TensorData(torch.randn(64, 2))
        objective.prepare(model, data)
        count = 0.0
        objective(model, ifl.Batch(data.x, index=torch.arange(64)), torch.Generator())
        assert common.calls_per_step(objective) == count / 64, objective


@pytest.mark.parametrize("matching", [0.0, 50.0])
def test_calls_per_step_of_a_perceptual_loss(matching):
    """Its hidden features are not whole calls: counted in operations, of images of both sizes."""
    for channels, size in ((1, 28), (3, 32)):
        pair = [
            ifl.FlowMap(ifl.UNet(channels, size, width=32, blocks=1), ifl.RectifiedFlow())
            for _ in range(2)
        ]
        objective = ifl.FlowMapDistillation(
            teacher=pair[0],
            equal_share=0.25,
            perceptual=1.0,
            matching=matching,
            derivative="difference",
        )
        objective.prepare(pair[1], None)
        x, t = torch.randn(64, channels, size, size), torch.ones(64)
        with FlopCounterMode(display=False) as whole:
            objective(pair[1], x, torch.Generator()).backward()
        with FlopCounterMode(display=False) as call:
            pair[1](x, t, t)
        assert whole.get_total_flops() / call.get_total_flops() == pytest.approx(
            common.calls_per_step(objective), rel=0.02
        )


def test_plane(tmp_path, experiment, small):
    """Every kind on one path, in small; what is in the table is not run again."""
    systems = [f"ve_{kind}" for kind in zoo.KINDS]
    options = "--sets spiral --steps 4 --draws 1 --nfes 4 --seeds 1".split()
    options += ["--out", tmp_path, "--runs", tmp_path / "runs", "--systems"]
    experiment("plane", *options, *systems[:-1])
    first = pd.read_csv(tmp_path / "plane.csv")
    assert list(first) == list(COLUMNS)
    experiment("plane", *options, *systems)
    table, runs = (
        pd.read_csv(tmp_path / "plane.csv"),
        json.loads((tmp_path / "plane.manifest.json").read_text())["runs"],
    )
    assert len(systems) == 10 and len(runs) == 1 + 10
    assert table[table.run_id.isin(first.run_id)].reset_index(drop=True).equals(first)
    seen = set(zip(table.objective, table.anchor, table.method))
    assert {
        (name, "none", "map")
        for name in ("IntegralIdentity", "IntegralAdditivity", "ConsistencyTraining")
    } <= seen
    assert {
        ("X0Regression", rule, "anchor")
        for rule in ("shared", "per_example", "ground_truth", "self")
    } <= seen
    assert {
        ("X0Regression", "none", "map"),
        ("IntegralIdentity", "self", "map"),
        ("FlowMatching", "none", "heun"),
    } <= seen
    assert set(table.path.dropna()) == {"ve"} and sum(table.method == "floor") == 2
    assert (table.value >= 0).all() and (table[table.metric == "w2"].value > 0).all()
    assert set(table[table.method == "floor"].metric) == {"w2", "off_support"}
    assert set(table[table.method == "heun"].nfe) == {3}


def test_other_numbers_of_calls_are_measured_again(tmp_path, experiment, small):
    """The run of that name in the table had others."""
    options = "--sets spiral --steps 4 --draws 1 --seeds 1".split()
    options += ["--out", tmp_path, "--runs", tmp_path / "runs", "--systems", "ve_additivity"]
    for nfes in (["2"], ["1", "4"]):
        experiment("plane", *options, "--nfes", *nfes)
        table = pd.read_csv(tmp_path / "plane.csv").query("method == 'map' and metric == 'w2'")
        assert list(table.nfe) == [int(nfe) for nfe in nfes]


def test_the_committed_table_of_the_plane_is_complete(tmp_path, experiment, capsys):
    """Its command has nothing to do, and changes nothing."""
    if "floor_pairs" in store.read_manifest(ROOT / "results" / "reference" / "plane.csv"):
        pytest.skip("the table is of before floors were on the draws of each training seed")
    for file in (ROOT / "results" / "reference").glob("plane.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    experiment("plane", "--out", tmp_path, "--runs", tmp_path / "runs")
    assert " runs are there, 0 to do" in capsys.readouterr().out
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (ROOT / "results" / "reference" / file.name).read_bytes()


def test_matching(tmp_path, experiment, small):
    """Every variant in small, in the plane and of images: equally many calls, and one first stage for all."""
    module = experiment("matching")
    options = (
        "--seeds 1 --steps 6 --last 4 --image-steps 6 --image-last 4 --width 8 --draws 1".split()
    )
    options += ["--nfes", 1, "--out", tmp_path, "--runs", tmp_path / "runs", "--sets"]
    experiment("matching", *options, "checkerboard", "digits")
    table = pd.read_csv(tmp_path / "matching.csv")
    runs = json.loads((tmp_path / "matching.manifest.json").read_text())["runs"]
    assert len(runs) == 2 + 5 + 7 and len(list((tmp_path / "runs" / "matching").iterdir())) == 14
    assert len(list((tmp_path / "runs" / "matching_first").glob("*.lock"))) == 2
    trained = {name: how for name, how in runs.items() if "floor" not in name}
    for how in trained.values():  # up to half a step
        assert abs(how["calls"] - (6 * 4.5 + 4 * 7.5)) <= how["calls_per_step"] / 2
    one = runs["digits/identity/seed0"]
    assert one["config"]["steps"] == round((6 * 4.5 + 4 * 7.5) / 4.5) and "before" not in one
    both = runs["digits/matching, data, one and two jumps/seed0"]
    assert both["config"]["lr"] == module.LAST_LR * 1e-3 and both["calls_per_step"] == 4.5 + 9
    assert set(table[table.dataset == "digits"].metric) >= {"frechet_pca", "recall", "copies"}
    assert set(table[table.dataset == "checkerboard"].metric) >= {"w2", "w2_ratio", "off", "copies"}
    floors = table[table.method == "floor"].set_index(["dataset", "metric"]).value
    assert floors["digits", "copies"] == 1 and floors["digits", "nearest"] == 0
    assert floors["checkerboard", "off"] == 0 and floors["checkerboard", "w2_ratio"] == 1
    written = (tmp_path / "matching.csv").read_bytes()
    experiment("matching", *options, "checkerboard", "digits")
    assert (tmp_path / "matching.csv").read_bytes() == written


def test_what_is_off_the_data_and_what_is_a_copy(experiment):
    module = experiment("matching")
    for name, least, most in (("eight_gaussians", 0.005, 0.02), ("checkerboard", 0, 0)):
        real = ifl.data.load(name, 5000, "test").x
        assert least <= module.off_support(name, real) <= most
        assert module.off_support(name, 0 * real) == (name == "eight_gaussians")
        assert module.off_support(name, real + 9) == 1
    moved = torch.tensor([[-0.1, 0.1], [0.1, 0.1], [1.8, 0.1]])
    assert module.off_support("checkerboard", moved) == pytest.approx(2 / 3)


@pytest.mark.long
def test_tuning(tmp_path, experiment, monkeypatch):
    """Two steps of two variants, few samples; a third is added to the table without the others."""
    module = experiment("tuning")
    monkeypatch.setattr(module, "POINTS", 100)
    monkeypatch.setattr(module, "NFES", (1,))
    options = ["--steps", 2, "--out", tmp_path, "--runs", tmp_path / "runs", "--variants"]
    experiment("tuning", *options, "base", "warm")
    first = pd.read_csv(tmp_path / "tuning.csv")
    assert set(first) == set(pd.read_csv(REFERENCE / "tuning.csv"))
    assert set(first.variant) == {"base", "warm", "velocity model, Euler", "shipped model: teacher"}
    assert first.frechet_to_train.between(1, 500).all()
    cost = first.groupby("variant").evaluations.first()
    assert (
        cost["velocity model, Euler"] == 12_000 * 3
        and cost["shipped model: teacher"] == 24_000 * 7 + 800 * 12
    )
    experiment("tuning", *options, "teacher, lr 1e-3")
    table = pd.read_csv(tmp_path / "tuning.csv")
    assert table[table.variant.isin(first.variant)].equals(first) and len(table) == len(first) + 1


def test_recipe(tmp_path, experiment, small, monkeypatch):
    """Each part, in small: the rows are there, the inequality of the theorem holds, the exact flow is not straight."""
    module = experiment("recipe")
    for name, value in (("NFES", (1, 2)), ("DRAWN", 1000), ("TRAJECTORIES", 40), ("PAIRS", 500)):
        monkeypatch.setattr(module, name, value)
    options = ["--steps", 40, "--draws", 1, "--seeds", 1, "--out", tmp_path]
    options += ["--runs", tmp_path / "runs", "--rules", "per_example", "ground_truth"]
    options += ["--settings", "as described", "DDDM: pseudo-Huber, blend"]
    experiment("recipe", *options)
    table = pd.read_csv(tmp_path / "recipe.csv")
    search = table[table.part == "search"]
    assert (
        len(search) == 2 * 2 * 2 + 1
        and search.w2_over_floor.gt(1).all()
        and set(search.rule) >= {"identity"}
    )
    assert (
        search[search.rule != "identity"].copy_share.between(0, 1).all()
        and search.spread.gt(0).all()
    )
    theorem = table[table.part == "theorem"].pivot(
        index=["rule", "t"], columns="quantity", values="value"
    )
    told = theorem.loc["ground_truth"]  # of examples seen twice it tells everything
    assert (
        len(theorem) == 2 * 5
        and (told["best, anchor of training"] < told["best, no anchor"] + 0.05).all()
    )
    apart = theorem["best, anchor of sampling"] - theorem["best, no anchor"]
    assert apart.abs().max() < 0.3 * theorem["best, no anchor"].max()
    straight = table[table.part == "straight"].set_index("quantity").value
    assert straight["exact"] > 0.01 and len(straight) == 3


@pytest.mark.long
def test_images(tmp_path, experiment, small, monkeypatch):
    """A model that is missing is trained first, one that is there is measured; and only once."""
    monkeypatch.setattr(experiment("images"), "REAL", 2000)
    options = ["--steps", 2, "--samples", 200, "--nfes", 2, "--checkpoints", tmp_path / "models"]
    options += ["--out", tmp_path, "--runs", tmp_path / "runs", "--systems"]
    experiment("images", *options, "rectified_integral")
    table = pd.read_csv(tmp_path / "images.csv")
    assert set(table) == set(COLUMNS) and len(table) == 8 * (1 + 1)
    assert set(table.metric) == {
        *("frechet", "kernel", "frechet_second", "kernel_second"),
        *("precision", "recall", "density", "coverage"),
    }
    distance = table[table.metric == "frechet"].groupby("method").value.min()
    assert distance["floor"] < 3 < 10 < distance["map"]  # two steps make no model
    how = json.loads((tmp_path / "images.manifest.json").read_text())["systems"][
        "rectified_integral"
    ]
    assert (how["before"]["steps_done"], how["steps_done"]) == (2, 3)  # and finished with one more
    before = {
        file: file.stat().st_mtime_ns
        for file in tmp_path.rglob("*.json")
        if "manifest" not in file.name
    }
    experiment("images", *options, "rectified_integral")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    experiment("images", *options, "rectified_velocity")  # the other's rows stay
    both = pd.read_csv(tmp_path / "images.csv")
    assert (
        both[both.run_id.isin(table.run_id)]
        .sort_values("run_id", kind="stable", ignore_index=True)
        .equals(table.sort_values("run_id", kind="stable", ignore_index=True))
    )
    assert set(both.objective) == {"data", "IntegralIdentity", "FlowMatching"}


def image_rows(seeds, jump, jump_second) -> list[dict]:
    """Rows like those of image_models.csv, on one path: eight Euler steps are at 6 in both sets of features, and jumps where it is said."""
    rows = []
    for seed, (method, nfe, step, values) in itertools.product(
        range(seeds),
        [
            ("euler", 8, 100, (6, 6)),
            ("euler", 8, 700, (5, 5)),
            ("map", 1, 300, (jump, jump_second)),
        ],
    ):
        if step == 700 and seed:
            continue  # one velocity model that costs as much as both
        for metric, value in zip(("frechet", "frechet_second"), values):
            own = {"path": "rectified", "method": method, "nfe": nfe, "step": step, "seed": seed}
            moved = value + 0.1 * (seed - 1) * (method == "map")
            rows.append({"dataset": "fashion_mnist", "metric": metric, "value": moved, **own})
    floor = {"dataset": "fashion_mnist", "method": "floor", "seed": 0}
    return rows + [
        floor | {"metric": name, "value": 0.04} for name in ("frechet", "frechet_second")
    ]


@pytest.mark.parametrize(
    ("seeds", "jump", "jump_second", "told"),
    [
        (3, 5.0, 5.5, "| -1.00 ± 0.25: nearer | -0.50 ± 0.25: nearer | yes |"),
        (3, 6.1, 5.9, "| +0.10 ± 0.25: a tie | -0.10 ± 0.25: a tie | yes |"),
        (3, 5.0, 7.0, "| -1.00 ± 0.25: nearer | +1.00 ± 0.25: farther | **no** |"),
        (3, 5.0, 6.1, "| -1.00 ± 0.25: nearer | +0.10 ± 0.25: a tie | **no** |"),
        (2, 5.0, 5.0, "undecided, too few seeds"),
    ],
)
def test_the_table_of_the_image_models(seeds, jump, jump_second, told):
    """A difference inside its interval is a tie; where the features disagree it is said; no table, no text."""
    table = pd.DataFrame(image_rows(seeds, jump, jump_second))
    shown = readme_tables.image_models_table(table)
    (line,) = [
        line
        for line in shown.splitlines()
        if line.startswith("| 1 call beside 8 Euler steps, rectified |")
    ]
    assert told in line
    assert f"| velocity, Euler, rectified | 8 | {seeds} | 6.00 ± 0.00 | 6.00 ± 0.00 |" in shown
    assert (
        "| velocity of 700 steps, as costly as both, Euler, rectified | 8 | 1 | 5.00 ± 0.00 |"
        in shown
    )
    assert "| floor: data against data | | | 0.04 | 0.04 |" in shown
    assert "VE" not in shown and "2 calls" not in shown  # what was not measured has no line
    assert readme_tables.image_models_table(pd.DataFrame()) == ""


def test_image_models(tmp_path, experiment, small, monkeypatch):
    """Pairs of several seeds, a velocity model for the cost of a pair, emoji; and only what is missing; the median ships."""
    module = experiment("image_models")
    monkeypatch.setattr(module, "REAL", 2000)
    monkeypatch.setattr(module, "JUMPS", (1,))
    monkeypatch.setattr(module, "EULER", (2,))
    options = ["--steps", 2, "--samples", 80, "--draws", 1, "--out", tmp_path]
    options += ["--runs", tmp_path / "runs", "--models", tmp_path / "models"]
    options += ["--checkpoints", tmp_path / "checkpoints", "--paths", "rectified"]
    experiment("image_models", *options, "--seeds", 1, "--sets", "fashion_mnist")
    table = pd.read_csv(tmp_path / "image_models.csv")
    assert set(table) == set(COLUMNS)
    first = {"frechet", "kernel", "frechet_second", "kernel_second"}
    others = {"precision", "recall", "density", "coverage", "nearest", "copies"}
    assert set(table.metric) == first | others
    distance = table[table.metric == "frechet_second"].groupby("method").value.min()
    assert distance["floor"] < 3 < 10 < distance["map"]  # two steps make no model
    runs = store.read_manifest(tmp_path / "image_models.csv")["runs"]
    pair = runs["fashion_mnist/rectified/pair/seed0"]
    integral = pair["integral"]
    assert (integral["before"]["steps_done"], integral["steps_done"]) == (
        2,
        3,
    )  # with the last stage
    assert integral["objective"]["teacher"]["sha256"] == weights_of(tmp_path, "rectified_velocity")
    alone = runs["fashion_mnist/rectified/velocity/seed0"]
    # 3 calls a step; of the pair 2 steps of the teacher, 2 of the flow map and one of the last stage
    assert alone["velocity"]["steps_done"] == round(pair["calls"] / 3)
    assert pair["calls"] == 2 * 3 + 2 * 7 + 1 * 12
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "models").rglob("*.json")}
    experiment("image_models", *options, "--seeds", 2, "--ship")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    both = pd.read_csv(tmp_path / "image_models.csv")
    kept = both[both.run_id.isin(table.run_id)].reset_index(drop=True)
    assert kept.equals(table) and set(both.dataset) == {"fashion_mnist", "emoji"}
    made = {file.parent.name for file in (tmp_path / "checkpoints").rglob("config.json")}
    prefixes = ("", "emoji_")
    assert made == {
        f"{set_}rectified_{kind}" for set_ in prefixes for kind in ("velocity", "integral")
    }
    seed = module.median_seed(both, "fashion_mnist", "rectified")
    one = both[both.dataset.eq("fashion_mnist") & both.metric.eq("frechet") & both.method.eq("map")]
    assert one.set_index("seed").value.idxmin() == seed  # of two the better one
    manifest = zoo.training_manifest("rectified_integral", tmp_path / "checkpoints")
    assert manifest["config"]["seed"] == seed


def weights_of(folder: Path, name: str) -> str:
    model = zoo.pretrained(name, folder / "models" / "pair-seed0")
    return weights_digest(model.float())


def test_no_model_of_emoji_is_asked_for_by_default(experiment, capsys):
    """None ships, so that nothing has to be trained; and a system that does not exist is named in one line."""
    for name in common.IMAGE_MODELS + common.PLANE_MODELS:
        assert (common.CHECKPOINTS / name / "config.json").is_file()
    assert not any(name.startswith("emoji") for name in common.IMAGE_MODELS)
    assert len(list(common.CHECKPOINTS.iterdir())) == len(common.IMAGE_MODELS + common.PLANE_MODELS)
    for command in ("images", "models"):
        options = ["--systems"] if command == "images" else []
        with pytest.raises(SystemExit) as end:
            experiment(command, *options, "emoji_rectified_integrel")
        said = capsys.readouterr().err.splitlines()[-1]
        assert end.value.code == 2 and "unknown kind 'integrel'" in said


def test_image_methods(tmp_path, experiment, monkeypatch):
    """A method, a reading of the anchor and the floor, in small, on grey images; the distances of colour images."""
    options = "--seeds 1 --steps 2 --samples 100 --width 8 --nfes 2".split()
    options += ["--out", tmp_path, "--runs", tmp_path / "runs"]
    module = experiment("image_methods", *options, "--systems", "ve_additivity", "ve_velocity")
    first = pd.read_csv(tmp_path / "image_methods.csv")
    systems = ("ve_additivity", "ve_velocity", "pfgmpp_x0_ground_truth")
    experiment("image_methods", *options, "--systems", *systems)
    table = pd.read_csv(tmp_path / "image_methods.csv")
    assert list(table) == list(COLUMNS)
    assert (
        table[table.run_id.isin(first.run_id)].reset_index(drop=True).equals(first)
        and len(table) == len(first) + 6
    )
    distances = ("frechet", "kernel", "frechet_second", "kernel_second")
    assert set(zip(table.method, table.metric)) == {
        *itertools.product(("floor", "map", "euler"), distances),
        *itertools.product(["anchor"], (*distances, "spread", "copy")),
    }
    distance = table[table.metric == "frechet"].groupby("method").value.min()
    assert distance["floor"] < 3 < 10 < distance.drop("floor").min()
    diverged = ifl.sampling.SampleResult(torch.full((100, 1, 28, 28), torch.nan), 2, None, None)
    monkeypatch.setattr(zoo, "timed_sample", lambda *given, **named: (diverged, 1.0))
    rows, _ = module.train("ve_velocity", 0, 1, 8, 100, (2,), "cpu")
    assert [row["metric"] for row in rows] == list(distances) and all(
        row["value"] != row["value"] for row in rows
    )


def test_plane_tuning(tmp_path, experiment, small):
    """What is changed is what its manifest says, and a run in the table is not run again."""
    options = ["--seeds", 1, "--steps", 2, "--out", tmp_path, "--runs", tmp_path / "runs"]
    names = (
        "octaves 6",
        "width 32",
        "EMA 0.9",
        "anchor: its own estimate",
        "warm: half the steps FlowMatching",
    )
    experiment("plane_tuning", *options, "--variants", *names)
    table = pd.read_csv(tmp_path / "plane_tuning.csv")
    runs = json.loads((tmp_path / "plane_tuning.manifest.json").read_text())["runs"]
    assert len(table) == 10 + 5 * 3 * 2 * 3 and set(runs) == set(table.run_id)  # jumps, draws
    assert runs["EMA 0.9/ve/steps2/seed0"]["config"]["ema"] == 0.9
    sizes = table.groupby(table.run_id.str.split("/").str[0]).params.first()
    assert (
        sizes["octaves 6"] == sizes["EMA 0.9"] + 8 * 128
        and sizes["width 32"] < 0.1 * sizes["EMA 0.9"]
    )
    assert set(table[table.anchor == "self"].run_id.str.split("/").str[0]) == {
        "anchor: its own estimate"
    }
    assert runs["warm: half the steps FlowMatching/ve/steps2/seed0"]["config"]["steps"] == 1
    before = (tmp_path / "plane_tuning.csv").stat().st_mtime_ns
    experiment("plane_tuning", *options, "--variants", *names)
    assert (tmp_path / "plane_tuning.csv").stat().st_mtime_ns == before


# ---------------------------------------------------------------- the search, and the defaults


@pytest.fixture
def few(small, monkeypatch):
    """The support and what is placed in it, of few points."""
    support._support_of.cache_clear()
    monkeypatch.setattr(support, "SUPPORT", 5000)
    monkeypatch.setattr(plane_quality, "PLACED", 500)
    yield
    support._support_of.cache_clear()


def test_where_samples_lie(few):
    """By definition 1 % of real points lie off the support, and exp(-9 / 2) of them off the modes."""
    for name in ("eight_gaussians", "twenty_five_gaussians"):
        real = ifl.data.load(name, 40_000, "test", seed=5).x
        assert plane_quality.off_modes(name, real) == pytest.approx(np.exp(-4.5), abs=0.0027)
    real, noise = ifl.data.load("spiral", 40_000, "test").x, torch.randn(4000, 2)
    assert plane_quality.off_modes("spiral", real) is None
    assert ifl.metrics.off_support(real, "spiral") == pytest.approx(0.01, abs=0.01)
    assert ifl.metrics.off_support(noise, "spiral") > 0.2
    assert ifl.metrics.off_support(real + 20, "spiral") == 1


def test_over_floor_takes_the_floor_of_the_same_draws():
    """Where there are floors of each training seed; of other pairs it takes the mean."""
    base = {"dataset": "spiral", "metric": "w2"}
    floors = [(0, 0.1), (0, 0.3), (1, 0.4)]
    rows = [base | {"method": "floor", "seed": seed, "value": value} for seed, value in floors]
    runs = [base | {"method": "map", "seed": seed, "value": 0.8} for seed in (1, 0)]
    off = {"metric": "off_support", "value": 9.0}
    table = pd.DataFrame([*rows, rows[0] | off, *runs, runs[0] | off])
    assert list(common.over_floor(table).value) == pytest.approx([2, 4])
    before = pd.DataFrame([*rows, rows[0] | {"seed": 49, "value": 0.8}, *runs])
    assert list(common.over_floor(before).value) == pytest.approx([2, 2])


def test_the_table_of_what_lies_off_the_support():
    """In per cent, each method with its seeds; nothing of a table of before."""
    rows = []
    for dataset in ifl.data.PLANE:
        base = {"dataset": dataset, "metric": "off_support", "objective": "data"}
        rows += [base | {"method": "floor", "seed": s, "value": 0.01} for s in (0, 1)]
        for seed, (objective, path, method, nfe) in itertools.product(
            (0, 1),
            [
                ("FlowMatching", "rectified", "euler", 4),
                *(("IntegralIdentity", path, "map", 1) for path in zoo.PATH_NAMES),
            ],
        ):
            run = base | {"seed": seed, "objective": objective, "path": path, "nfe": nfe}
            run |= {"method": method, "step": zoo.PLANE_STEPS, "value": 0.1 + 0.02 * seed}
            rows.append(run)
            if dataset == "eight_gaussians":
                rows.append(run | {"metric": "rms_to_exact", "value": 0.2})
    shown = readme_tables.off_support_table(pd.DataFrame(rows)).splitlines()
    line = next(one for one in shown if one.startswith("| Integration Flow, VE | 1 |"))
    assert line.count("11.0 ± 1.0") == 5 and line.endswith("| 0.200 ± 0.000 |")
    assert shown[-1].startswith("| floor: data | | 1.0 ± 0.0 |")
    assert readme_tables.off_support_table(pd.DataFrame(rows).query("metric == 'w2'")) == ""


def test_the_floor_is_on_the_draws_of_the_samples(few, monkeypatch):
    """So of samples that are the fresh points of the floor it is exactly one; and it is another for each training seed."""
    load, floor = ifl.data.load, plane_quality.floor("spiral", "train", 1, 2)
    seeds = {2000 + i: 2500 + i for i in range(2)}
    expected = [
        ifl.metrics.w2(load("spiral", 80, seed=b).x, load("spiral", 80, seed=a).x)
        for a, b in seeds.items()
    ]
    assert floor["w2"] == pytest.approx(np.mean(expected)) and floor["off_support"] < 0.05
    assert floor["w2"] != plane_quality.floor("spiral", "train", 0, 2)["w2"]

    def perfect(model, n, nfe, method, seed):
        x = load("spiral", n, seed=seeds.get(seed, seed)).x
        return ifl.sampling.SampleResult(x * model, nfe), 0.0

    monkeypatch.setattr(zoo, "timed_sample", perfect)
    assert plane_quality.quality(1.0, "spiral", "train", 1, 2, 4) == floor
    lost = plane_quality.quality(float("nan"), "spiral", "train", 1, 2, 4)
    assert lost == {"w2": np.inf, "off_support": 1.0} == plane_quality.far("spiral")


@pytest.fixture
def search(experiment, few, monkeypatch):
    """Both searches, whose trainings are a formula that knows the best lr; ``trained`` counts them, and may stop them."""
    module = experiment("search")

    def train(settings, dataset, path, seed, steps, draws):
        of = module.SEARCHES["plane" if dataset in ifl.data.PLANE else "images"]
        module.trained += 1
        if module.trained == module.stop:
            raise KeyboardInterrupt
        noise = np.random.default_rng([seed, steps, of.cells.index((dataset, path))]).random()
        far = abs(np.log(settings["lr"] / 2.5e-3)) + 0.2 * settings["power"] + 0.1 * noise
        far += of.sets.index(dataset)  # some sets are harder than others
        row = {"dataset": dataset, "path": path, "seed": seed, "steps": steps, "seconds": 1.0}
        row |= {"calls_per_step": 4.0, "metric": of.metric}
        lost = settings.get("hidden") == 64 or settings.get("gap_frequencies") == 4
        w2 = float("inf") if lost else 0.1 * (1 + far * of.short / steps)
        rows = [row | {"nfe": nfe, "value": w2} for nfe in (1, 2, 4)]
        return rows + [old | {"metric": "off_support", "value": 0.1} for old in rows], {}

    def floor(dataset, seed, draws):
        row = {"dataset": dataset, "seed": seed, "metric": "floor", "value": 0.1}
        return [row | {"nfe": nfe} for nfe in (1, 2, 4)], {}

    monkeypatch.setattr(module, "trained", 0, raising=False)
    monkeypatch.setattr(module, "stop", 0, raising=False)
    for name, of in module.SEARCHES.items():
        simple = {"train": train, "floor": floor if of.floor else None}
        monkeypatch.setitem(module.SEARCHES, name, dataclasses.replace(of, **simple))
    for slow in ("git_state", "machine"):
        monkeypatch.setattr(store, slow, lambda _: {})
    return module


def test_search(search, experiment, tmp_path, monkeypatch, capsys):
    """Rungs as in docs/protocol.md, on searched sets alone; TPE comes nearer to the best lr; bad ones are no obstacle."""
    monkeypatch.setattr(searches, "DEAREST", 1.5)
    options = ["--out", tmp_path, "--runs", tmp_path / "runs", "--candidates", 24]
    experiment("search", *options)
    table = pd.read_csv(tmp_path / "search.csv")
    assert list(table) == search.COLUMNS and set(table.dataset.dropna()) == set(ifl.data.PLANE)
    progress = search.Progress(table)
    trained = [c for c in progress.candidates if not c.refused]
    assert len(progress.candidates) == 24 and 0 < 24 - len(trained) < 12
    sizes = [len(progress.complete(rung)) for rung in (0, 1, 2)]
    assert sizes[0] == len(trained) and sizes[0] // 4 <= sizes[1] < sizes[0]
    assert sizes[1] // 4 <= sizes[2] < sizes[1]
    refused = {c.number for c in progress.candidates if c.refused}
    assert not refused & set(table[table.metric == "w2"].trial)
    shown = search.ranking(table)
    best = shown[shown.rung == 2].iloc[0]
    assert best.score == shown[shown.rung == 2].score.min() < shown.first_look[0]
    assert abs(np.log(best.lr / 2.5e-3)) < 0.4 and np.isfinite(best.interval_percent)
    assert "first_look" in capsys.readouterr().out
    runs = store.read_manifest(tmp_path / "search.csv")["runs"]
    assert len(runs) == search.trained + 15  # and floors: five sets, three seeds
    before = search.trained
    experiment("search", *options, "--equal-cost")
    again = pd.read_csv(tmp_path / "search.csv")
    equal = again[again.metric.eq("w2") & ~again.steps.isin([1000, 4000])]
    cost = {c.number: c.cost for c in progress.candidates}
    assert search.trained - before == len(set(equal.trial)) * 15 and set(equal.seed) == {0}
    assert all(
        0 <= 6000 - row.steps * cost[row.trial] < cost[row.trial] + 1 for row in equal.itertuples()
    )


@pytest.mark.parametrize("stop", [7, 17])
def test_a_search_that_was_killed_goes_on(search, experiment, tmp_path, stop):
    """And ends with the table of one that was not, without a run more; the table alone is enough."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        options = ["--out", out, "--runs", out / "runs", "--candidates", 6]
        if out == cut:
            search.stop, search.trained = stop, 0
            with pytest.raises(KeyboardInterrupt):
                experiment("search", *options)
            search.stop = 0
        experiment("search", *options)
    table = (whole / "search.csv").read_text()
    assert (cut / "search.csv").read_text() == table
    runs = store.read_manifest(whole / "search.csv")["runs"]
    assert search.trained - 1 == sum(not name.startswith("floor/") for name in runs)
    search.trained = 0
    options[3] = tmp_path / "none"
    experiment("search", *options)
    assert search.trained == 0 and (cut / "search.csv").read_text() == table


def test_a_candidate_that_is_proposed(search, experiment, tmp_path, capsys):
    """It follows the first twelve, differs from candidate 1 by what was said, and is looked at like the others."""
    options = ["--out", tmp_path, "--runs", tmp_path / "runs", "--candidates", 12, "--rungs", 1]
    with pytest.raises(SystemExit):
        experiment("search", *options, "--propose", '{"lr": 0.02}')
    assert "the first 12 candidates come by themselves" in capsys.readouterr().err
    experiment("search", *options)
    assert set(pd.read_csv(tmp_path / "search.csv").steps.dropna()) == {1000}
    experiment("search", *options, "--propose", '{"lr": 0.02, "power": 0.5}')
    progress = search.Progress(pd.read_csv(tmp_path / "search.csv"))
    (*_, last), (_, tried, *_) = progress.candidates, searches.PLANE.first
    assert last.number == 12 and last.settings == searches.known(tried | {"lr": 0.02, "power": 0.5})
    assert last in progress.complete(0) and last not in progress.complete(1)
    with pytest.raises(SystemExit):
        experiment("search", *options, "--propose", '{"speed": 1}')
    assert "unknown setting 'speed': expected some of lr" in capsys.readouterr().err


def test_steady(tmp_path, experiment):
    """One variant, briefly: its settings are in the manifest, and a row for each number of jumps and metric."""
    options = ["--out", tmp_path, "--runs", tmp_path / "runs", "--seeds", 1, "--steps", 2]
    experiment("steady", *options, "--variants", "a gap")
    table = pd.read_csv(tmp_path / "steady.csv")
    assert set(table.variant) == {"a gap"} and set(table.nfe) == {1, 2, 4}
    (how,) = store.read_manifest(tmp_path / "steady.csv")["runs"].values()
    assert how["settings"]["settings"]["gap"] == 0.02


def test_a_search_of_images(search, experiment, tmp_path, capsys):
    """Its own table, sets and budgets. Ratios are to the first candidate, which therefore runs each rung before the others."""
    options = ["--of", "images", "--out", tmp_path, "--runs", tmp_path / "runs"]
    experiment("search", *options, "--candidates", 16)
    before = search.trained
    experiment("search", *options, "--candidates", 16, "--equal-cost")
    table, images = pd.read_csv(tmp_path / "image_search.csv"), searches.IMAGES
    assert list(tmp_path.glob("*.csv")) == [tmp_path / "image_search.csv"]
    assert set(table.dataset.dropna()) == {"digits", "emoji"} and "floor" not in set(table.metric)
    progress = search.Progress(table, images)
    assert not any(c.refused for c in progress.candidates) and len(progress.candidates) == 16
    sizes = [len(progress.complete(rung)) for rung in (0, 1, 2)]
    assert sizes[0] == 16 and 4 <= sizes[1] <= 8 and 1 < sizes[2] <= 1 + sizes[1] / 2
    first = progress.candidates[0]
    assert first in progress.complete(2) and progress.score(first, 2) == pytest.approx(1)
    rows = table[table.metric == "frechet_pca"].reset_index()
    for steps in (400, 1500):
        assert (rows[rows.steps == steps].groupby(["dataset", "path"]).trial.first() == 0).all()
    best = progress.complete(2)[0]
    run = ("emoji", "ve", 2, 1500)
    one = rows.query("dataset == 'emoji' and path == 've' and seed == 2 and steps == 1500")
    values = one[one.nfe == 4].set_index("trial").value
    expected = values[best.number] / values[0]
    assert progress.done[(best.number, *run)][4] == pytest.approx(expected) and expected < 1
    again = progress.ratios(best, images.runs(best, 3))
    steps = int(1500 * 1.5 / best.cost)
    assert {key[2:] for key in again} == {(0, steps)} and search.trained > before
    other = rows[rows.trial.eq(best.number) & rows.steps.eq(steps) & rows.nfe.eq(1)]
    other = other.set_index(["dataset", "path"]).value
    key = ("digits", "rectified")
    own = rows.query("trial == 0 and steps == 1500 and seed == 0 and nfe == 1")
    expected = other[key] / own.set_index(["dataset", "path"]).value[key]
    assert again[(*key, 0, steps)][1] == pytest.approx(expected)
    shown = search.ranking(table, images)
    assert shown.score.iloc[0] == progress.score(best, 2) and "gap_frequencies" in shown
    assert "first_look" in capsys.readouterr().out


def test_the_plane_is_searched_as_it_was_begun(search):
    """Its table is continued by later versions: given the same rows, candidate k is the one that the first version drew."""
    of, base, rows = searches.PLANE, dict.fromkeys(search.COLUMNS), []
    for dataset, nfe in itertools.product(of.sets, (1, 2, 4)):
        own = {"dataset": dataset, "seed": 0, "metric": "floor", "nfe": nfe, "value": 0.1}
        rows.append(base | own)
    drawn = []
    for k in range(13):
        changed = {"lr": 1e-3 * (k + 1), "hidden": of.space["hidden"][k % 4]}
        own = searches.known({**of.first[k % 3], **changed})
        new = base | {"trial": k, "metric": "cost", "value": 1.0, "settings": json.dumps(own)}
        rows.append(new)
        for dataset, path, seed, steps in of.runs(searches.Candidate(k, own, 1.0), 0):
            new = base | {"trial": k, "dataset": dataset, "path": path, "seed": seed}
            new |= {"steps": steps, "metric": "w2"}
            for nfe in (1, 2, 4):
                rows.append(new | {"nfe": nfe, "value": 0.1 + 0.01 * (k - 4) ** 2 + 0.01 * nfe})
        if k in (2, 12):  # the first that is drawn at random, and one that TPE draws
            drawn.append(search.ask(search.Progress(pd.DataFrame(rows))))
    assert drawn[0] == {
        "lr": 0.00521, "ema": 0.99, "clip": 1.0, "hidden": 192, "layers": 6, "features": 0,
        "frequencies": 1, "times": "logit", "times_mean": -0.667, "times_std": 1.07,
        "equal_share": 0.5, "start_share": 0.451, "end_share": 0.423, "power": 1.0,
        "derivative": "exact", "tangent": "conditional", "velocity": "batch",
    }  # fmt: skip
    assert drawn[1] == {
        "lr": 0.0023, "ema": 0.999, "clip": 1.0, "hidden": 256, "layers": 4, "features": 3,
        "frequencies": 1, "times": "logit", "times_mean": -0.361, "times_std": 1.74,
        "equal_share": 0.5, "start_share": 0.392, "end_share": 0.33, "power": 0.0,
        "derivative": "gap", "gap": 0.125, "tangent": "conditional", "velocity": "batch",
    }  # fmt: skip


@pytest.mark.parametrize("of, together, sets", [("PLANE", 5, 3), ("IMAGES", 2, 2)])
def test_the_cells_of_a_search(of, together, sets):
    """Some candidates in a row see every set on every path once; each sees as many sets as it can, one on each path."""
    of = getattr(searches, of)
    runs = [of.runs(searches.Candidate(number, {}, 1.0), 0) for number in range(1, 11)]
    for first in (0, 1, 3):
        seen = [run[:2] for few in runs[first : first + together] for run in few]
        assert sorted(seen) == sorted(of.cells)
    assert all(len({run[1] for run in few}) == 3 for few in runs)
    assert all(len({run[0] for run in few}) == sets for few in runs)
    assert len(of.cells) == 3 * len(of.sets) == len(of.runs(searches.Candidate(0, {}, 1.0), 0))
    held_out = {*ifl.data.PLANE_HELD_OUT, "fashion_mnist"}
    assert not held_out & {dataset for dataset, _ in of.cells}
    assert {run[3] for rung in (0, 1) for run in of.runs(searches.Candidate(1, {}, 1.0), rung)} == {
        of.short
    }


def test_the_score_of_a_search(search):
    """exp of 0.6, 0.2 and 0.2 of the mean logarithms; a run that diverged is infinitely bad."""
    runs = {"a": {1: 2.0, 2: 1.0, 4: 1.0}, "b": {1: 8.0, 2: 4.0, 4: 1.0}}
    assert search.score_of(runs) == pytest.approx(4**0.6 * 2**0.2)
    assert search.score_of(runs | {"c": {1: np.inf, 2: 1.0, 4: 1.0}}) == np.inf
    assert sum(search.WEIGHTS.values()) == pytest.approx(1)


def test_a_candidate_is_what_its_settings_say(few, monkeypatch):
    search = searches
    tried = search.known(search.TRIED)
    objective, net = search.objective_of(tried), search.network_of(tried)
    assert (objective.gap, objective.time_density, objective.tangent) == (
        0.02, (-0.4, 1.0), "conditional",
    )  # fmt: skip
    assert {"hidden": 128, "features": 3, "frequencies": 2}.items() <= net.config().items()
    uniform = search.known(search.TRIED | {"times": "uniform", "derivative": "exact"})
    assert not {"gap", "times_mean", "times_std"} & set(uniform)
    objective = search.objective_of(uniform)
    assert objective.gap is None and objective.time_density == "uniform"
    assert search.cost_of(search.known(search.DEFAULTS)) == pytest.approx(1.5)
    assert search.cost_of(tried) < 0.5
    large = search.known(search.DEFAULTS | {"layers": 6, "features": 5})
    assert search.cost_of(large) > search.DEAREST
    assert search.cost_of(search.known(search.DEFAULTS | {"tangent": "none"})) == np.inf
    rows, _ = search.train(tried, "eight_gaussians", "ve", 0, 2, {"1": 2, "2": 1})
    assert {(row["nfe"], row["metric"]) for row in rows} == set(
        itertools.product((1, 2), ("w2", "off_support", "off_modes"))
    )
    assert all(0 < row["value"] < 10 and row["seconds"] > 0 for row in rows)

    def diverges(*given, **named):
        raise FloatingPointError("the loss is NaN")

    monkeypatch.setattr(ifl, "fit", diverges)
    rows, how = search.train(tried, "spiral", "ve", 0, 2, {"1": 2})
    assert [row["value"] for row in rows] == [np.inf, 1.0] and how["diverged"] == "the loss is NaN"
    rows, how = search.train_on_images(search.IMAGE_DEFAULTS, "digits", "ve", 0, 2, {"1": 1})
    assert [row["value"] for row in rows] == [np.inf, np.inf] and how


def test_a_candidate_of_images(small):
    """The first is what ``zoo`` had; each trains and is measured, also one that asks for more octaves of t - s than of t."""
    defaults = searches.known(searches.IMAGE_DEFAULTS)
    before = zoo.System.parse("emoji_ve_integral")
    assert searches.image_objective_of(defaults) == before.objective()
    assert {name: defaults[name] for name in ("lr", "ema")}.items() <= before.settings.items()
    net = searches.image_network_of(defaults, 3, 32)
    assert net.config() == before.model(width=16).net.config()
    tried = searches.known(searches.IMAGE_TRIED)
    objective = searches.image_objective_of(tried)
    assert (objective.gap, objective.time_density, objective.power) == (0.02, (0.0, 1.0), 0.5)
    assert searches.image_cost_of(defaults) == 1.5 and searches.image_cost_of(tried) < 1.1
    assert searches.image_cost_of(tried | {"tangent": "none"}) == np.inf
    low = tried | {"frequencies": 2, "gap_frequencies": 4}
    rows, how = searches.train_on_images(low, "digits", "pfgmpp", 0, 2, {"1": 1, "2": 2})
    assert {(row["nfe"], row["metric"]) for row in rows} == set(
        itertools.product((1, 2), ("frechet_pca", "sliced_w2"))
    )
    assert all(0 < row["value"] < 10 and row["steps"] == 2 for row in rows) and not how


def ratio_of(module, table: pd.DataFrame, dataset: str) -> float:
    """W2 over its floor of one jump of the defaults as they are."""
    rows = module.over_floor(table)
    rows = rows[rows.dataset.eq(dataset) & rows.nfe.eq(1)]
    return rows[~rows.run_id.str.startswith("before/")].value.item()


def test_defaults(tmp_path, experiment, few, monkeypatch):
    """As they come, and as they were; the held-out sets only when they are asked for, and with one set of defaults."""
    module = experiment("defaults")
    monkeypatch.setattr(ifl.data, "PLANE_HELD_OUT", ("pinwheel",))  # the real ones stay unseen
    options = "--steps 2 --draws 2 --seeds 1 --paths ve --sets eight_gaussians".split()
    options += ["--out", tmp_path, "--runs", tmp_path / "runs"]
    experiment("defaults", *options, "--before")
    table = pd.read_csv(tmp_path / "defaults.csv")
    assert list(table) == list(COLUMNS) and set(table.dataset) == {"eight_gaussians"}
    assert len(table) == 3 + 2 * 3 * 3 and set(table.metric) == {"w2", "off_support", "off_modes"}
    now = table[table.run_id == "eight_gaussians/ve/steps2/seed0"]
    assert (now.params == sum(p.numel() for p in ifl.MLP(2).parameters())).all()
    ratio = module.over_floor(table).set_index(["run_id", "nfe"]).value
    floor = table[table.method.eq("floor") & table.metric.eq("w2")].value.item()
    own = now[now.metric.eq("w2") & now.nfe.eq(2)].value.item()
    assert ratio[now.run_id.iloc[0], 2] == pytest.approx(own / floor)
    manifest = store.read_manifest(tmp_path / "defaults.csv")
    digest = manifest["runs"]["eight_gaussians/ve/steps2/seed0"]["settings"]["defaults"]
    assert manifest["defaults"][digest]["network"] == ifl.MLP(2).config()
    experiment("defaults", *options, "--confirm")
    both = pd.read_csv(tmp_path / "defaults.csv")
    assert set(both.dataset) == {"eight_gaussians", "pinwheel"}
    assert set(module.summary(both).index.get_level_values("sets")) == {"searched", "held out"}
    shown = readme_tables.defaults_table(both)
    of_set = both[both.dataset.eq("pinwheel") & both.metric.eq("off_support") & both.nfe.eq(1)]
    off = 100 * of_set[of_set.method == "map"].value.item()
    assert (
        f"| pinwheel, held out | {ratio_of(module, both, 'pinwheel'):.2f} ± 0.00 | {off:.1f} | |"
        in shown
    )
    worst = max(ratio_of(module, both, dataset) for dataset in ("pinwheel", "eight_gaussians"))
    assert (
        f", {worst:.2f} |" in shown.split("\n\n")[1].splitlines()[-2]
        and "before the search" in shown
    )
    modes = both[both.metric.eq("off_modes") & ~both.run_id.str.startswith("before/")]
    share = modes.set_index(["method", "nfe"]).value
    points = 100 * (share["map", 4] - share["floor"].item())
    assert shown.endswith(f"4 jumps {points:.1f} points after 2 steps (wanted 2).")
    assert readme_tables.defaults_table(pd.DataFrame()) == ""
    monkeypatch.setattr(module, "digest", lambda steps: "other")
    experiment("defaults", *options)  # the others are measured again
    with pytest.raises(SystemExit, match="cannot confirm what was chosen after that"):
        experiment("defaults", *options, "--confirm")
    kept = pd.read_csv(tmp_path / "defaults.csv")
    assert kept[kept.dataset == "pinwheel"].equals(both[both.dataset == "pinwheel"])


@pytest.fixture
def brief(experiment, monkeypatch):
    """The brief comparison, whose trainings are a formula that knows the best lr of each method; ``trained`` lists them."""
    module = experiment("brief")

    def train(dataset, method, path, seed, steps, lr, samples, chosen):
        module.trained.append((dataset, method, path, seed, steps, lr))
        row = {"dataset": dataset, "path": path, "objective": method, "seed": seed, "step": steps}
        best, rows = module.RATES[module.METHODS.index(method) % 4], []
        for kind, nfe in module.calls_of(method):
            own = row | {"method": kind, "nfe": nfe, "n_samples": samples}
            value = 10 + abs(np.log(lr / best)) + seed + 100 / steps
            rows += [own | {"metric": name, "value": value} for name in module.METRICS[dataset]]
        return rows, {}

    def floor(dataset, seed, samples):
        row = {"dataset": dataset, "objective": "data", "method": "floor", "seed": seed}
        return [row | {"metric": "frechet", "value": 0.5}], {}

    monkeypatch.setattr(module, "trained", [], raising=False)
    monkeypatch.setattr(module, "own_train", module.train, raising=False)
    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "floor", floor)
    monkeypatch.setattr(module, "PROVISIONAL", False)
    for slow in ("git_state", "machine"):
        monkeypatch.setattr(store, slow, lambda _: {})
    return module


def test_brief(brief, experiment, tmp_path, capsys, monkeypatch):
    """Learning rates are tuned on emoji; the held-out images are for --confirm, at equal steps and equal calls, and once."""
    options = ["--out", tmp_path, "--runs", tmp_path / "runs"]
    with pytest.raises(SystemExit):
        experiment("brief", *options)
    with pytest.raises(SystemExit, match="ConsistencyTraining.* are not all tried: give --tune"):
        experiment("brief", *options, "--confirm")
    assert not brief.trained
    experiment("brief", *options, "--tune")
    assert {run[:4] for run in brief.trained} == {
        ("emoji", method, "rectified", 0) for method in brief.METHODS[2:]
    }
    assert len(brief.trained) == 4 * 4 and {run[4] for run in brief.trained} == {1500}
    brief.trained.clear()
    experiment("brief", *options, "--confirm")
    done = {(method, path, seed, steps): lr for _, method, path, seed, steps, lr in brief.trained}
    assert {run[0] for run in brief.trained} == {"fashion_mnist"}
    each = 2 + 1 + 1 + 2 + 2 + 2  # equal cost is that of consistency; matching at equal cost alone
    assert len(done) == len(brief.trained) == (each + len(brief.LONGER)) * 3 * 3
    assert {method: lr for (method, *_), lr in done.items()} == {
        "IntegralIdentity": 4e-3, "EnergyMatching": 4e-3,
        "ConsistencyTraining": 4e-3, "FlowMatching": 8e-3, "IntegralAdditivity": 1e-3,
        "TerminalVelocity": 2e-3,
    }  # fmt: skip
    for budget, by, method in itertools.product((1500, 4500), ("steps", "cost"), brief.METHODS):
        steps = brief.budgets(method, budget, budget == 1500).get(by)
        if budget == 4500 and (by == "steps" or method not in brief.LONGER):
            assert steps is None
        elif by == "cost":
            assert abs(steps * brief.mean_calls(method) - 4 * budget) < 4
        else:
            assert steps == (None if method == brief.MATCHED else budget)
        assert steps is None or {(method, path, 2, steps) for path in zoo.PATH_NAMES} <= set(done)
    table = pd.read_csv(tmp_path / "brief.csv")
    shown = brief.summary(table, (1500, 4500))
    line = shown.loc[(1500, "steps", "ve", "FlowMatching")]
    assert line["mean", 32] == pytest.approx(11 + 100 / 1500) and line["std", 32] == 1
    assert len(shown) == (11 + 4) * 3 and "TerminalVelocity" in capsys.readouterr().out
    brief.trained.clear()
    experiment("brief", *options, "--tune", "--confirm")
    assert not brief.trained
    monkeypatch.setattr(brief, "CHOSEN", brief.CHOSEN | {"gap": 0.05})
    with pytest.raises(SystemExit, match="cannot confirm what was chosen after that"):
        experiment("brief", *options, "--tune", "--confirm")
    assert {run[0] for run in brief.trained} == {"emoji"}
    monkeypatch.setattr(brief, "PROVISIONAL", True)
    with pytest.raises(SystemExit, match="are provisional"):
        experiment("brief", *options, "--confirm")


def test_a_brief_training(brief, small, monkeypatch):
    """Of each method, on digits: what is sampled, what it cost, and in how many stages."""
    monkeypatch.setitem(zoo.IMAGE_SETS, "digits", (1, 8))
    monkeypatch.setitem(brief.METRICS, "digits", ("frechet_pca", "sliced_w2"))
    monkeypatch.setattr(brief, "BATCH", 8)
    for method in brief.METHODS:
        given = (method, "ve", 0, 4, 1e-3, 80, brief.CHOSEN)
        rows, how = brief.own_train("digits", *given)
        assert {(row["method"], row["nfe"]) for row in rows} == set(brief.calls_of(method))
        assert all(0 < row["value"] < 50 for row in rows) and "diverged" not in how
        assert how["calls"] == round(4 * brief.mean_calls(method)) and how["seconds"] > 0
    first, last = brief.stages(brief.MATCHED, 40, 4e-3)
    assert first[0] == last[0].base == brief.objective_of(brief.IDENTITY)
    assert (first[1:], last[1:], last[0].space) == ((36, 4e-3), (4, 1e-3), "random")
    assert brief.mean_calls(brief.MATCHED) == pytest.approx(3.25 + 0.1 * 3)

    def diverges(*given, **named):
        raise FloatingPointError("the loss is NaN")

    monkeypatch.setattr(ifl, "fit", diverges)
    rows, how = brief.own_train("digits", *given)
    assert {row["value"] for row in rows} == {np.inf} and how["diverged"] == "the loss is NaN"


@pytest.mark.long
def test_emoji(tmp_path, experiment, small):
    """The distances of colour images; a model of emoji is measured beside the rows of Fashion-MNIST."""
    train, test = (ifl.data.load("emoji", split=split).x for split in ("train", "test"))
    some, mean = train[torch.randperm(len(train))[:1000]], train.mean(0).expand(1000, -1, -1, -1)
    near, far, none = (
        zoo.image_distances("emoji", x) for x in (some, torch.randn_like(test), mean)
    )
    assert set(near) == {"frechet_pca", "sliced_w2"} and all(
        near[k] < 0.5 * min(far[k], none[k]) for k in near
    )
    assert none["frechet_pca"] == pytest.approx(1, abs=0.1)
    options = ["--steps", 2, "--samples", 100, "--nfes", 2, "--checkpoints", tmp_path / "models"]
    options += ["--out", tmp_path, "--runs", tmp_path / "runs", "--systems"]
    experiment("images", *options, "rectified_velocity")
    first = pd.read_csv(tmp_path / "images.csv")
    experiment("images", *options, "emoji_rectified_velocity")
    table = pd.read_csv(tmp_path / "images.csv")
    assert table[table.dataset == "fashion_mnist"].reset_index(drop=True).equals(first)
    emoji = table[table.dataset == "emoji"].set_index(["method", "metric"]).value
    assert len(emoji) == 4 and emoji["floor", "frechet_pca"] < emoji["euler", "frechet_pca"]
    card = (tmp_path / "models" / "emoji_rectified_velocity" / "README.md").read_text()
    assert "emoji, 32x32 in colour" in card and "| euler | 1 | frechet_pca |" in card


def archive_of(folder, batches: int = 2, each: int = 5) -> tuple[Path, np.ndarray]:
    """An archive as CIFAR-10's binary version is: records of a label and 3 x 32 x 32 bytes."""
    records = np.random.default_rng(0).integers(0, 256, (batches * each, 1 + 3072), dtype=np.uint8)
    records[:, 0] %= 10
    file = folder / "cifar.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for i in range(batches):
            blob = records[i * each : (i + 1) * each].tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{i + 1}.bin")
            member.size = len(blob)
            tar.addfile(member, io.BytesIO(blob))
    return file, records


@pytest.fixture
def published(experiment):
    return experiment("published")


def test_cifar_archive(published, tmp_path):
    file, records = archive_of(tmp_path)
    data = published.cifar10(file, hashlib.md5(file.read_bytes()).hexdigest())
    assert data.x.shape == (10, 3, 32, 32) and data.labels.tolist() == records[:, 0].tolist()
    assert float(data.x[3, 1, 4, 5]) == pytest.approx(records[3, 1 + 1024 + 4 * 32 + 5] / 127.5 - 1)
    with pytest.raises(ValueError, match="is not cifar-10-binary.tar.gz: its md5 is"):
        published.cifar10(file)
    with pytest.raises(FileNotFoundError, match="must name cifar-10-binary.tar.gz"):
        published.cifar10(tmp_path / "none.tar.gz")


@pytest.mark.parametrize("setting", ["cifar10", "imagenet64"])
def test_a_published_setting_trains_and_continues(
    published, experiment, setting, tmp_path, monkeypatch
):
    """Two steps of a narrow network on a few random images."""
    if setting == "cifar10":
        file, _ = archive_of(tmp_path)
        monkeypatch.setattr(
            published.cifar10, "__defaults__", (hashlib.md5(file.read_bytes()).hexdigest(),)
        )
    else:
        file = tmp_path / "images.npy"
        np.save(file, np.random.default_rng(0).uniform(-1, 1, (6, 3, 64, 64)).astype("float32"))
    options = "--device cpu --steps 2 --batch 4 --width 8".split()
    for _ in range(2):
        experiment(
            "published", "train", setting, "--data", file, "--folder", tmp_path / "run", *options
        )
    model = ifl.FlowMap.from_pretrained(tmp_path / "run" / "model")
    assert ifl.sample(model, 2).x.shape == (2, *model.data_shape)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["steps_done"] == 2


def test_cost_is_counted(published, experiment, tmp_path):
    """Of layers that can be counted by hand; and the committed table is what the script gives now."""

    class Two(torch.nn.Module):
        data_shape, anchor, classes = (5,), False, 0

        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(5, 7), torch.nn.Linear(7, 5)

        def forward(self, x, t, s):
            return self.b(torch.exp(self.a(x)))

    flops, kept = published.counted(Two().to("meta"))
    assert flops == 2 * (5 * 7 + 7 * 5) and kept == 4 * (
        5 + 7
    )  # the input and, shared by exp and b, the middle
    experiment("published", "cost", "--out", tmp_path)
    assert (tmp_path / "cost.csv").read_text() == (REFERENCE / "cost.csv").read_text()


def test_what_the_readme_says_of_anchors_and_neighbours():
    anchor = pd.read_csv(REFERENCE / "self_anchor.csv").pivot(
        index=["dataset", "path", "nfe", "seed"], columns="anchor", values="w2"
    )
    cells = (anchor["self"] - anchor["none"]).groupby(["dataset", "path", "nfe"])
    half = cells.std() * student.ppf(0.975, cells.count() - 1) / cells.count() ** 0.5
    assert not (cells.mean() + half < 0).any() and (cells.mean() - half > 0).sum() >= 3
    peers = pd.read_csv(REFERENCE / "quality_vs_peers.csv")
    peers = peers[peers.role.isin(["defaults", "best found"])]
    mean = peers.groupby(["dataset", "method", "role"]).w2.mean().unstack("dataset")
    ours, theirs = (
        mean.loc[["IntegralIdentity", "IntegralAdditivity"]],
        mean.loc[["MeanFlow", "SplitMeanFlow"]],
    )
    assert ours.eight_gaussians.max() < theirs.eight_gaussians.min()
    others = theirs.checkerboard.drop(("MeanFlow", "best found"))
    assert ours.checkerboard.max() < others.min()
    best = peers[
        (peers.dataset == "checkerboard")
        & (peers.method == "MeanFlow")
        & (peers.role == "best found")
    ].w2
    assert ours.checkerboard.max() - best.mean() < best.max() - best.min()


def test_each_claim_of_the_exactness_table_holds():
    """Means over seeds, in every cell that has a bound."""
    table = pd.read_csv(REFERENCE / "exactness.csv")
    cells = table.dropna(subset="bound").groupby(["path", "objective", "dim", "quantity"])
    bounded = cells[["relative_rms", "bound"]].mean()
    assert len(bounded) == 4 * 8 * 2
    assert (bounded.relative_rms <= bounded.bound).all(), bounded[
        bounded.relative_rms > bounded.bound
    ]
    ends = table[table.objective == "X0Regression"].groupby("quantity").relative_rms
    assert ends.max()["jump_is_data_mean"] < 0.15 and ends.min()["jump_is_flow_map"] > 0.9
    assert (table.groupby(["path", "objective", "dim"]).seed.nunique() >= 3).all()


# ---------------------------------------------------------------- the adaptive weight


def test_adaptive_weight(tmp_path, experiment):
    """The weight by the own error is that which the library does not take."""
    options = ["--out", tmp_path, "--runs", tmp_path / "runs", "--steps", "3", "--samples", "80"]
    experiment("adaptive_weight", *options, "--seeds", "1", "--objectives", "TerminalVelocity")
    table = pd.read_csv(tmp_path / "adaptive_weight.csv")
    cells = table.groupby(["power", "weight"]).pair_over_equal.mean()
    assert len(table) == 5 * 4 and table.frechet_pca.gt(0).all()
    assert cells[0.0, "as is"] == 1
    assert cells[1.0, "own error"] != pytest.approx(cells[1.0, "as is"], rel=0.05)


# ---------------------------------------------------------------- a training for sweeps


def test_the_training_that_sweeps_run(monkeypatch):
    """Rows of each anchor that there is, and of each path under both of its names."""
    train = importlib.import_module("experiments.plane_sweep").train
    short = {"steps": 2, "batch_size": 8, "hidden": 8, "layers": 1, "draws": 1, "nfes": [1]}
    monkeypatch.setattr(zoo.metrics, "w2", lambda x, y: 1.0)  # it is slow
    rows = train(**short, objective="X0Regression", anchor="shared", path="PoissonFlow", seed=3)
    assert {(r["path"], r["anchor"], r["seed"], r["step"]) for r in rows} == {
        ("pfgmpp", "shared", 3, 2)
    }
    assert {row["metric"] for row in rows} == {
        "w2",
        "spread",
        "copy",
        "off_support",
        "rms_to_exact",
    }
    row = train(**short)[0]
    assert set(row) <= set(COLUMNS) and row["objective"] == "IntegralIdentity"
    assert row["params"] < 1000 and row["path"] == "rectified"


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"objective": "FlowMatching", "anchor": "self"}, "FlowMatching has no anchor 'self'"),
        ({"objective": "IntegralIdentity", "nfes": [16]}, "is not sampled with nfes = [16]"),
        ({"nfes": []}, "is not sampled with nfes = []"),
        ({"nfes": [0]}, "nfes must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"path": "vp"}, "unknown path 'vp'"),
        ({"dataset": "digits"}, "unknown data 'digits'"),
        ({"objective": "Distillation"}, "Distillation has no anchor 'none'"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_training_that_makes_no_sense(settings, words):
    train = importlib.import_module("experiments.plane_sweep").train
    with pytest.raises(ValueError) as error:
        train(**settings)
    assert words in str(error.value) and "\n" not in str(error.value)
