"""One-step distillation of a rectified flow from pairs of noise and data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import TensorData
from ..model import FlowMap
from .base import Batch, Drawn, Objective


@dataclass(frozen=True)
class Distillation(Objective):
    """Distil a rectified flow into one step by regression on its pairs.

    arXiv 2209.03003, section 2.1:

        loss = E |z - u(z, 1, 0) - x_0|^2 / N.

    It is the mean over pairs and over the N elements of each. Needs coupled data, ``reflow(model,
    n)``. On the pairs of a k-th reflow it gives the distilled k-RF; on independent pairs it would
    give the mean of the data.
    """

    learns = "jump_to_data"

    def prepare(
        self, model: FlowMap, data: TensorData, *, seed: int = 0, device: torch.device | None = None
    ) -> None:
        """Start a run. Raises ValueError unless the path ends in pure noise, as ``RectifiedFlow``."""
        if model.path.tau_max != 1:
            raise ValueError(
                f"Distillation needs a path that ends in pure noise, such as RectifiedFlow; "
                f"{model.path.name} does not"
            )
        super().prepare(model, data, seed=seed, device=device)

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Take the pairs as they are; ValueError for data that are not coupled with noise."""
        if batch.noise is None:
            raise ValueError("Distillation needs coupled noise: train on reflow(model, n)")
        return {"x_0": batch.x_0, "z": batch.noise, "labels": batch.labels}

    def loss(  # type: ignore[override]
        self, model: FlowMap, x_0: Tensor, z: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, None]:
        """Return ``E |z - u(z, 1, 0) - x_0|^2 / N``."""
        one = torch.ones(len(x_0), device=x_0.device, dtype=x_0.dtype)
        return (z - model(z, one, torch.zeros_like(one), labels=labels) - x_0).square().mean(), None
