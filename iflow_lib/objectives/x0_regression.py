"""The published recipe: regression on x_0 with an estimate of x_0 as a further input.

What the available sources say (a reviewer's account of arXiv 2504.20179, and the released code of
its predecessor DDDM): ``x_0^(0) ~ N(0, I)``; each step draws fresh ``(x_0, z)``, the estimate is
updated, ``x_0^(n+1) <- f(x_0^(n), x_t, t)``, and the loss compares f with x_0. They leave open
whose estimate is meant. ``X0Regression`` has every reading.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import TensorData
from ..model import FlowMap
from ..paths import expand
from .anchor_store import AnchorStore
from .base import Batch, Drawn, Objective, check_choice, check_number, on_line, uniform
from .network_state import model_device, repeatable

ANCHORS = ("none", "shared", "per_example", "ground_truth", "self")
DISTANCES = ("mse", "pseudo_huber", "l1")


@dataclass
class X0Regression(Objective):
    """Regress on the data: ``E d(f(x_t, t; a), x_0)``, ``f = x_t - t u(x_t, t, 0; a)``.

    From arXiv 2504.20179, as the available sources describe it, and its predecessor DDDM (arXiv
    2405.13540). f is the jump to the data, but what it learns is not the flow map. For d = "mse"
    the minimiser is the posterior mean ``E[x_0 | x_t, a]``, for "l1" the median of each element,
    for "pseudo_huber" something between. At t = t_max, where x_t is pure noise, that is without an
    anchor the mean of the data whatever the noise. The loss is the mean over elements and examples.

    Args:
        anchor: What a is. All but "none" need a network built with ``anchor=True``.
            "none": no a.
            "shared": one running batch of estimates. Each step's output is the next one's anchor,
                whatever the examples.
            "per_example": each example's own last estimate (``AnchorStore``), at first N(0, I). The
                estimates are kept where the run computes; they need as much memory as the data.
            "ground_truth": the same, but x_0 itself is stored, as the released code of DDDM does.
            "self": the network's own estimate in the same step, from an anchor N(0, I).
        distance: "mse", "l1", or "pseudo_huber", ``sqrt(e^2 + c^2) - c``, element by element.
        c: Constant of "pseudo_huber".
        blend: Use DDDM's loss ``w d(f, x_0) + (1 - w) d(f, a)``, ``w = 1 / (epoch + 1)``.
        time_density: As for ``Path.sample_times``. None takes the path's own.
        start_share: Share of the examples at the start of sampling.

    Attributes:
        store: The estimates of "per_example" and "ground_truth", made afresh by ``prepare``; None
            with other anchors.

    Raises:
        ValueError: For an unknown name, a share out of range, or ``blend`` without an anchor.
    """

    anchor: str = "none"
    distance: str = "mse"
    c: float = 1.4e-4
    blend: bool = False
    time_density: tuple[float, float] | str | None = None
    start_share: float = 0.1

    def __post_init__(self) -> None:
        check_choice("anchor", self.anchor, ANCHORS)
        check_choice("distance", self.distance, DISTANCES)
        check_number("start_share", self.start_share, most=1)
        check_number("c", self.c)
        if self.blend and self.anchor == "none":
            raise ValueError("blend compares the output with the anchor: it needs one")
        self.learns = "jump_to_data" if self.anchor == "none" else "refinement"
        self.store: AnchorStore | None = None
        self._running: Tensor | None = None

    def prepare(
        self, model: FlowMap, data: TensorData, *, seed: int = 0, device: torch.device | None = None
    ) -> None:
        """Start a run with new estimates; ValueError if the network does not fit the anchor."""
        if (self.anchor != "none") != model.anchored:
            raise ValueError(
                f"X0Regression(anchor={self.anchor!r}) needs a network built with "
                f"anchor={self.anchor != 'none'}"
            )
        super().prepare(model, data, seed=seed, device=device)
        self.store = self._running = None
        if self.anchor in ("per_example", "ground_truth"):
            device = device or model_device(model)
            self.store = AnchorStore(len(data), model.data_shape, seed, device)

    def captures(self) -> bool:
        """Return True: what is kept from step to step reaches ``loss`` as its argument alone."""
        return True

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw x_0, z, anchor (B, ...); t, labels (B,); with ``blend`` its weight w (B,)."""
        x_0, path = batch.x_0, model.path
        t = path.tau(
            path.sample_times(
                len(x_0), density=self.time_density, generator=generator, device=x_0.device
            )
        )
        at_start = uniform(len(x_0), generator=generator, like=t) < self.start_share
        t = torch.where(at_start, torch.full_like(t, path.tau_max), t)
        drawn = {
            "x_0": x_0,
            "z": batch.draw_noise(model, generator),
            "t": t,
            "labels": batch.labels,
            "anchor": self._anchor(batch, generator),
        }
        if self.blend:
            # a tensor, not a number: a compiled loss would be compiled again for every epoch
            drawn["weight"] = torch.full_like(t, 1 / (batch.epoch + 1))
        return drawn

    def loss(  # type: ignore[override]
        self,
        model: FlowMap,
        x_0: Tensor,
        z: Tensor,
        t: Tensor,
        labels: Tensor | None,
        anchor: Tensor | None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return ``E d(f, x_0)``, with ``blend`` ``w d(f, x_0) + (1 - w) d(f, a)``; and f itself."""
        x_t = on_line(x_0, z, t)

        def f(anchor: Tensor | None) -> Tensor:
            return x_t - expand(t, x_t) * model(x_t, t, torch.zeros_like(t), anchor, labels)

        if self.anchor == "self":
            with torch.no_grad(), repeatable(model):
                anchor = f(anchor)
        estimate = f(anchor)
        loss = self.mean_distance(estimate, x_0)
        if weight is not None and anchor is not None:
            loss = weight[0] * loss + (1 - weight[0]) * self.mean_distance(estimate, anchor)
        return loss, estimate.detach()

    def mean_distance(self, f: Tensor, other: Tensor) -> Tensor:
        """Return the mean over all elements of ``distance`` between two tensors (B, ...)."""
        e = f - other
        if self.distance == "mse":
            return e.square().mean()
        if self.distance == "l1":
            return e.abs().mean()
        return ((e.square() + self.c**2).sqrt() - self.c).mean()

    def update_state(
        self, batch: Batch, drawn: Drawn, loss: Tensor, estimate: Tensor | None
    ) -> None:
        """Keep the new estimates; if the run has failed, those that this step began with."""
        old, new = drawn["anchor"], batch.x_0 if self.anchor == "ground_truth" else estimate
        if old is None or new is None or self.anchor == "self":
            return
        # not an if: asking for the loss would make a GPU wait
        new = torch.where(torch.isfinite(loss), new, old)
        if self.anchor == "shared":
            self._running = new
        elif self.store is not None and batch.index is not None:
            self.store.update(batch.index, new)

    def state(self) -> dict[str, Tensor]:
        """Return the running batch of "shared", or the estimates of all examples."""
        if self.store is not None:
            return {"estimates": self.store.estimates}
        return {} if self._running is None else {"running": self._running}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state`` returned."""
        self._running = state.get("running")
        if self.store is not None:
            self.store.update(torch.arange(len(self.store)), state["estimates"])

    def _anchor(self, batch: Batch, generator: torch.Generator | None) -> Tensor | None:
        x_0 = batch.x_0
        if self.anchor == "none":
            return None
        if self.anchor in ("per_example", "ground_truth"):
            if self.store is None or batch.index is None:
                raise ValueError(
                    f"anchor={self.anchor!r} keeps one estimate for each example: train it with `fit`, or "
                    "call `prepare` and give batches with an index"
                )
            return self.store.read(batch.index).to(x_0)
        running = self._running
        if self.anchor == "shared" and running is not None and running.shape == x_0.shape:
            return running.to(x_0)
        source = generator.device if generator is not None else "cpu"
        return torch.randn(x_0.shape, generator=generator, device=source).to(x_0)
