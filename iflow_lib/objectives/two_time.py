"""What the objectives that learn jumps between two times have in common."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model import FlowMap
from .base import Batch, Drawn, Objective, check_number, on_line, uniform
from .network_state import compared_rows

#: What "auto" stands for: for vectors and sequences, and for images (docs/protocol.md).
BY_SHAPE = {
    "equal_share": (0.5, 0.75),
    "start_share": (0.25, 0.1),
    "end_share": (0.4, 0.1),
    "time_density": ((-0.5, 1.2), (0.0, 1.0)),
    "power": (0.0, 0.5),
}


@dataclass(frozen=True)
class TwoTimeObjective(Objective):
    """Learn u(x_t, t, s) at pairs of times ``s <= t``: what all objectives that do share.

    A setting that is "auto" depends on whether examples are images (C, H, W): see ``BY_SHAPE``. The
    manifest of a run has its value.

    Args:
        equal_share: Share of the batch with s = t. It is plain velocity regression, which the rest
            builds on.
        start_share: Share of the other pairs with t at the start of sampling.
        end_share: Share of the other pairs with s = 0, at the data. Both ends together are the
            corner that one-step generation uses, and which a continuous density never hits.
        time_density: Mean and standard deviation of ``logit(tau)``, from which both times are
            drawn, or "uniform". None takes the path's own. For vectors "auto" is near MeanFlow's,
            which needs the pairs at both ends: without them it seldom comes near the one jump.
        power: Exponent p of the weight ``1 / (|e|^2 + 1e-3)^p`` of each example, which has no
            gradient (MeanFlow, arXiv 2505.13447, eq. 22). 0 is the plain squared error. A larger
            power tames outliers and biases the mean that is learned. Where the target of a pair
            holds no data (``IntegralAdditivity``, ``TerminalVelocity``), ``|u - v|^2`` stands for
            ``|e|^2`` in the weight, v being the velocity target.
        detail: Weight in ``|e|^2`` of the squared differences between neighbouring pixels of the
            error e, for images. Does not change the minimiser; favours fine detail when capacity is
            limited.
    """

    equal_share: float | str = "auto"
    start_share: float | str = "auto"
    end_share: float | str = "auto"
    time_density: tuple[float, float] | str | None = "auto"
    power: float | str = "auto"
    detail: float = 0.0

    learns = "jump"

    def __post_init__(self) -> None:
        for name, most in (
            ("equal_share", 1),
            ("start_share", 1),
            ("end_share", 1),
            ("power", math.inf),
        ):
            if getattr(self, name) != "auto":
                check_number(name, getattr(self, name), most=most)
        check_number("detail", self.detail)

    def suited(self, shape: Sequence[int]) -> TwoTimeObjective:
        """Return this objective with the values of all that is "auto".

        Args:
            shape: Of an example, such as ``model.data_shape``.
        """
        own = copy.copy(self)  # replace would ask a subclass for a constructor with these settings
        own.__dict__.update({name: self.value(name, shape) for name in BY_SHAPE})
        return own

    def value(self, name: str, shape: Sequence[int]) -> Any:
        """Return a setting, for examples of a shape where it is "auto"."""
        own = getattr(self, name)
        return BY_SHAPE[name][len(shape) == 3] if own == "auto" else own

    def pairs(self, n: int, shape: Sequence[int]) -> int:
        """Return how many of n rows have s < t: all but the ``equal_share``. They come first."""
        return n - round(self.value("equal_share", shape) * n)

    def times(
        self,
        model: FlowMap,
        n: int,
        generator: torch.Generator | None,
        device: torch.device | str,
    ) -> tuple[Tensor, Tensor]:
        """Draw pairs of line times ``s <= t``.

        Returns:
            t and s, each (n,). All but the first ``pairs(n)`` have s = t.
        """
        path, shape = model.path, model.data_shape
        unequal, density = self.pairs(n, shape), self.value("time_density", shape)
        draws = path.tau(
            path.sample_times(2 * n, density=density, generator=generator, device=device)
        )
        one, other = draws.reshape(2, n)
        t, s = torch.maximum(one, other), torch.minimum(one, other)
        t[unequal:] = s[unequal:] = one[unequal:]
        chance = uniform(2, unequal, generator=generator, like=t)
        t[:unequal].masked_fill_(chance[0] < self.value("start_share", shape), path.tau_max)
        s[:unequal].masked_fill_(chance[1] < self.value("end_share", shape), 0.0)
        return t, s

    def draw(self, model: FlowMap, batch: Batch, generator: torch.Generator | None) -> Drawn:
        """Draw x_0, z (B, ...); t (B,); s (k,): the others have s = t; labels (B,) or None."""
        n = len(batch.x_0)
        t, s = self.times(model, n, generator, batch.x_0.device)
        return {
            "x_0": batch.x_0,
            "z": batch.draw_noise(model, generator),
            "t": t,
            "s": s[: self.pairs(n, model.data_shape)],
            "labels": batch.labels,
        }

    def require_equal_rows(self, model: FlowMap, n: int) -> None:
        """Check that a batch teaches the velocity, which a loss without v of its own needs.

        Args:
            model: The model in training.
            n: Rows of the batch.

        Raises:
            ValueError: If none of them has s = t.
        """
        if self.pairs(n, model.data_shape) == n:
            share = self.value("equal_share", model.data_shape)
            raise ValueError(
                f"{self.name} learns nothing without rows with s = t, which say what the velocity is: "
                f"of {n} rows equal_share={share:g} makes none, so raise it, or batch_size"
            )

    def on_pairs(
        self, model: FlowMap, x_0: Tensor, z: Tensor, t: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor, int, int]:
        """Return what each loss begins with.

        Args:
            model: The model in training.
            x_0: Data (B, ...).
            z: Noise (B, ...).
            t: Line times (B,).
            s: Line times (k,) of the first k examples; the others have s = t.

        Returns:
            x_t (B, ...); s (B,); k; and how many rows a call needs that is made for the first k.
        """
        k, n = len(s), len(t)
        rows = compared_rows(model, k, n) if k else 0
        return on_line(x_0, z, t), torch.cat([s, t[k:]]), k, rows

    def weighted(
        self, error: Tensor, extra: Tensor | None = None, judged_by: Tensor | None = None
    ) -> Tensor:
        """Return the mean over examples of ``|e|^2``, weighted by ``detail`` and ``power``.

        Args:
            error: The error e (B, ...).
            extra: Added to the squares of the first k examples, (k,).
            judged_by: What stands for e in the weight of ``power``, (B, ...). Needed where the
                target of a pair holds no data, so that e falls to zero at pairs and not where s =
                t: by its own e, a pair would weigh a hundred times as much as the regression that
                tells pairs what to agree on, and the model would collapse (docs/findings.md).

        Raises:
            ValueError: If ``detail`` is used and the examples are not images (B, C, H, W).
        """
        square = error.square().flatten(1).sum(1)
        if self.detail:
            if error.ndim != 4:
                raise ValueError(
                    "detail is for images (B, C, H, W); these examples have "
                    f"{error.ndim - 1} dimensions: set detail=0"
                )
            for dim in (2, 3):
                square = square + self.detail * error.diff(dim=dim).square().flatten(1).sum(1)
        if extra is not None:
            square = torch.cat([square[: len(extra)] + extra, square[len(extra) :]])
        size = square if judged_by is None else judged_by.square().flatten(1).sum(1)
        power = self.value("power", error.shape[1:])
        return (square / (size.detach() + 1e-3) ** power).mean()
