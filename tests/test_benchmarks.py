"""The benchmarks run from their command line and write tables that README.md can be made from."""
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import t as student

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "results" / "reference" / "bench"


@pytest.mark.parametrize("name, options, runs", [
    ("quality_vs_peers", ["--steps", "4", "--draws", "2", "--seeds", "1", "--sets", "eight_gaussians"], 15 + 8),
    ("self_anchor", ["--steps", "4", "--draws", "1", "--seeds", "1", "--sets", "checkerboard"], 6)])
def test_benchmark(name, options, runs, tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--out", tmp_path, "--runs", tmp_path / "runs", *options]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    table, kept = pd.read_csv(tmp_path / f"{name}.csv"), list((tmp_path / "runs" / name).iterdir())
    reference = pd.read_csv(REFERENCE / f"{name}.csv")
    assert set(table) == set(reference) and len(table) < len(reference) and runs / 2 < len(kept) <= runs
    manifest = json.loads((tmp_path / f"{name}.manifest.json").read_text())
    assert manifest["environment"]["versions"]["torch"] and len(manifest) == len(kept) + 4
    times = {file: file.stat().st_mtime_ns for file in kept}
    again = subprocess.run(command, capture_output=True, text=True)  # from what is kept
    assert again.returncode == 0 and {file: file.stat().st_mtime_ns for file in kept} == times


def test_what_the_readme_says_of_anchors_and_neighbours():
    anchor = pd.read_csv(REFERENCE / "self_anchor.csv").pivot(index=["dataset", "path", "nfe", "seed"], columns="anchor",
                                                              values="w2")
    cells = (anchor["self"] - anchor["none"]).groupby(["dataset", "path", "nfe"])
    half = cells.std() * student.ppf(0.975, cells.count() - 1) / cells.count() ** 0.5
    assert not (cells.mean() + half < 0).any() and (cells.mean() - half > 0).sum() >= 3
    peers = pd.read_csv(REFERENCE / "quality_vs_peers.csv")
    peers = peers[peers.role.isin(["defaults", "best found"])]
    mean = peers.groupby(["dataset", "method", "role"]).w2.mean().unstack("dataset")
    ours, theirs = mean.loc[["IntegralIdentity", "IntegralAdditivity"]], mean.loc[["MeanFlow", "SplitMeanFlow"]]
    assert ours.eight_gaussians.max() < theirs.eight_gaussians.min()
    others = theirs.checkerboard.drop(("MeanFlow", "best found"))
    assert ours.checkerboard.max() < others.min()
    best = peers[(peers.dataset == "checkerboard") & (peers.method == "MeanFlow") & (peers.role == "best found")].w2
    assert ours.checkerboard.max() - best.mean() < best.max() - best.min()


def test_each_claim_of_the_exactness_table_holds():
    """Means over seeds, in every cell that has a bound."""
    table = pd.read_csv(REFERENCE / "exactness.csv")
    cells = table.dropna(subset="bound").groupby(["path", "objective", "dim", "quantity"])
    bounded = cells[["relative_rms", "bound"]].mean()
    assert len(bounded) == 4 * 5 * 2
    assert (bounded.relative_rms <= bounded.bound).all(), bounded[bounded.relative_rms > bounded.bound]
    ends = table[table.objective == "X0Regression"].groupby("quantity").relative_rms
    assert ends.max()["jump_is_data_mean"] < 0.15 and ends.min()["jump_is_flow_map"] > 0.9
    assert (table.groupby(["path", "objective", "dim"]).seed.nunique() >= 3).all()
