"""The losses of a run: the rows that are logged, and when they stop it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .config import TrainConfig

if TYPE_CHECKING:
    import pandas as pd

#: Columns of every history.
COLUMNS = ("step", "loss", "seconds")
#: A run is stopped when its mean loss exceeds this many times the loss of the first step, which the
#: untrained network had (or 1, if that was smaller). Ordinary runs stay below 10, at high rates below 100.
RUNAWAY = 1e4
#: Steps that must all be so far out: a single one harms nothing, as its gradient is clipped.
RUNAWAY_STEPS = 10


def check_column(name: Any) -> None:
    """Check the name of a column for what callbacks record; ValueError if it is none, or taken."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a column must be text, got {name!r}")
    if name in (*COLUMNS, "lr"):
        raise ValueError(f"every history has a {name!r}: take another name")


class History:
    """The losses of a run.

    Args:
        name: What errors call the objective.
        config: Settings of the run.
        every_step: Whether to look at the loss of every step, and not only at those that are
            logged. Elsewhere than on a CPU, asking for the value makes the device wait.
        last_checkpoint: Gives one phrase on the last good checkpoint, for errors.

    Attributes:
        rows: (step, mean loss since the row before, seconds).
        recorded: What callbacks recorded, {step: {column: value}}; each of these steps has a row.
    """

    def __init__(
        self,
        name: str,
        config: TrainConfig,
        *,
        every_step: bool,
        last_checkpoint: Callable[[], str],
    ) -> None:
        self.name, self.config = name, config
        self.every_step, self.last_checkpoint = every_step, last_checkpoint
        self.rows: list[tuple[int, float, float]] = []
        self.recorded: dict[int, dict[str, float]] = {}
        self.first_loss: float | None = None
        self._losses: list[Tensor] = []  # since the last row

    def note(self, step: int, loss: Tensor, seconds: float) -> None:
        """Keep the loss of a step, and write a row where one is due.

        Args:
            step: Steps done, this one included.
            loss: Mean loss of the step, a scalar without gradient.
            seconds: Seconds of training so far.

        Raises:
            FloatingPointError: If the loss is not finite, or runs away.
        """
        self._losses.append(loss)
        if step % self.config.log_every == 0 or step == self.config.steps:
            self._write_row(step, seconds)
        elif self.every_step:
            self._check_finite(float(loss), step)

    def _write_row(self, step: int, seconds: float) -> None:
        self.rows.append((step, self._mean(), seconds))
        self._losses.clear()
        self.check(step)

    def record(self, step: int, name: str, value: float, seconds: float) -> None:
        """Keep a number beside the loss, in a row of its step.

        Args:
            step: Steps done.
            name: Name of the column.
            value: The number.
            seconds: Seconds of training so far.

        Raises:
            ValueError: If the name is that of a column which is there already.
            FloatingPointError: As ``note``.
        """
        check_column(name)
        if self._losses and self.newest(step) is None:
            self._write_row(step, seconds)
        self.recorded.setdefault(step, {})[name] = value

    def check(self, step: int) -> None:
        """Raise if the losses up to ``step`` are not finite or have run away (``RUNAWAY``).

        Raises:
            FloatingPointError: In one line that says what to lower, and names the last good
                checkpoint.
        """
        means = [mean for at, mean, _ in self.rows[-RUNAWAY_STEPS:] if at > step - RUNAWAY_STEPS]
        means += [self._mean()] if self._losses else []
        for mean in means:
            self._check_finite(mean, step)
        first = math.inf if self.first_loss is None else self.first_loss
        if step >= RUNAWAY_STEPS and means and min(means) > RUNAWAY * max(first, 1.0):
            raise FloatingPointError(
                f"the loss of {self.name} ran away, from {first:.3g} in the first step to "
                f"{means[-1]:.3g} by step {step}: lower lr, which is {self.config.lr:g}; "
                f"{self.last_checkpoint()}"
            )

    def _check_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss of {self.name} is not finite by step {step}: lower lr, which is "
                f"{self.config.lr:g}, or look at the scale of the data; {self.last_checkpoint()}"
            )

    def _mean(self) -> float:
        """The mean of the losses since the last row; the first time, note the first loss too."""
        # both at once: a GPU is waited for once
        first, mean = torch.stack([self._losses[0], torch.stack(self._losses).mean()]).tolist()
        if self.first_loss is None:
            self.first_loss = first
        return mean

    def newest(self, step: int) -> float | None:
        """Return the mean loss that was logged at ``step``, or None if none was."""
        return self.rows[-1][1] if self.rows and self.rows[-1][0] == step else None

    def table(self) -> pd.DataFrame:
        """Return the rows as a table with columns step, loss, seconds, and those of callbacks."""
        import pandas as pd

        table = pd.DataFrame(self.rows, columns=list(COLUMNS))
        for name in dict.fromkeys(name for row in self.recorded.values() for name in row):
            column = table["step"].map({at: row.get(name) for at, row in self.recorded.items()})
            whole = all(isinstance(row.get(name, 0), int) for row in self.recorded.values())
            table[name] = column.astype("Int64" if whole else float)
        return table

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint keeps: tensors, and JSON values."""
        tensors = {"losses": torch.stack(self._losses)} if self._losses else {}
        recorded = {"recorded": list(self.recorded.items())} if self.recorded else {}
        return tensors, {"rows": self.rows, "first_loss": self.first_loss, **recorded}

    def load_state(
        self, tensors: dict[str, Tensor], info: dict[str, Any], device: torch.device
    ) -> None:
        """Take back what ``state`` returned. Older checkpoints have a first row, no first loss."""
        self._losses = list(tensors["losses"].to(device)) if "losses" in tensors else []
        self.rows = [tuple(row) for row in info["rows"]]
        self.recorded = {step: dict(row) for step, row in info.get("recorded", [])}
        self.first_loss = info.get("first_loss", self.rows[0][1] if self.rows else None)
