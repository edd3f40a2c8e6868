"""experiments/make_figures.py draws what the tables say, and leaves out what has none."""

import itertools
import json

import pandas as pd
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


def test_the_figure_of_the_search_of_images(tool, tmp_path):
    """Its own table and settings; scores are ratios to the first candidate."""
    module = make_figures.image_search.__globals__
    images, base = module["IMAGES"], dict.fromkeys(module["ranking"].__globals__["COLUMNS"])
    candidate, table = module["ranking"].__globals__["Candidate"], []
    for number, value in enumerate((0.2, 0.1, 0.3)):
        settings = json.dumps(images.first[number])
        row = base | {"trial": number, "metric": "cost", "value": 1.0, "settings": settings}
        table.append(row)
        for dataset, path, seed, steps in images.runs(candidate(number, {}, 1.0), 0):
            new = {"dataset": dataset, "path": path, "seed": seed, "steps": steps, "seconds": 1.0}
            new |= {"trial": number, "metric": "frechet_pca", "value": value, "calls_per_step": 4.0}
            table += [base | new | {"nfe": nfe} for nfe in (1, 2, 4)]
    (tmp_path / "bench").mkdir()
    pd.DataFrame(table).to_csv(tmp_path / "bench" / "image_search.csv", index=False)
    axes = tool.image_search().axes
    assert [ax.get_xlabel() for ax in axes[1:4]] == ["lr", "ema", "clip"]
    lines = {line.get_label(): line for line in axes[0].get_lines()}
    best = lines["best so far after 400 steps"].get_ydata()
    assert list(best) == pytest.approx([1, 0.5, 0.5])


def test_the_figure_of_the_search(tool, tmp_path, monkeypatch):
    """Every setting has a panel with every candidate that has it; the line is the best score so far."""
    module = make_figures.search.__globals__["ranking"].__globals__
    plane = module["PLANE"]
    settings = {**plane.first[1], "lr": 4e-3}
    table, base = [], dict.fromkeys(module["COLUMNS"])
    for dataset, seed, nfe in itertools.product(plane.sets, range(3), (1, 2, 4)):
        own = {"dataset": dataset, "seed": seed, "metric": "floor", "nfe": nfe, "value": 0.1}
        table.append(base | own)
    for number, (score, rung) in enumerate([(2.0, 1), (3.0, 0), (1.5, 2), (20.0, 0)]):
        own = settings | {"lr": 2e-3 * (number + 1)} | ({} if number else {"derivative": "exact"})
        if not number:
            del own["gap"]
        row = base | {"trial": number, "value": 1.0, "metric": "cost", "settings": json.dumps(own)}
        table.append(row)
        runs = {
            run
            for r in range(rung + 1)
            for run in plane.runs(module["Candidate"](number, own, 1.0), r)
        }
        for (dataset, path, seed, steps), nfe in itertools.product(sorted(runs), (1, 2, 4)):
            new = {"dataset": dataset, "path": path, "seed": seed, "steps": steps, "nfe": nfe}
            new |= {"trial": number, "seconds": 1.0, "calls_per_step": 4.0}
            table.append(base | new | {"metric": "w2", "value": 0.1 * score})
            table.append(base | new | {"metric": "off_support", "value": 0.1})
    (tmp_path / "bench").mkdir()
    pd.DataFrame(table).to_csv(tmp_path / "bench" / "search.csv", index=False)
    axes = tool.search().axes
    assert [ax.get_xlabel() for ax in axes[1:4]] == ["lr", "ema", "clip"]
    lines = {line.get_label(): line for line in axes[0].get_lines()}
    best = lines["best so far after 1,000 steps"].get_ydata()
    assert list(best) == pytest.approx([2, 2, 1.5, 1.5])
    assert list(lines["4,000 steps, three seeds"].get_ydata()) == pytest.approx([1.5])
    panels = {ax.get_xlabel(): ax for ax in axes[1:]}
    shown = {
        name: sum(len(line.get_xdata()) for line in ax.get_lines() if line.get_marker() in "o^")
        for name, ax in panels.items()
    }
    assert shown["lr"] == 4 and shown["gap"] == 3 and shown["derivative"] == 4
    top = [line.get_ydata() for line in panels["lr"].get_lines() if line.get_marker() == "^"]
    assert [list(y) for y in top if len(y)] == [[pytest.approx(2.5 * 1.5)]]
    assert tool.main(["search"]) == 0
    assert (tmp_path / "figures" / "reference-search.png").stat().st_size > 10_000
