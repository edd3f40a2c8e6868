"""The real notebooks from the real command line, with the shortest profile."""
import csv
import json
import subprocess
import sys

from iflow_lib.results import COLUMNS, checkout


def test_smoke(tmp_path):
    out = tmp_path / "run"
    answer = subprocess.run(
        [sys.executable, "-m", "iflow_lib.cli", "reproduce", "--profile", "smoke", "--device", "cpu", "--out", str(out)],
        capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "ok" and {e["status"] for e in manifest["notebooks"].values()} == {"ok"}
    for name, entry in manifest["notebooks"].items():  # each declares what it reads: else it might not run again
        notebook = json.loads((checkout() / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
        declared = notebook["metadata"]["iflow"]["reads"]
        assert entry["reads"] or name == "03_from_scratch"
        assert not [read for read in entry["reads"] if not any(f"{read}/".startswith(f"{d}/") or d == "." for d in declared)]
    page = (out / "index.html").read_text()
    figures = [f for entry in manifest["notebooks"].values() for f in entry["figures"]]
    assert figures
    for figure in figures:
        assert (out / figure["file"]).stat().st_size > 1000 and figure["file"] in page and figure["caption"]
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and tuple(rows[0]) == COLUMNS
    for row in rows:
        float(row["value"])
        assert row["run_id"] and row["dataset"] and row["method"] and row["metric"]
