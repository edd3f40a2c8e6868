"""What a manifest says about a run: checksums, commit, machine, versions, time."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import __version__

#: Packages whose version may move a result.
PACKAGES = (
    "torch numpy scipy pandas scikit-learn POT torchmetrics matplotlib papermill"  # as pip has them
).split()
#: Threads of each notebook's Python. It is the same everywhere and for any number of notebooks at
#: once, because sums of floats depend on it.
THREADS = 1


def duration(seconds: float) -> str:
    """Say a time in words: ``75.3 -> "1 min 15 s"``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def utc_now() -> str:
    """Return the time as ``2026-01-31T12:00:00Z``."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def sha256(file: Path) -> str | None:
    """Return the checksum of a file, None if there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def digest(path: Path, *patterns: str) -> str | None:
    """Return one checksum for the names and contents of all files in a folder that match.

    Args:
        path: The folder. A file gets its own checksum.
        patterns: What the files must match, such as ``**/*.py``; everything if there are none.
    """
    if path.is_file():
        return sha256(path)
    files = sorted({f for p in patterns or ("**/*",) for f in path.glob(p) if f.is_file()})
    lines = (f"{f.relative_to(path).as_posix()} {sha256(f)}\n" for f in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def git_state(root: Path) -> dict[str, Any]:
    """Return the commit and whether anything differs from it; None for both without git."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root.resolve():
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        pass
    return {"commit": None, "dirty": None}


def package_version(name: str) -> str | None:
    """Return the installed version of a package, None if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(device: str) -> dict[str, Any]:
    """Return hardware, threads and versions.

    Args:
        device: As torch names it, such as ``cpu`` or ``cuda:0``.
    """
    import psutil

    gpu = "Apple GPU" if device == "mps" else None
    if device.startswith("cuda"):
        import torch

        gpu = torch.cuda.get_device_name(device)
    versions = {name: package_version(name) for name in PACKAGES}
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "threads": THREADS,
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "gpu": gpu,
        "versions": {"python": platform.python_version(), "iflow_lib": __version__, **versions},
    }


def _cpu_name() -> str:
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        return found[1].strip() if found else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
