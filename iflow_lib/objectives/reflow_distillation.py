"""One-step distillation of a rectified flow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import FlowMap
from .base import Batch, Objective


@dataclass(frozen=True)
class Distillation(Objective):
    """One-step distillation of a rectified flow (arXiv 2209.03003, section 2.1): ``E |z - u(z, 1, 0) - x_0|^2`` on pairs.

    Needs coupled data, ``samplers.reflow(model, n)``. On the pairs of a k-th reflow it gives the distilled k-RF; on
    independent pairs, the mean of the data.
    """

    def prepare(self, model: FlowMap, data, folder=None, seed: int = 0, team=None) -> None:
        if model.path.tau_max != 1:
            raise ValueError(f"Distillation is defined on RectifiedFlow, not on {model.path.name}")

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> dict:
        if batch.noise is None:
            raise ValueError("Distillation needs coupled noise: train on reflow(model, n)")
        return {"x_0": batch.x_0, "z": batch.noise, "labels": batch.labels}

    def loss(
        self, model: FlowMap, x_0: Tensor, z: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, None]:
        one = torch.ones(len(x_0), device=x_0.device, dtype=x_0.dtype)
        return (z - model(z, one, torch.zeros_like(one), labels=labels) - x_0).square().mean(), None
