"""experiments/make_figures.py draws what the tables say, and leaves out what has none."""

import json

import pytest

from experiments import make_figures
from iflow_lib import zoo
from iflow_runner import recorder as results


@pytest.fixture
def tool(monkeypatch, tmp_path):
    monkeypatch.setattr(make_figures, "REFERENCE", tmp_path)
    monkeypatch.setattr(make_figures, "ROOT", tmp_path)
    (tmp_path / "figures").mkdir()
    return make_figures


def rows() -> list[dict]:
    """Two seeds, two sets; the identity at 1.5 and Euler at 1 + 8 / nfe times the floor."""
    base = {
        "dataset": "spiral",
        "path": "rectified",
        "anchor": "none",
        "network": "MLP",
        "params": 1,
        "n_samples": 2000,
        "device": "cpu",
        "seconds": 1.0,
        "metric": "w2",
    }
    found = [
        base
        | {
            "run_id": f"{dataset}/floor",
            "dataset": dataset,
            "path": None,
            "objective": "data",
            "method": "floor",
            "seed": 0,
            "value": 0.1,
        }
        for dataset in ("spiral", "eight_gaussians")
    ]
    for dataset in ("spiral", "eight_gaussians"):
        for seed in range(2):
            for objective, anchor, method, step, nfes, value in (
                ("IntegralIdentity", "none", "map", zoo.PLANE_STEPS, (1, 2, 8), lambda n: 0.15),
                (
                    "FlowMatching",
                    "none",
                    "euler",
                    zoo.PLANE_STEPS,
                    (1, 2, 100),
                    lambda n: 0.1 + 0.8 / n,
                ),
                (
                    "X0Regression",
                    "per_example",
                    "anchor",
                    zoo.ANCHOR_STEPS,
                    (1, 100),
                    lambda n: 0.6 * n,
                ),
            ):
                found += [
                    base
                    | {
                        "run_id": f"{dataset}/{objective}{seed}",
                        "dataset": dataset,
                        "objective": objective,
                        "anchor": anchor,
                        "method": method,
                        "step": step,
                        "nfe": n,
                        "seed": seed,
                        "value": value(n),
                    }
                    for n in nfes
                ]
    return found


def test_figures_show_the_table(tool, tmp_path, capsys):
    (tmp_path / "plane.csv").write_text(results.csv_text(rows()))
    runs = {row["run_id"]: {"calls_per_step": 4.5} for row in rows()}
    (tmp_path / "plane.manifest.json").write_text(json.dumps({"runs": runs}))
    lines = {line.get_label(): line for line in tool.plane_quality().axes[0].get_lines()}
    assert lines["integral identity"].get_ydata().tolist() == pytest.approx([1.5, 1.5, 1.5])
    assert lines["velocity, Euler"].get_ydata().tolist() == pytest.approx([9, 5, 1.08])
    lines = {line.get_label(): line for line in tool.anchor_stability().axes[0].get_lines()}
    assert lines["recipe, per example"].get_ydata().tolist() == pytest.approx([6, 600])
    assert tool.main(["plane_quality", "anchor_stability", "cost", "image_quality"]) == 0
    assert {file.stem for file in (tmp_path / "figures").iterdir()} == {
        f"reference-{name}" for name in ("plane_quality", "anchor_stability", "cost")
    }
    assert "image_quality: left out" in capsys.readouterr().out
    assert tool.main(["other"]) == 2 and "expected plane_quality" in capsys.readouterr().err
