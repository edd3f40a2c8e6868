"""What a manifest says: checksums, commit, hardware, versions, time."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from . import LIBRARY as PACKAGE  # noqa: F401
from . import __version__

_REPORTED = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "POT",
    "torchmetrics",
    "matplotlib",
    "papermill",
)


def duration(seconds: float) -> str:
    """``75.3 -> "1 min 15 s"``"""
    seconds = round(seconds)
    parts = [f"{seconds // 3600} h"] * (seconds >= 3600) + [f"{seconds // 60 % 60} min"] * (
        seconds >= 60
    )
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
    return hashlib.sha256(
        "".join(f"{f.relative_to(folder).as_posix()} {sha256(f)}\n" for f in files).encode()
    ).hexdigest()


def git_state(root: Path) -> dict:
    """Commit, and whether anything differs from it; None for both without git or outside a repository."""

    def git(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

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
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": cores,
        "threads": _threads(cores),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "gpu": _gpu_name(device),
        "versions": versions,
    }


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
