"""Training inside a notebook that ``iflow reproduce`` runs.

The runner names a folder in the environment variable ``IFLOW_RUN``. ``fit`` then keeps its checkpoints there if it was
given no folder of its own, goes on from them when a run was killed and is continued, and shows its bar there and not in the
notebook. Without the variable, all of this does nothing.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

MARK = "IFLOW_RUN"
#: Seconds between two checkpoints; a training that took less leaves none.
SECONDS = 5.0


def shelf(model, *identity) -> str:
    """Folder for the checkpoints of this very training: its settings, data and first weights; "" without a runner."""
    run = os.environ.get(MARK)
    if not run:
        return ""
    import torch

    digest = hashlib.sha256(repr(identity).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return os.path.join(run, "training", digest.hexdigest()[:20])


def bar(total: int, initial: int, name: str, shown: bool):
    """A tqdm bar of gradient steps: in the notebook or on the terminal, or in the runner's table."""
    run, about = (
        os.environ.get(MARK),
        {"total": total, "initial": initial, "desc": name, "mininterval": 0.5},
    )
    if run:
        from tqdm.std import tqdm

        return tqdm(**about, file=_Shown(bar_file(run)), leave=False, ncols=80)
    from tqdm.auto import tqdm

    return tqdm(**about, disable=not shown)


def note_read(name: str) -> None:
    """Tell the runner, if there is one, which file or folder of results/reference was asked for."""
    run = os.environ.get(MARK)
    if run and name:
        with open(os.path.join(run, "reads"), "a", encoding="utf-8") as file:
            file.write(f"{name}\n")


def bar_file(run) -> Path:
    """Where the bar of a run is: its text as it is now, or no text."""
    return Path(run) / "bar"


class _Shown:
    """A file for tqdm that holds what the bar shows, and not its history."""

    encoding = "utf-8"

    def __init__(self, file: Path):
        self.file = file

    def write(self, text: str) -> None:
        try:
            self.file.write_text(text.strip(), encoding="utf-8")
        except OSError:
            pass  # training matters more than what is shown of it

    def flush(self) -> None:
        pass
