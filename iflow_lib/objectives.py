"""Training objectives. Each is a callable ``objective(model, x_0, generator) -> loss`` on the canonical line.

On the line (see ``paths``) the path is ``x_t = (1 - t) x_0 + t z``, its conditional velocity ``z - x_0``, and all
times here are line times. The family enters through ``model.path`` alone: noise law, training times, ``tau_max``.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .flow_map import FlowMap
from .paths import expand


class Objective:
    """A loss. ``config()`` gives its settings for manifests."""

    def __call__(self, model: FlowMap, x_0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        raise NotImplementedError

    @property
    def name(self) -> str:
        return type(self).__name__

    def config(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class FlowMatching(Objective):
    """Velocity regression (arXiv 2210.02747, 2209.03003): ``E |u(x_t, t, t) - (z - x_0)|^2``.

    Converges to the velocity ``E[z - x_0 | x_t]``: 1-Rectified Flow on ``RectifiedFlow``, a probability-flow model on
    ``VarianceExploding``, PFGM++ on ``PoissonFlow``. Sample it with a solver ("euler", "heun"); its one-step jump is
    the mean of the data, not a sample.
    """

    def __call__(self, model: FlowMap, x_0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        path = model.path
        t = path.tau(path.sample_times(len(x_0), generator=generator, device=x_0.device))
        z = path.noise(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
        x_t = (1 - expand(t, x_0)) * x_0 + expand(t, x_0) * z
        return (model(x_t, t, t) - (z - x_0)).square().mean()


@dataclass(frozen=True)
class IntegralIdentity(Objective):
    """Integration Flow that works: learn G from the identity its derivative obeys.

    G(x_t; t -> s) = (t - s) u(x_t, t, s). Differentiate along the trajectory, ``d/dt G = v``, and solve for u:

        u(x_t, t, s) = v(x_t, t) - (t - s) d/dt u(x_t, t, s),       d/dt = d_t + v . grad_x,

    the MeanFlow identity (arXiv 2505.13447, eq. 6). The regression target is the right side without gradient, its
    first ``v`` replaced by the conditional velocity ``z - x_0``, whose mean given ``x_t`` is v. Converges to the exact
    average velocity, so that one jump is a solution of the ODE.

    anchor: None (anchored variants come with the study of anchoring).
    equal_share: share of the batch with s = t, plain velocity regression, which is what the rest leans on.
    start_share, end_share: shares of the other pairs with t at the start of sampling, and with s at the data (s = 0):
        the corner that one-step generation uses and that a continuous density never hits.
    time_density: mean and standard deviation of ``logit(tau)``, from which both times are drawn; None takes the
        path's own. Wider than a velocity model's, because jumps are learned over the whole triangle s <= t.
    tangent: what ``v . grad_x`` uses: "network", the model's own ``u(x_t, t, t)``, one more call without gradient; or
        "conditional", ``z - x_0`` as MeanFlow does. Both have the right mean; the network's has far less noise
        (cf. Improved Mean Flows, arXiv 2512.02012).
    power: loss ``|e|^2 / (|e|^2 + 1e-3)^power`` per example, the weight without gradient (MeanFlow, eq. 22). 0 is the
        plain squared error; a larger power tames outliers and biases the mean that is learned.
    derivative: "jvp", exact, forward mode; or "difference", central with half width ``step``: two plain network
        calls, cheaper where forward mode is slow (convolutions on a CPU).
    """

    anchor: str | None = None
    equal_share: float = 0.5
    start_share: float = 0.1
    end_share: float = 0.1
    time_density: tuple[float, float] | None = (0.0, 1.6)
    tangent: str = "network"
    power: float = 0.0
    derivative: str = "jvp"
    step: float = 5e-3

    def __post_init__(self):
        for name, allowed in (("anchor", (None,)), ("tangent", ("network", "conditional")),
                              ("derivative", ("jvp", "difference"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {getattr(self, name)!r}")
        for name in ("equal_share", "start_share", "end_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)!r}")

    def times(self, model: FlowMap, n: int, generator: torch.Generator | None, device) -> tuple[Tensor, Tensor]:
        """Pairs of line times ``s <= t``, each (n,); all but the first ``n - round(equal_share n)`` have s = t."""
        path, unequal = model.path, n - round(self.equal_share * n)
        draws = path.tau(path.sample_times(2 * n, density=self.time_density, generator=generator, device=device))
        first, second = draws.reshape(2, n)
        t, s = torch.maximum(first, second), torch.minimum(first, second)
        t[unequal:] = s[unequal:] = first[unequal:]
        source = generator.device if generator is not None else "cpu"
        chance = torch.rand(2, unequal, generator=generator, device=source).to(device)
        t[:unequal][chance[0] < self.start_share] = path.tau_max
        s[:unequal][chance[1] < self.end_share] = 0.0
        return t, s

    def total_derivative(self, model: FlowMap, x: Tensor, t: Tensor, s: Tensor, velocity: Tensor) -> Tensor:
        """``d/dt u(x_t, t, s)`` along ``velocity`` with s fixed. x, velocity: (B, ...); t, s: line times (B,)."""
        if self.derivative == "jvp":
            tangents = (velocity, torch.ones_like(t), torch.zeros_like(s))
            return torch.func.jvp(lambda x, t, s: model(x, t, s), (x, t, s), tangents)[1]
        ahead = t + self.step  # past t = 1 by a step at most: a one-sided difference would bias just that corner
        behind = torch.maximum(t - self.step, s)
        plus = model(x + expand(ahead - t, x) * velocity, ahead, s)
        minus = model(x + expand(behind - t, x) * velocity, behind, s)
        return (plus - minus) / expand((ahead - behind).clamp(min=1e-6), x)

    def __call__(self, model: FlowMap, x_0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        t, s = self.times(model, len(x_0), generator, x_0.device)
        z = model.path.noise(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
        x_t, velocity = (1 - expand(t, x_0)) * x_0 + expand(t, x_0) * z, z - x_0
        target, k = velocity.clone(), len(x_0) - round(self.equal_share * len(x_0))
        if k:
            with torch.no_grad():
                along = model(x_t[:k], t[:k], t[:k]) if self.tangent == "network" else velocity[:k]
                rate = self.total_derivative(model, x_t[:k], t[:k], s[:k], along)
                target[:k] -= expand(t[:k] - s[:k], x_0) * rate
        error = (model(x_t, t, s) - target).square().flatten(1).sum(1)
        return (error / (error.detach() + 1e-3) ** self.power).mean()
