"""Match the ends of jumps to the data as distributions, without a teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data import TensorData
from ..model import FlowMap
from ..paths import expand
from ..utils import check_seed
from .base import Batch, Drawn, Objective, Wrapper, check_choice, check_number, uniform
from .energy import end_of_jump, paired_energy_distance
from .feature_spaces import SPACES, feature_space
from .integral_identity import IntegralIdentity
from .network_state import model_device, repeatable
from .x0_regression import X0Regression


@dataclass(frozen=True)
class EnergyMatching(Wrapper):
    """Add to an objective how far the ends of jumps are from the data, as distributions.

        loss = base + weight D,     D = 2 E|h(y) - h(x)| - E|h(y) - h(y')| - E|h(x) - h(x')|

    D is the energy distance (Szekely and Rizzo 2013, J. Stat. Plan. Inference 143; to train
    generators: arXiv 1705.10743). x and x' are data, y and y' ends of jumps from fresh noise z, as
    ``sample`` makes them: from the line time tau_max,

        y = x_t - t u(x_t, t, 0),     x_t = t z,     t = tau_max.

    Means are over the pairs of a batch, without those of the same row, so that D is unbiased. Its
    mean is zero where the h of both are distributed alike, else above. The exact flow map is the
    minimum of both parts, up to what is left of the data at tau_max. An inexact one is led to the
    right distribution of its samples, which the base alone does not ask of it.

    Meant for the last steps of a training, from a model that has learned to jump, with a learning
    rate below that of the first ones. D itself does not say which noise belongs to which example:
    without the base any map from noise to data would do.

    In a network with classes the ends are made with the labels of the batch, and joint
    distributions of examples and classes are compared. The class is a further part of each point:
    two classes are as far apart as two examples are on average, and so is a class from a withheld
    one. So each class is led to its own examples, of which a batch needs no second one.

    Batch normalisation uses its running statistics in these jumps, as it does in ``sample``.

    Several processes take D over the pairs of their own rows, each of them. Its mean is the same
    and it varies more: the run is not that of one process up to rounding.

    Args:
        base: The objective that teaches the jumps. With calls=(1,) it may teach jumps to the data
            alone, as ``ConsistencyTraining`` does.
        weight: Weight of D. In the base of the integral objectives squares are summed over the
            elements of an example, and D is about as large as distances of examples.
        space: Where distances are taken, h.
            "data": the examples, as vectors.
            "whitened": multiplied by the inverse square root of the data's covariance.
            "random": random features, drawn by ``seed``: of images, convolutions at three sizes; of
                others, waves of three lengths.
            The last two are scaled so that two examples of the data are as far apart on average as
            in the first.
        calls: In how many jumps samples are made: (1,), (2,) or (1, 2), with the mean of both
            distances. Two jumps meet at a time that is drawn for each batch, uniform on the line.
        ridge: Of "whitened": what is added to the variances, as a share of the largest. Directions
            with less variance count less. A small one makes much of the directions of images that
            hardly vary, where a model errs first; the samples were then seen to shrink.
        seed: Of "random": seed of the features.

    Raises:
        ValueError: For a setting out of its range, or a base that teaches no such jumps.
    """

    base: Objective = IntegralIdentity()
    weight: float = 10.0
    space: str = "data"
    calls: tuple[int, ...] = (1,)
    ridge: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_base()
        check_number("weight", self.weight)
        check_choice("space", self.space, SPACES)
        check_number("ridge", self.ridge, least=1e-9, most=1)
        check_seed(self.seed)
        calls = tuple(self.calls) if isinstance(self.calls, (tuple, list)) else self.calls
        if calls not in ((1,), (2,), (1, 2)):
            raise ValueError(f"calls must be (1,), (2,) or (1, 2), got {self.calls!r:.60}")
        if 2 in calls and self.base.learns != "jump":
            raise ValueError(
                f"calls={calls} makes samples in two jumps, and {self.base.name} teaches jumps to the data "
                "alone: give calls=(1,)"
            )
        object.__setattr__(self, "calls", calls)  # the class is frozen
        object.__setattr__(self, "learns", self.base.learns)

    def _check_base(self) -> None:
        """Check that the base is an objective that teaches jumps by ``draw`` and ``loss``."""
        base = self.base
        if not isinstance(base, Objective):
            given = base.__name__ if isinstance(base, type) else type(base).__name__
            raise ValueError(
                f"base must be an objective such as IntegralIdentity(), got {given}: give an instance"
            )
        if isinstance(base, X0Regression) or base.learns not in ("jump", "jump_to_data"):
            raise ValueError(
                f"base must teach jumps, as IntegralIdentity and ConsistencyTraining do; {base.name} teaches "
                "none, so that the ends of its jumps are no samples (an objective of your own says "
                'learns = "jump")'
            )
        if isinstance(base, EnergyMatching) or type(base).__call__ is not Objective.__call__:
            why = "matches already" if isinstance(base, EnergyMatching) else "has its own __call__"
            raise ValueError(f"base must be an objective with draw and loss, and {base.name} {why}")

    def prepare(
        self, model: FlowMap, data: TensorData, *, seed: int = 0, device: torch.device | None = None
    ) -> None:
        """Start a run: prepare the base, and make the space.

        Raises:
            ValueError: If the base cannot train this model, its network takes an anchor, or the
                space cannot be made for these data.
        """
        if model.anchored:
            raise ValueError(
                "EnergyMatching makes samples without an anchor: give a network built with anchor=False"
            )
        self.base.prepare(model, data, seed=seed, device=device)
        space, factor, distance = feature_space(self.space, data, self.ridge, self.seed)
        space = space.to(device or model_device(model))
        # here, because a compiled loss cannot ask a path for it in one piece
        self.__dict__.update(
            _space=space, _factor=factor, _apart=distance, _tau_max=model.path.tau_max
        )

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw as the base; ends_noise (B, ...), and for two jumps ends_middle (B,), one time."""
        drawn = self.base.checked_draw(self.base.draw(model, batch, generator))
        x_0 = drawn.get("x_0")
        if x_0 is None:
            raise ValueError(
                f"draw of {self.base.name} must give x_0, the data that ends are matched to"
            )
        # the noise of the batch may depend on its examples: coupled, or paired with them
        noise = replace(batch, x_0=x_0, noise=None, pair=None).draw_noise(model, generator)
        drawn = {**drawn, "ends_noise": noise}
        if 2 in self.calls:
            middle = model.path.tau_max * uniform(1, generator=generator, like=x_0)
            drawn["ends_middle"] = middle.repeat(len(x_0))
        return drawn

    def loss(  # type: ignore[override]
        self,
        model: FlowMap,
        ends_noise: Tensor,
        ends_middle: Tensor | None = None,
        **drawn: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``base + weight D``, and what the base returns beside its loss."""
        # first: then dropout masks are those of the base's calls
        distance = self.distance(model, drawn["x_0"], ends_noise, ends_middle, drawn.get("labels"))
        loss, estimate = self.base.checked_loss(self.base.loss(model, **drawn))
        return loss + self.weight * distance, estimate

    def distance(
        self,
        model: FlowMap,
        x_0: Tensor,
        noise: Tensor,
        middle: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return D, the mean over ``calls``.

        Args:
            model: The model that jumps.
            x_0: Data (B, ...).
            noise: Noise z (B, ...), independent of the data.
            middle: Line times (B,) at which two jumps meet.
            labels: Classes (B,) of the data, with which the jumps are made.

        Returns:
            A scalar with gradient.

        Raises:
            ValueError: For fewer than two examples.
        """
        n = len(x_0)
        if n < 2:
            raise ValueError(
                f"EnergyMatching compares distributions: give each process at least two examples a step, not {n}"
            )
        if not model.classes:
            labels = None
        with torch.no_grad():
            real = self.points(x_0, labels, model.classes)
        zero = torch.zeros_like(noise.flatten(1)[:, 0])
        t = torch.full_like(zero, self.__dict__["_tau_max"])
        x_t = expand(t, noise) * noise
        total = torch.zeros((), dtype=x_0.dtype, device=x_0.device)
        # rows of a batch that normalises itself would not be independent
        with repeatable(model, hold_statistics=True):
            for calls in self.calls:
                x, start = x_t, t
                if calls == 2:
                    assert middle is not None
                    x, start = end_of_jump(model, x_t, t, middle, labels), middle
                y = end_of_jump(model, x, start, zero, labels).to(x_0.dtype)
                ours = self.points(y, labels, model.classes)
                total = total + paired_energy_distance(ours, real)
        return total / len(self.calls)

    def points(self, x: Tensor, labels: Tensor | None, classes: int) -> Tensor:
        """Return what is compared (B, d): features of x (B, ...), and beside them its classes."""
        # distances not in the type of autocast
        with torch.autocast(x.device.type, enabled=False):
            h = self.__dict__["_factor"] * self.__dict__["_space"](x)
            if labels is None:
                return h
            # two rows of this matrix are as far apart as two examples; the first is of the label -1
            corners = torch.eye(classes + 1, dtype=h.dtype, device=h.device)
            corners = corners * (self.__dict__["_apart"] / 2**0.5)
            return torch.cat([h, corners.index_select(0, labels + 1)], 1)
