"""Small projects (notebooks and profiles) for the tests of the main job."""

import json
import os

import pytest

from iflow_runner.execute import reproduce
from iflow_runner.plan import make_plan

os.environ.setdefault("MPLBACKEND", "Agg")

PARAMETERS = (
    "steps: int = 3  # of nothing\nrate: float = 0.5\nlabel: str = 'x'\nnfes: list = [1, 2]\nflag: bool = True\n"
    'device: str = "auto"\nout_dir: str = ""'
)


def write_notebook(
    file, *cells, parameters=PARAMETERS, title="# A title", language="python", **about
):
    """A notebook with a title, a parameters cell and code cells, the first of which uses the usual parameters; about: more
    metadata."""

    def cell(i, kind, source, tags=()):
        code = {"outputs": [], "execution_count": None} if kind == "code" else {}
        return {
            "cell_type": kind,
            "id": f"c{i}",
            "metadata": {"tags": list(tags)},
            "source": source,
            **code,
        }

    if parameters is PARAMETERS and cells:
        cells = (f"_ = steps, rate, label, nfes, flag\n{cells[0]}", *cells[1:])
    code = [cell(i, "code", source) for i, source in enumerate(cells, 2)]
    if parameters is not None:
        code.insert(0, cell(1, "code", parameters, ["parameters"]))
    # the kernel that the file asks for does not exist: whoever runs it must use this Python
    metadata = {
        "kernelspec": {"name": "missing", "display_name": "Missing", "language": language},
        **about,
    }
    file.write_text(
        json.dumps(
            {
                "cells": [cell(0, "markdown", title), *code],
                "metadata": metadata,
                "nbformat": 4,
                "nbformat_minor": 5,
            }
        )
    )


def run(folder, *notebooks, jobs=None, fresh=False, time_limit=None, **options):
    """Run the notebooks of a folder and return the manifest."""
    return reproduce(make_plan(notebooks, folder=folder, **options), jobs, fresh, time_limit)


def results_of(folder):
    """The folder of the results of ``run``."""
    return folder.parent / "results" / "runs" / "quick"


@pytest.fixture
def project(tmp_path):
    """Folder of notebooks 01_first and 02_second with profiles quick and other."""
    folder = tmp_path / "project" / "notebooks"
    folder.mkdir(parents=True)
    (folder / "profiles.toml").write_text('[quick."01_first"]\nsteps = 2\nrate = 1\n\n[other]\n')
    write_notebook(folder / "01_first.ipynb", "print(steps, rate, label, nfes, flag, device)")
    write_notebook(
        folder / "02_second.ipynb",
        "seen = label, extra",
        parameters='label: str = "x"\nextra: int = 1',
    )
    return folder


def pytest_collection_modifyitems(items):
    """Start the notebooks first, half of them on each of two workers.

    A worker of pytest-xdist begins with a part of the list that lies together. Notebooks that come
    last would leave the other core idle for minutes.
    """
    slow = [item for item in items if item.name.startswith("test_nbval[")]
    rest = [item for item in items if not item.name.startswith("test_nbval[")]
    middle = len(rest) // 2
    items[:] = slow[::2] + rest[:middle] + slow[1::2] + rest[middle:]
