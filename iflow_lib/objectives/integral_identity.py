"""Learn the integral from the identity that its derivative obeys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import TensorData
from ..model import FlowMap
from ..paths import expand
from .base import Batch, Drawn, check_choice, first, uniform
from .derivative import DerivativeObjective
from .gap import Gap, check_gap, gap_at
from .network_state import mixes_rows, repeatable
from .two_time import TwoTimeObjective
from .velocity_target import VelocityTarget

#: The gap where neither a gap nor a derivative is asked for.
DEFAULT_GAP = 0.02


@dataclass(frozen=True)
class IntegralIdentity(VelocityTarget, DerivativeObjective):
    """Learn the integral G from the identity that its derivative obeys.

    It is MeanFlow's (arXiv 2505.13447, eq. 6). ``G(x_t; t -> s) = (t - s) u(x_t, t, s)``.
    Differentiate along the trajectory, ``d/dt G = v``, and solve for u:

        u(x_t, t, s) = v(x_t, t) - (t - s) d/dt u(x_t, t, s),       d/dt = d_t + v . grad_x.

    The loss is ``E |u(x_t, t, s) - target|^2``, the sum over elements and the mean over examples.
    The target is the right side without gradient, its first v replaced by the conditional velocity
    ``z - x_0``, or what the whole batch says of it (``velocity``), whose mean given ``x_t`` is v.
    Converges to the exact average velocity, so that one
    jump is a solution of the ODE. The loss itself does not fall to zero, and may rise, because its
    target moves: judge samples, not the loss (notebook 05).

    With a ``gap`` a, a finite piece of the integral stands for the derivative. The jump is cut at a
    time m so near to t that v does for the average over the first part, and integrals add up:

        (t - s) u(x_t, t, s) = (t - m) v + (m - s) u(x_m, m, s),
        m = t - a (t - s),     x_m = x_t - (t - m) v,

    or ``u(x_t, t, s) = a v + (1 - a) u(x_m, m, s)``. The right side without gradient, ``sg[.]``, is
    the target. The squared error is weighted so that neither it nor its gradient shrinks with a.
    Written like the identity, that is

        target = v - (1/a - 1) sg[u(x_t, t, s) - u(x_m, m, s)],
        u - target = (u - sg[a v + (1 - a) u(x_m, m, s)]) / a     in value; its gradient is that of u.

    As above, the first v is ``velocity``; that of x_m is what ``tangent`` says. a = 1 is velocity
    regression at all pairs, a -> 0 the identity, and with s = 0 alone it is the consistency target.
    A finite gap has an error of order a. It is one network call less than the central difference,
    and stays inside [s, t]. Rounding is divided by a as well: keep a above 1e-4, in bfloat16 above
    0.01.

    This pair of points is that of alpha-Flow (arXiv 2510.20771) and SoFlow (arXiv 2512.15657):

        alpha-Flow: gap=("sigmoid", 25, 0.005), tangent="conditional", power=1
        SoFlow: gap=("geometric", 0.1, 0.002), tangent="conditional", power=0.5, equal_share=0.75

    both with velocity="pair". The first are the settings of its authors' code for ImageNet (model B/2), which below 0.005
    takes the exact identity, where the gap here stays. The second are the defaults of
    rectified-flow-pytorch 0.14, which adds the means of both kinds of rows, so that each of the
    fewer pairs counts three times as much as here. The weights of an example are ours but for a
    constant: alpha-Flow's is ``a / (mean e^2 + eps)`` with e = a (u - target), ours with
    ``power=1`` has ``1e-3 a^2`` of the sum for eps. The times are ours.

    Args:
        equal_share: Share of the batch with s = t, plain velocity regression.
        start_share: Share of the other pairs with t at the start of sampling.
        end_share: Share of the other pairs with s = 0, at the data.
        time_density: Mean and standard deviation of the logit of both times, or "uniform".
        power: Exponent of the adaptive weight; 0 is the plain squared error.
        detail: Weight of differences between neighbouring pixels, for images.
        derivative: "jvp", "difference" or "auto", and its ``step``: see ``DerivativeObjective``.
        anchor: None; or "self", for a network built with ``anchor=True``. It then also sees its own
            estimate of x_0, the end ``x_t - t u(x_t, t, 0)`` of its jump without an anchor. The end
            of a trajectory does not change along it, so the anchor is held in ``d/dt``, and at x_m.
            Half of the examples train without an anchor (zeros): otherwise there would be no first
            estimate.
        tangent: The v of ``v . grad_x``, and of x_m. "network": the model's own ``u(x_t, t, t)``, one more
            call without gradient. "conditional": the velocity of the target, which with
            ``velocity="pair"`` is ``z - x_0``, as in MeanFlow. Both have the right mean, the first
            less noise than a pair's (arXiv 2512.02012).
        gap: A number in (0, 1] is a fixed gap a. ("geometric", first, last) and ("sigmoid", gamma,
            last) fall over the training: see ``gap_at`` in ``iflow_lib.objectives.gap``. None takes
            the derivative. "auto" is 0.02, or None where ``derivative`` or ``step`` is given, which
            have no meaning with a gap.
        velocity: What stands for ``z - x_0``: "pair", "batch", which has the same mean and less
            variance (arXiv 2302.00670), or "auto": see ``VelocityTarget``.

    Raises:
        ValueError: For a setting out of its range.
    """

    anchor: str | None = None
    tangent: str = "conditional"
    gap: Gap | None = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        own = (self.derivative, self.step)
        wants_derivative = own != (DerivativeObjective.derivative, DerivativeObjective.step)
        if self.gap == "auto":
            object.__setattr__(self, "gap", None if wants_derivative else DEFAULT_GAP)
        check_choice("anchor", self.anchor, (None, "self"))
        check_choice("tangent", self.tangent, ("network", "conditional"))
        if self.gap is not None:
            check_gap(self.gap)
            if wants_derivative:
                raise ValueError(
                    f"gap={self.gap!r} takes no derivative: leave derivative and step out, or the gap"
                )

    def prepare(
        self, model: FlowMap, data: TensorData, *, seed: int = 0, device: torch.device | None = None
    ) -> None:
        """Start a run; ValueError if network and objective do not agree on an anchor."""
        if (self.anchor is not None) != model.anchored:
            raise ValueError(
                f"IntegralIdentity(anchor={self.anchor!r}) needs a network built with "
                f"anchor={self.anchor is not None}"
            )
        if self.gap is None:
            super().prepare(model, data, seed=seed, device=device)
        else:  # without a trial of the derivative
            TwoTimeObjective.prepare(self, model, data, seed=seed, device=device)

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw as ``TwoTimeObjective``; with an anchor ``known`` (B,), with a gap ``gap`` (k,).

        And ``velocity`` (B, ...), if it is that of the batch.
        """
        drawn = super().draw(model, batch, generator)
        if self.anchor is not None:
            chance = uniform(len(batch.x_0), generator=generator, like=batch.x_0)
            drawn = {**drawn, "known": chance < 0.5}
        if self.gap is not None:  # a tensor, because a recorded step keeps numbers
            gap = gap_at(self.gap, batch.step, batch.steps)
            drawn = {**drawn, "gap": torch.full_like(drawn["s"], gap)}  # type: ignore[arg-type]
        return self.with_velocity(model, batch, drawn)

    def loss(  # type: ignore[override]
        self,
        model: FlowMap,
        x_0: Tensor,
        z: Tensor,
        t: Tensor,
        s: Tensor,
        labels: Tensor | None,
        known: Tensor | None = None,
        gap: Tensor | None = None,
        velocity: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return ``E |u(x_t, t, s) - [v - (t - s) d/dt u]|^2``, all on the line.

        ``s`` and ``gap`` (k,) belong to the first k examples; the others have s = t. ``known`` (B,)
        tells which examples see their anchor. With a gap a, ``(1/a - 1) [u(x_t, t, s) - u(x_m, m,
        s)]`` stands for ``(t - s) d/dt u``. Without a velocity it is ``z - x_0``.
        """
        x_t, s, k, rows = self.on_pairs(model, x_0, z, t, s)
        velocity = z - x_0 if velocity is None else velocity
        anchor = None if known is None else self.estimate(model, x_t, t, labels, known)
        if k:  # the first k rows have s < t
            x_k, t_k, s_k, anchor_k, labels_k = first(rows, x_t, t, s, anchor, labels)
            with torch.no_grad(), repeatable(model):
                tangent = velocity[:rows]
                if self.tangent == "network":
                    tangent = model(x_k, t_k, t_k, anchor_k, labels_k)
                given = (model, x_k, t_k, s_k, tangent, anchor_k, labels_k)
                if gap is None:
                    change = expand(t_k - s_k, x_k) * self.total_derivative(*given)
                else:
                    u_from_t, u_from_m = self.both_ends(gap, *given)
        u = model(x_t, t, s, anchor, labels)
        if not k:
            return self.weighted(u - velocity), None
        if gap is not None:
            u_from_t = u.detach() if u_from_t is None else u_from_t
            change = expand(1 / gap - 1, x_t[:k]) * (u_from_t[:k] - u_from_m[:k])
        return self.weighted(u - torch.cat([velocity[:k] - change[:k], velocity[k:]])), None

    def both_ends(
        self,
        gap: Tensor,
        model: FlowMap,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        velocity: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Compute u at both ends of the piece from m to t: ``u(x_t, t, s)`` and ``u(x_m, m, s)``.

        The first is None where the prediction gives it. It does not where batch normalisation would
        compare the statistics of two batches: then both are made with the running ones.

        Args:
            gap: Gaps (k,) of the first k rows; the others have s = t.
            model: The model whose u is compared.
            x: Points (B, ...) at the times t.
            t: Line times (B,).
            s: Line times (B,), at most t.
            velocity: dx/dt (B, ...), along which x_m lies.
            anchor: What an anchored network is given at both, (B, ...).
            labels: Classes (B,).

        Returns:
            The two average velocities, shape of x.
        """
        gap = torch.cat([gap, gap.new_ones(len(t) - len(gap))])
        m = s + (1 - gap) * (t - s)  # s itself where the gap is 1
        x_m = x - expand(t - m, x) * velocity
        with repeatable(model, hold_statistics=True):
            u_from_t = model(x, t, s, anchor, labels) if mixes_rows(model) else None
            return u_from_t, model(x_m, m, s, anchor, labels)

    def estimate(
        self, model: FlowMap, x: Tensor, t: Tensor, labels: Tensor | None, known: Tensor
    ) -> Tensor:
        """Return anchors (B, ...): the model's own estimate of x_0 where ``known``, else zeros."""
        nothing = torch.zeros_like(x)
        with torch.no_grad(), repeatable(model):
            end = x - expand(t, x) * model(x, t, torch.zeros_like(t), nothing, labels)
        return torch.where(expand(known, x), end, nothing)
