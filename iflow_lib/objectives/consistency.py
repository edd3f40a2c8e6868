"""Consistency training, the one-step method that Integration Flow is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import FlowMap
from ..paths import expand
from .base import Batch, Objective, on_line


@dataclass(frozen=True)
class ConsistencyTraining(Objective):
    """Easy Consistency Tuning, from scratch (locuslab/ect; consistency models, arXiv 2303.01469).

    With ``f(x_t, t) = x_t - t u(x_t, t, 0)``, the jump to the data, and the same noise z at two noise levels t > r,

        loss = w (sqrt(|f(x_t, t) - f(x_r, r)|^2 + c^2) - c),    w = 1 / (t - r),     f(x_r, r) without gradient,
        t = exp(mean + std n),   r = t (1 - q^-(stage + 1) (1 + k sigmoid(-b t))),  r >= 0.

    Here t and r are noise levels ``sigma / alpha``, on every path. Converges, as the stages close the gap between t and r,
    to the flow map onto the data, ``f(x_t, t) = x_0`` of the trajectory through x_t; nothing is learned about s > 0.

    mean, std: of ln t; q, k, b: as above; stages: the training is cut into so many equal parts; c: of the distance, for
    data of unit scale and one dimension: it is multiplied by sqrt(N); start_share: examples at the start of sampling.
    """

    mean: float = -1.1
    std: float = 2.0
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    stages: int = 8
    c: float = 0.03
    start_share: float = 0.1

    def __post_init__(self):
        if not (
            self.q > 1
            and self.stages >= 1
            and self.c > 0
            and self.std > 0
            and 0 <= self.start_share <= 1
        ):
            raise ValueError(
                f"need q > 1, stages >= 1, c > 0, std > 0 and start_share in [0, 1], got {self}"
            )

    def levels(
        self, model: FlowMap, n: int, stage: int, generator, device
    ) -> tuple[Tensor, Tensor]:
        """Noise levels r < t, each (n,), none above that of ``tau_max`` (1e4 where that is infinite)."""
        last = min(model.path.tau_max, 1 - 1e-4)
        highest, source = last / (1 - last), generator.device if generator is not None else "cpu"
        t = torch.exp(
            self.mean + self.std * torch.randn(n, generator=generator, device=source)
        ).clamp(max=highest)
        t[torch.rand(n, generator=generator, device=source) < self.start_share] = highest
        shrink = self.q ** -(stage + 1) * (1 + self.k * torch.sigmoid(-self.b * t))
        return t.to(device), (t * (1 - shrink).clamp(min=0)).to(device)

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> dict:
        stage = min(self.stages - 1, self.stages * batch.step // batch.steps)
        t, r = self.levels(model, len(batch.x_0), stage, generator, batch.x_0.device)
        return {
            "x_0": batch.x_0,
            "z": batch.draw_noise(model, generator),
            "t": t,
            "r": r,
            "labels": batch.labels,
        }

    def loss(
        self, model: FlowMap, x_0: Tensor, z: Tensor, t: Tensor, r: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, None]:
        def end(level: Tensor) -> Tensor:
            tau = level / (1 + level)
            x = on_line(x_0, z, tau)
            return x - expand(tau, x) * model(x, tau, torch.zeros_like(tau), labels=labels)

        with torch.no_grad():
            target = end(r)
        c = self.c * math.sqrt(x_0[0].numel())
        distance = ((end(t) - target).square().flatten(1).sum(1) + c**2).sqrt() - c
        return (distance / (t - r)).mean(), None
