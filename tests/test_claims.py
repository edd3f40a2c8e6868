"""results/reference/claims.csv is what experiments/claims.py makes of the committed tables, and they decide its verdicts."""

import fnmatch
import itertools
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from experiments import claims
from iflow_lib import data, zoo
from iflow_lib.objectives import ANCHORS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tool():
    return claims


def test_the_committed_table_is_what_the_tables_say(tool, tmp_path, monkeypatch):
    found = tool.claims()
    assert (ROOT / "results/reference/claims.csv").read_text() == found.to_csv(
        index=False, lineterminator="\n"
    )
    assert found.id.is_unique and set(found.verdict) <= set(tool.VERDICTS) and len(found) >= 20
    assert not found.isna().any().any() and (found != "").all().all()


def test_each_evidence_is_there(tool):
    for claim in tool.CLAIMS:
        assert "notebook " in claim.evidence, claim.id
        for part in claim.evidence.split("; "):
            if part.startswith("notebook"):
                number, _, heading = part.removeprefix("notebook ").partition(", ")
                (notebook,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
                cells = nbformat.read(notebook, as_version=4).cells
                assert any(f"## {heading}" in cell.source.splitlines() for cell in cells), part
            else:
                file, _, pattern = part.removesuffix(")").partition(" (")
                assert (ROOT / file).is_file(), part
                assert not pattern or fnmatch.filter(
                    set(pd.read_csv(ROOT / file).run_id), pattern
                ), part
        assert (
            claim.picture == "none"
            or (ROOT / f"results/reference/figures/reference-{claim.picture}.png").is_file()
        )


def change(tool, monkeypatch, names: str, alter) -> None:
    """The tool reads its tables, some of them altered."""
    table = tool.table
    monkeypatch.setattr(
        tool, "table", lambda asked: alter(table(asked)) if asked in names.split() else table(asked)
    )


def verdict(tool, name: str) -> str:
    return next(claim for claim in tool.CLAIMS if claim.id == name).judge()[1]


QUALITY = "plane.csv images.csv"


@pytest.mark.parametrize(
    "claim, file, rows, factor, before, after",
    [
        (
            "one-step-quality",
            QUALITY,
            "method == 'map' and nfe == 1",
            3,
            "partly",
            "not reproduced",
        ),
        ("one-step-quality", QUALITY, "method == 'map' and nfe == 1", 0.3, "partly", "reproduced"),
        (
            "better-than-rf",
            QUALITY,
            "method == 'map' and nfe == 1",
            20,
            "reproduced",
            "not reproduced",
        ),
        (
            "solver-error",
            QUALITY,
            "method == 'euler' and nfe == 4",
            0.1,
            "reproduced",
            "not reproduced",
        ),
        ("few-calls", QUALITY, "method == 'map' and nfe == 8", 3, "partly", "reproduced"),
        ("precision", QUALITY, "method == 'euler' and nfe == 100", 3, "partly", "not reproduced"),
        ("unified", "bench/exactness.csv", "path == 've'", 5, "reproduced", "partly"),
        (
            "recipe-no-anchor",
            "bench/exactness.csv",
            "quantity == 'jump_is_data_mean'",
            30,
            "not reproduced",
            "partly",
        ),
        (
            "recipe-no-anchor",
            "bench/recipe.csv",
            "part == 'search' and rule == 'none'",
            0.1,
            "not reproduced",
            "partly",
        ),
        ("time", "bench/speed.csv", "part == 'sampling' and nfe == 50", 4, "partly", "reproduced"),
    ],
)
def test_a_verdict_follows_its_table(tool, monkeypatch, claim, file, rows, factor, before, after):
    assert verdict(tool, claim) == before

    def alter(table: pd.DataFrame) -> pd.DataFrame:
        column = next(
            name
            for name in (
                "w2_over_floor",
                "value",
                "relative_rms",
                "w2",
                "ratio",
                "frechet_to_train",
            )
            if name in table
        )
        table.loc[table.query(rows).index, column] *= factor
        return table

    change(tool, monkeypatch, file, alter)
    assert verdict(tool, claim) == after


def whole_plane(recipe: float) -> pd.DataFrame:
    """plane.csv, every run there; the recipe at ``recipe`` times the floor, and ten times that at 100 calls."""
    rows = [{"dataset": d, "method": "floor", "metric": "w2", "value": 0.1} for d in data.PLANE]
    for d, p, seed in itertools.product(data.PLANE, zoo.PATH_NAMES, range(3)):
        base = {
            "dataset": d,
            "path": p,
            "seed": seed,
            "anchor": "none",
            "nfe": 1,
            "metric": "w2",
            "method": "map",
        }
        for objective, value in (
            ("IntegralIdentity", 0.12),
            ("IntegralAdditivity", 0.125),
            ("ConsistencyTraining", 0.13),
            ("FlowMatching", 1.0),
        ):
            rows.append(
                base
                | {
                    "objective": objective,
                    "step": zoo.PLANE_STEPS,
                    "value": value + 0.001 * seed,
                }
            )
        for anchor in ("none", "self"):
            rows.append(
                base
                | {
                    "objective": "IntegralIdentity",
                    "anchor": anchor,
                    "step": zoo.ANCHOR_STEPS,
                    "value": 0.12 + 0.001 * seed * (1 + (anchor == "self")),
                }
            )
        for rule in ANCHORS:
            own = base | {
                "objective": "X0Regression",
                "anchor": rule,
                "step": zoo.ANCHOR_STEPS,
                "method": "map" if rule == "none" else "anchor",
            }
            rows += [
                own | {"nfe": n, "value": 0.1 * recipe * (1 if n == 1 else 10)} for n in (1, 100)
            ]
            rows += [
                own | {"metric": "spread", "value": 0.6},
                own | {"metric": "copy", "value": 0.9},
            ]
    return pd.DataFrame(rows)


def images_in_small(recipe: float, own: float = 1.0) -> pd.DataFrame:
    """image_methods.csv, every run there; the recipe at ``recipe`` times the integral identity's distance, ten times that
    after 32 refinements; ``own``: the identity with its own estimate as the anchor, over that without."""
    rows = []
    for p, seed in itertools.product(zoo.PATH_NAMES, range(3)):
        base = {
            "dataset": "fashion_mnist",
            "path": p,
            "seed": seed,
            "anchor": "none",
            "nfe": 1,
            "metric": "frechet",
            "method": "map",
        }
        for objective, value in (
            ("IntegralIdentity", 30),
            ("IntegralAdditivity", 31),
            ("ConsistencyTraining", 32),
            ("FlowMatching", 90),
        ):
            rows.append(base | {"objective": objective, "value": value + 0.1 * seed})
        rows.append(
            base
            | {"objective": "IntegralIdentity", "anchor": "self", "value": own * (30 + 0.1 * seed)}
        )
        for rule in ANCHORS:
            mine = base | {
                "objective": "X0Regression",
                "anchor": rule,
                "method": "map" if rule == "none" else "anchor",
            }
            rows += [
                mine | {"nfe": n, "value": 30 * recipe * (1 if n == 1 else 10)} for n in (1, 32)
            ]
            rows += [
                mine | {"metric": "spread", "value": 0.6},
                mine | {"metric": "copy", "value": 0.9},
            ]
    return pd.DataFrame(rows)


def small_recipe(best: float, sampling: float, exact: float) -> pd.DataFrame:
    rows = [
        {"part": "search", "rule": rule, "setting": s, "nfe": 1, "w2_over_floor": best}
        for rule in ANCHORS
        for s in "ab"
    ]
    errors = {
        "best, no anchor": 1.0,
        "best, anchor of training": 0.8,
        "best, anchor of sampling": sampling,
        "network, anchor of sampling": 1.3,
        "network, no anchor": 1.0,
    }
    rows += [
        {"part": "theorem", "rule": "self", "t": t, "quantity": q, "value": v}
        for t in (0.5, 1.0)
        for q, v in errors.items()
    ]
    rows += [
        {"part": "straight", "quantity": q, "value": v}
        for q, v in (("exact", exact), ("learned", exact))
    ]
    return pd.DataFrame(rows)


def test_verdicts_of_the_plane_and_of_the_recipe(tool, monkeypatch):
    """Open while a run is missing; then what the tables say, and the other way round for other tables."""
    own, tables = tool.table, {}
    monkeypatch.setattr(tool, "table", lambda name: tables[name] if name in tables else own(name))
    rules = ["recipe-shared", "recipe-per-example", "recipe-ground-truth", "recipe-self"]
    tables["bench/recipe.csv"], tables["image_methods.csv"] = (
        small_recipe(3.0, 1.0, 0.1),
        images_in_small(4.0),
    )
    tables["plane.csv"] = whole_plane(4.0)[:-30]
    assert {verdict(tool, name) for name in [*rules, "anchor-stability"]} == {"open"}
    tables["plane.csv"], tables["image_methods.csv"] = whole_plane(4.0), images_in_small(4.0)[:-30]
    assert {verdict(tool, name) for name in [*rules, "anchor-stability", "better-than-others"]} == {
        "open"
    }
    tables["image_methods.csv"] = images_in_small(4.0)
    assert {verdict(tool, name) for name in [*rules, "anchor-stability", "straight"]} == {
        "not reproduced"
    }
    assert verdict(tool, "anchor-theorem") == "partly"
    assert verdict(tool, "better-than-others") == verdict(tool, "robust") == "reproduced"
    assert verdict(tool, "anchor-accuracy") == "not reproduced"
    for name, column in (
        ("plane.csv", "value"),
        ("bench/self_anchor.csv", "w2"),
    ):  # all three must say so
        better = tool.table(name).copy()
        better.loc[better.anchor == "self", column] *= 0.5
        tables[name] = better
        assert verdict(tool, "anchor-accuracy") == "partly"
    tables["image_methods.csv"] = images_in_small(4.0, own=0.5)
    assert verdict(tool, "anchor-accuracy") == "reproduced"
    tables["plane.csv"], tables["bench/recipe.csv"] = whole_plane(1.2), small_recipe(1.1, 0.5, 0.0)
    assert {verdict(tool, name) for name in rules} == {"partly"}  # not on images
    tables["image_methods.csv"] = images_in_small(1.2)
    assert {verdict(tool, name) for name in [*rules, "anchor-theorem", "straight"]} == {
        "reproduced"
    }
    worse = whole_plane(1.2)
    worse.loc[worse.objective == "IntegralIdentity", "value"] *= 5
    tables["plane.csv"] = worse
    assert (verdict(tool, "robust"), verdict(tool, "better-than-others")) == (
        "not reproduced",
        "partly",
    )
    tables["plane.csv"], images = whole_plane(1.2), images_in_small(1.2)
    images.loc[images.objective == "ConsistencyTraining", "value"] = 20
    tables["image_methods.csv"] = images
    assert verdict(tool, "better-than-others") == "partly"


def tuned(**factors: float) -> pd.DataFrame:
    """plane_tuning.csv: every setting at 1.5 floors, but those that ``factors`` name (spaces as underlines)."""
    rows = [{"run_id": "floor", "method": "floor", "value": 0.1}]
    for variant, path, seed in itertools.product(
        ("defaults", "width 32", "lr 4e-3"), zoo.PATH_NAMES, range(3)
    ):
        value = 0.15 * factors.get(variant.replace(" ", "_").replace("-", "_"), 1.0)
        rows.append(
            {
                "run_id": f"{variant}/{path}/steps9/seed{seed}",
                "method": "map",
                "nfe": 1,
                "value": value,
            }
        )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "factors, warm, expected",
    [
        ({}, 21.0, "not reproduced"),
        ({"width_32": 2.0}, 21.0, "partly"),
        ({"lr_4e_3": 2.0}, 21.0, "partly"),
        ({}, 40.0, "partly"),
        ({"width_32": 2.0, "lr_4e_3": 2.0}, 40.0, "reproduced"),
    ],
)
def test_sensitive_asks_settings_and_widths(tool, monkeypatch, factors, warm, expected):
    images = pd.DataFrame(
        {"variant": ["base", "warm"], "nfe": 1, "steps": 9, "frechet_to_train": [20.0, warm]}
    )
    tables = {"bench/tuning.csv": images, "bench/plane_tuning.csv": tuned(**factors)}
    monkeypatch.setattr(tool, "table", tables.__getitem__)
    assert verdict(tool, "sensitive") == expected
    tables["bench/plane_tuning.csv"] = tuned(**factors)[:-1]
    assert verdict(tool, "sensitive") == "open"
