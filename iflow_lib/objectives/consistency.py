"""Consistency training, the one-step method that Integration Flow is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import FlowMap
from ..paths import expand
from ..utils import check_int
from .base import Batch, Drawn, check_number, on_line
from .network_state import mixes_rows, repeatable
from .velocity_target import VelocityTarget


@dataclass(frozen=True)
class ConsistencyTraining(VelocityTarget):
    """Learn the jump to the data by Easy Consistency Tuning, from scratch.

    From locuslab/ect; see arXiv 2303.01469.

    Let ``f(x_t, t) = x_t - t u(x_t, t, 0)`` be the jump to the data. It is compared at two noise
    levels ``sigma / alpha``, ``high > low``, with the same data and noise,

        loss = w (sqrt(|f(high) - f(low)|^2 + c^2) - c),     w = 1 / (high - low),
        high = exp(mean + std n),     n ~ N(0, 1),
        low = high (1 - q^-(stage + 1) (1 + k sigmoid(-b high))),     low >= 0.

    ``f(low)`` has no gradient. ``|.|^2`` is the sum over elements; the loss is the mean over
    examples. Converges, as the stages close the gap between the levels, to the flow map onto the
    data: f is then the x_0 of the trajectory through x_t. Nothing is learned about s > 0.

    With the velocity v of the whole batch at the higher level (``velocity``), the lower point lies
    on the line through the higher one along v, so that both are on the same trajectory but for what
    v errs and the trajectory bends:

        x_low = x_high - (t_high - t_low) v,     t = level / (1 + level).

    With ``v = z - x_0`` that is the point of the same data and noise.

    Args:
        mean: Mean of ``ln high``.
        std: Standard deviation of ``ln high``.
        q: Factor by which the gap between the levels closes with each stage, above 1.
        k: How much wider the gap is at low noise.
        b: How fast that widening falls as the noise rises.
        stages: Number of equal parts into which the training is cut.
        c: Constant of the distance for one element of unit scale. It is multiplied by sqrt(N),
            where N is the number of elements.
        start_share: Share of the examples with ``high`` at the start of sampling.
        velocity: The v above: "pair" for ``z - x_0``, "batch", which has the same mean and less
            variance (arXiv 2302.00670), or "auto": see ``VelocityTarget``.

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
        super().__post_init__()
        check_int("stages", self.stages)
        check_number("mean", self.mean, least=-math.inf)
        for name in ("q", "c", "std", "k", "b"):
            check_number(name, getattr(self, name))
        check_number("start_share", self.start_share, most=1)
        if not (self.q > 1 and self.c > 0 and self.std > 0):
            raise ValueError(f"need q > 1, c > 0 and std > 0, got {self}")

    def levels(
        self,
        model: FlowMap,
        n: int,
        stage: int,
        generator: torch.Generator | None,
        device: torch.device | str,
    ) -> tuple[Tensor, Tensor]:
        """Draw pairs of noise levels.

        Args:
            model: Its path gives the highest level, that of ``tau_max`` (1e4 where that is
                infinite).
            n: Number of examples.
            stage: Stage of the training, from 0.
            generator: Source of the draws.
            device: Where the levels are to be.

        Returns:
            ``high`` and ``low``, each (n,).
        """
        last = min(model.path.tau_max, 1 - 1e-4)
        highest, source = last / (1 - last), generator.device if generator is not None else "cpu"
        high = torch.exp(
            self.mean + self.std * torch.randn(n, generator=generator, device=source)
        ).clamp(max=highest)
        at_start = torch.rand(n, generator=generator, device=source) < self.start_share
        high = high.masked_fill(at_start, highest)
        shrink = self.q ** -(stage + 1) * (1 + self.k * torch.sigmoid(-self.b * high))
        return high.to(device), (high * (1 - shrink).clamp(min=0)).to(device)

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw x_0, z (B, ...); the noise levels high, low (B,); labels (B,) or None.

        And ``velocity`` (B, ...) at the higher level, if it is that of the batch.
        """
        stage = min(self.stages - 1, self.stages * batch.step // batch.steps)
        high, low = self.levels(model, len(batch.x_0), stage, generator, batch.x_0.device)
        drawn: Drawn = {
            "x_0": batch.x_0,
            "z": batch.draw_noise(model, generator),
            "high": high,
            "low": low,
            "labels": batch.labels,
        }
        return self.with_velocity(model, batch, drawn, high / (1 + high))

    def loss(  # type: ignore[override]
        self,
        model: FlowMap,
        x_0: Tensor,
        z: Tensor,
        high: Tensor,
        low: Tensor,
        labels: Tensor | None,
        velocity: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return ``E (sqrt(|f(high) - f(low)|^2 + c^2) - c) / (high - low)``.

        Without a velocity the lower point is that of the same data and noise.
        """
        n, gap = len(x_0), high - low
        later, earlier = high / (1 + high), low / (1 + low)
        x_later = on_line(x_0, z, later)
        if velocity is None:
            x_earlier = on_line(x_0, z, earlier)
        else:
            x_earlier = x_later - expand(later - earlier, x_later) * velocity
        if mixes_rows(
            model
        ):  # both calls see the rows of both levels, so their statistics are the same
            x_later, x_earlier = torch.cat([x_later, x_earlier]), torch.cat([x_earlier, x_later])
            later, earlier = torch.cat([later, earlier]), torch.cat([earlier, later])
            labels = None if labels is None else torch.cat([labels, labels])

        def end(x: Tensor, tau: Tensor) -> Tensor:
            return (x - expand(tau, x) * model(x, tau, torch.zeros_like(tau), labels=labels))[:n]

        with torch.no_grad(), repeatable(model):
            target = end(x_earlier, earlier)
        c = self.c * math.sqrt(x_0[0].numel())
        distance = ((end(x_later, later) - target).square().flatten(1).sum(1) + c**2).sqrt() - c
        return (distance / gap).mean(), None
