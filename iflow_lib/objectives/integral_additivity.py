"""Learn the integral from the property that integrals add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import FlowMap
from ..paths import expand
from .base import Batch, first, on_line
from .two_time import TwoTimeObjective


@dataclass(frozen=True)
class IntegralAdditivity(TwoTimeObjective):
    """Learn G from the one thing every integral does: it adds up.

        G(x_t; t -> s) = G(x_t; t -> m) + G(x_m; m -> s),        s <= m <= t,   x_m = x_t - G(x_t; t -> m),

    where the two parts, without gradient, make the target of the whole. For s = t, velocity regression as in
    ``FlowMatching``, which is what the integrals are made of. Two plain network calls a step and no derivative: it
    compiles anywhere. Cf. shortcut models (arXiv 2410.12557) and SplitMeanFlow (arXiv 2507.16884, eq. 9).
    Converges to the exact average velocity, more slowly than the identity: a jump is only as right as its halves.
    Shares, times, power, detail: see ``TwoTimeObjective``; m is uniform between s and t.
    """

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> dict:
        """As ``TwoTimeObjective``, and ``share`` (k,): where m lies between s (0) and t (1)."""
        drawn = super().draw(model, batch, generator)
        source = generator.device if generator is not None else "cpu"
        return {
            **drawn,
            "share": torch.rand(len(drawn["s"]), generator=generator, device=source).to(batch.x_0),
        }

    def loss(
        self,
        model: FlowMap,
        x_0: Tensor,
        z: Tensor,
        t: Tensor,
        s: Tensor,
        labels: Tensor | None,
        share: Tensor,
    ) -> tuple[Tensor, None]:
        x_t, target, k = on_line(x_0, z, t), z - x_0, len(s)
        s = torch.cat([s, t[k:]])
        if k:
            x, now, then, c = first(k, x_t, t, s, labels)
            with torch.no_grad():
                early = model(x, now, then + share * (now - then), labels=c)
                middle = then + share * (now - then)
                late = model(x - expand(now - middle, x) * early, middle, then, labels=c)
                target = torch.cat(
                    [expand(1 - share, x) * early + expand(share, x) * late, target[k:]]
                )
        return self.weighted(model(x_t, t, s, labels=labels) - target), None
