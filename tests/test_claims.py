"""results/reference/claims.csv is what tools/claims.py makes of the committed tables, and they decide its verdicts."""
import importlib.util
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("claims", ROOT / "tools" / "claims.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "claims", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_committed_table_is_what_the_tables_say(tool, tmp_path, monkeypatch):
    found = tool.claims()
    assert (ROOT / "results/reference/claims.csv").read_text() == found.to_csv(index=False, lineterminator="\n")
    assert found.id.is_unique and set(found.verdict) <= set(tool.VERDICTS) and len(found) >= 20
    assert not found.isna().any().any() and (found != "").all().all()


def test_each_evidence_is_there(tool):
    for claim in tool.CLAIMS:
        for part in claim.evidence.split("; "):
            if part.startswith("notebook"):
                if claim.judge()[1] != "open":
                    assert list((ROOT / "notebooks").glob(f"{part.split()[1]}_*.ipynb")), part
            else:
                assert (ROOT / part.removeprefix("python ")).exists(), part


def change(tool, monkeypatch, name: str, alter) -> None:
    """The tool reads its tables, one of them altered."""
    table = tool.table
    monkeypatch.setattr(tool, "table", lambda asked: alter(table(asked)) if asked == name else table(asked))


def verdict(tool, name: str) -> str:
    return next(claim for claim in tool.CLAIMS if claim.id == name).judge()[1]


@pytest.mark.parametrize("claim, file, rows, factor, before, after", [
    ("one-step-quality", "nfe_vs_quality.csv", "method == 'map' and nfe == 1", 3, "partly", "not reproduced"),
    ("one-step-quality", "nfe_vs_quality.csv", "method == 'map' and nfe == 1", 0.3, "partly", "reproduced"),
    ("better-than-rf", "nfe_vs_quality.csv", "method == 'map' and nfe == 1", 10, "reproduced", "not reproduced"),
    ("solver-error", "nfe_vs_quality.csv", "method == 'euler' and nfe == 4", 0.1, "reproduced", "not reproduced"),
    ("few-calls", "nfe_vs_quality.csv", "method == 'map' and nfe == 8", 3, "partly", "reproduced"),
    ("precision", "nfe_vs_quality.csv", "method == 'euler' and nfe == 100", 3, "reproduced", "not reproduced"),
    ("unified", "bench/exactness.csv", "path == 've'", 5, "reproduced", "partly"),
    ("recipe-no-anchor", "bench/exactness.csv", "quantity == 'jump_is_data_mean'", 30, "not reproduced", "open"),
    ("anchor-accuracy", "bench/self_anchor.csv", "anchor == 'self'", 0.5, "not reproduced", "reproduced"),
    ("time", "bench/speed.csv", "part == 'sampling' and nfe == 50", 4, "partly", "reproduced")])
def test_a_verdict_follows_its_table(tool, monkeypatch, claim, file, rows, factor, before, after):
    assert verdict(tool, claim) == before

    def alter(table: pd.DataFrame) -> pd.DataFrame:
        column = next(name for name in ("value", "relative_rms", "w2", "ratio") if name in table)
        table.loc[table.query(rows).index, column] *= factor
        return table

    change(tool, monkeypatch, file, alter)
    assert verdict(tool, claim) == after
