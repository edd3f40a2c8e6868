"""Training objectives. Each is a callable ``objective(model, batch, generator) -> loss`` on the canonical line.

It has two halves: ``draw`` takes from the generator all that is random in a step, one row for each example, and ``loss``
is a pure function of what was drawn. So ``fit`` can compile the second, and give each of several GPUs its rows.

On the line (see ``paths``) the path is ``x_t = (1 - t) x_0 + t z``, its conditional velocity ``z - x_0``, and all
times here are line times. The family enters through ``model.path`` alone: noise law, training times, ``tau_max``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..model import FlowMap
from ..paths import expand


@dataclass(frozen=True)
class Batch:
    """What an objective sees of one step.

    x_0: data (B, ...); labels: classes (B,) or None, -1 where the class is withheld; index: rows of the data set (B,) or
    None; noise: the z that belongs to each x_0 (reflow), or None: drawn; step, steps: number of this gradient step and
    of all of them; epoch: passes over the data so far.
    """

    x_0: Tensor
    labels: Tensor | None = None
    index: Tensor | None = None
    noise: Tensor | None = None
    step: int = 0
    steps: int = 1
    epoch: int = 0

    @classmethod
    def of(cls, batch: Batch | Tensor) -> Batch:
        return batch if isinstance(batch, cls) else cls(batch)

    def draw_noise(self, model: FlowMap, generator: torch.Generator | None) -> Tensor:
        """The batch's own noise, or a fresh draw from the path's law. Shape of x_0."""
        if self.noise is not None:
            return self.noise
        return model.path.noise(
            self.x_0.shape, generator=generator, device=self.x_0.device, dtype=self.x_0.dtype
        )


class Objective:
    """A loss. ``config()`` gives its settings for manifests. Your own has ``draw`` and ``loss``, or ``__call__`` alone:
    then it is neither compiled nor spread over several GPUs."""

    def __call__(
        self, model: FlowMap, batch: Batch | Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss of a batch (a ``Batch``, or a tensor of data): a scalar."""
        batch = Batch.of(batch)
        drawn = self.draw(model, batch, generator)
        loss, estimate = self.loss(model, **drawn)
        self.update_state(batch, drawn, loss, estimate)
        return loss

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> dict:
        """The arguments of ``loss``: tensors whose rows are the examples (or the first k of them), or None."""
        raise NotImplementedError

    def loss(self, model: FlowMap, **drawn) -> tuple[Tensor, Tensor | None]:
        """The mean loss of the rows, a scalar, and what ``update_state`` is to be told, (B, ...) without gradient, or None."""
        raise NotImplementedError

    def update_state(
        self, batch: Batch, drawn: dict, loss: Tensor, estimate: Tensor | None
    ) -> None:
        """Called after ``loss``, with all rows of the batch whatever the number of GPUs."""

    def prepare(self, model: FlowMap, data, folder=None, seed: int = 0, team=None) -> None:
        """Called by ``fit`` before the first step, with its ``TensorData`` and the ``Team`` of processes that share the
        run. ValueError if this cannot be trained."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep of this objective, beside what ``save_files`` writes."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state`` gave."""

    def save_files(self, folder) -> None:
        """Write what is too large for ``state`` into the folder of a checkpoint."""

    def load_files(self, folder) -> None:
        """Take back what ``save_files`` wrote."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def config(self) -> dict:
        return asdict(self)


def on_line(x_0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """``(1 - t) x_0 + t z``, shape of x_0."""
    return (1 - expand(t, x_0)) * x_0 + expand(t, x_0) * z


def first(k: int, *tensors: Tensor | None):  # the first k rows of each tensor; None stays None
    return tuple(None if a is None else a[:k] for a in tensors)


def energy(x: Tensor, y: Tensor) -> Tensor:
    """``2 E|x - y| - E|x - x'| - E|y - y'|`` of two sets (n, ...), n >= 2, unbiased, a scalar that can be trained. Pairs of
    the same row are left out, since one may have been made from the other."""
    between = 1 - torch.eye(len(x), dtype=x.dtype, device=x.device)
    xx, yy, xy = (torch.cdist(a.flatten(1), b.flatten(1)) for a, b in ((x, x), (y, y), (x, y)))
    return ((2 * xy - xx - yy) * between).sum() / between.sum()
