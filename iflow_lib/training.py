"""``fit``: one training loop for every objective."""
from __future__ import annotations

import copy
import math
import platform
import time
from dataclasses import asdict, dataclass, field

import torch

from . import __version__
from .flow_map import FlowMap
from .objectives import Batch, Objective
from .samplers import pick_device, whole


@dataclass(frozen=True)
class TrainConfig:
    """Settings of ``fit``. Raises ValueError for values out of range.

    steps: gradient steps; batch_size: examples a step; lr: peak learning rate (Adam); warmup: steps of linear rise,
    then half a cosine down to zero; ema: decay of the weight average, reached gradually; clip: largest gradient norm;
    seed: of initial data order, times and noise (the network's own start is the caller's); device: auto, cpu, cuda,
    mps; channels_last: memory layout for images (faster convolutions); log_every: steps between rows of the history;
    progress: show a bar; label_dropout: share of examples whose class is withheld, for guidance (only with labels).
    """

    steps: int
    batch_size: int = 512
    lr: float = 1e-3
    warmup: int = 100
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    device: str = "auto"
    channels_last: bool = True
    log_every: int = 50
    progress: bool = True
    label_dropout: float = 0.1

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))  # numpy's numbers are not JSON
        if not 0 < self.lr < math.inf or not self.clip > 0 or self.warmup < 0:
            raise ValueError(f"need lr > 0, clip > 0, warmup >= 0; got {self.lr!r}, {self.clip!r}, {self.warmup!r}")
        for name in ("ema", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")


@dataclass
class TrainRun:
    """What ``fit`` returns. ``model``: a ``FlowMap`` with the averaged weights, on the training device;
    ``history``: pandas table with columns step, loss, seconds; ``manifest``: settings, versions, hardware, time."""

    model: FlowMap
    history: object
    manifest: dict = field(repr=False)


def hardware(device: torch.device) -> str:
    """One line on what runs the arithmetic."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear rise over ``warmup`` steps, then half a cosine down to zero at ``steps``."""
    warmup = min(config.warmup, config.steps // 10)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def fit(model: FlowMap, objective: Objective, data, config: TrainConfig) -> TrainRun:
    """Train ``model`` with ``objective`` and return a run whose model carries the averaged (EMA) weights.

    data: a float tensor (B, ...), a data set of ``iflow_lib.data`` or a torch Dataset; it is kept on the device and
    batches are drawn by index. Its labels are used by a network with classes; its noise, if it has any, is the z of each
    example (``samplers.reflow``). The given model is trained in place and left with its last, unaveraged weights.
    Interrupting (Ctrl-C) ends training early and returns what was learned so far, with ``manifest["interrupted"]``.

    Raises ValueError for data of the wrong shape or type or with NaN, for an unknown device, and FloatingPointError
    if the loss stops being finite.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    from .data import TensorData, as_tensor

    device = pick_device(config.device)
    x = as_tensor(data)
    if tuple(x.shape[1:]) != model.data_shape:
        raise ValueError(f"the network takes examples of shape {model.data_shape}, the data have {tuple(x.shape[1:])}")
    labels, noise = (getattr(data, name, None) for name in ("labels", "noise"))
    if model.classes and (labels is None or not 0 <= int(labels.min()) <= int(labels.max()) < model.classes):
        raise ValueError(f"a network with {model.classes} classes needs data with labels 0 to {model.classes - 1}")
    known_data = data if isinstance(data, TensorData) else TensorData(x)
    objective.prepare(model, known_data, seed=config.seed)
    images = config.channels_last and x.ndim == 4
    x = x.to(device)
    labels = labels.to(device) if model.classes else None
    noise = noise.to(device, x.dtype) if noise is not None else None
    model.to(device, memory_format=torch.channels_last if images else torch.preserve_format).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    weights, averaged = list(model.parameters()), list(average.parameters())
    optimizer = torch.optim.Adam(weights, lr=config.lr, betas=(0.9, 0.99))
    source = device if device.type == "cuda" else torch.device("cpu")  # mps cannot draw all the noise laws
    generator = torch.Generator(source).manual_seed(config.seed)

    rows, losses, start, step, interrupted = [], [], time.perf_counter(), 0, False
    bar = tqdm(total=config.steps, desc=objective.name, disable=not config.progress, mininterval=0.5)
    try:
        for step in range(1, config.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step - 1)
            index = torch.randint(len(x), (config.batch_size,), generator=generator, device=source)
            place = index.to(device)
            x_0, known = x[place], None
            if images:
                x_0 = x_0.contiguous(memory_format=torch.channels_last)
            if labels is not None:
                told = torch.rand(len(place), generator=generator, device=source).to(device) >= config.label_dropout
                known = torch.where(told, labels[place], -1)
            loss = objective(model, Batch(
                x_0, labels=known, index=index, noise=None if noise is None else noise[place], step=step - 1,
                steps=config.steps, epoch=(step - 1) * config.batch_size // len(x)), generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, config.clip)
            optimizer.step()
            # a short run must not average over its random start: (1 + step) / (10 + step) rises towards the decay
            decay = min(config.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(averaged, [w.detach() for w in weights], 1 - decay)
            losses.append(loss.detach())
            log = step % config.log_every == 0 or step == config.steps
            if log or device.type == "cpu":  # elsewhere, asking for the value at every step would make the device wait
                mean = float(torch.stack(losses).mean() if log else losses[-1])
                if not math.isfinite(mean):
                    raise FloatingPointError(
                        f"the loss of {objective.name} is not finite by step {step}: lower lr or look at the data's scale")
            if log:
                losses.clear()
                rows.append((step, mean, time.perf_counter() - start))
                bar.set_postfix_str(f"loss {mean:.4f}", refresh=False)
            bar.update()
    except KeyboardInterrupt:
        interrupted = True
        step -= 1
    finally:
        bar.close()
    manifest = {
        "objective": {"name": objective.name, **objective.config()},
        "path": {"name": model.path.name, **model.path.config()},
        "network": {"name": type(model.net).__name__, "parameters": model.parameter_count},
        "config": asdict(config),
        "data": {"name": getattr(data, "name", "tensor"), "shape": list(x.shape), "sha256": known_data.sha256},
        "steps_done": step,
        "interrupted": interrupted,
        "seconds": round(time.perf_counter() - start, 3),
        "hardware": hardware(device),
        "versions": {"iflow_lib": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    history = pd.DataFrame(rows, columns=["step", "loss", "seconds"])
    return TrainRun(model=average, history=history, manifest=manifest)
