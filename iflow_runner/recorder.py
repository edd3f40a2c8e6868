"""What a notebook keeps: a table, figures and checkpoints; and where committed results lie."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import LIBRARY
from .files import read_json, write_together
from .provenance import duration

#: Columns of every table of results, in this order.
COLUMNS = tuple(
    "run_id dataset path objective anchor network params seed step nfe method metric value "
    "n_samples device seconds".split()
)
#: Folder under ``out_dir`` for the checkpoints of a notebook's trainings. It is no result.
TRAINING = ".training"
_WHOLE = ("params", "seed", "step", "nfe", "n_samples")  # pandas makes floats of them beside a gap


class Recorder:
    """Collect a notebook's rows and figures and write them into ``out_dir``.

    The files are ``tables/<notebook>.csv``, ``figures/<notebook>-<name>.png`` and, for the
    captions, ``figures/<notebook>.json``.

    Args:
        notebook: Name of the notebook, such as ``06_nfe_vs_quality``.
        out_dir: The folder; where it is "" nothing is written.
    """

    def __init__(self, notebook: str, out_dir: str = "") -> None:
        self.notebook = notebook
        self.out = Path(out_dir) if out_dir else None
        self._rows: list[dict[str, Any]] = []
        self._captions: dict[str, str] = {}

    def rows(self, rows: Any) -> None:
        """Add rows to the table.

        Args:
            rows: Dicts, or a pandas table, with columns from ``COLUMNS``. Missing columns stay
                empty, and ``run_id`` is the notebook's name unless it is given.

        Raises:
            ValueError: For an unknown column, and for a row without a metric or a number as value.
        """
        if hasattr(rows, "to_dict"):
            rows = rows.to_dict("records")
        self._rows += tidy_rows(rows, self.notebook)

    def figure(self, figure: Any, name: str, caption: str = "") -> None:
        """Save a matplotlib figure as PNG with 150 dots an inch.

        Args:
            figure: The figure.
            name: Letters, digits, - and _.
            caption: One sentence.
        """
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"a figure's name is made of letters, digits, - and _, got {name!r}")
        if self.out is None:
            return
        image, file = io.BytesIO(), f"figures/{self.notebook}-{name}.png"
        figure.savefig(image, format="png", dpi=150, bbox_inches="tight")
        self._captions[file] = caption
        captions = [{"file": f, "caption": c} for f, c in self._captions.items()]
        captions_file = self.out / "figures" / f"{self.notebook}.json"
        write_together(
            {self.out / file: image.getvalue(), captions_file: json.dumps(captions, indent=2)}
        )

    def checkpoint_dir(self, name: str) -> str:
        """Return a folder for the checkpoints of a training, "" outside a run.

        ``TrainConfig(out_dir=recorder.checkpoint_dir("seed0"))`` and ``fit(..., resume="auto")`` go
        on with a training whose notebook was killed. The folder is no result: it is removed when
        the notebook has ended well, or is run with other inputs.

        Args:
            name: Letters, digits, -, _ and dots; another one for each training of the notebook.
        """
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):
            raise ValueError(
                f"a checkpoint folder's name is made of letters, digits, -, _ and dots, got {name!r}"
            )
        return str(self.out / TRAINING / name) if self.out else ""

    def save(self) -> None:
        """Write all rows so far as ``tables/<notebook>.csv``."""
        if self.out is not None:
            write_together({self.out / "tables" / f"{self.notebook}.csv": csv_text(self._rows)})


def tidy_rows(rows: Any, run_id: str | None = None) -> list[dict[str, Any]]:
    """Return ``tidy_row`` of each row; ValueError if they are no list, or the like, of dicts."""
    if rows is None or isinstance(rows, (str, Mapping)) or not isinstance(rows, Iterable):
        raise ValueError(
            f"rows of results must be a list of dicts, got a {type(rows).__name__}: give [row]"
        )
    return [tidy_row(row, run_id) for row in rows]


def tidy_row(row: Mapping[str, Any], run_id: str | None = None) -> dict[str, Any]:
    """Return a row with every column of ``COLUMNS`` and plain numbers, and run_id if it has none.

    Raises:
        ValueError: For what is no dict, an unknown column, a value that is neither text nor a
            number, and without a metric or a number as value.
    """
    if not isinstance(row, Mapping):
        raise ValueError(
            f"a row of results must be a dict, got a {type(row).__name__}: {row!r:.80}"
        )
    unknown = [column for column in row if column not in COLUMNS]
    if unknown:
        raise ValueError(
            f"unknown column {unknown[0]!r} in a row of results: expected {', '.join(COLUMNS)}"
        )
    tidy: dict[str, Any] = dict.fromkeys(COLUMNS) | {"run_id": run_id}
    tidy |= {  # numpy and torch scalars become numbers
        c: _plain(v) for c, v in row.items()
    }
    if not tidy["metric"] or type(tidy["value"]) not in (int, float):
        raise ValueError(
            "a row of results needs a metric and a number as value, got "
            f"{tidy['metric']!r} and {tidy['value']!r}"
        )
    for column, value in tidy.items():
        infinite = isinstance(value, float) and math.isinf(value) and column != "value"
        if infinite or not isinstance(value, (str, int, float, type(None))):
            raise ValueError(
                f"{column} in a row of results must be text or a finite number, got {value!r:.80}"
            )
        if column in ("run_id", "metric") and isinstance(value, (int, float)) and value == value:
            raise ValueError(f"{column} in a row of results must be text, got {value!r}")
        if column != "value" and isinstance(value, float) and math.isnan(value):
            tidy[column] = None
        elif column in _WHOLE and isinstance(value, float) and value.is_integer():
            tidy[column] = int(value)
    return tidy


def _plain(value: Any) -> Any:
    """The number of a numpy or torch scalar; anything else as it is."""
    try:
        return value.item() if hasattr(value, "item") else value
    except (ValueError, RuntimeError, TypeError):  # it has several
        return value


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the text of a CSV file with the columns ``COLUMNS``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def checkout() -> Path:
    """Return the root of the checkout, around the library or else around the working folder.

    Raises:
        FileNotFoundError: With one line, outside a checkout.
    """
    for folder in (LIBRARY.parent, Path.cwd(), *Path.cwd().parents):
        if (folder / "notebooks" / "profiles.toml").is_file():
            return folder
    raise FileNotFoundError(
        "this needs the checkout with its notebooks folder: run it there, or install with "
        "`pip install -e .`"
    )


def reference(name: str = "") -> Path:
    """Return the path of a committed file or folder under ``results/reference``.

    A notebook declares what it asks for in its metadata (``{"iflow": {"reads": [...]}}``), and runs
    again when that has changed.

    Raises:
        FileNotFoundError: With one line that says how to get it back; for a shipped model also how
            to train it and how long that took.
    """
    path = checkout() / "results" / "reference" / name
    if not path.exists():
        raise FileNotFoundError(
            f"results/reference/{name} is missing from this checkout: restore it with git"
            f"{_how_to_train(name)}"
        )
    return path


def _how_to_train(name: str) -> str:
    """The command that makes a shipped model, and how long it took; "" for anything else."""
    model = re.match(r"checkpoints/((eight_gaussians)_(rectified_\w+)|\w+)", name)
    if not model:
        return ""
    table, runs, key = (
        ("plane", "runs", f"{model[2]}/{model[3]}/steps10000/seed0")
        if model[2]
        else ("images", "systems", model[1])
    )
    manifest = read_json(checkout() / "results" / "reference" / f"{table}.manifest.json") or {}
    run = manifest.get(runs, {}).get(key)
    if not run:
        return ""
    took = f"{duration(run['seconds'])} on {run['hardware']}"
    return f", or train it with `python -m experiments.models {model[1]}`, which took {took}"
