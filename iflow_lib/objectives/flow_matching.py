"""Velocity regression: flow matching on every path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import FlowMap
from .base import Batch, Drawn, Objective, on_line


@dataclass(frozen=True)
class FlowMatching(Objective):
    """Learn the velocity by regression (arXiv 2210.02747, 2209.03003).

        loss = E |u(x_t, t, t) - (z - x_0)|^2 / N

    It is the mean over examples and over the N elements of each. Converges to the velocity ``E[z -
    x_0 | x_t]``: 1-Rectified Flow on ``RectifiedFlow``, a probability-flow model on
    ``VarianceExploding``, PFGM++ on ``PoissonFlow``. Sample it with a solver ("euler", "heun"). Its
    one-step jump is the mean of the data, which is not a sample.
    """

    learns = "velocity"

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw x_0, z (B, ...); t (B,), from the path's own training times; labels (B,) or None."""
        x_0, path = batch.x_0, model.path
        t = path.tau(path.sample_times(len(x_0), generator=generator, device=x_0.device))
        return {"x_0": x_0, "z": batch.draw_noise(model, generator), "t": t, "labels": batch.labels}

    def loss(  # type: ignore[override]
        self, model: FlowMap, x_0: Tensor, z: Tensor, t: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, None]:
        """Return ``E |u(x_t, t, t) - (z - x_0)|^2 / N``."""
        return (model(on_line(x_0, z, t), t, t, labels=labels) - (z - x_0)).square().mean(), None
