"""``iflow verify``: the same pipeline again is accepted, a wrong one refused; a reference that is not whole is noticed."""

import dataclasses
import hashlib
import json
import math
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch

import iflow_lib as ifl
from iflow_runner import cli
from iflow_runner import recorder as results
from iflow_runner.verify import SUMS, check_reference, verify

ROOT = Path(__file__).resolve().parent.parent


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def row(value, seed=0, **changes):
    return {
        "run_id": "x",
        "dataset": "spiral",
        "path": "rectified",
        "objective": "IntegralIdentity",
        "anchor": "none",
        "network": "MLP",
        "params": 10,
        "seed": seed,
        "step": 100,
        "nfe": 1,
        "method": "map",
        "metric": "w2",
        "value": value,
        "n_samples": 2000,
        "device": "cpu",
        "seconds": 1.0,
        **changes,
    }


def folder(path: Path, rows) -> Path:
    write(path / "results.csv", results.csv_text(rows))
    return path


def call(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


class Wrong(ifl.IntegralIdentity):
    """Learns other data than it is given."""

    name = "IntegralIdentity"

    def draw(self, model, batch, generator):
        return super().draw(model, dataclasses.replace(batch, x_0=2 * batch.x_0), generator)


def pipeline(path: Path, objective=ifl.IntegralIdentity, seeds: int = 1) -> Path:
    """A small reference pipeline: train, measure, write the table, with real against real beside it."""
    rows = []
    for seed in range(seeds):
        data, fresh = (ifl.data.load("spiral", n=500, seed=2 * seed + i).x for i in range(2))
        torch.manual_seed(seed)
        model = ifl.FlowMap(ifl.MLP(dim=2, hidden=32, layers=2), ifl.RectifiedFlow())
        config = ifl.TrainConfig(steps=150, batch_size=128, seed=seed, device="cpu", progress=False)
        model = ifl.fit(model, objective(), data, config).model
        samples = ifl.sample(model, 500, nfe=1, method="map", seed=seed).x
        rows.append(row(ifl.metrics.w2(samples, fresh), seed))
        rows.append(row(ifl.metrics.w2(data, fresh), seed, objective=None, method="floor"))
    return folder(path, rows)


def test_the_same_pipeline_is_accepted_and_a_wrong_objective_refused(tmp_path, capsys):
    first, again = pipeline(tmp_path / "first"), pipeline(tmp_path / "again")
    code, out, err = call(capsys, "verify", again, "--against", first)
    assert (code, err) == (0, "") and "2 of 2 cells agree, 0 moved" in out
    code, out, err = call(capsys, "verify", pipeline(tmp_path / "wrong", Wrong), "--against", first)
    # the floor is the floor
    assert code == 1 and err == "" and "1 of 2 cells agree, 1 moved" in out
    assert "IntegralIdentity" in out and "allowed" in out


@pytest.mark.parametrize(
    "mine, theirs, agrees",
    [
        ([0.2], [0.2], True),
        ([0.2], [0.225], True),
        ([0.2], [0.25], False),  # within a tenth and 0.01, or not
        ([0.2, 0.3], [0.31, 0.39], True),  # within what the reference's seeds differ
        ([0.200, 0.201, 0.199], [0.25, 0.251, 0.249], False),
        ([84.0, 1.7], [0.35, 0.36], False),
        ([math.nan], [math.nan], True),
        ([math.nan, 0.2], [0.2, 0.2], False),
        ([0.2], [math.nan], False),
    ],
)
def test_a_cell(mine, theirs, agrees, tmp_path):
    mine, theirs = (
        folder(tmp_path / str(i), [row(v, seed) for seed, v in enumerate(values)])
        for i, values in enumerate((mine, theirs))
    )
    table = verify(mine, theirs)
    assert table.agrees.tolist() == [agrees] and table.attrs["only_in_run"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"step": 200},
        {"nfe": 2},
        {"dataset": "pinwheel"},
        {"anchor": "self"},
        {"n_samples": 100},
        {"metric": "c2st"},
    ],
)
def test_only_equal_settings_are_compared(change, tmp_path, capsys):
    mine, theirs = folder(tmp_path / "a", [row(0.2, **change)]), folder(tmp_path / "b", [row(0.2)])
    code, out, err = call(capsys, "verify", mine, "--against", theirs)
    assert code == 2 and "have nothing in common" in err and err.count("\n") == 1 and out == ""
    (column,) = change
    assert f"common: {column} is {change[column]} here and" in err
    both = folder(tmp_path / "c", [row(0.2), row(0.9, **change)])
    assert verify(both, theirs).attrs["only_in_run"] == 1


def test_what_is_no_run_is_refused(tmp_path, capsys):
    for path, words in (
        (tmp_path, "is no run: it has no results.csv"),
        (tmp_path / "none", "is no run"),
    ):
        code, out, err = call(capsys, "verify", path)
        assert code == 2 and words in err and err.count("\n") == 1
    write(tmp_path / "results.csv", "a,b\n1,2\n")
    code, _, err = call(capsys, "verify", tmp_path)
    assert code == 2 and "is no table of results" in err
    header = ",".join(results.COLUMNS)
    text = results.csv_text([row(0.2)]).replace(",0.2,", ",good,")
    for content, words in (
        (b"", "cannot be read as a table of results (No columns to parse from file)"),
        (b"\xff\xfe\x00", "cannot be read as a table of results ('utf-8' codec"),
        (header.encode(), "has no rows"),
        (text.encode(), "has 'good' in the column value: expected numbers"),
    ):
        (tmp_path / "results.csv").write_bytes(content)
        code, _, err = call(capsys, "verify", tmp_path)
        assert code == 2 and f"{tmp_path / 'results.csv'} {words}" in err and err.count("\n") == 1


def test_half_a_table_and_rows_that_were_written_twice(tmp_path, capsys):
    whole = folder(tmp_path / "whole", [row(0.2), row(0.3, dataset="pinwheel")])
    half = folder(tmp_path / "half", [row(0.2)])
    code, out, _ = call(capsys, "verify", half, "--against", whole)
    assert code == 0 and "1 of 1 cells agree" in out
    assert f"and 1 of {whole} are missing here" in out
    twice = folder(tmp_path / "twice", [row(0.2), row(0.2), row(0.4, 1)])
    assert verify(twice, half).n_run.tolist() == [2]


def test_tables_of_the_benchmarks_are_a_run_too(tmp_path):
    mine, theirs = (
        tmp_path / "mine",
        folder(tmp_path / "theirs", [row(0.2), row(0.3, dataset="pinwheel")]),
    )
    write(mine / "plane.csv", results.csv_text([row(0.2)]))
    write(mine / "images.csv", results.csv_text([row(0.9, dataset="pinwheel")]))
    write(mine / "recipe.csv", "a,b\n1,2\n")  # of another kind: not compared
    assert verify(mine, theirs).set_index("dataset").agrees.to_dict() == {
        row(0)["dataset"]: True,
        "pinwheel": False,
    }


def test_every_file_of_the_reference_has_its_checksum():
    tracked = subprocess.run(
        ["git", "ls-files", "results/reference"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    listed = {
        line.split("  ", 1)[1]
        for line in (ROOT / "results/reference" / SUMS).read_text().splitlines()
    }
    if tracked:  # in a checkout
        assert listed == {name.removeprefix("results/reference/") for name in tracked} - {SUMS}
    assert check_reference() == len(listed) > 20


def test_a_missing_or_altered_reference_is_named(tmp_path, monkeypatch, capsys):
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "results" / "reference", root / "results" / "reference")
    monkeypatch.setattr(results, "checkout", lambda: root)
    run = folder(
        tmp_path / "run", pd.read_csv(ROOT / "results/reference/plane.csv").to_dict("records")
    )
    code, out, _ = call(capsys, "verify", run)
    assert code == 0 and " 0 moved; 0 more" in out
    file = root / "results" / "reference" / "plane.csv"
    text = file.read_text()
    file.write_text(text.replace(",w2,0.1", ",w2,0.2", 1))
    code, _, err = call(capsys, "verify", run)
    assert code == 2 and "plane.csv was altered" in err
    assert hashlib.sha256(text.encode()).hexdigest()[:12] in err
    file.unlink()
    code, _, err = call(capsys, "verify", run)
    assert code == 2 and "plane.csv is missing" in err and err.count("\n") == 1
    (file.parent / SUMS).unlink()
    code, _, err = call(capsys, "verify", run)
    assert code == 2 and f"{SUMS} is missing" in err
    assert json.loads((file.parent / "plane.manifest.json").read_text())
