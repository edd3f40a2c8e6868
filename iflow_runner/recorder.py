"""Results: the one tidy table, where committed results lie, and what a manifest says about this machine.

``reproduce`` writes a run's files with it; notebooks use ``Recorder`` and ``reference``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

from iflow_lib.unattended import note_read

from .provenance import PACKAGE, duration

#: Columns of every table of results, in this order.
COLUMNS = (
    "run_id",
    "dataset",
    "path",
    "objective",
    "anchor",
    "network",
    "params",
    "seed",
    "step",
    "nfe",
    "method",
    "metric",
    "value",
    "n_samples",
    "device",
    "seconds",
)
_WHOLE = (
    "params",
    "seed",
    "step",
    "nfe",
    "n_samples",
)  # pandas turns whole numbers beside a gap into floats


class Recorder:
    """Collects a notebook's rows and figures, and writes them into ``out_dir``; writes nothing where that is "".

    rows: dicts or a pandas table with columns from ``COLUMNS``. Files: ``tables/<notebook>.csv``,
    ``figures/<notebook>-<name>.png`` and, for the captions, ``figures/<notebook>.json``.
    """

    def __init__(self, notebook: str, out_dir: str = ""):
        self.notebook, self.out = notebook, Path(out_dir) if out_dir else None
        self._rows: list[dict] = []
        self._figures: dict[str, str] = {}

    def rows(self, rows) -> None:
        """Add rows; missing columns stay empty, ``run_id`` is the notebook's name unless given.

        Raises ValueError for unknown columns and for rows without a metric or a number as value.
        """
        for row in rows.to_dict("records") if hasattr(rows, "to_dict") else rows:
            self._rows.append(_tidy({"run_id": self.notebook, **row}))

    def figure(self, fig, name: str, caption: str = "") -> None:
        """Save a matplotlib figure as PNG, 150 dpi. ``name``: letters, digits, - and _; ``caption``: one sentence."""
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"a figure's name is made of letters, digits, - and _, got {name!r}")
        if self.out is None:
            return
        from iflow_lib.io import write_together

        image, file = io.BytesIO(), f"{self.notebook}-{name}.png"
        fig.savefig(image, format="png", dpi=150, bbox_inches="tight")
        self._figures[file] = caption
        captions = [{"file": f"figures/{f}", "caption": c} for f, c in self._figures.items()]
        write_together(
            {
                self.out / "figures" / file: image.getvalue(),
                self.out / "figures" / f"{self.notebook}.json": json.dumps(captions, indent=2),
            }
        )

    def save(self) -> None:
        """Write all rows so far as ``tables/<notebook>.csv``."""
        if self.out is not None:
            from iflow_lib.io import write_atomic

            write_atomic(self.out / "tables" / f"{self.notebook}.csv", csv_text(self._rows))


def _tidy(row: dict) -> dict:
    unknown = [c for c in row if c not in COLUMNS]
    if unknown:
        raise ValueError(
            f"unknown column {unknown[0]!r} in a row of results: expected {', '.join(COLUMNS)}"
        )
    row = {
        c: v.item() if hasattr(v, "item") else v for c, v in row.items()
    }  # numpy and torch scalars
    if not row.get("metric") or isinstance(row.get("value"), (bool, str, type(None))):
        raise ValueError(
            f"a row of results needs a metric and a number as value, got {row.get('metric')!r} and "
            f"{row.get('value')!r}"
        )
    for column in row:
        value = row[column]
        if column != "value" and isinstance(value, float) and math.isnan(value):
            row[column] = None
        elif column in _WHOLE and isinstance(value, float) and value.is_integer():
            row[column] = int(value)
    return {c: row.get(c) for c in COLUMNS}


def csv_text(rows) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def checkout() -> Path:
    """The root of the checkout: around the package, else around the working folder. FileNotFoundError outside one."""
    for folder in (PACKAGE.parent, Path.cwd(), *Path.cwd().parents):
        if (folder / "notebooks" / "profiles.toml").is_file():
            return folder
    raise FileNotFoundError(
        "this needs the checkout with its notebooks folder: run it there, or install with `pip "
        "install -e .`"
    )


def reference(name: str = "") -> Path:
    """Path of a committed file or folder under ``results/reference``. FileNotFoundError with one line if missing."""
    path = checkout() / "results" / "reference" / name
    if not path.exists():
        raise FileNotFoundError(
            f"results/reference/{name} is missing from this checkout: restore it with git"
        )
    note_read(name)
    return path


def how_to_make(model) -> str:
    """For a folder of a model of this package that is missing: the command that trains it, and how long that took when
    it was measured, as the committed manifests have it; "" for any other folder."""
    folder, manifests = Path(model), (("images", "systems"), ("plane", "runs"))
    try:
        images, plane = (
            json.loads(reference(f"{name}.manifest.json").read_text(encoding="utf-8"))[runs]
            for name, runs in manifests
        )
        shipped = folder.parent.resolve() == reference().resolve() / "checkpoints"
    except (OSError, ValueError, KeyError):
        return ""
    name, small = folder.name, re.fullmatch("(eight_gaussians)_(rectified_.+)", folder.name)
    if name in images:
        train = (
            f"python tools/make_reference.py train {name}"
            if shipped
            else f'iflow_lib.studies.train_images("{name}", "{folder.as_posix()}")'
        )
        run = images[name]
    elif shipped and small:
        train, run = (
            "python tools/make_reference.py models",
            plane.get("/".join([*small.groups(), "steps10000", "seed0"])),
        )
    else:
        return ""
    took = f", which took {duration(run['seconds'])} on {run['hardware']}" if run else ""
    return f"{'restore it with git, or train it' if shipped else 'train it'}: {train}{took}"
