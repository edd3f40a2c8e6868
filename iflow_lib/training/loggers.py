"""Training curves elsewhere than in the history: TensorBoard, and Weights & Biases."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from .callbacks import Callback, Training


class TensorBoard(Callback):
    """Write every row of the history for TensorBoard: ``tensorboard --logdir FOLDER``.

    The scalars are loss, lr, seconds and what other callbacks record, such as "validation". The
    run is called there as its objective. A run that is continued takes the place of what was
    written after its checkpoint.

    Args:
        folder: Where the files go. None takes ``tensorboard`` in the folder of the run.

    Raises:
        ImportError: If tensorboard is not installed; one line that says how to get it.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        try:
            importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise ImportError(
                'TensorBoard needs tensorboard: pip install "iflow-lib[logging]"'
            ) from error
        self.folder = folder
        self.writer: Any = None

    def start(self, training: Training, state: dict[str, Any]) -> None:
        """Open the files of the run, in the first process."""
        from torch.utils.tensorboard import SummaryWriter

        out_dir = training.manifest["config"]["out_dir"]
        if self.folder is None and not out_dir:
            raise ValueError('give TensorBoard(folder="..."), or TrainConfig(out_dir="...")')
        folder = Path(out_dir, "tensorboard") if self.folder is None else Path(self.folder)
        folder = folder.expanduser() / "-".join(_names(training.manifest["objective"]))

        def first() -> None:
            # what an earlier run left from this step on is not shown any more
            self.writer = SummaryWriter(str(folder), purge_step=training.step + 1)

        training.processes.on_first(first)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write a row."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a run that is killed keeps it

    def close(self, failed: bool) -> None:
        """Close the files."""
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.close()


def _names(objective: dict[str, Any]) -> list[str]:
    """The name of an objective, and of the one that it is around."""
    base = objective.get("base")
    return [objective["name"], *(_names(base) if isinstance(base, dict) else [])]


class WeightsAndBiases(Callback):
    """Send every row of the history to Weights & Biases, with the manifest of the run as its config.

    A run that is continued goes on under the same id.

    Args:
        **settings: Of ``wandb.init``, such as ``project="furnace"`` or ``mode="offline"``.

    Raises:
        ImportError: If wandb is not installed; one line that says how to get it.
        ValueError: For ``resume``, which is set here.
    """

    def __init__(self, **settings: Any) -> None:
        try:
            importlib.import_module("wandb")
        except ImportError as error:
            raise ImportError("WeightsAndBiases needs wandb: pip install wandb") from error
        if "resume" in settings:
            raise ValueError("resume is set by fit: give the other settings of wandb.init")
        self.settings = settings
        self.id: str | None = None
        self.run: Any = None

    def start(self, training: Training, state: dict[str, Any]) -> None:
        """Open the run there, from the first process."""
        wandb = importlib.import_module("wandb")
        known = {"id": state["id"]} if "id" in state else {}
        given = {"config": training.manifest, **self.settings, **known, "resume": "allow"}

        def first() -> str:
            self.run = wandb.init(**given)
            return self.run.id

        self.id = training.processes.on_first(first)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send a row."""
        self.run.log(values, step=step)

    def close(self, failed: bool) -> None:
        """End the run there, as failed or as finished."""
        run, self.run = self.run, None
        if run is not None:
            run.finish(exit_code=int(failed))

    def state(self) -> dict[str, Any]:
        """Return the id of the run."""
        return {"id": self.id}

    def describe(self) -> dict[str, Any]:
        """Return the id of the run."""
        return {"id": self.id}
