"""What ``fit`` is given, checked before anything is trained. Every error is one line."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch

from ..data import TensorData, shape_hint
from ..model import FlowMap
from ..objectives.base import LEARNS, Batch, Objective, check_choice
from ..objectives.network_state import check_unknown_label, trial
from .config import TrainConfig
from .coupling import Pairing
from .distributed import Processes


def check_arguments(model: Any, objective: Any, config: Any, resume: Any) -> None:
    """Check that each argument of ``fit`` is of the right kind.

    Raises:
        ValueError: If one is not.
    """
    if not isinstance(model, FlowMap):
        raise ValueError(
            f"model must be a FlowMap, such as FlowMap(MLP(dim=2), RectifiedFlow()), got {_kind(model)}"
        )
    if isinstance(objective, type) and issubclass(objective, Objective):
        name = objective.__name__
        raise ValueError(f"objective is the class {name}: give an instance, {name}()")
    if not isinstance(objective, Objective):
        raise ValueError(
            f"objective must be an Objective, such as IntegralIdentity(), got {_kind(objective)}"
        )
    check_choice(f"learns of {objective.name}", objective.learns, LEARNS)
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"config must be a TrainConfig, such as TrainConfig(steps=1000), got {_kind(config)}"
        )
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "nothing can be trained within torch.inference_mode(): call fit outside it"
        )
    if not any(w.requires_grad for w in model.parameters()):
        raise ValueError(
            "no weight of the model takes gradients: call model.requires_grad_(True) to train it on"
        )
    if resume is not None and not isinstance(resume, (str, PathLike)):
        raise ValueError(f'resume must be "auto", a checkpoint\'s folder or None, got {resume!r}')
    if resume not in (None, "auto") and not config.out_dir:
        raise ValueError('resume needs a folder: give TrainConfig(out_dir="...")')


def _kind(value: Any) -> str:
    return f"{value!r}" if isinstance(value, (str, type)) else f"a {type(value).__name__}"


def check_processes(objective: Objective, config: TrainConfig, processes: Processes) -> None:
    """Check that a run can be spread over its processes.

    Raises:
        ValueError: If it cannot.
    """
    count = processes.world_size
    if config.batch_size % count:
        raise ValueError(f"batch_size {config.batch_size} does not divide by the {count} processes")
    if count > 1 and has_own_call(objective):
        raise ValueError(
            f"{objective.name} has a __call__ of its own in place of draw and loss: it cannot be spread "
            f"over {count} processes"
        )


def has_own_call(objective: Objective) -> bool:
    """Return whether a user's objective is one function, and not ``draw`` and ``loss``."""
    return type(objective).__call__ is not Objective.__call__


def check_noise(
    model: FlowMap, objective: Objective, data: TensorData, config: TrainConfig
) -> None:
    """Check that noise is left to be paired, and that the objective can do with the noise.

    Raises:
        ValueError: If the data bring their own, or the objective cannot.
    """
    if config.coupling != "independent" and data.noise is not None:
        raise ValueError(
            f"coupling={config.coupling!r} pairs noise that is drawn, and these data bring their own, as those of "
            'reflow do: leave coupling="independent", or give the examples alone, data.x'
        )
    objective.check_noise(model.path, data.noise is not None, config.coupling != "independent")


def check_paired(objective: Objective, batch: Batch) -> None:
    """Check that an objective has taken the noise of a batch that was to be paired.

    Raises:
        ValueError: If it drew its own.
    """
    if isinstance(batch.pair, Pairing) and not batch.pair.used:
        raise ValueError(
            f"{objective.name} draws its own noise, which coupling cannot pair: let it take "
            'batch.draw_noise(model, generator), or leave coupling="independent"'
        )


def check_data(
    model: FlowMap, data: TensorData, precision: str = "float32", label_dropout: float = 0.0
) -> None:
    """Check that data have the shape, the labels and the type that the network takes.

    Raises:
        ValueError: If they do not.
    """
    shape, labels, classes = tuple(data.x.shape[1:]), data.labels, model.classes
    if shape != model.data_shape:
        hint = shape_hint(data.x, model.data_shape)
        raise ValueError(
            f"the network takes examples of shape {model.data_shape}, the data have {shape}"
            + (f": {hint}" if hint else "")
        )
    if classes and label_dropout:
        check_unknown_label(model)
    if classes and (labels is None or not 0 <= int(labels.min()) <= int(labels.max()) < classes):
        raise ValueError(
            f"a network with {classes} classes needs data with labels 0 to {classes - 1}"
        )
    others = {w.dtype for w in model.parameters() if w.is_floating_point()} - {torch.float32}
    if others and precision != "bfloat16" and not _takes_float32(model):
        raise ValueError(
            f"the weights of the model are {others.pop()}, and data are float32 in training: call "
            "model.float() first"
        )


def _takes_float32(model: FlowMap) -> bool:
    """Return whether a small call of a copy takes float32, or fails for another reason."""
    with trial(model) as (twin, inputs), torch.no_grad():
        floats = [a.float() if a is not None and a.is_floating_point() else a for a in inputs]
        try:
            twin(*floats)
        except RuntimeError as error:
            return "dtype" not in str(error)
        except Exception:
            return True  # another fault, which the first step tells
    return True
