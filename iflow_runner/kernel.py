"""One notebook, executed by papermill in a kernel of this very Python, which goes with all its children.

The kernel and what it starts carry ``IFLOW_RUN=<folder>`` in their environment. By it they are found and stopped, even
those that outlive their parents; ``fit`` keeps checkpoints below that folder and shows its bar there (``unattended``).
"""

from __future__ import annotations

import csv
import logging
import os
import re
import sys
import threading
from pathlib import Path

from iflow_lib.unattended import MARK

from .plan import Job, Task
from .provenance import PACKAGE
from .recorder import COLUMNS


def execute(
    job: Job, task: Task, folder: Path, tell_cell, errors, limit: float | None = None
) -> tuple[str, str]:
    """Run a notebook into ``folder / "out"`` and return ("ok", ""), or ("failed", why).

    tell_cell(i): is called when cell i, from 1, begins; errors: file that receives what the notebook writes to stderr;
    limit: seconds after which it is stopped. KeyboardInterrupt passes through; no process is left in any case.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    for logger in ("papermill", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # what went wrong is said once, by us
    target, last, late = folder / "out" / "notebooks" / task.source.name, [0], threading.Event()
    target.parent.mkdir(parents=True)
    out_dir = {"out_dir": (folder / "out").as_posix()} if task.wants_out else {}

    def on_cell_start(cell, cell_index):
        last[0] = cell_index + 1
        tell_cell(cell_index + 1)

    def stop():
        late.set()
        stop_all(folder)

    timer = threading.Timer(limit, stop) if limit else None
    try:
        if timer:
            timer.daemon = True
            timer.start()
        papermill.execute_notebook(
            str(task.source),
            str(target),
            parameters=task.parameters | out_dir,
            cwd=str(task.source.parent),
            kernel_name="python3",
            language="python",
            kernel_manager_class=_kernel_manager(job, folder),
            progress_bar=False,
            stderr_file=errors,
            start_timeout=180,
            iopub_timeout=60,
            shutdown_kernel="immediate",
            on_cell_start=on_cell_start,
        )
        _check_table(folder / "out" / "tables" / f"{task.name}.csv")
    except KeyboardInterrupt:
        raise
    except Exception as error:  # of a cell; the kernel did not start, the disk is full, ...
        if late.is_set():
            return "failed", f"stopped in cell {last[0]} by its time limit of {limit:g} s"
        if isinstance(error, DeadKernelError):
            return (
                "failed",
                f"the Python process of the notebook died in cell {last[0]}, which is often for want of memory",
            )
        if isinstance(error, papermill.PapermillExecutionError):
            return "failed", f"cell {last[0]}: {error.ename}: {error.evalue}"
        return "failed", f"after cell {last[0]}: {type(error).__name__}: {error}"
    finally:
        if timer:
            timer.cancel()
        stop_all(folder)
    return "ok", ""


def _kernel_manager(job: Job, folder: Path) -> type:
    """Starts this very interpreter, whatever kernel is registered as python3, and lets it import this very library."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    path = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    spec = KernelSpec(
        argv=[
            sys.executable,
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
            "--log-level=50",
        ],
        display_name="Python 3",
        language="python",
        env={
            "PYTHONPATH": os.pathsep.join(path),
            MARK: str(folder),
            "OMP_NUM_THREADS": str(job.environment["threads"]),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # a terminal's Agg would lose the figures
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger of ipykernel writes warnings
        },
    )

    class ThisPython(AsyncKernelManager):
        kernel_spec = spec

    return ThisPython


def stop_all(folder: Path) -> None:
    """Kill every process that was started for ``folder`` or for one below it, until there is none."""
    import psutil

    for _ in range(20):  # one may start another before it goes
        found = [p for p in psutil.process_iter() if _belongs(p, str(folder))]
        for process in found:
            try:
                process.kill()
            except psutil.Error:
                pass  # it ended by itself
        if not found:
            return
        psutil.wait_procs(found, timeout=3)


def _belongs(process, folder: str) -> bool:
    import psutil

    try:
        mark = process.environ().get(MARK, "") if process.pid != os.getpid() else ""
        return mark == folder or mark.startswith(folder + os.sep)
    except (psutil.Error, OSError):
        return False  # another user's, or gone


def _check_table(file: Path) -> None:
    """Refuse a table that a notebook wrote without the ``Recorder`` and that does not fit the others."""
    if file.is_file():
        with open(file, encoding="utf-8", newline="") as lines:
            table = csv.DictReader(lines)
            if tuple(table.fieldnames or ()) != COLUMNS:
                raise ValueError(f"tables/{file.name} must have the columns {', '.join(COLUMNS)}")
            for row in table:
                float(row["value"])


def traceback_of(notebook: dict) -> str:
    """The traceback of the cell that failed in an executed notebook, without colours; "" if none did."""
    lines = [
        line
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if output["output_type"] == "error"
        for line in output["traceback"]
    ]
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", "\n".join(lines))
