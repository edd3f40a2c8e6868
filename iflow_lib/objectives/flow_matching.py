"""Velocity regression: flow matching on every path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import FlowMap
from .base import Batch, Drawn, on_line
from .velocity_target import VelocityTarget


@dataclass(frozen=True)
class FlowMatching(VelocityTarget):
    """Learn the velocity by regression (arXiv 2210.02747, 2209.03003).

        loss = E |u(x_t, t, t) - (z - x_0)|^2 / N

    It is the mean over examples and over the N elements of each. Converges to the velocity ``E[z -
    x_0 | x_t]``: 1-Rectified Flow on ``RectifiedFlow``, a probability-flow model on
    ``VarianceExploding``, PFGM++ on ``PoissonFlow``. Sample it with a solver ("euler", "heun"). Its
    one-step jump is the mean of the data, which is not a sample.

    Args:
        velocity: What stands for ``z - x_0``: "pair", "batch", which has the same mean and less
            variance (arXiv 2302.00670), or "auto": see ``VelocityTarget``.

    Raises:
        ValueError: For another velocity.
    """

    learns = "velocity"

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw x_0, z (B, ...); t (B,), from the path's own training times; labels (B,) or None.

        And ``velocity`` (B, ...), if it is that of the batch.
        """
        x_0, path = batch.x_0, model.path
        t = path.tau(path.sample_times(len(x_0), generator=generator, device=x_0.device))
        z = batch.draw_noise(model, generator)
        drawn: Drawn = {"x_0": x_0, "z": z, "t": t, "labels": batch.labels}
        return self.with_velocity(model, batch, drawn)

    def loss(  # type: ignore[override]
        self,
        model: FlowMap,
        x_0: Tensor,
        z: Tensor,
        t: Tensor,
        labels: Tensor | None,
        velocity: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return ``E |u(x_t, t, t) - velocity|^2 / N``; without a velocity it is ``z - x_0``."""
        velocity = z - x_0 if velocity is None else velocity
        return (model(on_line(x_0, z, t), t, t, labels=labels) - velocity).square().mean(), None
