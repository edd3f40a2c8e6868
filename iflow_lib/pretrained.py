"""Models on disk: ``model.safetensors``, ``config.json`` and a model card. No pickle.

``config.json`` names the classes of the network and of the path with their constructors' arguments,
says what the model has learned and in which scale its data were, and holds checksums of the weights
and of itself.
"""

from __future__ import annotations

import json
import textwrap
from os import PathLike
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from .io import read_checked, sha256, write_together
from .networks import NETWORKS
from .paths import PATHS, Path
from .registry import first_line
from .scaling import Standardization

#: The layout of ``config.json``. Layout 1 had the arguments beside the name, and no "learned".
FORMAT = 2


def save(
    folder: str | PathLike[str],
    net: nn.Module,
    path: Path,
    *,
    learned: str | None = None,
    scaling: Standardization | None = None,
    knows_no_class: bool | None = None,
    card: str | None = None,
    dtype: torch.dtype | None = None,
    info: dict[str, Any] | None = None,
) -> None:
    """Write the parts of a ``FlowMap``; arguments and errors are those of ``save_pretrained``."""
    from safetensors.torch import save as to_bytes

    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a type of floats such as torch.float16, got {dtype!r}")
    network, path_entry, state = NETWORKS.describe(net), PATHS.describe(path), _state(net)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        PATHS.build(path_entry)
        _fill(NETWORKS.build(network), state, "config() of the network describes")
    if dtype is not None:
        whole, state = (
            state,
            {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()},
        )
        for name, value in state.items():
            if bool((whole[name].isfinite() & ~value.float().isfinite()).any()):
                raise ValueError(
                    f"the weights {name} hold values too large for {dtype}: give dtype=torch.bfloat16, or None "
                    "to keep theirs"
                )
    weights = to_bytes(state)
    config = {
        "format": FORMAT,
        "network": network,
        "path": path_entry,
        "learned": learned,
        "scaling": None if scaling is None else scaling.config(),
        "knows_no_class": knows_no_class,
        "sha256": sha256(weights),
        "info": info or {},
    }
    try:
        config["config_sha256"] = config_digest(config)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"what is kept beside the model must be JSON values: {first_line(error)}"
        ) from error
    folder = FilePath(folder)
    files: dict[str | PathLike[str], bytes | str] = {
        folder / "model.safetensors": weights,
        folder / "config.json": json.dumps(config, indent=2) + "\n",
    }
    if card is not None:
        files[folder / "README.md"] = card
    write_together(files)


def load(
    folder: str | PathLike[str],
) -> tuple[nn.Module, Path, str | None, Standardization | None, bool | None]:
    """Read what ``save`` wrote; errors are those of ``FlowMap.from_pretrained``.

    Returns:
        The network with its weights as float32, the path, what was learned, the scale of the data,
        and whether the network knows what to do without a class.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    config = read_config(folder)
    weights = read_checked(FilePath(folder) / "model.safetensors", config["sha256"])
    try:
        net, path = NETWORKS.build(config["network"]), PATHS.build(config["path"])
        scaling = None if config["scaling"] is None else Standardization(**config["scaling"])
        state = from_bytes(weights)
        state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        _fill(net, state, "config.json describes")
    except (TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: {first_line(error)}") from error
    return net, path, config["learned"], scaling, config.get("knows_no_class")


def read_config(folder: str | PathLike[str]) -> dict[str, Any]:
    """Return the checked ``config.json`` of a saved model, in today's layout.

    Args:
        folder: A folder that ``save_pretrained`` wrote.

    Returns:
        A dict with the keys format, network, path, learned, scaling, sha256, info and
        config_sha256.

    Raises:
        FileNotFoundError: If the folder has no such file.
        ValueError: If the file is damaged, was changed after it was written, or has an unknown
            layout.
    """
    if not isinstance(folder, (str, PathLike)):
        raise ValueError(
            f"the folder of a model must be a path, got {folder!r}: give a folder from save_pretrained"
        )
    file = FilePath(folder) / "config.json"
    if not file.is_file():
        hint = ""
        if (FilePath(folder) / "checkpoints").is_dir():
            hint = '; this one holds a run, which fit(..., resume="auto") continues, and returns its model'
        raise FileNotFoundError(
            f"no model in {folder}: {file.name} is missing; expected a folder from save_pretrained{hint}"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if config["format"] not in (1, FORMAT):
            raise ValueError(f"format {config['format']} is not {FORMAT}")
        config["network"]["name"], config["path"]["name"], config["sha256"]
        if config["config_sha256"] != config_digest(config):
            raise ValueError("it was changed after it was written")
        return _modern(config) if config["format"] == 1 else config
    except (ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is damaged or not a model's configuration ({why})") from error


def config_digest(config: dict[str, Any]) -> str:
    """Return the sha256 of everything in ``config.json`` but this digest."""
    rest = {key: value for key, value in config.items() if key != "config_sha256"}
    return sha256(json.dumps(rest, sort_keys=True).encode())


def learned_by(objective: dict[str, Any]) -> str | None:
    """Return what an objective of a manifest teaches, for folders that do not say it themselves.

    Args:
        objective: The objective's name and settings, as manifests have them.

    Returns:
        A word of ``FlowMap.learned``, or None for an objective that is not one of ours.
    """
    name = objective.get("name")
    if name == "EnergyMatching":
        return learned_by(objective.get("base") or {})
    if name == "X0Regression":
        return "jump_to_data" if objective.get("anchor") in (None, "none") else "refinement"
    if name in (
        "IntegralIdentity",
        "IntegralAdditivity",
        "TerminalVelocity",
        "FlowMapDistillation",
    ):
        return "jump"
    if name in ("ConsistencyTraining", "Distillation"):
        return "jump_to_data"
    return "velocity" if name == "FlowMatching" else None


def _modern(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of format 1 in today's layout."""
    modern = dict(config)
    for part in ("network", "path"):
        arguments = dict(config[part])
        modern[part] = {"name": arguments.pop("name"), "module": None, "arguments": arguments}
    manifest = config["info"].get("manifest") or {}
    return {**modern, "learned": learned_by(manifest.get("objective") or {}), "scaling": None}


def _state(net: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a network's state: safetensors takes no two tensors in one memory."""
    state = net.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the state of {type(net).__name__} holds {name}, a {type(value).__name__}: only tensors can "
                "be saved"
            )
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def _fill(net: nn.Module, state: dict[str, Tensor], source: str) -> None:
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        # torch lists every tensor on a line of its own
        why = textwrap.shorten(str(error), 120, placeholder="...")
        raise ValueError(f"the weights do not fit the network that {source} ({why})") from error
