"""What ``iflow reproduce`` shows while it works: a live table on a terminal, else plain lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .plan import Task
from .provenance import duration
from .recorder import TRAINING

#: Seconds between two plain lines about a notebook that runs.
EVERY = 15.0
_MARKS = {
    "ok": "[green]✓[/]",
    "unchanged": "[green]=[/]",
    "failed": "[red]✗[/]",
    "interrupted": "[yellow]■[/]",
    "not run": "[red]-[/]",
    "running": "[cyan]▶[/]",
    "waiting": "[dim]·[/]",
}


class Row:
    """One notebook of the table.

    Attributes:
        state: A key of ``_MARKS``.
        cell: The cell at work, from 1.
        seconds: What it took, None before its end.
    """

    def __init__(self, name: str, cells: int, expected: float | None) -> None:
        self.name, self.cells, self.expected = name, cells, expected
        self.state, self.cell = "waiting", 0
        self.seconds: float | None = None
        self.began = self.said = 0.0
        self._training = Path()

    def begin(self, out: Path) -> None:
        """Begin to run; ``out`` is the notebook's ``out_dir``."""
        self.state, self.began, self._training = "running", time.monotonic(), out / TRAINING
        self.said = self.began

    def bar(self) -> str:
        """Return the bar of the training at work, which ``fit`` keeps in a file; "" if none is."""
        bars = []
        for file in self._training.glob("*/progress.txt"):
            try:
                bars.append((file.stat().st_mtime, file.read_text(encoding="utf-8").strip()))
            except (OSError, UnicodeDecodeError):
                pass  # just being written or removed
        return max(bars, default=(0, ""))[1]


class ProgressTable:
    """Each notebook's state, cell, elapsed and expected time, and bar; used in a ``with``.

    Args:
        tasks: What is to run.
        expected: Seconds of each notebook as far as known.
        show: False shows nothing.
    """

    def __init__(self, tasks: Sequence[Task], expected: Mapping[str, float], show: bool) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, quiet=not show)
        self.rows = {
            task.name: Row(task.name, len(task.notebook.cells) + 1, expected.get(task.name))
            for task in tasks
        }
        self._live: Any = None
        self._over = threading.Event()

    def __enter__(self) -> ProgressTable:
        if self.console.is_terminal:
            from rich.live import Live

            self._live = Live(get_renderable=self.table, console=self.console, refresh_per_second=4)
            self._live.start()
        else:
            threading.Thread(target=self._report, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._live:
            self._live.stop()

    def start(self, name: str, out: Path) -> Row:
        """Show that a notebook begins; ``out`` is its ``out_dir``."""
        row = self.rows[name]
        row.begin(out)
        place = f"{list(self.rows).index(name) + 1} of {len(self.rows)}"
        about = f", expected {duration(row.expected)}" if row.expected is not None else ""
        self._tell(f"running      {name} ({place}{about})")
        return row

    def end(self, name: str, state: str, note: str, seconds: float | None = None) -> None:
        """Show how a notebook ended: ok, failed, interrupted, unchanged or not run."""
        row = self.rows[name]
        row.state, row.seconds = state, seconds
        self._tell(f"{state:<12} {name}: {note}")

    def _tell(self, line: str) -> None:
        if not self._live:
            self.console.print(line, markup=False, soft_wrap=True)

    def _report(self) -> None:
        """Say now and then, in a line, where each notebook stands."""
        while not self._over.wait(min(EVERY, 1)):
            for row in self.rows.values():
                now = time.monotonic()
                if row.state == "running" and now - row.said > EVERY:
                    row.said = now
                    where = f"cell {row.cell} of {row.cells} after {duration(now - row.began)}"
                    self._tell(f"{'':12} {row.name}: {', '.join(filter(None, [where, row.bar()]))}")

    def table(self) -> Any:
        """Return the live table, for rich."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        bars = []
        for head in ("", "notebook", "cell", "time", "expected"):
            side = "left" if head in ("", "notebook") else "right"
            table.add_column(head, justify=side, no_wrap=True)  # type: ignore[arg-type]
        for row in self.rows.values():
            running = row.state == "running"
            took = time.monotonic() - row.began if running else row.seconds
            told = row.state in ("ok", "running", "waiting")
            table.add_row(
                _MARKS[row.state],
                row.name if told else f"{row.name} [dim]{row.state}[/]",
                f"{row.cell} of {row.cells}" if running else "",
                duration(took) if took is not None else "",
                f"[dim]{duration(row.expected)}[/]" if row.expected is not None else "",
            )
            if running and (bar := row.bar()):
                line = f"{row.name}: {bar}"
                bars.append(Text(line, style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(table, *bars)
