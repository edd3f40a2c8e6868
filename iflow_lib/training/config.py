"""Settings of a training run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import nn

from ..utils import check_int, check_seed
from .callbacks import Callback, checked_callbacks

#: Settings that may differ between a run and its continuation, because they do not change what is
#: learned: whether a bar is shown, where and how often checkpoints are written and how many stay, and
#: the CPU threads (another number rounds differently). With any other change, a checkpoint is that of
#: another run, and ``fit`` refuses it.
FREE_SETTINGS = ("progress", "out_dir", "threads", "checkpoint_every", "checkpoint_minutes", "keep")
#: The learning rate for a network that names none: safe for a network that is not known.
DEFAULT_LR = 1e-3


@dataclass(frozen=True)
class TrainConfig:
    """Settings of ``fit``. Numbers of numpy and devices of torch are taken wherever one fits.

    Args:
        steps: Gradient steps.
        batch_size: Examples a step. They are drawn with replacement, so it may exceed the data.
        lr: Peak learning rate of Adam. None takes ``lr`` of the network, which this package's have:
            smaller ones take larger steps. 1e-3 for a network without.
        warmup: Steps over which the rate rises to ``lr``; then half a cosine falls to zero.
        ema: Decay of the weight average, in [0, 1), which is reached gradually.
        clip: Largest norm of the gradient, or None for any. The integral objectives and consistency
            training sum over the elements of an example, ``FlowMatching``, ``Distillation`` and
            ``X0Regression`` average over them: so the same number clips more of the former's steps.
        seed: Seed for data order, times, noise and dropout. The network's first weights are up to
            the caller.
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or a ``torch.device``.
        channels_last: Memory layout of images for faster convolutions.
        compile: True: ``torch.compile`` the loss with its derivatives, and the model that is
            returned. "graphs": the same, and on CUDA the whole step, from the loss to the average,
            is recorded after three steps as one CUDA graph, which every other step replays. An
            objective that is no frozen dataclass (``Objective.captures``), and a run of several
            processes, have a graph of the loss alone. On a CPU it is as True. False: neither.
            "auto": the loss, on CUDA, for 2,000 steps or more, because compiling takes a while
            first (docs/scaling.md).
        precision: "float32"; "tf32" for products and convolutions in TF32, on CUDA; or "bfloat16"
            for both. Weights, losses and averages are float32 always. With "float32" and "bfloat16"
            nothing on CUDA is in TF32, in which PyTorch computes convolutions of float32 by
            default. What the process has set is back after the run.
        threads: CPU threads, or 0 for as many as the network keeps busy.
        log_every: Steps between two rows of the history.
        progress: Show a progress bar on the terminal or in the notebook.
        label_dropout: Share of examples whose class is withheld, in [0, 1), for guidance.
        coupling: "independent": each example gets noise of its own. "ot": the noise of a batch is
            dealt to its examples so that the sum of their squared distances is least, within a
            class where the network has classes: an example that is alone in its class keeps its
            own. It is the same noise in another order, so the laws of data and noise stay;
            trajectories come out straighter (arXiv 2302.00482, 2304.14772). The assignment is
            exact, and solved on the CPU: next to nothing for batches of dozens, more than the rest
            of the step for hundreds and a small network, and it grows with about the cube of the
            batch. On CUDA it is an approximation that waits for nothing, ``swapped_order`` in
            ``iflow_lib.training.coupling``, which has not run on a GPU yet. Where a path ends
            before pure noise (``tau_max`` below 1), its last points spread a little wider than the
            noise that ``sample`` starts from.
        out_dir: Folder of the run, or "" for none. It holds the checkpoints, at the end also
            history.csv and manifest.json, and during training progress.txt, the text of the bar.
        checkpoint_every: Steps between two checkpoints, or 0 for none by steps. There is also one
            every ``checkpoint_minutes``, one at the end, and one when the run is interrupted.
        checkpoint_minutes: Minutes between two checkpoints.
        keep: Newest checkpoints that stay.
        callbacks: What is done beside the training, such as ``[Validation(held_out),
            TensorBoard()]``; see ``Callback``. They are no part of what a manifest and a checkpoint
            say of the settings: the manifest lists what came out of each, and a run may be
            continued with others.

    Raises:
        ValueError: If a value is of the wrong kind or out of range.
    """

    steps: int
    batch_size: int = 512
    lr: float | None = None
    warmup: int = 100
    ema: float = 0.999
    clip: float | None = 1.0
    seed: int = 0
    device: str | torch.device = "auto"
    channels_last: bool = True
    compile: bool | str = "auto"
    precision: str = "float32"
    threads: int = 0
    log_every: int = 50
    progress: bool = True
    label_dropout: float = 0.1
    coupling: str = "independent"
    out_dir: str | os.PathLike[str] = ""
    checkpoint_every: int = 0
    checkpoint_minutes: float = 10.0
    keep: int = 2
    callbacks: Sequence[Callback] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check every value, and turn it into one that JSON can hold."""
        for name in ("steps", "batch_size", "log_every", "keep"):
            self._set(name, check_int(name, getattr(self, name)))
        for name in ("warmup", "threads", "checkpoint_every"):
            self._set(name, check_int(name, getattr(self, name), minimum=0))
        self._set("seed", check_seed(self.seed))
        if self.lr is not None:
            self._set_number("lr", "a number above 0, or None", lambda v: 0 < v < math.inf)
        self._set_number("checkpoint_minutes", "a number above 0", lambda v: 0 < v < math.inf)
        for name in ("ema", "label_dropout"):
            self._set_number(name, "in [0, 1)", lambda v: 0 <= v < 1)
        if self.clip is not None:
            self._set_number("clip", "a number above 0, or None", lambda v: v > 0)
        for name in ("channels_last", "progress"):
            self._set_choice(name, True, False)
        self._set_choice("compile", "auto", "graphs", True, False)
        self._set_choice("precision", "float32", "tf32", "bfloat16")
        self._set_choice("coupling", "independent", "ot")
        if self.coupling == "ot" and self.batch_size == 1:
            raise ValueError(
                'coupling="ot" pairs noise and examples within a batch, and batch_size 1 leaves no choice: '
                'raise it, or leave coupling="independent"'
            )
        if not isinstance(self.device, (str, torch.device)):
            raise ValueError(
                f'device must be a name such as "cuda:1" or a torch.device, got {self.device!r}'
            )
        self._set("device", str(self.device))
        if not isinstance(self.out_dir, (str, os.PathLike)):
            raise ValueError(f'out_dir must be a folder, or "" for none, got {self.out_dir!r}')
        self._set("out_dir", os.path.expanduser(os.fspath(self.out_dir)))
        self._set("callbacks", checked_callbacks(self.callbacks))

    def values(self) -> dict[str, Any]:
        """Return all settings but the callbacks, as JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "callbacks"}

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the class is frozen

    def _set_number(self, name: str, expected: str, allowed: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        number = value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value
        if isinstance(number, bool) or not isinstance(number, Real) or not allowed(float(number)):
            raise ValueError(f"{name} must be {expected}, got {value!r}")
        self._set(name, float(number))

    def _set_choice(self, name: str, *choices: bool | str) -> None:
        value = getattr(self, name)
        value = bool(value) if isinstance(value, np.bool_) else value
        if not isinstance(value, (bool, str)) or value not in choices:
            raise ValueError(
                f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
            )
        self._set(name, value)

    def compiles(self, device: torch.device) -> bool | str:
        """Return whether to compile on this device: True, False or "graphs"."""
        return (
            device.type == "cuda" and self.steps >= 2000 if self.compile == "auto" else self.compile
        )


def with_rate(config: TrainConfig, net: nn.Module) -> TrainConfig:
    """Return the settings with a learning rate: that of the network, if they leave it open.

    Args:
        config: Settings of the run.
        net: The network, whose ``lr`` is a number if it has one.

    Raises:
        ValueError: If the network's ``lr`` is something else.
    """
    if config.lr is not None:
        return config
    own = getattr(net, "lr", None)
    try:
        return replace(config, lr=DEFAULT_LR if own is None else own)
    except ValueError:
        raise ValueError(
            f"lr of the network {type(net).__name__} must be a number above 0, the learning rate, got "
            f"{f'{own!r}'.splitlines()[0]:.60}: give TrainConfig(lr=...), which comes first"
        ) from None


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step: a linear rise, then half a cosine to zero.

    Args:
        config: Settings of the run, with a rate. A rise longer than a tenth of the run is shortened
            to that.
        step: Number of the step, from 0.
    """
    assert config.lr is not None
    warmup = min(config.warmup, config.steps // 10)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return (
        config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))
    )
