"""The training of a ``SeriesFlow``: which network, for how long, with which objectives."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..data import TensorData
from ..model import FlowMap
from ..networks import Transformer, UNet1d
from ..objectives import EnergyMatching, IntegralIdentity, Objective
from ..paths import RectifiedFlow
from ..training import Callback, TrainConfig, fit
from .given import GivenParts, WithGiven, held_out_frames

#: Networks by the name that ``SeriesFlow`` takes.
SERIES_NETWORKS = ("unet", "transformer")
#: What is given in training: the past, whole channels, single values.
PATTERNS = ("past", "columns", "any")


class Encoded(NamedTuple):
    """Windows as a network sees them.

    Attributes:
        rows: The windows (B, T, C).
        told: What the network is always told (B, T, K), such as a calendar, or None.
        labels: Classes (B,), or None.
    """

    rows: Tensor
    told: Tensor | None
    labels: Tensor | None


@dataclass(frozen=True)
class Learning:
    """How a model of windows is trained; the fields are those of ``SeriesFlow``."""

    network: str
    width: int | None
    dropout: float
    conditions: bool
    steps: int | None
    batch_size: int
    seed: int
    coupling: str
    polish: float

    def train(
        self,
        windows: Encoded,
        classes: int,
        progress: bool,
        device: Any,
        callbacks: Sequence[Callback],
        encode: Callable[[Any], Encoded],
    ) -> FlowMap:
        """Train a network on encoded windows.

        Args:
            windows: The windows.
            classes: Number of classes, 0 for none.
            progress: Whether a bar is shown.
            device: Where training runs.
            callbacks: As in ``TrainConfig``.
            encode: Makes encoded windows of the data of a ``Validation``.

        Returns:
            The model with averaged weights, on the CPU.
        """
        rows, told, labels = windows
        owners = list(range(rows.shape[2]))
        if told is not None:
            owners += [len(owners)] * told.shape[2]
        flagged = self.conditions or told is not None
        x = _examples(windows, 1 + max(owners) if flagged else 0)
        steps = self.steps or default_steps(len(rows))
        last = round(self.polish * steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = self._net(rows.shape[2], x.shape[1], x.shape[2], classes)
        rate = float(getattr(net, "lr", 1e-3))
        if flagged:
            net = WithGiven(net, owners)
        always = (rows.shape[2],) if told is not None else ()

        def around(base: Objective) -> Objective:
            free = 0.5 if self.conditions else 1.0
            return GivenParts(base, free, PATTERNS, always) if flagged else base

        settings: dict[str, Any] = dict(
            batch_size=self.batch_size,
            seed=self.seed,
            coupling=self.coupling,
            progress=progress,
            device=device,
            ema=0.999 if steps >= 2000 else 0.99,
            callbacks=callbacks,
        )

        def held_out(data: Any) -> TensorData:
            found = encode(data)
            examples = _examples(found, 1 + max(owners) if flagged else 0)
            for flag in always:
                examples[:, :, len(owners) + flag] = 1
            return TensorData(examples, found.labels, "held-out windows")

        data, model = TensorData(x, labels, "windows"), FlowMap(net, RectifiedFlow())
        base: Objective = IntegralIdentity()
        with warnings.catch_warnings(), held_out_frames(callbacks, held_out):
            # channels are scaled, and a calendar that hardly moves is given, not learned
            warnings.filterwarnings("ignore", message=".*far from the noise's")
            if steps > last:
                config = TrainConfig(steps - last, lr=rate, **settings)
                model = fit(model, around(base), data, config).model
            if last:
                model = copy.deepcopy(model).requires_grad_(True)
                config = TrainConfig(last, lr=0.2 * rate, **settings)
                model = fit(model, around(EnergyMatching(base)), data, config).model
        return model.cpu().eval()

    def _net(self, channels: int, length: int, inputs: int, classes: int) -> nn.Module:
        if self.network == "transformer":
            return Transformer(length, inputs, width=self.width or 64, classes=classes)
        width = self.width or (32 if channels <= 8 else 64)
        return UNet1d(length, inputs, width, classes=classes, dropout=self.dropout)


def _examples(windows: Encoded, flags: int) -> Tensor:
    """Values, what is told, and flags of which none is set, along the last axis."""
    parts = [windows.rows] if windows.told is None else [windows.rows, windows.told]
    return torch.cat([*parts, torch.zeros(*windows.rows.shape[:2], flags)], dim=2)


def default_steps(rows: int) -> int:
    """Return the training steps for a number of windows: 3,000, and more for many."""
    return int(np.clip(3000 * (rows / 1000) ** 0.25, 3000, 12000)) // 100 * 100
