"""Consistency training, the one-step method that Integration Flow is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import FlowMap
from ..paths import expand
from .base import Batch, Drawn, Objective, on_line
from .network_state import repeatable


@dataclass(frozen=True)
class ConsistencyTraining(Objective):
    """Learn the jump to the data by Easy Consistency Tuning, from scratch.

    From locuslab/ect; see arXiv 2303.01469.

    With ``f(x_t, t) = x_t - t u(x_t, t, 0)``, the jump to the data, and the same noise z at two
    noise levels t > r,

        loss = w (sqrt(|f(x_t, t) - f(x_r, r)|^2 + c^2) - c),     w = 1 / (t - r),
        t = exp(mean + std n),     n ~ N(0, 1),
        r = t (1 - q^-(stage + 1) (1 + k sigmoid(-b t))),     r >= 0.

    ``f(x_r, r)`` has no gradient. ``|.|^2`` is the sum over elements; the loss is the mean over
    examples. Here t and r are noise levels ``sigma / alpha``, on every path. Converges, as the
    stages close the gap between t and r, to the flow map onto the data, ``f(x_t, t) = x_0`` of the
    trajectory through x_t. Nothing is learned about s > 0.

    Args:
        mean: Mean of ln t.
        std: Standard deviation of ln t.
        q: Factor by which the gap between t and r closes with each stage, above 1.
        k: How much wider the gap is at small t.
        b: How fast that widening falls with t.
        stages: Number of equal parts into which the training is cut.
        c: Constant of the distance, for data of unit scale and one dimension: it is multiplied by
            sqrt(N).
        start_share: Share of the examples with t at the start of sampling.

    Raises:
        ValueError: For a setting out of its range.
    """

    mean: float = -1.1
    std: float = 2.0
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    stages: int = 8
    c: float = 0.03
    start_share: float = 0.1

    learns = "jump_to_data"

    def __post_init__(self) -> None:
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
        self,
        model: FlowMap,
        n: int,
        stage: int,
        generator: torch.Generator | None,
        device: torch.device | str,
    ) -> tuple[Tensor, Tensor]:
        """Draw noise levels t > r.

        Args:
            model: Its path gives the highest level, that of ``tau_max`` (1e4 where that is
                infinite).
            n: Number of examples.
            stage: Stage of the training, from 0.
            generator: Source of the draws.
            device: Where the levels are to be.

        Returns:
            t and r, each (n,).
        """
        last = min(model.path.tau_max, 1 - 1e-4)
        highest, source = last / (1 - last), generator.device if generator is not None else "cpu"
        t = torch.exp(
            self.mean + self.std * torch.randn(n, generator=generator, device=source)
        ).clamp(max=highest)
        t[torch.rand(n, generator=generator, device=source) < self.start_share] = highest
        shrink = self.q ** -(stage + 1) * (1 + self.k * torch.sigmoid(-self.b * t))
        return t.to(device), (t * (1 - shrink).clamp(min=0)).to(device)

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw x_0, z (B, ...); the noise levels t, r (B,) of the stage; labels (B,) or None."""
        stage = min(self.stages - 1, self.stages * batch.step // batch.steps)
        t, r = self.levels(model, len(batch.x_0), stage, generator, batch.x_0.device)
        return {
            "x_0": batch.x_0,
            "z": batch.draw_noise(model, generator),
            "t": t,
            "r": r,
            "labels": batch.labels,
        }

    def loss(  # type: ignore[override]
        self, model: FlowMap, x_0: Tensor, z: Tensor, t: Tensor, r: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, None]:
        """Return the mean weighted distance of the two jumps' ends."""

        def end(level: Tensor) -> Tensor:
            tau = level / (1 + level)
            x = on_line(x_0, z, tau)
            return x - expand(tau, x) * model(x, tau, torch.zeros_like(tau), labels=labels)

        with torch.no_grad(), repeatable(model):
            target = end(r)
        c = self.c * math.sqrt(x_0[0].numel())
        distance = ((end(t) - target).square().flatten(1).sum(1) + c**2).sqrt() - c
        return (distance / (t - r)).mean(), None
