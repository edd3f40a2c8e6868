"""The table of notebooks in README.md: ``python -m experiments.make_thumbnails``, after a notebook has changed.

Each row's picture, 160 pixels wide in docs/thumbnails, is a stored figure of the notebook; its runtime is the one in the
notebook's first cell; its question stays as it stands in README.md.
"""

import base64
import io
import re

import nbformat
from PIL import Image

from experiments.common import ROOT
from iflow_lib.io import write_together

WIDTH, COLORS = 160, 64
#: which of a notebook's figures, counted from 0, and the part of its width that is shown, if not the first and all of it
CHOSEN = {
    "01_path_integrals": (0, 0.5, 1.0),
    "02_one_line_many_clocks": (1, 0.0, 1.0),
    "03_from_scratch": (3, 0.0, 1.0),
    "04_x0_anchoring": (3, 0.0, 1.0),
    "06_nfe_vs_quality": (0, 0.0, 0.44),
    "05_training": (2, 0.0, 1.0),
    "07_rectified_flow_and_reflow": (2, 0.0, 1.0),
    "09_consistency_models": (4, 0.0, 1.0),
    "13_claims": (2, 0.0, 1.0),
}


def pictures(notebook) -> list[bytes]:
    """PNGs among the stored outputs."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return [
        base64.b64decode(output.data["image/png"])
        for output in outputs
        if "image/png" in output.get("data", ())
    ]


def thumbnail(name: str, notebook) -> bytes:
    index, left, right = CHOSEN.get(name, (0, 0.0, 1.0))
    found = pictures(notebook)
    with Image.open(io.BytesIO(found[min(index, len(found) - 1)])) as image:
        shown = image.convert("RGB").crop(
            (round(left * image.width), 0, round(right * image.width), image.height)
        )
    small = shown.resize(
        (WIDTH, round(shown.height * WIDTH / shown.width)), Image.Resampling.LANCZOS
    )
    file = io.BytesIO()
    small.quantize(COLORS).save(file, format="PNG", optimize=True)
    return file.getvalue()


def runtime(notebook) -> str:
    """The runtime that the notebook states: "about a minute"."""
    line = re.search(r"^\*Runtime:\* (.+)", notebook.cells[0].source, flags=re.M)[1]
    return re.search(r"(about|some|less than|at most) .+?(second|minute)s?( and a half)?\b", line)[
        0
    ]


def table(page: str, notebooks: dict) -> str:
    """The page with its table of notebooks written anew: rows of those that are here, the others as they stand."""
    start, end = "<!-- notebooks -->\n", "<!-- /notebooks -->"
    head, rest = page.split(start)
    rows, tail = rest.split(end)
    lines = ["| | notebook | question | runtime |", "|---|---|---|---|"]
    for row in rows.splitlines()[2:]:
        found = re.match(r"\|[^|]*\| (?:\[(\w+)\]\([^)]*\)|([^|]+?)) \| ([^|]+?) \|", row)
        name, question = found[1] or found[2], found[3]
        if name in notebooks:
            lines.append(
                f"| ![{name[:2]}](docs/thumbnails/{name}.png) | [{name}](notebooks/{name}.ipynb) | {question} | "
                f"{runtime(notebooks[name])} |"
            )
        else:
            lines.append(f"| | {name} | {question} | to come |")
    return head + start + "\n".join(lines) + "\n" + end + tail


def main() -> None:
    notebooks = {
        file.stem: nbformat.read(file, as_version=4)
        for file in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")
    }
    page, folder = ROOT / "README.md", ROOT / "docs" / "thumbnails"
    write_together(
        {folder / f"{name}.png": thumbnail(name, notebook) for name, notebook in notebooks.items()}
        | {page: table(page.read_text(encoding="utf-8"), notebooks)}
    )


if __name__ == "__main__":
    main()
