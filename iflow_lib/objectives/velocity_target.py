"""The velocity target: that of one pair of data and noise, or what a whole batch says of it.

A velocity model learns ``E[z - x_0 | x_t]``. The pair that made x_t gives one draw of it, ``z - x_0``,
and most of the variance of the loss is that of this draw. But any example of the batch may have
made x_t, and Bayes' rule says how likely each is: this is the stable target field (Xu, Tong,
Jaakkola 2023, arXiv 2302.00670). With the density p of the noise,

    x_t = (1 - t) x_0 + t z,
    w_j ~ p((x_t - (1 - t) x_j) / t),     sum_j w_j = 1,
    v = (x_t - sum_j w_j x_j) / t.

The pair's own example is among them. So v is the mean of ``z - x_0`` given x_t and the batch, but not
which of its examples made x_t (Rao and Blackwell). Given x_t alone its mean is that of ``z - x_0``,
at any size of the batch: the minimiser is the same. Its variance is never more, and falls as 1 / B
where many examples may have made x_t. That holds where each example's noise is drawn from p,
whatever the example: neither where noise is paired with data, nor where data bring their own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..model import FlowMap
from ..paths import Path
from .base import Batch, Drawn, Objective, check_choice, in_layout_of

VELOCITIES = ("auto", "batch", "pair")
#: "auto" is "pair" for examples with more numbers than this. In so many dimensions the examples lie
#: so far apart that nearly all weight is on the own one, at all but the latest times.
MOST_ELEMENTS = 256
#: A larger batch is cut into equal parts of at most so many rows, each of which is its own batch: every row is
#: compared with every other, which would take time and memory as B^2. The mean stays, as at any size.
MOST_ROWS = 256
#: Times below it count as this one, so that nothing is divided by zero.
EARLIEST = 1e-30


@dataclass(frozen=True)
class VelocityTarget(Objective):
    """An objective that regresses on a velocity: which one that is.

    Its ``draw`` ends with ``with_velocity``, and its ``loss`` takes ``velocity=None``, for which
    None means ``z - x_0``.

    Args:
        velocity: "pair" for ``z - x_0`` of each pair; "batch" for the mean over all examples of the
            batch that may have made x_t (``batch_velocity``; arXiv 2302.00670), which has the same
            minimiser and less variance; "auto" for "batch" where that is allowed and examples have at
            most 256 numbers. It is not allowed with ``TrainConfig(coupling="ot")``, with data that
            bring their own noise (``reflow``), and on a path whose noise has no known density.
    """

    velocity: str = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        check_choice("velocity", self.velocity, VELOCITIES)
        super().__post_init__()

    def with_velocity(
        self, model: FlowMap, batch: Batch, drawn: Drawn, t: Tensor | None = None
    ) -> Drawn:
        """Add "velocity" (B, ...) to what was drawn, if it is that of the batch.

        Args:
            model: The model in training.
            batch: The examples.
            drawn: What ``draw`` has drawn: x_0 and z.
            t: Line times (B,) of x_t. None for the drawn "t".

        Raises:
            ValueError: If ``velocity="batch"`` is not allowed here.
        """
        if not self.takes_batch(model.path, batch):
            return drawn
        x_0, z, t = drawn["x_0"], drawn["z"], drawn["t"] if t is None else t
        assert x_0 is not None and z is not None and t is not None
        return {**drawn, "velocity": batch_velocity(model.path, x_0, z, t, batch.labels)}

    def takes_batch(self, path: Path, batch: Batch) -> bool:
        """Return whether the velocity of this batch is that of all its examples.

        Raises:
            ValueError: If that was asked for and is not allowed.
        """
        given, paired = batch.noise is not None, batch.pair is not None
        if self.velocity == "auto":
            few = batch.x_0.shape[1:].numel() <= MOST_ELEMENTS
            return few and self.obstacle(path, given, paired) is None
        self.check_noise(path, given, paired)
        return self.velocity == "batch"

    def check_noise(self, path: Path, given: bool, paired: bool) -> None:
        """Check that ``velocity="batch"`` is allowed, if it was asked for."""
        why = self.obstacle(path, given, paired) if self.velocity == "batch" else None
        if why is not None:
            raise ValueError(f'velocity="batch" {why}, or take velocity="pair"')

    def obstacle(self, path: Path, given: bool, paired: bool) -> str | None:
        """Return why the velocity cannot be that of the batch and what to do, or None if it can.

        Args:
            path: The path, which gives the density of the noise.
            given: Whether the data bring their own noise.
            paired: Whether noise is paired with examples.
        """
        if given:
            return (
                "needs noise that is drawn independently of the data, and these bring their own, as those of "
                "reflow do: give the examples alone, data.x"
            )
        if paired:
            return (
                'needs noise that is drawn independently of the data, and coupling="ot" deals it out by them: '
                'leave coupling="independent"'
            )
        if not path.has_radial_density:
            return (
                f"needs the density of the noise, and {path.name} overrides noise alone: give it "
                "radial_log_density(square, dim) too"
            )
        if not _takes_velocity(type(self).loss):
            return (
                f"is handed to loss, and that of {self.name} takes no velocity: add velocity=None"
            )
        return None


@lru_cache
def _takes_velocity(loss: Callable[..., Any]) -> bool:
    """Return whether a loss takes the argument: one that was written over may not."""
    known = inspect.signature(loss).parameters
    return "velocity" in known or any(p.kind is p.VAR_KEYWORD for p in known.values())


def working_type(device: torch.device) -> torch.dtype:
    """Return the type in which examples are compared on a device.

    At an early t, differences are divided by t^2: in float32, what is left of two squares that
    cancel would outweigh the truth from t = 0.001 on. float64 is also what autocast and TF32 leave
    alone. mps has no float64.
    """
    return torch.float32 if device.type == "mps" else torch.float64


@torch.no_grad()
def batch_velocity(
    path: Path, x_0: Tensor, z: Tensor, t: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Estimate ``E[z - x_0 | x_t]`` from all examples of a batch.

    From arXiv 2302.00670. It is ``(x_t - m) / t`` with m the mean of the examples under the weights
    ``w_j ~ p((x_t - (1 - t) x_j) / t)``. It is computed as ``z - x_0 + sum_j w_j (x_0 - x_j) / t``,
    and with ``r = (1 - t) / t`` from

        |(x_t - (1 - t) x_j) / t|^2 = |z|^2 + r (2 z . (x_0 - x_j) + r |x_0 - x_j|^2),

    which is exact for the own example and for any that equals it. So it is finite at all t, and ``z
    - x_0`` itself at t = 0. Examples whose distance is within rounding count as equal. No memory is
    of the size of pairs of rows times elements, and batches of more than 256 rows are cut into
    equal parts.

    Args:
        path: The path; its ``radial_log_density`` is that of z.
        x_0: Data (B, ...).
        z: Noise (B, ...), drawn independently.
        t: Line times (B,) in [0, 1].
        labels: Classes (B,), or None. For an example with a class, those with the same class count;
            for one with -1, an unknown class, all do.

    Returns:
        The velocities at x_t, shape and type of x_0, without gradient.
    """
    if len(x_0) > MOST_ROWS:
        known = (x_0, z, t) if labels is None else (x_0, z, t, labels)
        parts = zip(*(a.tensor_split(-(-len(x_0) // MOST_ROWS)) for a in known))
        return in_layout_of(x_0, torch.cat([batch_velocity(path, *part) for part in parts]))
    kind = working_type(x_0.device)
    x, noise = x_0.flatten(1).to(kind), z.flatten(1).to(kind)
    x = x - x.mean(0)  # far from 0, squares would cancel
    times = t.to(kind)[:, None].clamp(min=EARLIEST)
    ratio = (1 - times) / times
    length, own = x.square().sum(1), noise.square().sum(1, keepdim=True)
    # (B, B) is changed in place or given back: to get new memory takes longer than to compute
    square = torch.addmm(length, x, x.T, alpha=-2).add_(length[:, None])  # |x_i - x_j|^2
    # what is near has about the same length
    same = square <= 64 * torch.finfo(kind).eps * length[:, None]
    same.fill_diagonal_(True)
    along = torch.addmm((noise * x).sum(1, keepdim=True), noise, x.T, alpha=-1)  # z_i . (x_i - x_j)
    square.mul_(ratio).add_(along, alpha=2).mul_(ratio).masked_fill_(same, 0.0)
    del along  # its memory is taken again
    square.add_(own).clamp_(min=0)  # |z_i + r (x_i - x_j)|^2
    log_weight = path.radial_log_density(square, x.shape[1])
    del square
    if labels is not None:
        others = (labels[:, None] >= 0) & (labels[:, None] != labels)
        log_weight = log_weight.masked_fill(others, -math.inf)
    weight = torch.softmax(log_weight, 1).masked_fill_(same, 0.0)
    shift = (x * weight.sum(1, keepdim=True) - weight @ x) / times
    return in_layout_of(x_0, z - x_0 + shift.to(x_0.dtype).reshape(x_0.shape))
