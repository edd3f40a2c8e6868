"""The real notebooks from the real command line, with the shortest profile."""

import csv
import json
import subprocess
import sys

import pytest

from iflow_runner.recorder import COLUMNS, checkout

pytestmark = pytest.mark.long


def test_smoke(tmp_path):
    out = tmp_path / "run"
    answer = subprocess.run(
        [
            sys.executable,
            "-m",
            "iflow_runner.cli",
            "reproduce",
            "--profile",
            "smoke",
            "--device",
            "cpu",
            "--out",
            str(out),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "ok" and {e["status"] for e in manifest["notebooks"].values()} == {
        "ok"
    }
    for name, entry in manifest["notebooks"].items():
        notebook = json.loads((checkout() / "notebooks" / f"{name}.ipynb").read_text("utf-8"))
        assert entry["reads"] == notebook["metadata"]["iflow"]["reads"]
        assert entry["reads"] or name == "03_from_scratch"
    for file in (f for f in out.rglob("*") if f.suffix in (".ipynb", ".json", ".csv", ".html")):
        assert str(tmp_path) not in file.read_text(encoding="utf-8"), file
    assert {path.name for path in out.glob(".*")} == {".lock"}
    page = (out / "index.html").read_text()
    figures = [f for entry in manifest["notebooks"].values() for f in entry["figures"]]
    assert figures
    for figure in figures:
        assert (
            (out / figure["file"]).stat().st_size > 1000
            and figure["file"] in page
            and figure["caption"]
        )
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and tuple(rows[0]) == COLUMNS
    for row in rows:
        float(row["value"])
        assert row["run_id"] and row["dataset"] and row["method"] and row["metric"]


def test_plain_papermill_from_another_folder(tmp_path):
    """No help from us: a notebook finds the library and the committed results wherever papermill runs."""
    notebook = checkout() / "notebooks" / "06_nfe_vs_quality.ipynb"
    small = {"seed": 3, "plane_steps": 100, "image_samples": 100, "max_nfe": 4}
    command = [sys.executable, "-m", "papermill", str(notebook), "out.ipynb", "--no-progress-bar"]
    for name, value in small.items():
        command += ["-p", name, str(value)]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stderr[-2000:]
    executed = json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))
    assert executed["metadata"]["papermill"]["parameters"] == small
    assert all(cell["execution_count"] for cell in executed["cells"] if cell["cell_type"] == "code")
    assert [file.name for file in tmp_path.iterdir()] == ["out.ipynb"]  # and writes nothing beside
