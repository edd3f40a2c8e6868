"""Results: the one tidy table, where committed results lie, and what a manifest says about this machine.

``reproduce`` writes a run's files with it; notebooks use ``Recorder`` and ``reference``.
"""
from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from . import __version__
from .unattended import note_read

#: Columns of every table of results, in this order.
COLUMNS = ("run_id", "dataset", "path", "objective", "anchor", "network", "params", "seed", "step", "nfe", "method",
           "metric", "value", "n_samples", "device", "seconds")
_WHOLE = ("params", "seed", "step", "nfe", "n_samples")  # pandas turns whole numbers beside a gap into floats
PACKAGE = Path(__file__).resolve().parent
_REPORTED = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "POT", "torchmetrics", "matplotlib", "papermill")


# ---- used by the notebooks

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
        from .checkpoints import write_together

        image, file = io.BytesIO(), f"{self.notebook}-{name}.png"
        fig.savefig(image, format="png", dpi=150, bbox_inches="tight")
        self._figures[file] = caption
        captions = [{"file": f"figures/{f}", "caption": c} for f, c in self._figures.items()]
        write_together({self.out / "figures" / file: image.getvalue(),
                        self.out / "figures" / f"{self.notebook}.json": json.dumps(captions, indent=2)})

    def save(self) -> None:
        """Write all rows so far as ``tables/<notebook>.csv``."""
        if self.out is not None:
            from .checkpoints import write_atomic

            write_atomic(self.out / "tables" / f"{self.notebook}.csv", csv_text(self._rows))


def _tidy(row: dict) -> dict:
    unknown = [c for c in row if c not in COLUMNS]
    if unknown:
        raise ValueError(f"unknown column {unknown[0]!r} in a row of results: expected {', '.join(COLUMNS)}")
    row = {c: v.item() if hasattr(v, "item") else v for c, v in row.items()}  # numpy and torch scalars
    if not row.get("metric") or isinstance(row.get("value"), (bool, str, type(None))):
        raise ValueError(f"a row of results needs a metric and a number as value, got {row.get('metric')!r} and "
                         f"{row.get('value')!r}")
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
    raise FileNotFoundError("this needs the checkout with its notebooks folder: run it there, or install with `pip "
                            "install -e .`")


def reference(name: str = "") -> Path:
    """Path of a committed file or folder under ``results/reference``. FileNotFoundError with one line if missing."""
    path = checkout() / "results" / "reference" / name
    if not path.exists():
        raise FileNotFoundError(f"results/reference/{name} is missing from this checkout: restore it with git")
    note_read(name)
    return path


def how_to_make(model) -> str:
    """For a folder of a model of this package that is missing: the command that trains it, and how long that took when
    it was measured, as the committed manifests have it; "" for any other folder."""
    folder, manifests = Path(model), (("images", "systems"), ("plane", "runs"))
    try:
        images, plane = (json.loads(reference(f"{name}.manifest.json").read_text(encoding="utf-8"))[runs]
                         for name, runs in manifests)
        shipped = folder.parent.resolve() == reference().resolve() / "checkpoints"
    except (OSError, ValueError, KeyError):
        return ""
    name, small = folder.name, re.fullmatch("(eight_gaussians)_(rectified_.+)", folder.name)
    if name in images:
        train = f"python tools/make_reference.py train {name}" if shipped else \
            f'iflow_lib.studies.train_images("{name}", "{folder.as_posix()}")'
        run = images[name]
    elif shipped and small:
        train, run = "python tools/make_reference.py models", plane.get("/".join([*small.groups(), "steps10000", "seed0"]))
    else:
        return ""
    took = f", which took {duration(run['seconds'])} on {run['hardware']}" if run else ""
    return f"{'restore it with git, or train it' if shipped else 'train it'}: {train}{took}"


# ---- what a manifest says

def duration(seconds: float) -> str:
    """``75.3 -> "1 min 15 s"``"""
    seconds = round(seconds)
    parts = [f"{seconds // 3600} h"] * (seconds >= 3600) + [f"{seconds // 60 % 60} min"] * (seconds >= 60)
    return " ".join([*parts, f"{seconds % 60} s"] if seconds < 3600 else parts)


def utc_now() -> str:
    """The time, as 2026-01-31T23:59:59Z."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def sha256(file: Path) -> str | None:
    """Checksum of a file, None where there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def digest(folder: Path, *patterns: str) -> str:
    """One checksum of all files in a folder that match: names and contents."""
    files = sorted({f for p in patterns for f in folder.glob(p) if f.is_file()})
    return hashlib.sha256("".join(f"{f.relative_to(folder).as_posix()} {sha256(f)}\n" for f in files).encode()).hexdigest()


def git_state(root: Path) -> dict:
    """Commit, and whether anything differs from it; None for both without git or outside a repository."""
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return {"commit": None, "dirty": None}
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def machine(device: str) -> dict:
    """Hardware, threads and versions, for a manifest; ``device`` as torch names it."""
    import psutil

    versions = {"python": platform.python_version(), "iflow_lib": __version__}
    for package in _REPORTED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return {"system": f"{platform.system()} {platform.machine()}", "cpu": _cpu_name(), "cores": cores,
            "threads": _threads(cores), "memory_gb": round(psutil.virtual_memory().total / 2**30), "gpu": _gpu_name(device),
            "versions": versions}


def _gpu_name(device: str) -> str | None:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device == "mps" else None


def _cpu_name() -> str:
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        return found[1].strip() if found else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def _threads(cores: int) -> int:
    """Threads for torch: OMP_NUM_THREADS if set, else the cores this process may use (torch ignores container limits)."""
    if os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        return int(os.environ["OMP_NUM_THREADS"])
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no limit
    return max(1, cores)
