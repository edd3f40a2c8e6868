"""The sweep file of ``iflow sweep``, checked and expanded into runs; ``benchmarks/sweep.toml`` says all its keys."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import plan as jobs
from .provenance import PACKAGE, digest, sha256
from .recorder import checkout

LIMIT = 10_000  # runs that nobody starts by mistake
_PATHS = {"RectifiedFlow": "rectified", "VarianceExploding": "ve", "PoissonFlow": "pfgmpp"}


@dataclass(frozen=True)
class Run:
    """A point of the grid. label: where it is there, also in ``run_id`` of its rows; key: of its files, unique."""

    key: str
    label: str
    settings: dict


@dataclass(frozen=True)
class Sweep:
    """A checked sweep. notes: what was left out of the grid, and why; code: what the runs depend on beside settings."""

    runs: list[Run]
    notes: list[str]
    out: Path
    content: dict
    device: str
    notebook: str | None
    code: dict


def prepare(file, out=None, device: str = "cpu", yes: bool = False) -> Sweep:
    """Check a sweep file and expand its grid; writes nothing. yes: more than ``LIMIT`` runs are meant.

    Raises ValueError, FileNotFoundError or OSError with one line that says what was wrong and what was expected.
    """
    file, of_notebook = Path(file), {"notebook", "profile", "parameters"}
    content = jobs.read_toml(file)
    profile, grids = content.get("profile", "quick"), content.get("grid", {})
    grids = grids if isinstance(grids, list) else [grids]
    known = {"train", "grid"} if "train" in content else of_notebook | {"grid"}
    if not {"train", "notebook"} & {*content} or {*content} - known:
        raise ValueError(
            f'{file.name} must have notebook = "NAME", perhaps with profile = "NAME" and [parameters], or '
            f"else [train]; and [grid]; it has {', '.join(content) or 'nothing'}"
        )
    tables = [content.get("train", {}), content.get("parameters", {})]
    if not all(isinstance(table, dict) for table in [*tables, *grids]):
        raise ValueError(f"{file.name}: train, parameters and grid must be tables such as [grid]")
    jobs._check_device_name(device)
    what, declared = (
        ("a training", _trainings())
        if "train" in content
        else _notebook(content["notebook"], profile)
    )
    base = declared | {
        n: _checked(file, what, declared, n, v) for fixed in tables for n, v in fixed.items()
    }
    grids = [
        {n: _checked(file, what, declared, n, v, listed=True) for n, v in grid.items()}
        for grid in grids
        if grid
    ]
    total = sum(math.prod(map(len, grid.values())) for grid in grids)
    if total > LIMIT and not yes:
        raise ValueError(
            f"{file.name}: the grid expands to {total:,} runs, more than {LIMIT:,}: say --yes if you mean it"
        )
    varied, runs, skipped = list(dict.fromkeys(n for grid in grids for n in grid)), {}, Counter()
    for point in (
        dict(zip(grid, values)) for grid in grids for values in itertools.product(*grid.values())
    ):
        point = base | point
        if "train" in content and (reason := _senseless(point)):
            skipped[reason] += 1
            continue
        settings = (
            {"train": point}
            if "train" in content
            else {"notebook": what, "profile": profile, "parameters": point}
        )
        settings["device"], label = device, "/".join(f"{name}={point[name]}" for name in varied)
        mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        key = re.sub(r"[^\w.=-]+", "-", label)[:100] + f"-{mark}"
        runs[key] = Run(key, label, settings)
    notes = [f"skipped {number} of {total}: {reason}" for reason, number in skipped.items()]
    if not runs:
        raise ValueError(
            f"{file.name}: the grid expands to nothing: "
            f"{'; '.join(notes) or '[grid] needs a list of values for each of its names'}"
        )
    notebook = what if "notebook" in content else None
    return Sweep(
        [*runs.values()],
        notes,
        _folder(out, file.stem),
        content,
        device,
        notebook,
        identity(notebook),
    )


def _trainings() -> dict:
    """The parameters of a training and their defaults: those of the committed results in the plane."""
    from iflow_lib.zoo import PLANE_STEPS

    return {
        "dataset": "eight_gaussians",
        "path": "rectified",
        "objective": "IntegralIdentity",
        "anchor": "none",
        "seed": 0,
        "steps": PLANE_STEPS,
        "batch_size": 512,
        "lr": 2e-3,
        "hidden": 128,
        "layers": 4,
        "draws": 5,
        "nfes": [1, 2, 4, 8],
    }


@cache
def kinds() -> dict[tuple[str, str], str]:
    """{(objective, anchor): its kind in ``studies``}."""
    from iflow_lib.zoo import KINDS

    made = {kind: make() for kind, make in KINDS.items()}
    return {
        (objective.name, getattr(objective, "anchor", None) or "none"): kind
        for kind, objective in made.items()
    }


def _notebook(name: str, profile: str) -> tuple[str, dict]:
    """The full name of a notebook, and the parameters that it uses with the values of the profile."""
    if not isinstance(name, str) or not isinstance(profile, str):
        raise ValueError(f"notebook and profile must be text, got {name!r} and {profile!r}")
    with tempfile.TemporaryDirectory() as nowhere:
        task = jobs.prepare([name], profile, "cpu", out=nowhere, make=False).tasks[0]
    used = jobs._used(jobs._read_notebook(task.source))
    return task.name, {
        n: value for n, value in task.parameters.items() if n in used and n != "device"
    }


def _checked(file: Path, what: str, declared: dict, name: str, value, listed: bool = False):
    """The value of a parameter, or the list of its values in a grid: of its type, of a training within its range, and with
    the short names of paths. ValueError if not."""
    wanted = f"{file.name}: {name}"
    if name not in declared:
        hint = "; it is set by --device" if name == "device" else jobs.nearest(name, declared)
        raise ValueError(
            f"{file.name}: unknown parameter {name!r}{hint}: {what} has {', '.join(declared)}"
        )
    if listed:
        if not isinstance(value, list):
            raise ValueError(f"{wanted} in the grid must be a list of values, got {value!r}")
        return [_checked(file, what, declared, name, v) for v in value]
    if isinstance(value, str) != isinstance(
        declared[name], str
    ):  # a text is not read as a number here
        raise ValueError(f"{wanted} must be {jobs._KINDS[type(declared[name])]}, got {value!r}")
    value = jobs._typed(wanted, value, declared[name])
    if what != "a training":
        return value
    if isinstance(value, str):
        from iflow_lib.data import PLANE

        known = {"dataset": PLANE, "path": [*_PATHS, *_PATHS.values()]}.get(name)
        known = known or [*dict.fromkeys(kind[name == "anchor"] for kind in kinds())]
        if value not in known:
            raise ValueError(
                f"{wanted} has no {value!r}{jobs.nearest(value, known)}: expected one of {', '.join(known)}"
            )
        return _PATHS.get(value, value)
    least = 0 if name == "seed" else 1
    if (
        name == "lr"
        and value <= 0
        or value == []
        or name != "lr"
        and any(v < least for v in (value if isinstance(value, list) else [value]))
    ):
        raise ValueError(
            f"{wanted} must be {'more than 0' if name == 'lr' else f'at least {least}'}, got {value!r}"
        )
    return value


def _senseless(point: dict) -> str | None:
    """Why there is no such training, if there is none."""
    from iflow_lib.zoo import methods

    kind = kinds().get((point["objective"], point["anchor"]))
    if kind is None:
        return f"{point['objective']} has no anchor {point['anchor']!r}"
    return (
        None
        if methods(kind, point["nfes"])
        else f"{point['objective']} is not sampled with nfes = {point['nfes']}"
    )


def _folder(out, stem: str) -> Path:
    """Absolute path of the folder of a sweep: new, empty or of an earlier sweep. Makes nothing."""
    if out is None:
        try:
            out = checkout() / "results" / "runs" / f"sweep-{stem}"
        except FileNotFoundError:
            out = Path("results", "runs", f"sweep-{stem}")
    out = Path(os.path.abspath(out))
    try:
        names = (
            [p.name for p in out.iterdir() if not p.name.startswith(".")] if out.exists() else []
        )
    except OSError as error:
        raise OSError(
            f"cannot write to {out} ({error.strerror}): choose another folder with --out"
        ) from None
    if names and "sweep" not in read(out / "manifest.json"):
        raise ValueError(
            f"{out} holds other files and no earlier sweep: choose a new or empty folder with --out"
        )
    return out


def read(file: Path) -> dict:
    """A JSON file; {} if it is not there or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@cache
def identity(notebook: str | None = None) -> dict[str, str]:
    """What a run's values depend on beside its settings, here. Asked once: a process keeps the code that it has loaded,
    whatever becomes of the files."""
    versions = {
        name: importlib.metadata.version(name).split("+")[0]
        for name in ("torch", "numpy", "scipy", "POT")
    }
    found = {"iflow_lib": digest(PACKAGE, "*.py", "assets/*"), **versions}
    if notebook:
        root = checkout()
        found |= {
            notebook: sha256(root / "notebooks" / f"{notebook}.ipynb"),
            "results/reference": digest(root / "results" / "reference", "**/*"),
        }
    return found
