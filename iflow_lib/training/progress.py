"""The bar of a training, on the screen and as a file in the folder of the run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

#: Seconds between two updates of the bar, on the screen and in the file.
INTERVAL = 0.5


class Progress:
    """Show how many steps are done, within a ``with`` block.

    Args:
        name: What is trained.
        total: Steps of the whole run.
        done: Steps of an earlier part of the run.
        shown: Whether to show a bar on the terminal or in the notebook.
        file: Where to keep the text of the bar, or None. The file holds the bar as it is now, and
            is removed at the end. Training goes on if it cannot be written.
    """

    def __init__(self, name: str, total: int, done: int, *, shown: bool, file: Path | None) -> None:
        # late, because in a notebook this looks for widgets, and warns if there are none
        from tqdm.auto import tqdm

        self.name, self.total, self.first, self.done = name, total, done, done
        self.file, self.postfix = file, ""
        self.shown: dict[str, float] = {}
        self.bar = tqdm(
            total=total, initial=done, desc=name, mininterval=INTERVAL, disable=not shown
        )
        self.start, self.written = time.perf_counter(), -INTERVAL

    def __enter__(self) -> Progress:
        return self

    def update(self, values: Mapping[str, float] | None = None) -> None:
        """Count a step.

        Args:
            values: Newer values to show by name, such as the loss, if there are any.
        """
        self.done += 1
        if values:
            self.shown |= values
            self.postfix = ", ".join(f"{name} {value:.4g}" for name, value in self.shown.items())
            self.bar.set_postfix_str(self.postfix, refresh=False)
        self.bar.update()
        if self.file is not None and time.perf_counter() - self.written >= INTERVAL:
            self._write()

    def _write(self) -> None:
        self.written = time.perf_counter()
        text = self.bar.format_meter(
            self.done,
            self.total,
            self.written - self.start,
            ncols=80,
            prefix=self.name,
            initial=self.first,
            postfix=self.postfix,
        )
        try:
            assert self.file is not None
            self.file.write_text(text, encoding="utf-8")
        except OSError:
            pass  # training matters more than what is shown of it

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.file is not None:
            try:
                self.file.unlink(missing_ok=True)
            except OSError:
                pass
