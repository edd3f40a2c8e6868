"""Learn the integral from the identity that its derivative obeys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import TensorData
from ..model import FlowMap
from ..paths import expand
from .base import Batch, Drawn, check_choice, first, on_line, uniform
from .derivative import DerivativeObjective
from .network_state import compared_rows, repeatable


@dataclass(frozen=True)
class IntegralIdentity(DerivativeObjective):
    """Learn the integral G from the identity that its derivative obeys.

    It is MeanFlow's (arXiv 2505.13447, eq. 6). ``G(x_t; t -> s) = (t - s) u(x_t, t, s)``.
    Differentiate along the trajectory, ``d/dt G = v``, and solve for u:

        u(x_t, t, s) = v(x_t, t) - (t - s) d/dt u(x_t, t, s),       d/dt = d_t + v . grad_x.

    The loss is ``E |u(x_t, t, s) - target|^2``, the sum over elements and the mean over examples.
    The target is the right side without gradient, its first v replaced by the conditional velocity
    ``z - x_0``, whose mean given ``x_t`` is v. Converges to the exact average velocity, so that one
    jump is a solution of the ODE. The loss itself does not fall to zero, and may rise, because its
    target moves: judge samples, not the loss (notebook 05).

    Args:
        equal_share: Share of the batch with s = t, plain velocity regression.
        start_share: Share of the other pairs with t at the start of sampling.
        end_share: Share of the other pairs with s = 0, at the data.
        time_density: Mean and standard deviation of the logit of both times, or "uniform".
        power: Exponent of the adaptive weight; 0 is the plain squared error.
        detail: Weight of differences between neighbouring pixels, for images.
        derivative: "jvp", "difference" or "auto", and its ``step``: see ``DerivativeObjective``.
        anchor: None; or "self", for a network built with ``anchor=True``. It then also sees its own
            estimate of x_0, the end of its unanchored jump, ``a = x_t - t u(x_t, t, 0; no
            anchor)``. The end of a trajectory does not change along it, so a is held in ``d/dt``.
            Half of the examples train without an anchor (zeros): otherwise there would be no first
            estimate.
        tangent: What ``v . grad_x`` uses. "network": the model's own ``u(x_t, t, t)``, one more
            call without gradient. "conditional": ``z - x_0``, as MeanFlow does. Both have the right
            mean, the first less noise (arXiv 2512.02012).

    Raises:
        ValueError: For a setting out of its range.
    """

    anchor: str | None = None
    tangent: str = "network"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("anchor", self.anchor, (None, "self"))
        check_choice("tangent", self.tangent, ("network", "conditional"))

    def prepare(
        self, model: FlowMap, data: TensorData, *, seed: int = 0, device: torch.device | None = None
    ) -> None:
        """Start a run; ValueError if network and objective do not agree on an anchor."""
        if (self.anchor is not None) != model.anchored:
            raise ValueError(
                f"IntegralIdentity(anchor={self.anchor!r}) needs a network built with "
                f"anchor={self.anchor is not None}"
            )
        super().prepare(model, data, seed=seed, device=device)

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw as ``TwoTimeObjective``, and perhaps ``known`` (B,): what sees its anchor."""
        drawn = super().draw(model, batch, generator)
        if self.anchor is None:
            return drawn
        chance = uniform(len(batch.x_0), generator=generator, like=batch.x_0)
        return {**drawn, "known": chance < 0.5}

    def loss(  # type: ignore[override]
        self,
        model: FlowMap,
        x_0: Tensor,
        z: Tensor,
        t: Tensor,
        s: Tensor,
        labels: Tensor | None,
        known: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return ``E |u(x_t, t, s) - [v - (t - s) d/dt u]|^2``, all on the line.

        ``s`` (k,) belongs to the first k examples; the others have s = t. ``known`` (B,) tells
        which examples see their anchor.
        """
        x_t, velocity, k = on_line(x_0, z, t), z - x_0, len(s)
        s = torch.cat([s, t[k:]])
        anchor = None if known is None else self.estimate(model, x_t, t, labels, known)
        target = velocity
        if k:  # the first k rows have s < t
            rows = compared_rows(model, k, len(t))
            x_k, t_k, s_k, anchor_k, labels_k = first(rows, x_t, t, s, anchor, labels)
            with torch.no_grad(), repeatable(model):
                tangent = velocity[:rows]
                if self.tangent == "network":
                    tangent = model(x_k, t_k, t_k, anchor_k, labels_k)
                rate = self.total_derivative(model, x_k, t_k, s_k, tangent, anchor_k, labels_k)
                integral = expand(t_k - s_k, x_k) * rate
            target = torch.cat([velocity[:k] - integral[:k], velocity[k:]])
        return self.weighted(model(x_t, t, s, anchor, labels) - target), None

    def estimate(
        self, model: FlowMap, x: Tensor, t: Tensor, labels: Tensor | None, known: Tensor
    ) -> Tensor:
        """Return anchors (B, ...): the model's own estimate of x_0 where ``known``, else zeros."""
        nothing = torch.zeros_like(x)
        with torch.no_grad(), repeatable(model):
            end = x - expand(t, x) * model(x, t, torch.zeros_like(t), nothing, labels)
        return torch.where(expand(known, x), end, nothing)
