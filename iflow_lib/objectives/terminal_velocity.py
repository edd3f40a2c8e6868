"""Learn the integral from its derivative at the end: jumps arrive with the velocity of the flow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import FlowMap
from ..paths import expand
from ..utils import is_out_of_memory
from .base import Batch, Drawn, first
from .derivative import DerivativeObjective
from .network_state import repeatable
from .velocity_target import VelocityTarget


@dataclass(frozen=True)
class TerminalVelocity(VelocityTarget, DerivativeObjective):
    """Learn the integral G from its derivative at the end s of the jump.

    It is that of terminal velocity matching (TVM, arXiv 2511.19797) and of Lagrangian
    self-distillation (LSD, arXiv 2505.18825). As s moves, the point that a jump arrives at,
    ``x_s = x_t - (t - s) u(x_t, t, s)``, follows the flow. So ``d/ds [(t - s) u] = -v(x_s, s)``, or

        u(x_t, t, s) - (t - s) d_s u(x_t, t, s) = v(x_s, s).

    The loss is ``E |u - (t - s) d_s u - v(x_s, s)|^2``, the sum over elements and the mean over
    examples. v is the network's own ``u(x_s, s, s)`` at the x_s that it predicts, without gradient;
    the left side has its gradient whole, that of ``d_s u`` too. The derivative is by one time
    alone, with x_t held: no gradient in x, and no v at x_t. Where s = t it is velocity regression
    as in ``FlowMatching``, from which v is learned.

    Theirs is the equation, and that v has no gradient. TVM takes v from the averaged weights, and
    other times; here both are as in the other objectives.

    Args:
        equal_share: Share of the batch with s = t, plain velocity regression: at least one row.
        start_share: Share of the other pairs with t at the start of sampling.
        end_share: Share of the other pairs with s = 0, at the data.
        time_density: Mean and standard deviation of the logit of both times, or "uniform".
        power: Exponent of the adaptive weight ``1 / (|u - v|^2 + 1e-3)^p``; 0 is the plain squared
            error. By its own error, which falls to zero, a pair would outweigh the velocity that it is
            to agree with (docs/findings.md).
        detail: Weight of differences between neighbouring pixels, for images.
        derivative: How ``d_s u`` is computed, "jvp", "difference" or "auto", and its ``step``: see
            ``DerivativeObjective``.
        velocity: What stands for ``z - x_0``: "pair", "batch", which has the same mean and less
            variance (arXiv 2302.00670), or "auto": see ``VelocityTarget``.

    Raises:
        ValueError: For a setting out of its range.
    """

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw as ``TwoTimeObjective``, and ``velocity`` (B, ...), if it is that of the batch.

        ValueError for a batch without rows with s = t.
        """
        self.require_equal_rows(model, len(batch.x_0))
        drawn = super().draw(model, batch, generator)
        return self.with_velocity(model, batch, drawn)

    def rehearse(
        self,
        model: FlowMap,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        anchor: Tensor | None,
        labels: Tensor | None,
    ) -> None:
        """Take ``d_s u`` and its gradient once: where that fails, forward mode is given up."""
        with torch.enable_grad():
            u, rate = self.end_derivative(model, x, t, s, labels)
            try:
                (u + rate).sum().backward()
            except RuntimeError as error:  # attention written for inference works in place
                if is_out_of_memory(error):
                    raise
                self.give_up_jvp(model, error)

    def loss(  # type: ignore[override]
        self,
        model: FlowMap,
        x_0: Tensor,
        z: Tensor,
        t: Tensor,
        s: Tensor,
        labels: Tensor | None,
        velocity: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return ``E |u - (t - s) d_s u - v(x_s, s)|^2``.

        ``s`` (k,) belongs to the first k examples; the others have s = t. Without a velocity it is
        ``z - x_0``.
        """
        x_t, s, k, rows = self.on_pairs(model, x_0, z, t, s)
        target = velocity = z - x_0 if velocity is None else velocity
        if k:  # the first k rows have s < t
            x_k, t_k, s_k, labels_k = first(rows, x_t, t, s, labels)
            u, rate = self.end_derivative(model, x_k, t_k, s_k, labels_k)
            with torch.no_grad(), repeatable(model):
                x_s = x_k - expand(t_k - s_k, x_k) * u
                arrival = model(x_s, s_k, s_k, labels=labels_k)
            target = torch.cat([(arrival + expand(t_k - s_k, x_k) * rate)[:k], velocity[k:]])
        u = model(x_t, t, s, labels=labels)
        return self.weighted(u - target, judged_by=u - velocity), None
