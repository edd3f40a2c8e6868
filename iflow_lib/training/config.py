"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..utils import check_int


@dataclass(frozen=True)
class TrainConfig:
    """Settings of ``fit``. Raises ValueError for values out of range.

    steps: gradient steps; batch_size: examples a step; lr: peak learning rate (Adam); warmup: steps of linear rise,
    then half a cosine down to zero; ema: decay of the weight average, reached gradually; clip: largest gradient norm,
    None for any; seed: of initial data order, times and noise (the network's own start is the caller's); device: auto,
    cpu, cuda, mps; log_every: steps between rows of the history; progress: show a bar; label_dropout: share of examples
    whose class is withheld, for guidance (only with labels).
    channels_last: memory layout for images (faster convolutions); compile: True: ``torch.compile`` the loss, with its
    derivatives, and the model that is returned; "graphs": both as CUDA graphs; False: neither; "auto": the loss, on CUDA,
    for 2,000 steps or more, because it takes a while first (docs/scaling.md);
    precision: "float32", or "bfloat16" for products and convolutions (weights, losses and averages stay float32);
    threads: of a CPU, 0 for as many as the network keeps busy.
    out_dir: folder of the run, "" for none: checkpoints go there every ``checkpoint_every`` steps (0: never) and every
    ``checkpoint_minutes``, at the end, and when the run is interrupted; the newest ``keep`` stay. At the end there are
    also history.csv and manifest.json.
    """

    steps: int
    batch_size: int = 512
    lr: float = 1e-3
    warmup: int = 100
    ema: float = 0.999
    clip: float | None = 1.0
    seed: int = 0
    device: str = "auto"
    channels_last: bool = True
    compile: bool | str = "auto"
    precision: str = "float32"
    threads: int = 0
    log_every: int = 50
    progress: bool = True
    label_dropout: float = 0.1
    out_dir: str = ""
    checkpoint_every: int = 0
    checkpoint_minutes: float = 10.0
    keep: int = 2

    def __post_init__(self):
        object.__setattr__(self, "out_dir", str(self.out_dir))
        if (
            isinstance(self.checkpoint_every, bool)
            or self.checkpoint_every != int(self.checkpoint_every)
            or self.checkpoint_every < 0
            or not self.checkpoint_minutes > 0
        ):
            raise ValueError(
                f"need checkpoint_every a whole number of at least 0 and checkpoint_minutes > 0, got "
                f"{self.checkpoint_every!r} and {self.checkpoint_minutes!r}"
            )
        if self.compile not in ("auto", "graphs", True, False) or self.precision not in (
            "float32",
            "bfloat16",
        ):
            raise ValueError(
                f'need compile "auto", True, False or "graphs" and precision "float32" or "bfloat16", got '
                f"{self.compile!r} and {self.precision!r}"
            )
        if isinstance(self.threads, bool) or self.threads != int(self.threads) or self.threads < 0:
            raise ValueError(f"threads must be a whole number, 0 to choose; got {self.threads!r}")
        for name in ("steps", "batch_size", "log_every", "keep"):
            object.__setattr__(
                self, name, check_int(name, getattr(self, name))
            )  # numpy's numbers are not JSON
        if (
            not 0 < self.lr < math.inf
            or self.clip is not None
            and not self.clip > 0
            or self.warmup < 0
        ):
            raise ValueError(
                f"need lr > 0, clip > 0 or None, warmup >= 0; got {self.lr!r}, {self.clip!r}, {self.warmup!r}"
            )
        for name in ("ema", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")

    def compiles(self, device: torch.device) -> bool | str:
        """Whether to compile on this device, "graphs" included."""
        return (
            device.type == "cuda" and self.steps >= 2000 if self.compile == "auto" else self.compile
        )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear rise over ``warmup`` steps, then half a cosine down to zero at ``steps``."""
    warmup = min(config.warmup, config.steps // 10)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return (
        config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))
    )


#: Settings that may differ between a run and its continuation: they do not change what is learned.
FREE_SETTINGS = ("progress", "out_dir", "threads", "checkpoint_every", "checkpoint_minutes", "keep")
