"""One notebook, executed by papermill in a kernel of this Python, which ends with its children.

A kernel is found by its connection file, which its command line names and which lies in the folder
of the notebook's work. It leads a session of its own (POSIX), whose number is kept in the same
folder: by it the processes that the kernel has started are found when the kernel itself has gone.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import LIBRARY
from .files import read_json, write_together
from .plan import Task
from .progress import Row
from .provenance import THREADS
from .recorder import COLUMNS

if TYPE_CHECKING:
    import psutil


def run_notebook(
    task: Task, folder: Path, row: Row, limit: float | None, stop: threading.Event
) -> tuple[str, str]:
    """Run a notebook into ``folder / "out"``. No process of it is left in any case.

    Args:
        task: The notebook and its parameters.
        folder: Where its work lies.
        row: What shows its progress.
        limit: Seconds after which it is stopped.
        stop: When this is set, it is stopped too.

    Returns:
        Status ("ok", "failed" or "interrupted") and why it did not end well.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    for logger in ("papermill", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # what went wrong is said once, by us
    source, out = task.notebook.file, folder / "out"
    target, ended, late = out / "notebooks" / source.name, threading.Event(), threading.Event()
    target.parent.mkdir(parents=True)
    out_dir = {"out_dir": out.as_posix()} if "out_dir" in task.notebook.parameters else {}
    deadline = time.monotonic() + (limit or float("inf"))

    def watch() -> None:
        """Stop the kernel, also one that has only begun to start."""
        while not ended.wait(0.2):
            if time.monotonic() > deadline:
                late.set()
            if late.is_set() or stop.is_set():
                stop_kernel(folder)

    def note(**_: Any) -> None:
        note_sessions(folder)

    def on_cell_start(cell_index: int, **_: Any) -> None:
        row.cell = cell_index + 1

    threading.Thread(target=watch, daemon=True).start()
    try:
        papermill.execute_notebook(
            str(source),
            str(target),
            parameters=task.parameters | out_dir,
            kernel_name="python3",
            language="python",
            kernel_manager_class=_kernel_manager(source.parent, folder),
            progress_bar=False,
            start_timeout=180,
            iopub_timeout=60,
            shutdown_kernel="immediate",
            on_notebook_start=note,
            on_cell_start=on_cell_start,
            on_cell_executed=note,
        )
        _check_table(out / "tables" / f"{task.name}.csv")
        return "ok", ""
    except Exception as error:  # of a cell; or the kernel did not start, the disk is full, ...
        if stop.is_set():
            return "interrupted", f"interrupted in cell {row.cell}"
        if late.is_set():
            return "failed", f"stopped in cell {row.cell} by its time limit of {limit:g} s"
        if isinstance(error, DeadKernelError):
            why = f"the Python process of the notebook died in cell {row.cell}"
            return "failed", f"{why}, which is often for want of memory"
        if isinstance(error, papermill.PapermillExecutionError):
            return "failed", f"cell {row.cell}: {error.ename}: {error.evalue}"
        return "failed", f"after cell {row.cell}: {type(error).__name__}: {error}"
    finally:
        ended.set()
        stop_kernel(folder)


def _kernel_manager(cwd: Path, folder: Path) -> type:
    """Start this very interpreter, whatever kernel is registered as python3, with this library."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    path = [str(LIBRARY.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    arguments = "-m ipykernel_launcher -f {connection_file} --log-level=50"
    spec = KernelSpec(
        argv=[sys.executable, *arguments.split()],
        display_name="Python 3",
        language="python",
        env={
            "PYTHONPATH": os.pathsep.join(path),
            "OMP_NUM_THREADS": str(THREADS),
            # a terminal's Agg would lose the figures
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            # else the debugger of ipykernel writes warnings
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        },
    )

    class ThisPython(AsyncKernelManager):
        kernel_spec = spec

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            self.connection_file = str(_connection_file(folder))
            await super().start_kernel(cwd=str(cwd), **options)  # papermill would change our own

    return ThisPython


def _connection_file(folder: Path) -> Path:
    return folder.resolve() / "kernel.json"


def note_sessions(folder: Path) -> None:
    """Keep which sessions the processes of a folder lead, each with the time of its beginning."""
    if not hasattr(os, "getsid"):
        return
    import psutil

    file = folder / "sessions.json"
    before = {tuple(pair) for pair in read_json(file) or ()}
    known = set(before)
    for process in processes(folder):
        try:
            leader = psutil.Process(os.getsid(process.pid))
            if leader.pid != os.getsid(0):  # never our own
                known.add((leader.pid, leader.create_time()))
        except (psutil.Error, OSError):
            pass  # it has gone
    if known != before:
        write_together({file: json.dumps(sorted(known))})


def _sessions(folder: Path) -> Iterator[int]:
    """The sessions that were kept and whose numbers have not gone to other processes since."""
    import psutil

    for number, created in read_json(folder / "sessions.json") or ():
        try:
            if abs(psutil.Process(number).create_time() - created) < 2:  # the clock may be set
                yield number
        except psutil.NoSuchProcess:  # the number stays taken as long as the session has a process
            if created > psutil.boot_time():
                yield number


def processes(folder: Path) -> set[psutil.Process]:
    """Find the kernel of a folder and what it has started.

    A process that has both left its session and lost its parents since the last cell is not found.
    """
    import psutil

    mark, sessions, found = str(_connection_file(folder)), set(_sessions(folder)), set()
    for process in psutil.process_iter():
        try:
            if mark in process.cmdline() or (sessions and os.getsid(process.pid) in sessions):
                tree = [process, *process.children(recursive=True)]
                found |= {p for p in tree if p.status() != psutil.STATUS_ZOMBIE}
        except (psutil.Error, OSError):
            pass  # another user's, or gone
    return found


def stop_kernel(folder: Path) -> None:
    """Kill the kernel of a folder and all that it has started, until there is nothing left."""
    import psutil

    for _ in range(20):  # one may start another before it goes
        found = processes(folder)
        for process in found:
            try:
                process.kill()
            except psutil.Error:
                pass  # it ended by itself
        if not found:
            (folder / "sessions.json").unlink(missing_ok=True)
            return
        psutil.wait_procs(found, timeout=3)


def _check_table(file: Path) -> None:
    """Refuse a table that a notebook wrote without the ``Recorder`` and that does not fit."""
    if file.is_file():
        with open(file, encoding="utf-8", newline="") as lines:
            table = csv.DictReader(lines)
            if tuple(table.fieldnames or ()) != COLUMNS:
                raise ValueError(f"tables/{file.name} must have the columns {', '.join(COLUMNS)}")
            for row in table:
                float(row["value"])


def traceback_of(notebook: dict[str, Any]) -> str:
    """Return the traceback of the cell that failed, without colours; "" if none did."""
    lines = [
        line
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if output["output_type"] == "error"
        for line in output["traceback"]
    ]
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", "\n".join(lines))
