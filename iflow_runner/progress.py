"""What ``iflow reproduce`` shows while it works: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from iflow_lib.unattended import bar_file

from .provenance import duration

_MARKS = {
    "ok": "[green]✓[/]",
    "unchanged": "[green]=[/]",
    "failed": "[red]✗[/]",
    "interrupted": "[yellow]■[/]",
    "not run": "[red]-[/]",
    "running": "[cyan]▶[/]",
    "waiting": "[dim]·[/]",
}
EVERY = 15  # seconds between plain lines on a notebook that runs


class Board:
    """Each notebook's state, cell, elapsed and expected time, and the bar of the training at work. Use it in a ``with``.

    tasks: what is to run; expected: {name: seconds} as far as known. It is also the file for what notebooks write to
    stderr, of which the last line is shown: bars of other libraries are there.
    """

    def __init__(self, tasks, expected: dict):
        from rich.console import Console

        self.tasks, self.expected, self.console = (
            {t.name: t for t in tasks},
            expected,
            Console(highlight=False),
        )
        self.states = dict.fromkeys(self.tasks, "waiting")
        self.cells, self.seconds, self.now, self.live = dict.fromkeys(self.tasks, 0), {}, None, None
        self.over = threading.Event()

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            from rich.live import Live

            self.live = Live(get_renderable=self.table, console=self.console, refresh_per_second=4)
            self.live.start()
        else:
            threading.Thread(target=self._glance, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        if self.live:
            self.live.stop()

    def start(self, name: str, folder: Path) -> None:
        """A notebook begins; folder: its ``IFLOW_RUN``."""
        self.bar, self.began, self.stderr = bar_file(folder), time.perf_counter(), ""
        self.now, self.said, self.states[name] = name, self.began, "running"
        place = list(self.tasks).index(name) + 1
        about = f", expected {duration(self.expected[name])}" if name in self.expected else ""
        self._tell(f"running      {name} ({place} of {len(self.tasks)}{about})")

    def cell(self, index: int) -> None:
        self.cells[self.now], self.stderr = index, ""

    def end(self, name: str, state: str, seconds: float | None = None, note: str = "") -> None:
        """state: ok, failed, interrupted, unchanged or not run."""
        self.states[name], self.now = state, None
        if seconds is not None:
            self.seconds[name] = seconds
        self._tell(
            f"{state:<12} {name}"
            + (f": {duration(seconds)}" if seconds is not None else "")
            + (f": {note}" if note else "")
        )

    def _glance(self) -> None:
        while not self.over.wait(1):
            name, now = self.now, time.perf_counter()
            if name and now - self.said > EVERY:
                self.said, bar = now, self._bar()
                self._tell(
                    f"             {name}: cell {self.cells[name]} of {self.tasks[name].cells + 1} after "
                    f"{duration(now - self.began)}" + (f", {bar}" if bar else "")
                )

    def write(self, text: str) -> None:
        lines = [line for line in text.replace("\r", "\n").split("\n") if line.strip()]
        self.stderr = lines[-1].strip() if lines else self.stderr

    def flush(self) -> None:
        pass

    def _tell(self, line: str) -> None:
        if not self.live:
            self.console.print(line, markup=False, soft_wrap=True)

    def _bar(self) -> str:
        try:
            return self.bar.read_text(encoding="utf-8") or self.stderr
        except (OSError, UnicodeDecodeError):  # none yet, or just being written
            return self.stderr

    def table(self):
        """The live table, for rich."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        bar, table = "", Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for head in ("", "notebook", "cell", "time", "expected"):
            table.add_column(
                head,
                justify="right" if head in ("cell", "time", "expected") else "left",
                no_wrap=True,
            )
        for name, task in self.tasks.items():
            state, running = self.states[name], name == self.now
            took = time.perf_counter() - self.began if running else self.seconds.get(name)
            expected = f"[dim]{duration(self.expected[name])}[/]" if name in self.expected else ""
            table.add_row(
                _MARKS[state],
                name if state in ("ok", "running", "waiting") else f"{name} [dim]{state}[/]",
                f"{self.cells[name]} of {task.cells + 1}" if running else "",
                duration(took) if took is not None else "",
                expected,
            )
            bar = self._bar() if running else bar
        return Group(table, Text(bar, style="dim", no_wrap=True, overflow="ellipsis"))
