"""The committed notebooks: nbval runs each in a fresh kernel and compares its outputs; their stored outputs are clean."""
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))


def test_the_series_is_there():
    names = {"00_start_here", "01_path_integrals", "02_one_line_many_clocks", "03_from_scratch", "04_x0_anchoring",
             "05_training", "06_nfe_vs_quality", "07_rectified_flow_and_reflow", "08_pfgmpp", "09_consistency_models",
             "13_claims"}
    assert {n.stem for n in NOTEBOOKS} >= names
    assert {n.name for n in SOLUTIONS} == {n.name for n in NOTEBOOKS}


@pytest.mark.parametrize("notebook", NOTEBOOKS + SOLUTIONS, ids=lambda n: str(n.relative_to(ROOT / "notebooks")))
def test_nbval(notebook):
    command = [sys.executable, "-m", "pytest", "--verbosity=0", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider",
               "--nbval-sanitize-with", str(ROOT / "notebooks" / "nbval.cfg"), str(notebook)]
    # two threads on small networks are slower than one; figures must appear in the notebook, wherever the tests run
    environment = dict(os.environ, OMP_NUM_THREADS="1", MPLBACKEND="module://matplotlib_inline.backend_inline")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"[1-9]\d* passed", done.stdout), done.stdout[-1000:]


@pytest.mark.parametrize("notebook", NOTEBOOKS + SOLUTIONS, ids=lambda n: str(n.relative_to(ROOT / "notebooks")))
def test_stored_outputs(notebook):
    """Executed top to bottom, no errors, warnings, progress bars, machine paths or figure reprs; not too big."""
    assert notebook.stat().st_size < 2_000_000
    code = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for output in (output for cell in code for output in cell.outputs):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert not re.search(r"<Figure|<Axes|it/s\]|Warning|/(home|root|tmp|work|Users)/", text), text
