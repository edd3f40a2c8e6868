"""Is this machine ready for the workshop? `make workshop-check`, or ``python -m experiments.workshop_check [--profile P]``.

Runs the notebooks of the 90-minute plan in docs/workshop.md as participants will, with connections to other machines
refused, and compares what each took with the plan. Says "the room is ready" (exit 0) or what is missing (exit 1).
"""

import argparse
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import psutil

from iflow_runner import execute
from iflow_runner.plan import make_plan
from iflow_runner.provenance import duration
from iflow_runner.verify import check_reference

ROOT = Path(__file__).resolve().parent.parent
DISK_GB, MEMORY_GB = (
    1,
    2,
)  # free, beside what is installed: outputs of a run; one kernel (about 1 GB) and JupyterLab
#: every Python that starts with this refuses to talk to another machine; Jupyter's own sockets stay on this one
OFFLINE = """
import socket

def guarded(real):
    def connect(self, address):
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1", "localhost")):
            raise OSError(f"the workshop runs without a network, and this asks for {address[0]}")
        return real(self, address)
    return connect

def resolve(host, *rest, real=socket.getaddrinfo, **named):
    if host not in (None, "", "localhost", "127.0.0.1", "::1", b"localhost", b"127.0.0.1", socket.gethostname()):
        raise socket.gaierror(f"the workshop runs without a network, and this asks for {host}")
    return real(host, *rest, **named)

socket.socket.connect, socket.socket.connect_ex = guarded(socket.socket.connect), guarded(socket.socket.connect_ex)
socket.getaddrinfo = resolve
"""


def plan(page: str) -> dict[str, int]:
    """{notebook: seconds that the plan has for running it}, from the rows of the table marked ``plan``."""
    table = re.search(r"<!-- plan -->(.*?)<!-- /plan -->", page, flags=re.S)[1]
    return {
        name: int(seconds)
        for name, seconds in re.findall(r"^\| \[(\w+)\]\(.*\| (\d+) s \|", table, flags=re.M)
    }


def conditions(folder: Path) -> list[tuple[bool, str]]:
    """What must hold before anything runs: (whether it does, a line about it)."""
    version, gigabyte = sys.version_info[:2], 1e9
    disk, memory = (
        shutil.disk_usage(folder).free / gigabyte,
        psutil.virtual_memory().available / gigabyte,
    )
    missing = [
        p
        for p in ("jupyterlab", "ipykernel", "ipywidgets", "papermill")
        if importlib.util.find_spec(p) is None
    ]
    found = [
        (
            (3, 10) <= version <= (3, 13),
            f"Python {version[0]}.{version[1]} (3.10 to 3.13 is needed)",
        ),
        (
            not missing,
            f"{', '.join(missing)} to install"
            if missing
            else "JupyterLab and its kernel are installed",
        ),
        (disk >= DISK_GB, f"{disk:.1f} GB free on the disk ({DISK_GB} are needed)"),
        (
            memory >= MEMORY_GB,
            f"{memory:.1f} GB of memory free ({MEMORY_GB} are needed, for each participant)",
        ),
    ]
    try:
        return [*found, (True, f"{check_reference()} shipped files are whole")]
    except (OSError, ValueError) as error:
        return [*found, (False, str(error))]


def rehearse(
    expected: dict[str, int], profile: str, device: str, out: Path, folder=None
) -> list[tuple[bool, str]]:
    """Run the notebooks of a plan without a network and compare their times with it. Same answer as ``conditions``.
    Raises ValueError or OSError for what ``make_plan`` refuses."""
    before = os.environ.get("PYTHONPATH")
    with tempfile.TemporaryDirectory() as guard:
        Path(guard, "sitecustomize.py").write_text(OFFLINE, encoding="utf-8")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [guard, before]))
        try:
            task = make_plan(list(expected), profile, device, out=out, folder=folder)
            manifest = execute.reproduce(task, jobs=1, fresh=True)
        finally:
            os.environ.pop("PYTHONPATH")
            os.environ.update({"PYTHONPATH": before} if before is not None else {})
    if manifest["status"] == "interrupted":
        raise KeyboardInterrupt
    found = []
    for name, limit in expected.items():
        entry = manifest["notebooks"][name]
        took = f"{name} took {duration(entry.get('seconds', 0))}, the plan has {duration(limit)}"
        found.append(
            (
                entry["status"] == "ok" and entry["seconds"] <= limit,
                took
                if entry["status"] == "ok"
                else f"{name}: {entry['status']}. {entry.get('error') or ''}",
            )
        )
    return found


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--profile", default="quick", help="quick: what participants run; smoke: a shorter look"
    )
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    expected = plan((ROOT / "docs" / "workshop.md").read_text(encoding="utf-8"))
    found = conditions(ROOT)
    try:
        if found[1][0]:
            from iflow_lib.utils import (
                pick_device,
            )  # only now: conditions say what is not installed

            device = str(pick_device(options.device))
            found += rehearse(
                expected, options.profile, device, ROOT / "results" / "runs" / "workshop"
            )
    except (ValueError, OSError) as error:
        found.append((False, str(error)))
    except KeyboardInterrupt:
        return 130
    for holds, line in found:
        print(f"{'ok' if holds else 'MISSING':8s} {line}")
    short = sum(not holds for holds, _ in found)
    print(
        "the room is ready"
        if not short
        else f"the room is not ready: {short} of {len(found)} checks failed"
    )
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
