"""Learn the integral from the identity that its derivative obeys."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..io import weights_digest
from ..model import FlowMap
from ..paths import expand
from ..utils import load_jvp_rules
from .base import Batch, energy, first, on_line
from .two_time import TwoTimeObjective


@dataclass(frozen=True)
class IntegralIdentity(TwoTimeObjective):
    """Integration Flow that works: learn G from the identity its derivative obeys.

    G(x_t; t -> s) = (t - s) u(x_t, t, s). Differentiate along the trajectory, ``d/dt G = v``, and solve for u:

        u(x_t, t, s) = v(x_t, t) - (t - s) d/dt u(x_t, t, s),       d/dt = d_t + v . grad_x,

    the MeanFlow identity (arXiv 2505.13447, eq. 6). The regression target is the right side without gradient, its
    first ``v`` replaced by the conditional velocity ``z - x_0``, whose mean given ``x_t`` is v. Converges to the exact
    average velocity, so that one jump is a solution of the ODE. Shares, times, power, detail: see ``TwoTimeObjective``.

    anchor: None; or "self", for a network built with ``anchor=True``: it also sees its own estimate of x_0, the end of its
        unanchored jump, ``a = x_t - t u(x_t, t, 0; no anchor)``. The end of a trajectory does not change along it, so a is
        held in ``d/dt``. Half of the examples train without an anchor (zeros), or there would be no first estimate.
    tangent: what ``v . grad_x`` uses: "network", the model's own ``u(x_t, t, t)``, one more call without gradient; or
        "conditional", ``z - x_0`` as MeanFlow does. Both have the right mean, the first less noise (arXiv 2512.02012).
    teacher: a ``FlowMap`` with a trained velocity, on the same path: its ``u(x, t, t)`` stands for the velocity in target
        and tangent. Targets are then without noise, and what is learned is the teacher's flow map, without integrating it.
        Start from the teacher's weights. ``fit`` moves it to its device.
    perceptual: with a teacher whose network has ``hidden`` (``UNet``), weight in ``|e|^2`` of what the error does to the
        teacher's hidden features h at the end of the jump, the self-perceptual loss of arXiv 2401.00110:

            |h(x_t - (t - s) u, s) - h(x_t - (t - s) target, s)|^2 / max(t - s, 0.02)^2.

        What minimizes the loss is the same; a network that cannot reach that errs where the teacher sees it least.
    matching: with such a teacher, weight of how far the ends y of jumps to s = 0 are from the data x_0 *as a
        distribution*: the energy distance (Szekely and Rizzo 2013, J. Stat. Plan. Inference 143) of the teacher's hidden
        features h(., 0), and of their means over places,

            2 E|h(y) - h(x_0)| - E|h(y) - h(y')| - E|h(x_0) - h(x_0')|,        y = x_t - t u(x_t, t, 0),

        over the pairs of a batch (of its rows in one process), as moment matching networks do (arXiv 1502.02761): three
        fifths of it jump from t_max, the others from half of it. The exact map of an exact velocity minimizes both terms;
        of two maps that are inexact it prefers the one whose samples are distributed as the data. For a model that has
        learned to jump: earlier it is in the way.
    derivative: "jvp", exact, forward mode; "difference", central with half width ``step``, in float32 at least: two plain
        network calls, cheaper where forward mode is slow (benchmarks/speed.py); "auto": the first on CUDA, else the second.
    """

    anchor: str | None = None
    tangent: str = "network"
    derivative: str = "auto"
    step: float = 1e-3
    teacher: FlowMap | None = None
    perceptual: float = 0.0
    matching: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("perceptual", "matching"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)!r}")
            if getattr(self, name) and not hasattr(getattr(self.teacher, "net", None), "hidden"):
                raise ValueError(
                    f"{name} needs a teacher whose network has hidden features, as UNet does"
                )
        if self.teacher is not None and self.anchor is not None:
            raise ValueError(
                "a teacher's velocity knows nothing of anchors: use teacher or anchor, not both"
            )
        for name, allowed in (
            ("anchor", (None, "self")),
            ("tangent", ("network", "conditional")),
            ("derivative", ("auto", "jvp", "difference")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, allowed))}; got {getattr(self, name)!r}"
                )

    def prepare(self, model: FlowMap, data, folder=None, seed: int = 0, team=None) -> None:
        if (self.anchor is not None) != model.anchored:
            raise ValueError(
                f"IntegralIdentity(anchor={self.anchor!r}) needs a network built with "
                f"anchor={self.anchor is not None}"
            )
        if self.teacher is not None:
            theirs, ours = (
                (m.path.name, m.path.config(), m.data_shape) for m in (self.teacher, model)
            )
            if self.teacher is model or theirs != ours:
                raise ValueError(
                    f"the teacher must be another model, on the same path and data: {theirs}, not {ours}"
                )
            self.teacher.to(
                team.device if team else next(model.parameters()).device
            ).eval().requires_grad_(False)

    def config(self) -> dict:
        """The settings; of a teacher its network and a digest of its weights."""
        known = self.teacher and {
            "network": type(self.teacher.net).__name__,
            "sha256": weights_digest(self.teacher),
        }
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"teacher": known}

    def total_derivative(
        self,
        model: FlowMap,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        velocity: Tensor,
        anchor: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """``d/dt u(x_t, t, s)`` along ``velocity`` with s and the anchor fixed. x, velocity: (B, ...); t, s: (B,)."""
        if self.derivative == "jvp" or self.derivative == "auto" and x.is_cuda:
            if not torch.compiler.is_compiling():
                load_jvp_rules()
            tangents = (velocity, torch.ones_like(t))
            return torch.func.jvp(lambda x, t: model(x, t, s, anchor, labels), (x, t), tangents)[1]
        ahead = (
            t + self.step
        )  # past t = 1 by a step at most: a one-sided difference would bias just that corner
        behind = torch.maximum(t - self.step, s)
        with torch.autocast(
            x.device.type, enabled=False
        ):  # the difference of two bfloat16 numbers would be noise
            plus = model(x + expand(ahead - t, x) * velocity, ahead, s, anchor, labels)
            minus = model(x + expand(behind - t, x) * velocity, behind, s, anchor, labels)
        return (plus - minus) / expand((ahead - behind).clamp(min=1e-6), x)

    def estimate(
        self, model: FlowMap, x: Tensor, t: Tensor, labels: Tensor | None, known: Tensor
    ) -> Tensor:
        """Anchors (B, ...): the model's own estimate of x_0 where ``known`` (B,), else zeros."""
        with torch.no_grad():
            end = x - expand(t, x) * model(x, t, torch.zeros_like(t), torch.zeros_like(x), labels)
        return torch.where(expand(known, x), end, torch.zeros_like(x))

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> dict:
        """As ``TwoTimeObjective``, and with an anchor ``known`` (B,): which examples see it."""
        drawn = super().draw(model, batch, generator)
        if self.anchor is None:
            return drawn
        source = generator.device if generator is not None else "cpu"
        known = (
            torch.rand(len(batch.x_0), generator=generator, device=source).to(batch.x_0.device)
            < 0.5
        )
        return {**drawn, "known": known}

    def loss(
        self,
        model: FlowMap,
        x_0: Tensor,
        z: Tensor,
        t: Tensor,
        s: Tensor,
        labels: Tensor | None,
        known: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        x_t, velocity, k = on_line(x_0, z, t), z - x_0, len(s)
        anchor = None if known is None else self.estimate(model, x_t, t, labels, known)
        if self.teacher is not None:
            with torch.no_grad():
                velocity = self.teacher(x_t, t, t, labels=labels)
        target, s = velocity, torch.cat([s, t[k:]])
        if k:
            x, now, then, a, c = first(k, x_t, t, s, anchor, labels)
            with torch.no_grad():
                own = self.tangent == "network" and self.teacher is None
                along = model(x, now, now, a, c) if own else velocity[:k]
                gap = expand(now - then, x)
                slope = gap * self.total_derivative(model, x, now, then, along, a, c)
                target = torch.cat([velocity[:k] - slope, velocity[k:]])
        error, extra = model(x_t, t, s, anchor, labels) - target, None
        if k and self.perceptual:
            seen = self.seen(x - gap * target[:k], gap * error[:k], then, c)
            extra = self.perceptual * seen / (now - then).clamp(min=0.02) ** 2
        loss = self.weighted(error, extra)
        return loss + self.matching * self.apart(
            model, x_0, z, labels
        ) if self.matching else loss, None

    def apart(self, model: FlowMap, x_0: Tensor, z: Tensor, labels: Tensor | None) -> Tensor:
        """Energy distances between the teacher's features of the ends of jumps and those of ``x_0``, a scalar."""
        n, far = len(x_0), len(x_0) - 2 * len(x_0) // 5
        if n < 5:
            raise ValueError(
                f"matching compares distributions: give at least five examples, not {n}"
            )
        t, s = (
            torch.full_like(z.flatten(1)[:, 0], model.path.tau_max),
            torch.zeros_like(z.flatten(1)[:, 0]),
        )
        t[far:] /= 2
        x_t = on_line(x_0, z, t)
        y = x_t - expand(t, x_t) * model(x_t, t, s, labels=labels)
        with torch.no_grad():
            real = self.teacher.net.hidden(x_0, s, s, labels=labels).to(
                z.dtype
            )  # not that of autocast
        ours = self.teacher.net.hidden(y, s, s, labels=labels).to(z.dtype)
        return sum(
            (stop - start)
            / n
            * (
                energy(ours[start:stop], real[start:stop])
                + energy(*(h[start:stop].flatten(2).mean(2) for h in (ours, real)))
            )
            for start, stop in ((0, far), (far, n))
        )

    def seen(self, x: Tensor, error: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """Squared distance (k,) of the teacher's hidden features at ``x`` and at ``x - error``."""
        with torch.no_grad():
            right = self.teacher.net.hidden(x, s, s, labels=labels)
        return (
            (self.teacher.net.hidden(x - error, s, s, labels=labels) - right)
            .square()
            .flatten(1)
            .sum(1)
        )
