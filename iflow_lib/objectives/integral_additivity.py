"""Learn the integral from the property that integrals add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import FlowMap
from ..paths import expand
from .base import Batch, Drawn, first, uniform
from .network_state import repeatable
from .two_time import TwoTimeObjective
from .velocity_target import VelocityTarget


@dataclass(frozen=True)
class IntegralAdditivity(VelocityTarget, TwoTimeObjective):
    """Learn the integral G from the one thing that every integral does: it adds up.

        G(x_t; t -> s) = G(x_t; t -> m) + G(x_m; m -> s),     s <= m <= t,
        x_m = x_t - G(x_t; t -> m),     m uniform between s and t.

    The two parts, without gradient, make the target of the whole. Where s = t it is velocity
    regression as in ``FlowMatching``, from which the integrals are made. The loss is the sum over
    elements and the mean over examples. It takes two plain network calls a step and no derivative,
    so it compiles anywhere. Cf. shortcut models (arXiv 2410.12557) and SplitMeanFlow (arXiv
    2507.16884, eq. 9).

    Converges to the exact average velocity, more slowly than the identity: a jump is only as right
    as its halves.

    Args:
        equal_share: Share of the batch with s = t, plain velocity regression: at least one row.
        start_share: Share of the other pairs with t at the start of sampling.
        end_share: Share of the other pairs with s = 0, at the data.
        time_density: Mean and standard deviation of the logit of both times, or "uniform".
        power: Exponent of the adaptive weight ``1 / (|u - v|^2 + 1e-3)^p``; 0 is the plain squared
            error. By its own error, which falls to zero, a pair would outweigh the velocity that it is
            to agree with (docs/findings.md).
        detail: Weight of differences between neighbouring pixels, for images.
        velocity: What stands for ``z - x_0``: "pair", "batch", which has the same mean and less
            variance (arXiv 2302.00670), or "auto": see ``VelocityTarget``.

    Raises:
        ValueError: For a setting out of its range.
    """

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw as ``TwoTimeObjective``, and ``share`` (k,): where m lies from s (0) to t (1).

        And ``velocity`` (B, ...), if it is that of the batch.
        """
        drawn, n = super().draw(model, batch, generator), len(batch.x_0)
        self.require_equal_rows(model, n)
        k = self.pairs(n, model.data_shape)
        share = uniform(k, generator=generator, like=batch.x_0)
        return self.with_velocity(model, batch, {**drawn, "share": share})

    def loss(  # type: ignore[override]
        self,
        model: FlowMap,
        x_0: Tensor,
        z: Tensor,
        t: Tensor,
        s: Tensor,
        labels: Tensor | None,
        share: Tensor,
        velocity: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return ``E |(t - s) u(t -> s) - (t - m) u(t -> m) - (m - s) u(m -> s)|^2 / (t - s)^2``.

        ``s`` and ``share`` (k,) belong to the first k examples; the others have s = t. Without a
        velocity it is ``z - x_0``.
        """
        x_t, s, k, rows = self.on_pairs(model, x_0, z, t, s)
        target = velocity = z - x_0 if velocity is None else velocity
        if k:  # the first k rows have s < t
            x_k, t_k, s_k, labels_k = first(rows, x_t, t, s, labels)
            share_k = torch.cat([share, share.new_zeros(rows - k)])
            m_k = s_k + share_k * (t_k - s_k)
            with torch.no_grad(), repeatable(model):
                early = model(x_k, t_k, m_k, labels=labels_k)
                late = model(x_k - expand(t_k - m_k, x_k) * early, m_k, s_k, labels=labels_k)
                # divided by t - s: each part counts by its share of the time
                whole = expand(1 - share_k, x_k) * early + expand(share_k, x_k) * late
            target = torch.cat([whole[:k], velocity[k:]])
        u = model(x_t, t, s, labels=labels)
        return self.weighted(u - target, judged_by=u - velocity), None
