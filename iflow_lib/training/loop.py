"""``fit``: one training loop for every objective, from one core to many GPUs.

A batch goes from the data to the gradient in ``Trainer.one_step``: ``Batches.draw`` takes it from
the data, ``Objective.draw`` adds all that is random, ``Objective.loss`` makes one number of it.
"""

from __future__ import annotations

import copy
import json
import platform
import re
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data import TensorData, as_dataset, scale_warning
from ..io import write_together
from ..model import FlowMap
from ..objectives.base import Batch, Drawn, Objective
from ..objectives.network_state import model_device
from ..utils import (
    GRAPHS,
    Compiled,
    __version__,
    is_out_of_memory,
    random_state,
    set_random_state,
)
from .batches import Batches
from .callbacks import CallbackError, Callbacks, states
from .checkpoints import RunFolder, Signals, difference
from .checks import (
    check_arguments,
    check_data,
    check_noise,
    check_paired,
    check_processes,
    has_own_call,
)
from .config import FREE_SETTINGS, TrainConfig, learning_rate, with_rate
from .distributed import Processes
from .graph import StepGraph, cuda_graph
from .history import History
from .progress import Progress
from .runtime import (
    autocast,
    float32_products,
    hardware,
    limited_threads,
    own_random_numbers,
    source_of,
)

if TYPE_CHECKING:
    import pandas as pd


#: A training seeds torch's global generators, of which a process has one set for all its threads.
_ONE_AT_A_TIME = threading.RLock()


@dataclass
class TrainRun:
    """What ``fit`` returns.

    Args:
        model: The trained model with averaged weights, on the training device.
        history: Table with columns step, loss (mean since the row before), seconds, and what
            callbacks recorded.
        manifest: Settings, versions, hardware and time, as in manifest.json.
    """

    model: FlowMap
    history: pd.DataFrame
    manifest: dict[str, Any]

    def __repr__(self) -> str:
        """Return what was trained, for how long, and the last loss."""
        name, path = self.manifest["objective"]["name"], self.manifest["path"]["name"]
        loss = f", loss {self.history.loss.iloc[-1]:.4g}" if len(self.history) else ""
        ended = ", interrupted" if self.manifest["interrupted"] else ""
        if self.manifest.get("stopped"):
            ended = ", stopped early"
        return (
            f"TrainRun({name} on {path}, {self.manifest['steps_done']:,} steps in "
            f"{self.manifest['seconds']:.1f} s{loss}{ended}; model, history, manifest)"
        )


def fit(
    model: FlowMap,
    objective: Objective,
    data: Any,
    config: TrainConfig,
    resume: str | PathLike[str] | None = None,
) -> TrainRun:
    """Train a model with an objective, and return it with averaged (EMA) weights.

    The given model is trained in place and left with its last, unaveraged weights. Both models know
    afterwards what was learned (``model.learned``) and the scale of the data (``model.scaling``).

    With ``config.out_dir``, a run that was stopped at any moment and continued ends with the
    weights, averages and history of one that was not: bit for bit, on the same machine with the
    same number of threads, in all but the seconds. What an objective of your own carries from step
    to step must be in its ``state()``, and be taken back by ``load_state()``, because steps that
    were done before the stop are not repeated. It may draw from its generator and from torch's
    global one. The global one is seeded with ``config.seed``, and afterwards has the state that it
    had before. Of two threads that train, one waits for the other.

    ``config.callbacks`` are called between two steps: ``Validation`` measures how far samples are
    from held-out data, keeps the best model and stops early, ``TensorBoard`` and
    ``WeightsAndBiases`` log. What they carry from step to step is in the checkpoints too.

    Ctrl-C and SIGTERM end training after the step at work, write a checkpoint, and return what was
    learned so far, with ``manifest["interrupted"]``. A second Ctrl-C stops at once.

    Started by ``torchrun``, the processes share the run. Each batch is spread over them
    (DistributedDataParallel), each keeps its share of the data on its device, and the first one
    writes. The result is that of one process up to rounding. On several machines ``out_dir`` must
    be a folder that all of them see.

    Args:
        model: Network and path.
        objective: What to learn, such as ``IntegralIdentity()``.
        data: A float tensor (examples, ...), or anything else that ``iflow_lib.data.as_dataset``
            takes. It is kept on the device. A float32 array that is mapped from a file
            (``np.load("x.npy", mmap_mode="c")``) stays there if the device is a CPU. Labels are
            used by a network with classes. Noise, if there is any, is the z of each example
            (``reflow``).
        config: Settings of the run.
        resume: "auto" continues from the newest whole checkpoint in ``config.out_dir``, and starts
            if there is none, or no folder. The path of a checkpoint continues from there. None
            starts anew, in a folder without an earlier run.

    Returns:
        The run: model, history and manifest.

    Raises:
        ValueError: For an argument of the wrong kind, data of the wrong shape or type or with NaN,
            an unknown device, a model whose weights take no gradients, or a checkpoint of another
            run.
        OSError: For an ``out_dir`` that is in use or cannot be written.
        FloatingPointError: If the loss runs away, or the loss or the weights stop being finite.
        RuntimeError: If a callback fails: one line that names it. The run has a checkpoint of the
            last step, where it has a folder.
        torch.OutOfMemoryError: If the device has too little memory.
    """
    check_arguments(model, objective, config, resume)
    with _ONE_AT_A_TIME, torch.enable_grad():
        return _fit(model, objective, data, config, resume)


def _fit(
    model: FlowMap,
    objective: Objective,
    data: Any,
    config: TrainConfig,
    resume: str | PathLike[str] | None,
) -> TrainRun:
    """Do what ``fit`` says."""
    processes = Processes.join(config.device)
    check_processes(objective, config, processes)
    dataset = as_dataset(data)
    check_data(model, dataset, config.precision, config.label_dropout)
    check_noise(model, objective, dataset, config)
    far = scale_warning(dataset.x) if processes.rank == 0 else None
    if far:
        warnings.warn(far, UserWarning, stacklevel=3)
    device = processes.device
    folder = RunFolder(config.out_dir, config.keep, processes) if config.out_dir else None
    with (
        _left_as_it_was_if_refused(model),
        folder or nullcontext(),
        limited_threads(config.threads, model.parameter_count * config.batch_size),
        own_random_numbers(config.seed + processes.rank, device),
        float32_products(device, config.precision),
    ):
        if folder and resume is None and processes.on_first(folder.checkpoints):
            raise ValueError(
                f'{config.out_dir} holds an earlier run: continue it with resume="auto", or choose '
                "another out_dir"
            )
        try:
            trainer = Trainer(model, objective, dataset, config, processes, folder)
            if folder and resume is not None:
                trainer.resume(None if resume == "auto" else Path(resume))
            interrupted = trainer.run()
        except Exception as error:
            if isinstance(error, CallbackError) or not is_out_of_memory(error):
                raise
            raise torch.OutOfMemoryError(
                f"out of memory on {device}, with batch_size {config.batch_size}: free the device, lower "
                f"batch_size, or take a smaller network; {_newest(folder)}"
            ) from error
        manifest = trainer.manifest | {
            "steps_done": trainer.step,
            "interrupted": interrupted,
            "seconds": round(trainer.seconds(), 3),
            "hardware": hardware(device),  # here: with the threads of this run
            "processes": processes.world_size,
            "versions": {
                "iflow_lib": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        if config.callbacks:
            described = trainer.callbacks.describe()
            manifest |= {"stopped": trainer.stopped, "callbacks": described}
    if config.compile != "auto" and trainer.compiled:
        trainer.average.compile(**(GRAPHS if trainer.compiled == "graphs" else {}))
    run = TrainRun(model=trainer.average, history=trainer.history.table(), manifest=manifest)
    if folder:
        processes.on_first(lambda: _write_run(folder.folder, run))
    return run


@contextmanager
def _left_as_it_was_if_refused(model: FlowMap) -> Iterator[None]:
    """Put back what a run sets beforehand, if it is refused or fails before any weight has moved."""
    known = {name: getattr(model, name) for name in ("learned", "scaling", "knows_no_class")}
    training = {part: part.training for part in model.modules()}
    device = model_device(model)

    def marks() -> list[tuple[int, int]]:  # loading weights changes the one, a step the other
        return [(w._version, id(w.grad)) for w in model.parameters()]

    before = marks()
    try:
        yield
    except BaseException:
        if marks() == before:
            for name, value in known.items():
                setattr(model, name, value)
            for part, mode in training.items():
                part.training = mode
            model.to(device)
        raise


# ---------------------------------------------------------------- the loop


class Trainer:
    """The state of a run between two steps, and what a step does to it.

    Args:
        model: Model to train, in place.
        objective: What it learns.
        data: Its data, float32.
        config: Settings of the run.
        processes: Processes that share it; one on the device of ``config``, if not given.
        folder: Where it is kept, or None.
    """

    def __init__(
        self,
        model: FlowMap,
        objective: Objective,
        data: TensorData,
        config: TrainConfig,
        processes: Processes | None = None,
        folder: RunFolder | None = None,
    ) -> None:
        self.processes = processes or Processes.join(config.device)
        self.device = device = self.processes.device
        config = with_rate(config, model.net)
        assert config.lr is not None
        self.model, self.objective, self.config, self.folder = model, objective, config, folder
        self.batches = Batches(data, model, config, self.processes)
        objective.prepare(model, data, seed=config.seed, device=device)
        self.compiled = _compiles(objective, model, config, device)
        self.manifest = self._describe(data)
        model.learned, model.scaling = objective.learns, data.scaling
        model.knows_no_class = config.label_dropout > 0 if model.classes else None
        model.to(device).train()
        if self.batches.channels_last:
            model.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.weights: list[Tensor] = list(model.parameters())
        self.averaged: list[Tensor] = list(self.average.parameters())
        self.averaged_buffers = list(self.average.buffers())
        self.graph = self._step_graph()
        # of this step: the learning rate, and by how much the average moves
        self.rate: float | Tensor = config.lr
        self.share: float | Tensor = 1 - config.ema
        if self.graph:
            self.rate = torch.tensor(self.rate, dtype=torch.float32, device=device)
            self.share = torch.tensor(self.share, dtype=torch.float32, device=device)
        self.optimizer = torch.optim.Adam(
            self.weights,
            lr=self.rate,
            betas=(0.9, 0.99),
            fused=device.type in ("cpu", "cuda") or None,
            capturable=self.graph is not None,
        )
        self.generator = torch.Generator(source_of(device)).manual_seed(config.seed)
        options = GRAPHS if self.compiled == "graphs" and not self.graph else {}
        self.loss: nn.Module = _Loss(
            model,
            objective,
            options if self.compiled else None,
            autocast(device, config.precision),
        )
        if self.processes.world_size > 1:
            self.loss = nn.parallel.DistributedDataParallel(
                self.loss, device_ids=[device] if device.type == "cuda" else None
            )
        self.step = self.saved_step = 0
        self.callbacks = Callbacks(config.callbacks, self.processes)
        self.called_step = 0  # the last one after which all callbacks were called
        self.stopped: str | None = None  # why a callback has ended the run
        self._states: dict[str, dict[str, Any]] = {}  # of callbacks, from a checkpoint
        self.history = History(
            objective.name,
            config,
            every_step=device.type == "cpu",
            last_checkpoint=lambda: _newest(folder),
        )
        self.start = self.saved = time.perf_counter()

    def _step_graph(self) -> StepGraph | None:
        """A graph of the whole step if the settings ask for one, and the step allows it."""
        if (
            self.compiled != "graphs"
            or self.processes.world_size > 1
            or has_own_call(self.objective)
            or not self.objective.captures()
        ):
            return None
        graph = cuda_graph(self.device)
        return None if graph is None else StepGraph(graph)

    def _describe(self, data: TensorData) -> dict[str, Any]:
        """What the manifest says beforehand. With a folder it also identifies the data."""
        model, objective = self.model, self.objective
        marks, scaling = {}, {}
        if data.scaling is not None:
            scaling = {"scaling": data.scaling.config()}
        if self.folder is not None:
            marks = self.processes.on_first(data.fingerprints)
        config = getattr(model.net, "config", None)
        return {
            "objective": {"name": objective.name, **objective.suited(model.data_shape).config()},
            "path": {"name": model.path.name, **model.path.config()},
            "network": {
                "name": type(model.net).__name__,
                "parameters": model.parameter_count,
                "config": config() if callable(config) else None,
            },
            "config": self.config.values(),
            "compiled": self.compiled,
            "data": {"name": data.name, "shape": list(data.x.shape), **scaling, **marks},
        }

    def seconds(self) -> float:
        """Return the seconds of training so far, those before a stop included."""
        return time.perf_counter() - self.start

    def record(self, name: str, value: float) -> None:
        """Put a number of this step into the history: see ``Training``."""
        self.history.record(self.step, name, value, self.seconds())

    def stop(self, reason: str) -> None:
        """End the training after this step: see ``Training``."""
        self.stopped = self.stopped or reason

    def run(self) -> bool:
        """Train to the end, with the callbacks.

        Returns:
            Whether a signal ended it earlier.

        Raises:
            CallbackError: If a callback fails; a checkpoint is written before.
        """
        failed = True
        try:
            self.callbacks.start(self, self._states)
            interrupted = self._steps()
            self.callbacks.end(self)
            failed = False
            return interrupted
        except CallbackError as error:
            if self.folder and self.saved_step < self.step:
                with suppress(OSError, FloatingPointError, CallbackError):
                    self.save()
            raise CallbackError(f"{error}; {_newest(self.folder)}") from error.__cause__
        finally:
            self.callbacks.close(failed)

    def _steps(self) -> bool:
        """Train to the end; return whether a signal ended it earlier."""
        first = self.processes.rank == 0
        with (
            Signals() as signals,
            Progress(
                self.objective.name,
                self.config.steps,
                self.step,
                shown=self.config.progress and first,
                file=self.folder.folder / "progress.txt" if self.folder and first else None,
            ) as progress,
        ):
            try:
                stop = False
                new = self._call_callbacks()  # of a step after which one has failed
                while self.step < self.config.steps and not (stop or self.stopped):
                    self.one_step()
                    self._call_callbacks()
                    progress.update(self._row())
                    stop, due = self._agreed(signals.received, self._save_is_due())
                    if due and not stop:
                        self.save()
                        # a signal may have come while it was written
                        stop = self.processes.world_size == 1 and signals.received
            except KeyboardInterrupt:  # a second Ctrl-C, or one where signals are not ours to catch
                return True
        if self.folder and (new or self.saved_step < self.step):
            self.save()
        return self.step < self.config.steps and not self.stopped

    def _call_callbacks(self) -> bool:
        """Call the callbacks after a step; return False if that has been done already."""
        if self.called_step == self.step:
            return False
        if self.callbacks.all:
            self.callbacks.after_step(self)
            row = self._row()
            if row:
                seconds, rate = self.history.rows[-1][2], learning_rate(self.config, self.step - 1)
                self.callbacks.log(self.step, {**row, "lr": rate, "seconds": seconds})
        self.called_step = self.step
        return True

    def _row(self) -> dict[str, float]:
        """The loss of this step's row and what callbacks recorded; nothing where none is due."""
        loss = self.history.newest(self.step)
        return {} if loss is None else {"loss": loss, **self.history.recorded.get(self.step, {})}

    def _agreed(self, stop: bool, due: bool) -> tuple[bool, bool]:
        """What all processes do: they must stop, and save, together."""
        if self.processes.world_size == 1:
            return stop, due
        if self.step % 10:  # asking at every step would make the devices wait
            return False, False
        stop, due = self.processes.any(stop, due)
        return stop, due

    def _save_is_due(self) -> bool:
        if self.folder is None:
            return False
        every = self.config.checkpoint_every
        return (
            bool(every and self.step // every > self.saved_step // every)
            or time.perf_counter() - self.saved > 60 * self.config.checkpoint_minutes
        )

    # ------------------------------------------------------------ a step
    def one_step(self) -> None:
        """Draw a batch, take its gradient, and move the weights and their average."""
        self._set_rates()
        batch = self.batches.draw(self.step, self.generator)
        mean = self._replay(batch) if self.graph else self._train_on(batch)
        self.history.note(self.step + 1, mean, self.seconds())
        self.step += 1

    def _set_rates(self) -> None:
        """Set the learning rate of this step, and by how much the average moves."""
        step = self.step + 1
        # a short run must not average over its random start: (1 + step) / (10 + step) rises to the decay
        decay = min(self.config.ema, (1 + step) / (10 + step))
        rate, share = learning_rate(self.config, self.step), 1 - decay
        if isinstance(self.rate, Tensor) and isinstance(self.share, Tensor):
            self.rate.fill_(rate)
            self.share.fill_(share)
            return
        self.share = share
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _train_on(self, batch: Batch) -> Tensor:
        """Move the weights; return the mean of the loss over all rows."""
        loss, mean = self._evaluate(batch)
        self._descend(loss)
        return mean

    def _replay(self, batch: Batch) -> Tensor:
        """As ``_train_on``, by the graph of the step."""
        objective = self.objective
        drawn = objective.checked_draw(objective.draw(self.model, batch, self.generator))
        check_paired(objective, batch)
        assert self.graph is not None
        loss, estimate = self.graph(self._whole_step, drawn)
        objective.update_state(batch, drawn, loss, estimate)
        return loss

    def _whole_step(self, drawn: Drawn) -> tuple[Tensor, Tensor | None]:
        """What the graph of the step holds: all that computes."""
        loss, estimate = self.objective.checked_loss(self.loss(**drawn))
        self._descend(loss)
        return loss.detach(), estimate

    def _descend(self, loss: Tensor) -> None:
        """Move the weights against the gradient of a loss, and their average after them."""
        for w in self.weights:
            w.grad = None  # the optimizer's zero_grad does the same in ten times the time
        loss.backward()
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(
                self.weights, self.config.clip, foreach=self.device.type != "mps" or None
            )
        self.optimizer.step()
        self._move_average()

    def _evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of this process's rows, to be differentiated, and the mean over all rows."""
        objective, processes = self.objective, self.processes
        if has_own_call(objective):
            loss = objective(self.model, batch, self.generator)
            check_paired(objective, batch)
            return loss, loss.detach()
        drawn = objective.checked_draw(objective.draw(self.model, batch, self.generator))
        check_paired(objective, batch)
        own = {k: v if v is None else processes.shard(v) for k, v in drawn.items()}
        loss, estimate = objective.checked_loss(self.loss(**own))
        mean = processes.mean(loss.detach())
        estimates = None if estimate is None else processes.gather(estimate)
        objective.update_state(batch, drawn, mean, estimates)
        return loss, mean

    def _move_average(self) -> None:
        """Move the averages, ``average <- d average + (1 - d) weights``, and copy the buffers.

        torch.optim.swa_utils.AveragedModel gives the same bits in four times the time of this line,
        on CUDA with a copy to the device at each step, and its first update would not average.
        """
        weights, share = [w.detach() for w in self.weights], self.share
        if isinstance(share, Tensor):  # the kernel of them all at once takes numbers of Python only
            torch._foreach_lerp_(self.averaged, weights, [share.to(w.dtype) for w in weights])
        else:
            torch._foreach_lerp_(self.averaged, weights, share)
        if self.averaged_buffers:
            torch._foreach_copy_(self.averaged_buffers, list(self.model.buffers()))

    # ------------------------------------------------------------ checkpoints
    def save(self) -> None:
        """Write a checkpoint of the run as it is after the last step."""
        assert self.folder is not None
        self.history.check(self.step)  # a checkpoint is to be a good one
        named = dict(self.model.named_parameters())
        finite = torch.stack([torch.isfinite(w).all() for w in named.values()]).tolist()
        bad = [name for name, good in zip(named, finite) if not good]
        if bad:
            raise FloatingPointError(
                f"the weights of {self.objective.name} are not finite at step {self.step} ({bad[0]}); "
                f"{self.folder.newest()}"
            )
        tensors = _prefixed("model.", self.model.state_dict())
        tensors |= _prefixed("average.", self.average.state_dict())
        for i, w in enumerate(self.weights):
            tensors |= _prefixed(f"optimizer.{i}.", self.optimizer.state.get(w, {}))
        tensors |= _prefixed("objective.", self.objective.state())
        kept, values = self.callbacks.state()
        tensors |= _prefixed("callback.", kept)
        tensors["generator"] = self.generator.get_state()
        for name, state in random_state(self.device).items():  # a row for each process
            tensors[f"rng.{name}"] = self.processes.gather(state.to(self.device)[None])
        losses, rows = self.history.state()
        info = {
            "step": self.step,
            "seconds": self.seconds(),
            "identity": self._identity(),
            **rows,
        }
        if self.callbacks.all:
            info |= {"called": self.called_step, "stopped": self.stopped, "callbacks": values}
        self.folder.save(self.step, tensors | losses, info)
        self.saved, self.saved_step = time.perf_counter(), self.step

    def _identity(self) -> dict[str, Any]:
        """What must be the same in a run and its continuation, as JSON gives it back."""
        config = {k: v for k, v in self.manifest["config"].items() if k not in FREE_SETTINGS}
        text = json.dumps({**self.manifest, "config": config}, default=str)
        return json.loads(re.sub(r" at 0x[0-9a-fA-F]+", "", text))  # an address is no setting

    def resume(self, wanted: Path | None) -> None:
        """Take the state of a checkpoint, if there is one.

        Args:
            wanted: Folder of the checkpoint, or None for the newest whole one in the folder of the
                run.

        Raises:
            ValueError: If it is damaged, or of another run.
        """
        assert self.folder is not None
        found = self.folder.load(wanted)
        if found is None:
            return
        tensors, info, place = found
        other = difference(info["identity"], self._identity())
        if other:
            raise ValueError(
                f"{place} is a checkpoint of another run: {other}; give the same settings, or another "
                "out_dir"
            )
        if len(tensors["generator"]) != len(self.generator.get_state()):
            raise ValueError(
                f"{place} was trained on another kind of device than {self.device}: name that device"
            )
        self.model.load_state_dict(_part("model.", tensors))
        self.average.load_state_dict(_part("average.", tensors))
        for i, w in enumerate(self.weights):
            # in the layout of w: a fused Adam reads the moments as they lie in memory
            self.optimizer.state[w] = {
                k: torch.empty_like(w, dtype=v.dtype).copy_(v)
                if v.shape == w.shape
                else v.to(w.device)
                for k, v in _part(f"optimizer.{i}.", tensors).items()
            }
        self.generator.set_state(tensors["generator"])
        self._resume_random_numbers(_part("rng.", tensors))
        self.objective.load_state(_part("objective.", tensors))
        self.history.load_state(tensors, info, self.device)
        self.step = self.saved_step = info["step"]
        self.called_step, self.stopped = info.get("called", self.step), info.get("stopped")
        self._states = states(_part("callback.", tensors), info.get("callbacks", {}))
        self.start -= info["seconds"]

    def _resume_random_numbers(self, states: dict[str, Tensor]) -> None:
        """Take this process's row. Without one, as in old checkpoints, its state stays."""
        if states and self.processes.rank < len(states["cpu"]):
            own = {name: rows[self.processes.rank].clone() for name, rows in states.items()}
            set_random_state(own, self.device)


class _Loss(nn.Module):
    """The pure half of a step, as a module for DistributedDataParallel.

    It is compiled with ``options`` if there are any, not even none.
    """

    def __init__(
        self,
        model: FlowMap,
        objective: Objective,
        options: dict[str, Any] | None,
        context: AbstractContextManager[Any],
    ) -> None:
        super().__init__()
        self.model, self.context = model, context
        self.call: Any = partial(objective.loss, model)
        if options is not None:
            self.call = Compiled(self.call, dynamic=False, **options)

    def forward(self, **drawn: Tensor | None) -> tuple[Tensor, Tensor | None]:
        with self.context:
            return self.call(**drawn)


def _compiles(
    objective: Objective, model: FlowMap, config: TrainConfig, device: torch.device
) -> bool | str:
    """Whether the loss is compiled: as the settings say, unless the objective refuses."""
    wanted = config.compiles(device)
    if not wanted or objective.compiles(model):
        return wanted
    if config.compile != "auto":
        warnings.warn(
            f"going on without torch.compile: {objective.name} does not compile with the network "
            f"{type(model.net).__name__}, which draws random numbers or keeps statistics",
            RuntimeWarning,
            stacklevel=2,
        )
    return False


# ---------------------------------------------------------------- words and files


def _newest(folder: RunFolder | None) -> str:
    """One phrase on the last good checkpoint, for errors."""
    return folder.newest() if folder else "there is no checkpoint, because no out_dir was given"


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _part(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _write_run(folder: Path, run: TrainRun) -> None:
    write_together(
        {
            folder / "history.csv": run.history.to_csv(index=False, lineterminator="\n"),
            folder / "manifest.json": json.dumps(run.manifest, indent=2, default=str) + "\n",
        }
    )
