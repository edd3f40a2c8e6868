"""README.md and docs/: snippets run, tables are the reference results, links lead somewhere, sources are said."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from PIL import Image

from experiments import make_reference, make_thumbnails
from experiments.readme_tables import TABLES
from iflow_lib.data import load
from iflow_lib.metrics import w2
from iflow_lib.sampling import sample

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {
    file.stem: file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))
}
#: Those of docs/sweeps.md need a cluster.
SNIPPETS = re.findall(r"```python\n(.*?)```", README + DOCS["library"], flags=re.S)


def test_snippets_run(tmp_path):
    """Each by itself, with nothing defined before it; in one process, because each would import torch."""
    # two threads on small networks are slower than one
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    short = [code.replace("steps=4000", "steps=40") for code in SNIPPETS]
    program = (
        f"for code in {short!r}:\n    print(code[-200:])\n    exec(code, {{'__name__': 'snippet'}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert len(SNIPPETS) >= 7 and done.returncode == 0, done.stdout[-400:] + done.stderr


@pytest.mark.long
def test_the_first_snippet_reaches_what_the_page_says(tmp_path, monkeypatch):
    """One jump of the defaults is at most 1.4 floors from fresh data, the bound for the worst set (docs/protocol.md)."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": "snippet"}
    exec(SNIPPETS[0], names)
    ours = theirs = 0.0
    for seed in range(8):  # single distances differ by a factor of two
        fresh, other = (load("two_moons", 2000, "test", seed=i).x for i in (seed, 100 + seed))
        ours += w2(sample(names["run"].model, 2000, 1, seed=seed).x, fresh)
        theirs += w2(other, fresh)
    assert 0.7 * theirs < ours < 1.4 * theirs


def test_api_example_is_short():
    assert len(SNIPPETS) >= 2
    assert len([line for line in SNIPPETS[0].splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize(
    "name",
    [
        "plane",
        "images",
        "made",
        "exactness",
        "peers",
        "self_anchor",
        "claims",
        "claims_short",
        "speed_short",
        "speed",
        "tuning",
        "recipe",
        "straight",
        "compiling",
        "sampling",
        "threads",
        "precision",
        "cost",
        "runner",
        "sweep",
        "image_methods",
        "emoji",
        "budget",
        "plane_tuning",
        "adaptive_weight",
        "search",
    ],
)
def test_numbers_are_the_reference_results(name):
    file, make = TABLES[name]
    (page,) = [text for text in (README, *DOCS.values()) if f"<!-- {name} -->" in text]
    shown = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", page, flags=re.S)[1]
    assert len(shown.splitlines()) >= 5
    assert shown == make(pd.read_csv(ROOT / "results" / "reference" / file))


def test_every_table_has_its_place():
    """Each that a program writes stands on one page; the program leaves the pages as they are."""
    pages = {page: (ROOT / page).read_text(encoding="utf-8") for page in make_reference.PAGES}
    assert set(pages) == {"README.md", *(f"docs/{name}.md" for name in DOCS)}
    for name in TABLES:
        assert sum(text.count(f"<!-- {name} -->") for text in pages.values()) == 1, name
    for text in pages.values():
        assert make_reference.with_tables(text) == text


def test_a_newcomer_reads_it_in_five_minutes():
    """Short; one picture beside the thumbnails; at most twelve verdicts; a link to every page."""
    assert len(README.encode()) < 9_500
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert [name for name in pictures if "thumbnails" not in name] == [
        "results/reference/figures/00_start_here-one_beside_fifty.png"
    ]
    verdicts = re.search(r"<!-- claims_short -->\n(.*?)<!-- /claims_short -->", README, flags=re.S)[
        1
    ]
    assert 8 <= len(verdicts.splitlines()) - 2 <= 12
    assert [name for name in DOCS if f"](docs/{name}.md" not in README] == []
    for name, text in DOCS.items():
        assert re.match(r"# .+\?\n|# A workshop\n", text), (
            f"{name}: the title of a page is its question"
        )


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/claims.md",
        "notebooks/00_start_here.ipynb",
        "notebooks/13_claims.ipynb",
        "notebooks/04_x0_anchoring.ipynb",
    ],
)
def test_who_invented_the_rule_and_what_was_read(page):
    """Each says by itself that the paper was not read in full, what was, and whose the training rule is."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith("ipynb"):
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    text = " ".join(text.split())
    for words in (
        r"full text (of the paper )?was not available",
        r"abstract, summaries",
        r"reviews of an earlier version",
        r"MeanFlow",
        r"2505\.13447",
        r"Geng et al",
    ):
        assert re.search(words, text), (page, words)
    if page == "README.md":  # a sentence that the table of claims must bear out
        assert "does not generate in one step here" in text
        claims = pd.read_csv(ROOT / "results" / "reference" / "claims.csv").set_index("statement")
        recipe = claims.loc["Regression on x_0 with an anchor generates in one step."]
        assert recipe.as_described == "not reproduced"
    assert re.search(r"withdrawn, (and )?listed as reject in one copy", text), page


def test_the_table_of_notebooks():
    """One row for each notebook, with its runtime and a small picture: `python -m experiments.make_thumbnails` makes them."""
    notebooks = {
        file.stem: nbformat.read(file, as_version=4)
        for file in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")
    }
    assert make_thumbnails.table(README, notebooks) == README
    rows = re.findall(
        r"^\| !\[\d\d\]\((docs/\w+/(\w+)\.png)\) \| .+ \| .+(?:second|minute).* \|$",
        README,
        flags=re.M,
    )
    assert sorted(name for _, name in rows) == sorted(notebooks)
    for file, name in rows:
        made = make_thumbnails.thumbnail(name, notebooks[name])
        assert len(made) < 30_000
        with Image.open(ROOT / file) as image:
            assert image.width == 160 and 30 < image.height < 320
    assert sum(file.stat().st_size for file in (ROOT / "docs" / "thumbnails").iterdir()) < 300_000
    assert {file.stem for file in (ROOT / "docs" / "thumbnails").iterdir()} == set(notebooks)


def test_links_lead_somewhere():
    for page, text in (ROOT, README), (ROOT / "docs", "".join(DOCS.values())):
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
        assert len(links) > 3
        assert [link for link in links if not (page / link).exists()] == []


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"`make ([\w-]+)", README + DOCS["reproduce"])
    assert len(set(commands)) >= 8
    for target in commands:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
    if shutil.which("make"):
        said = subprocess.run(
            ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        named = set(re.findall(r"^make ([\w-]+)", said, flags=re.M))
        assert named | {"help"} == set(
            re.search(r"^\.PHONY: (.+)", makefile, flags=re.M)[1].split()
        )
