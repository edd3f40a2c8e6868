"""Draw ``index.html``, the page of a run, from its manifest, its rows of results and its folder.

The page is a jinja2 template; its style sheets and scripts lie beside this file. Each executed
notebook is a page of its own that nbconvert makes. It stands in an iframe with
``sandbox="allow-scripts"``: its scripts run, for example those of matplotlib's films, but they can
neither reach the page around them nor load anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..provenance import duration

if TYPE_CHECKING:
    from jinja2 import Environment

#: The policy of the page and of the notebooks' frames: scripts in the text run, nothing is loaded.
POLICY = (
    "default-src 'none'; img-src data:; media-src data:; font-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
#: Rows of results on the light page.
HEAD_ROWS = 12
#: Columns of the table of results, where they are not empty. The CSV file has every column.
COLUMNS = (
    "dataset",
    "path",
    "objective",
    "method",
    "nfe",
    "seed",
    "step",
    "metric",
    "value",
    "n_samples",
    "seconds",
)
#: The first columns of the table of agreement; those that ``iflow verify`` adds follow.
AGREEMENT_COLUMNS = (
    "dataset",
    "path",
    "objective",
    "method",
    "nfe",
    "metric",
    "reference",
    "this run",
    "allowed",
)
#: Columns of numbers that are shown with four digits.
ROUNDED = ("value", "seconds", "reference", "this run", "allowed")
#: Columns that are sorted as numbers and aligned to the right.
NUMBERS = ("nfe", "seed", "step", "n_samples", *ROUNDED)


@dataclass(frozen=True)
class Rendered:
    """What the page shows of one executed notebook.

    Attributes:
        html: The notebook as a page of its own, for an iframe.
        pictures: The bytes of each figure as a ``data:`` address, by its file's name.
    """

    html: str
    pictures: dict[str, str]


def page(
    manifest: dict,
    rows: Sequence[Mapping[str, str]],
    out: Path | None = None,
    made: Mapping[str, Rendered] | None = None,
) -> str:
    """Draw the page of a run.

    Args:
        manifest: The manifest of ``iflow reproduce``.
        rows: The results, one mapping from column to text for each row.
        out: The run's folder. With it everything is in the page, which needs no other file and no
            network. Without it, as while the run goes on, the page is light and links to the
            figures and tables.
        made: What ``render_notebook`` has made of some notebooks already.

    Returns:
        The HTML text.
    """
    entries = manifest["notebooks"]
    rendered: dict[str, Rendered] = dict(made or {}) if out else {}
    for name in entries:
        if out and name not in rendered and (out / _file(name)).is_file():
            rendered[name] = render_notebook(name, entries[name], out)
    notebooks = [
        _notebook(name, entry, manifest["started"], out, rendered.get(name))
        for name, entry in entries.items()
    ]
    rows = sorted(rows, key=lambda row: row["method"] == "floor")
    columns = [column for column in COLUMNS if any(row[column] for row in rows)]
    agreement = _agreement(out) if out and rows else {}
    sections = {
        "Notebooks": True,
        "Agreement": agreement,
        "Results": rows,
        "Figures": any(notebook["figures"] for notebook in notebooks),
        "Rendered notebooks": rendered,
        "How it was made": True,
    }
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            manifest=manifest,
            whole=out is not None,
            sections=[title for title, content in sections.items() if content],
            notebooks=notebooks,
            done=sum(entry["status"] == "ok" for entry in entries.values()),
            agreement=agreement,
            total=len(rows),
            results=_table(columns, rows if out else rows[:HEAD_ROWS]),
            manifest_text=json.dumps(manifest, indent=2, ensure_ascii=False),
        )
    )


def render_notebook(name: str, entry: dict, out: Path) -> Rendered:
    """Render an executed notebook and its figures for ``page``.

    Args:
        name: The notebook's name, without a suffix.
        entry: Its entry in the manifest.
        out: The run's folder.

    Returns:
        The notebook's page and its pictures. A notebook that cannot be read or converted must not
        cost the run its page: then the notebook's page says what went wrong.
    """
    from markupsafe import escape

    from .notebook import code_colours, notebook_body, picture

    try:
        body = notebook_body(out / _file(name))
    except Exception as error:  # nbformat, nbconvert and jinja2 each raise errors of their own
        body = f"<p>It could not be shown: {escape(f'{type(error).__name__}: {error}')}</p>"
    template = _environment().get_template("notebook.html.j2")
    html = template.render(body=body, code_colours=code_colours())
    files = [figure["file"] for figure in entry.get("figures", ())]
    return Rendered(
        html,
        {file: picture((out / file).read_bytes()) for file in files if (out / file).is_file()},
    )


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["text_of"] = lambda name: Markup(
        (folder / name).read_text(encoding="utf-8")
    )
    environment.globals["policy"] = POLICY
    environment.filters["duration"] = duration
    environment.filters["id"] = lambda title: title.lower().replace(" ", "-")
    return environment


def _file(name: str) -> str:
    return f"notebooks/{name}.ipynb"


def _notebook(
    name: str, entry: dict, started: str, out: Path | None, rendered: Rendered | None
) -> dict[str, Any]:
    """Say what the template needs of a notebook."""
    notes = [entry["error"]] if entry.get("error") else []
    if entry["status"] == "ok" and entry["started"] < started:
        notes.append("from an earlier run")
    figures = entry.get("figures", [])
    if out:
        pictures = rendered.pictures if rendered else {}
        figures = [
            figure | {"picture": pictures[figure["file"]]}
            for figure in figures
            if figure["file"] in pictures
        ]
    return {
        "name": name,
        "title": entry["title"],
        "status": entry["status"],
        "file": _file(name) if _file(name) in entry.get("files", {}) else "",
        "notes": notes,
        "traceback": entry.get("traceback") or "",
        "settings": ", ".join(f"{k} = {v!r}" for k, v in entry.get("parameters", {}).items()),
        "took": duration(entry["seconds"]) if "seconds" in entry else "",
        "figures": figures,
        "html": rendered.html if rendered else "",
    }


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return a table for the template: per cell its text and, where that is rounded, the exact."""

    def cell(column: str, text: str) -> tuple[str, str]:
        short = f"{float(text):.4g}" if column in ROUNDED and text else text
        return short, text if short != text else ""

    return {
        "columns": [(column, column in NUMBERS) for column in columns],
        "rows": [[cell(column, row[column]) for column in columns] for row in rows],
    }


def _agreement(out: Path) -> dict[str, Any]:
    """Return what ``iflow verify`` says of the run in a folder."""
    from .. import verify

    try:
        table = verify.verify(out)
    except (ValueError, OSError) as error:
        return {"error": str(error).replace(str(out), "this run")}
    names = {"mean_reference": "reference", "mean_run": "this run"}
    cells = [
        {str(key): "" if str(value) in ("nan", "-1") else str(value) for key, value in row.items()}
        for row in table.rename(columns=names).to_dict("records")
    ]
    columns = [
        column
        for column in dict.fromkeys((*AGREEMENT_COLUMNS, *verify.CELL))
        if any(cell[column] for cell in cells)
    ]
    moved = [cell for cell in cells if cell["agrees"] == "False"]
    return {
        "error": "",
        "cells": len(cells),
        "moved": len(moved),
        "only_in_run": table.attrs["only_in_run"],
        "moved_table": _table(columns, moved),
        "table": _table(columns, cells),
    }
