"""Learn the flow map of a trained velocity model, the teacher."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..data import TensorData
from ..io import weights_digest
from ..model import FlowMap
from ..paths import expand
from .base import check_number, first, on_line
from .derivative import DerivativeObjective
from .energy import end_of_jump, paired_energy_distance
from .network_state import model_device, repeatable


@dataclass(frozen=True)
class FlowMapDistillation(DerivativeObjective):
    """Learn a teacher's flow map from the identity, without integrating the teacher's velocity.

    The equation is that of ``IntegralIdentity``. The teacher's velocity ``v = u_teacher(x, t, t)``
    stands for v in the target and along the trajectory, so that the targets are without noise:

        loss = E |u(x_t, t, s) - v(x_t, t) + (t - s) d/dt u(x_t, t, s)|^2,
        d/dt = d_t + v . grad_x.

    It is the sum over elements and the mean over examples, to which the two terms below may be
    added. Start from the teacher's weights. The teacher itself is left as it is: a frozen copy is
    used.

    Args:
        teacher: A model with a trained velocity, on the same path and data, whose network takes no
            anchor.
        equal_share: Share of the batch with s = t, plain velocity regression.
        start_share: Share of the other pairs with t at the start of sampling.
        end_share: Share of the other pairs with s = 0, at the data.
        time_density: Mean and standard deviation of the logit of both times, or "uniform".
        power: Exponent of the adaptive weight; 0 is the plain squared error.
        detail: Weight of differences between neighbouring pixels, for images.
        derivative: "jvp", "difference" or "auto", and its ``step``: see ``DerivativeObjective``.
        perceptual: Weight in ``|e|^2`` of what the error does to the teacher's hidden features h at
            the end of the jump, the self-perceptual loss of arXiv 2401.00110:

                |h(x_t - (t - s) u, s) - h(x_t - (t - s) target, s)|^2 / max(t - s, 0.02)^2

            It does not change the minimiser; a network of limited capacity then errs where the
            teacher sees it least. Needs a teacher whose network has the method ``features_at(x, t,
            s, anchor=None, labels=None)``, as ``UNet``.
        matching: Weight of the distance between the ends of jumps and the data *as distributions*:
            see ``matching_distance``. Needs such a teacher too. Use it on a model that has learned
            to jump: before, it does harm.

    Raises:
        ValueError: For a setting out of its range, or a teacher without what the settings need.
    """

    teacher: FlowMap = field(kw_only=True)
    perceptual: float = 0.0
    matching: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.teacher, FlowMap):
            raise ValueError(
                f"teacher must be a FlowMap with a trained velocity, got a {type(self.teacher).__name__}"
            )
        if self.teacher.anchored:
            raise ValueError("the teacher's network takes an anchor: use one without")
        if self.teacher.learned in ("jump_to_data", "refinement"):
            raise ValueError(
                "the teacher must have learned a velocity, as FlowMatching and the integral objectives teach "
                f"it; this one learned {self.teacher.learned!r} only"
            )
        for name in ("perceptual", "matching"):
            check_number(name, getattr(self, name))
            if getattr(self, name) and not callable(getattr(self.teacher.net, "features_at", None)):
                raise ValueError(
                    f"{name} needs a teacher whose network has hidden features, a method "
                    f"features_at(x, t, s, anchor, labels) as UNet has; {type(self.teacher.net).__name__} "
                    f"has none: set {name}=0"
                )

    def prepare(
        self, model: FlowMap, data: TensorData, *, seed: int = 0, device: torch.device | None = None
    ) -> None:
        """Start a run with a frozen copy of the teacher; ValueError if the two do not fit."""
        theirs, ours = ((m.path.name, m.path.config(), m.data_shape) for m in (self.teacher, model))
        if theirs != ours:
            raise ValueError(
                f"the teacher must be a model on the same path and data: {theirs}, not {ours}"
            )
        if set(self.teacher.parameters()) & set(model.parameters()):
            raise ValueError(
                "the teacher must be another model, which shares no weight with the one that is trained: "
                "give copy.deepcopy(teacher)"
            )
        scales = [s and s.config() for s in (self.teacher.scaling, getattr(data, "scaling", None))]
        if scales[0] != scales[1]:
            known = ["standardized" if s else "not standardized" for s in scales]
            raise ValueError(
                "the teacher must have been trained on data in the same scale as these: its data were "
                f"{known[0]}, these are {known[1]}, so give the data that it was trained on"
                + (", with their own scaling" if all(scales) else "")
            )
        if model.anchored:
            raise ValueError(
                "FlowMapDistillation needs a network built with anchor=False: a teacher's velocity "
                "knows nothing of anchors"
            )
        super().prepare(model, data, seed=seed, device=device)
        frozen = copy.deepcopy(self.teacher).to(device or model_device(model))
        self.__dict__["_frozen"] = frozen.eval().requires_grad_(False)
        # here, because a compiled loss cannot ask a path for it in one piece
        self.__dict__["_tau_max"] = model.path.tau_max

    @property
    def frozen_teacher(self) -> FlowMap:
        """The frozen copy of the teacher, as ``prepare`` made it."""
        if "_frozen" not in self.__dict__:
            raise ValueError(
                "FlowMapDistillation has no copy of its teacher yet: call prepare first"
            )
        return self.__dict__["_frozen"]

    def config(self) -> dict[str, Any]:
        """Return the settings; of the teacher, its network's name and a digest of its weights."""
        known = {"network": type(self.teacher.net).__name__, "sha256": weights_digest(self.teacher)}
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"teacher": known}

    def loss(  # type: ignore[override]
        self,
        model: FlowMap,
        x_0: Tensor,
        z: Tensor,
        t: Tensor,
        s: Tensor,
        labels: Tensor | None,
    ) -> tuple[Tensor, None]:
        """Return ``E |u - [v - (t - s) d/dt u]|^2`` with the teacher's v, and the two other terms.

        ``s`` (k,) belongs to the first k examples; the others have s = t.
        """
        x_t, s, k, rows = self.on_pairs(model, x_0, z, t, s)
        with torch.no_grad():
            velocity = self.frozen_teacher(x_t, t, t, labels=labels)
        target, extra = velocity, None
        if k:  # the first k rows have s < t
            x_k, t_k, s_k, velocity_k, labels_k = first(rows, x_t, t, s, velocity, labels)
            with torch.no_grad(), repeatable(model):
                rate = self.total_derivative(model, x_k, t_k, s_k, velocity_k, labels=labels_k)
                integral = expand(t_k - s_k, x_k) * rate
            target = torch.cat([velocity[:k] - integral[:k], velocity[k:]])
        error = model(x_t, t, s, labels=labels) - target
        if k and self.perceptual:
            x_k, gap, s_k, target_k, error_k, labels_k = first(
                k, x_t, t - s, s, target, error, labels
            )
            right = x_k - expand(gap, x_k) * target_k
            distance = self.perceptual_distance(right, expand(gap, x_k) * error_k, s_k, labels_k)
            extra = self.perceptual * distance / gap.clamp(min=0.02) ** 2
        loss = self.weighted(error, extra)
        if self.matching:
            loss = loss + self.matching * self.matching_distance(model, x_0, z, labels)
        return loss, None

    def features(self, x: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """Return the teacher's hidden features of x (B, ...) at the times s (B,)."""
        teacher = self.frozen_teacher
        return teacher.net.features_at(x, s, s, labels=labels if teacher.classes else None)  # type: ignore[operator]

    def perceptual_distance(
        self, x: Tensor, error: Tensor, s: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Return the squared distance (B,) of the features of ``x`` and of ``x - error``."""
        with torch.no_grad():
            right = self.features(x, s, labels)
        return (self.features(x - error, s, labels) - right).square().flatten(1).sum(1)

    def matching_distance(
        self, model: FlowMap, x_0: Tensor, z: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Return the energy distance of the ends y of jumps to s = 0 and the data.

        It is taken of the teacher's hidden features h(., 0), and of their means over places,

            2 E|h(y) - h(x_0)| - E|h(y) - h(y')| - E|h(x_0) - h(x_0')|,
            y = x_t - t u(x_t, t, 0),

        over the pairs of a batch (of its rows in one process), as moment matching networks do
        (arXiv 1502.02761). Three fifths of the batch jump from t_max, the others from half of it.
        The exact map of an exact velocity minimises this and the identity; of two inexact maps, it
        prefers the one whose samples are distributed as the data.

        Returns:
            A scalar with gradient.

        Raises:
            ValueError: For fewer than five examples.
        """
        n = len(x_0)
        if n < 5:
            raise ValueError(
                f"matching compares distributions: give at least five examples, not {n}"
            )
        far = n - 2 * n // 5  # so many rows jump from t_max
        zero = torch.zeros_like(z.flatten(1)[:, 0])
        with torch.no_grad():
            real = self.features(x_0, zero, labels).to(z.dtype)  # distances not in that of autocast
        t = torch.full_like(zero, self.__dict__["_tau_max"])
        t[far:] /= 2
        x_t = on_line(x_0, z, t)
        with repeatable(model):  # the prediction alone moves running statistics
            y = end_of_jump(model, x_t, t, zero, labels)
        ours = self.features(y, zero, labels).to(z.dtype)
        total = torch.zeros((), dtype=z.dtype, device=z.device)
        for part, share in ((slice(0, far), far / n), (slice(far, n), (n - far) / n)):
            means = (h[part].flatten(2).mean(2) for h in (ours, real))
            total = total + share * (
                paired_energy_distance(ours[part], real[part]) + paired_energy_distance(*means)
            )
        return total
