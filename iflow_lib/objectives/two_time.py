"""What objectives share that learn jumps between two times."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import FlowMap
from .base import Batch, Objective


@dataclass(frozen=True)
class TwoTimeObjective(Objective):
    """What the two objectives that learn G share: pairs of times ``s <= t``, half of them equal.

    equal_share: share of the batch with s = t, plain velocity regression, which is what the rest leans on.
    start_share, end_share: shares of the other pairs with t at the start of sampling, and with s at the data (s = 0):
        the corner that one-step generation uses and that a continuous density never hits.
    time_density: mean and standard deviation of ``logit(tau)``, from which both times are drawn, or "uniform"; None takes
        the path's own. Wider than a velocity model's, because jumps are learned over the whole triangle s <= t.
    power: loss ``|e|^2 / (|e|^2 + 1e-3)^power`` per example, the weight without gradient (MeanFlow, eq. 22). 0 is the
        plain squared error; a larger power tames outliers and biases the mean that is learned.
    detail: of images, weight in ``|e|^2`` of the squared differences between neighbouring pixels of the error e. What
        minimizes it is the same, but a network that cannot reach that is more exact in fine detail, and less in the rest.
    """

    equal_share: float = 0.5
    start_share: float = 0.1
    end_share: float = 0.1
    time_density: tuple[float, float] | str | None = (0.0, 1.6)
    power: float = 0.0
    detail: float = 0.0

    def __post_init__(self):
        for name in ("equal_share", "start_share", "end_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)!r}")
        if not 0 <= self.detail < math.inf:
            raise ValueError(f"detail must be at least 0, got {self.detail!r}")

    def times(
        self, model: FlowMap, n: int, generator: torch.Generator | None, device
    ) -> tuple[Tensor, Tensor]:
        """Pairs of line times ``s <= t``, each (n,); all but the first ``n - round(equal_share n)`` have s = t."""
        path, unequal = model.path, n - round(self.equal_share * n)
        draws = path.tau(
            path.sample_times(2 * n, density=self.time_density, generator=generator, device=device)
        )
        first, second = draws.reshape(2, n)
        t, s = torch.maximum(first, second), torch.minimum(first, second)
        t[unequal:] = s[unequal:] = first[unequal:]
        source = generator.device if generator is not None else "cpu"
        chance = torch.rand(2, unequal, generator=generator, device=source).to(device)
        t[:unequal][chance[0] < self.start_share] = path.tau_max
        s[:unequal][chance[1] < self.end_share] = 0.0
        return t, s

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> dict:
        """x_0, z: (B, ...); t: (B,); s: (k,), of the first k examples, the others have s = t; labels."""
        n = len(batch.x_0)
        t, s = self.times(model, n, generator, batch.x_0.device)
        return {
            "x_0": batch.x_0,
            "z": batch.draw_noise(model, generator),
            "t": t,
            "s": s[: n - round(self.equal_share * n)],
            "labels": batch.labels,
        }

    def weighted(self, error: Tensor, extra: Tensor | None = None) -> Tensor:
        """Mean over examples of the squared error (B, ...), weighted by ``detail`` and ``power``; extra: (k,), added to
        the squares of the first k. ValueError for a detail of what are not images (B, C, H, W)."""
        square = error.square().flatten(1).sum(1)
        if self.detail:
            if error.ndim != 4:
                raise ValueError(
                    f"detail is of images (B, C, H, W); these examples have {error.ndim - 1} dimensions"
                )
            for dim in (2, 3):
                square = square + self.detail * error.diff(dim=dim).square().flatten(1).sum(1)
        if extra is not None:
            square = torch.cat([square[: len(extra)] + extra, square[len(extra) :]])
        return (square / (square.detach() + 1e-3) ** self.power).mean()
