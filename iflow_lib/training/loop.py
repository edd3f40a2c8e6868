"""``fit``: one training loop for every objective, from one core to many GPUs."""

from __future__ import annotations

import copy
import json
import math
import platform
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .. import unattended
from ..data import TensorData, as_tensor, portions
from ..io import write_together
from ..model import FlowMap
from ..objectives.base import Batch, Objective
from ..utils import GRAPHS, Compiled, __version__
from .checkpoints import RunFolder, Signals
from .compile import Threads, autocast, hardware
from .config import FREE_SETTINGS, TrainConfig, learning_rate
from .distributed import Team


@dataclass
class TrainRun:
    """What ``fit`` returns. ``model``: a ``FlowMap`` with the averaged weights, on the training device;
    ``history``: pandas table with columns step, loss, seconds; ``manifest``: settings, versions, hardware, time."""

    model: FlowMap
    history: object
    manifest: dict = field(repr=False)


def fit(model: FlowMap, objective: Objective, data, config: TrainConfig, resume=None) -> TrainRun:
    """Train ``model`` with ``objective`` and return a run whose model carries the averaged (EMA) weights.

    data: a float tensor (B, ...), a data set of ``iflow_lib.data`` or a torch Dataset; it is kept on the device and
    batches are drawn by index; a float32 array mapped from a file (``np.load("x.npy", mmap_mode="c")``) stays there if the
    device is a CPU. Its labels are used by a network with classes; its noise, if it has any, is the z of each
    example (``samplers.reflow``). The given model is trained in place and left with its last, unaveraged weights.

    resume: with ``config.out_dir``, "auto" continues from its newest whole checkpoint, if there is one; the path of a
    checkpoint continues from there; None starts anew, in a folder without an earlier run. A run that was stopped at any
    moment and continued ends with the weights, EMA and history of one that was not, bit for bit on the same machine with
    the same number of threads (all of them but the seconds; an objective of your own must draw from its generator only).
    Ctrl-C and SIGTERM end training after the step at work, write a checkpoint, and return what was learned so far, with
    ``manifest["interrupted"]``; a second Ctrl-C stops at once.

    Started by ``torchrun``, the processes share the run: each batch is spread over them (DistributedDataParallel), each
    keeps its share of the data and of the anchor store on its device, and the first one writes. The result is that
    of one process up to rounding. On several machines ``out_dir`` must be a folder that all of them see.

    Raises ValueError for data of the wrong shape or type or with NaN, for an unknown device, for a model whose weights take
    no gradients, and for a checkpoint of another run; OSError for an out_dir that is in use or cannot be written;
    FloatingPointError if the loss or the weights stop being finite.
    """
    team = Team.assemble(config.device)
    device, x = team.device, as_tensor(data)
    if config.batch_size % team.world:
        raise ValueError(
            f"batch_size {config.batch_size} does not divide by the {team.world} processes"
        )
    if team.world > 1 and type(objective).__call__ is not Objective.__call__:
        raise ValueError(
            f"{objective.name} has a __call__ of its own in place of draw and loss: it cannot be spread over "
            f"{team.world} processes"
        )
    if tuple(x.shape[1:]) != model.data_shape:
        raise ValueError(
            f"the network takes examples of shape {model.data_shape}, the data have {tuple(x.shape[1:])}"
        )
    if not any(w.requires_grad for w in model.parameters()):
        raise ValueError(
            "no weight of the model takes gradients: call model.requires_grad_(True) to train it on"
        )
    labels, noise = (getattr(data, name, None) for name in ("labels", "noise"))
    if model.classes and (
        labels is None or not 0 <= int(labels.min()) <= int(labels.max()) < model.classes
    ):
        raise ValueError(
            f"a network with {model.classes} classes needs data with labels 0 to {model.classes - 1}"
        )
    if resume is not None and not config.out_dir:
        raise ValueError('resume needs a folder: give TrainConfig(out_dir="...")')
    known = data if isinstance(data, (TensorData, np.memmap)) else x
    known = known if isinstance(known, TensorData) else TensorData(known)
    asked, shelf = (
        config,
        ""
        if config.out_dir
        else unattended.shelf(
            model,
            objective.name,
            objective.config(),
            model.path.name,
            model.path.config(),
            config,
            x.shape,
            known.sha256,
        ),
    )
    if shelf:
        config, resume = (
            replace(config, out_dir=shelf, checkpoint_minutes=unattended.SECONDS / 60),
            "auto",
        )
    folder = RunFolder(config.out_dir, config.keep, team) if config.out_dir else nullcontext()
    with folder as folder, Threads(config.threads, model.parameter_count * config.batch_size):
        if folder and resume is None and folder.checkpoints():
            raise ValueError(
                f'{config.out_dir} holds an earlier run: continue it with resume="auto", or choose another '
                "out_dir"
            )
        place = folder and folder.folder / (f"anchors-{team.rank}" if team.world > 1 else "anchors")
        objective.prepare(model, known, folder=place, seed=config.seed, team=team)
        loop = _Loop(
            model, objective, x, labels if model.classes else None, noise, config, team, folder
        )
        loop.brief = unattended.SECONDS if shelf else 0.0
        loop.mapped = (
            known.mapped if device.type == "cpu" else None
        )  # elsewhere the data have left their file
        manifest = {
            "objective": {"name": objective.name, **objective.config()},
            "path": {"name": model.path.name, **model.path.config()},
            "network": {"name": type(model.net).__name__, "parameters": model.parameter_count},
            "config": asdict(asked),
            "compiled": config.compiles(device),
            "data": {
                "name": getattr(data, "name", "tensor"),
                "shape": list(x.shape),
                "sha256": known.sha256,
            },
        }
        loop.identity = json.loads(
            json.dumps(
                {
                    **manifest,
                    "config": {
                        k: v for k, v in manifest["config"].items() if k not in FREE_SETTINGS
                    },
                }
            )
        )
        if resume is not None:
            loop.resume(None if resume == "auto" else Path(resume))
        interrupted = loop.run()
        machine = hardware(device)  # here: with the threads of this run
    manifest |= {
        "steps_done": loop.step,
        "interrupted": interrupted,
        "seconds": round(loop.seconds(), 3),
        "hardware": machine,
        "processes": team.world,
        "versions": {
            "iflow_lib": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    if config.compile != "auto" and config.compile:
        loop.average.compile(**(GRAPHS if config.compile == "graphs" else {}))
    run = TrainRun(model=loop.average, history=loop.history(), manifest=manifest)
    if asked.out_dir and team.rank == 0:
        write_together(
            {
                Path(config.out_dir) / "history.csv": run.history.to_csv(
                    index=False, lineterminator="\n"
                ),
                Path(config.out_dir) / "manifest.json": json.dumps(manifest, indent=2) + "\n",
            }
        )
    return run


class _Loop:
    """The state of a run between two steps, and what a step does to it."""

    def __init__(
        self,
        model,
        objective,
        x,
        labels,
        noise,
        config: TrainConfig,
        team: Team,
        folder: RunFolder | None,
    ):
        device = team.device
        self.model, self.objective, self.config, self.device, self.folder = (
            model,
            objective,
            config,
            device,
            folder,
        )
        self.team, self.mapped, self.images, self.size = (
            team,
            None,
            config.channels_last and x.ndim == 4,
            len(x),
        )
        self.x = team.rows(x).to(device)
        self.labels = labels.to(device) if labels is not None else None
        self.noise = team.rows(noise).to(device, x.dtype) if noise is not None else None
        model.to(
            device, memory_format=torch.channels_last if self.images else torch.preserve_format
        ).train()
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.weights, self.averaged = list(model.parameters()), list(self.average.parameters())
        self.optimizer = torch.optim.Adam(
            self.weights,
            lr=config.lr,
            betas=(0.9, 0.99),
            fused=device.type in ("cpu", "cuda") or None,
        )
        self.source = (
            device if device.type == "cuda" else torch.device("cpu")
        )  # mps cannot draw all the noise laws
        self.generator = torch.Generator(self.source).manual_seed(config.seed)
        self.step, self.rows, self.losses, self.identity, self.brief = 0, [], [], {}, 0.0
        self.loss = _Loss(
            model, objective, config.compiles(device), autocast(device, config.precision)
        )
        if team.world > 1:
            self.loss = torch.nn.parallel.DistributedDataParallel(
                self.loss, device_ids=[device] if device.type == "cuda" else None
            )
        self.start = self.saved = time.perf_counter()
        self.saved_step = 0

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def history(self):
        import pandas as pd

        return pd.DataFrame(self.rows, columns=["step", "loss", "seconds"])

    def run(self) -> bool:
        """Train to the end. True if a signal ended it earlier."""
        shown = self.config.progress and self.team.rank == 0
        with (
            Signals() as signals,
            unattended.bar(self.config.steps, self.step, self.objective.name, shown) as bar,
        ):
            try:
                stop = False
                while self.step < self.config.steps and not stop:
                    self.one_step()
                    bar.update()
                    if self.rows and self.rows[-1][0] == self.step:
                        bar.set_postfix_str(f"loss {self.rows[-1][1]:.4f}", refresh=False)
                    stop, due = signals.seen, self.due()
                    if (
                        self.team.world > 1
                    ):  # all must do the same; asking at every step would make the devices wait
                        stop, due = (
                            self.team.any(stop, due) if self.step % 10 == 0 else (False, False)
                        )
                    if self.folder and due and not stop:
                        self.save()
                    stop = stop or self.team.world == 1 and signals.seen  # while it was written
            except KeyboardInterrupt:  # a second Ctrl-C, or one where signals are not ours to catch
                return True
        if self.folder and self.seconds() >= self.brief:
            self.save()
        return self.step < self.config.steps

    def one_step(self) -> None:
        config, step = self.config, self.step + 1
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step - 1)
        index = torch.randint(
            self.size, (config.batch_size,), generator=self.generator, device=self.source
        )
        place = index.to(self.device)
        x_0, known = self.team.fetch(self.examples, place, self.model.data_shape), None
        noise = (
            None
            if self.noise is None
            else self.team.fetch(self.noise.__getitem__, place, self.model.data_shape)
        )
        if self.images:
            x_0 = x_0.contiguous(memory_format=torch.channels_last)
        if self.labels is not None:
            told = torch.rand(len(place), generator=self.generator, device=self.source).to(
                self.device
            )
            known = torch.where(told >= config.label_dropout, self.labels[place], -1)
        loss = self.evaluate(
            Batch(
                x_0,
                labels=known,
                index=index,
                noise=noise,
                step=step - 1,
                steps=config.steps,
                epoch=(step - 1) * config.batch_size // self.size,
            )
        )
        for w in self.weights:
            w.grad = None  # the optimizer's zero_grad does the same in ten times the time
        loss.backward()
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_(
                self.weights, config.clip, foreach=self.device.type != "mps" or None
            )
        self.optimizer.step()
        # a short run must not average over its random start: (1 + step) / (10 + step) rises towards the decay
        decay = min(config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averaged, [w.detach() for w in self.weights], 1 - decay)
        self.losses.append(self.team.mean(loss.detach()))
        log = step % config.log_every == 0 or step == config.steps
        if (
            log or self.device.type == "cpu"
        ):  # elsewhere, asking for the value at every step would make the device wait
            mean = float(torch.stack(self.losses).mean() if log else self.losses[-1])
            if not math.isfinite(mean):
                where = f"; {self.folder.newest()}" if self.folder else ""
                raise FloatingPointError(
                    f"the loss of {self.objective.name} is not finite by step {step}: lower lr or "
                    f"look at the data's scale{where}"
                )
        if log:
            self.losses.clear()
            self.rows.append((step, mean, self.seconds()))
        self.step = step

    def examples(self, place: torch.Tensor) -> torch.Tensor:
        """Rows of the data on the device."""
        if self.mapped is None:
            return self.x.index_select(0, place)
        out = self.x.new_empty(len(place), *self.x.shape[1:])
        for part in portions(len(place), self.mapped):
            out[part] = self.x[place[part]]
        return out

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """The loss of this process's rows."""
        if type(self.objective).__call__ is not Objective.__call__:
            return self.objective(self.model, batch, self.generator)
        drawn = self.objective.draw(self.model, batch, self.generator)
        loss, estimate = self.loss(**{name: self.team.rows(value) for name, value in drawn.items()})
        everyones = None if estimate is None else self.team.gather(estimate)
        self.objective.update_state(batch, drawn, self.team.mean(loss.detach()), everyones)
        return loss

    # ------------------------------------------------------------------ checkpoints
    def due(self) -> bool:
        every = self.config.checkpoint_every
        return (
            bool(every and self.step // every > self.saved_step // every)
            or time.perf_counter() - self.saved > 60 * self.config.checkpoint_minutes
        )

    def save(self) -> None:
        bad = [
            name for name, w in self.model.named_parameters() if not bool(torch.isfinite(w).all())
        ]
        if bad:
            raise FloatingPointError(
                f"the weights of {self.objective.name} are not finite at step {self.step} ({bad[0]}); "
                f"{self.folder.newest()}"
            )
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for i, w in enumerate(self.weights):
            tensors |= {f"optimizer.{i}.{k}": v for k, v in self.optimizer.state.get(w, {}).items()}
        tensors |= {f"objective.{k}": v for k, v in self.objective.state().items()}
        tensors["generator"] = self.generator.get_state()
        if self.losses:
            tensors["losses"] = torch.stack(self.losses)
        info = {
            "step": self.step,
            "rows": self.rows,
            "seconds": self.seconds(),
            "identity": self.identity,
        }
        self.folder.save(self.step, tensors, info, self.objective.save_files)
        self.saved, self.saved_step = time.perf_counter(), self.step

    def resume(self, wanted: Path | None) -> None:
        found = self.folder.load(wanted)
        if found is None:
            return
        tensors, info, place = found
        for part, mine in self.identity.items():
            theirs = info["identity"].get(part)
            if theirs != mine:
                raise ValueError(
                    f"{place} is a checkpoint of another run: its {part} is {_difference(theirs, mine)}"
                )

        def part(name: str) -> dict:
            return {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        for i, w in enumerate(self.weights):
            state = part(f"optimizer.{i}.")
            self.optimizer.state[
                w
            ] = {  # in the layout of w: a fused Adam reads the moments as they lie in memory
                k: torch.empty_like(w, dtype=v.dtype).copy_(v)
                if v.shape == w.shape
                else v.to(w.device)
                for k, v in state.items()
            }
        self.generator.set_state(tensors["generator"])
        self.objective.load_state(part("objective."))
        self.objective.load_files(place)
        self.losses = list(tensors["losses"].to(self.device)) if "losses" in tensors else []
        self.step, self.rows = info["step"], [tuple(row) for row in info["rows"]]
        self.start -= info["seconds"]
        self.saved_step = self.step


class _Loss(torch.nn.Module):
    """The pure half of a step, as a module for DistributedDataParallel, compiled if that is wanted."""

    def __init__(self, model: FlowMap, objective: Objective, compiled: bool | str, context):
        super().__init__()
        self.model, self.context = model, context
        self.call = partial(objective.loss, model)
        if compiled:
            self.call = Compiled(
                self.call, dynamic=False, **(GRAPHS if compiled == "graphs" else {})
            )

    def forward(self, **drawn):
        with self.context:
            return self.call(**drawn)


def _difference(theirs, mine) -> str:
    """Two settings side by side: of dicts, only what differs."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        keys = [k for k in {**theirs, **mine} if theirs.get(k) != mine.get(k)]
        theirs, mine = ({k: d.get(k) for k in keys} for d in (theirs, mine))
    return f"{theirs}, here it is {mine}"
