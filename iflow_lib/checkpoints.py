"""Models on disk: safetensors and JSON, written atomically, checked on loading. No pickle."""
from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path as FilePath

import torch

from .networks import NETWORKS
from .paths import PATHS

FORMAT = 1


def write_atomic(file, content: bytes | str) -> None:
    """Write a file whole or not at all: into a temporary file beside it, then one rename.

    Raises OSError with one line that names the file if it cannot be written.
    """
    write_together({file: content})


def write_together(contents: dict) -> None:
    """Write files ``{file: content}`` that belong together: all are on the disk before the first takes its place.

    Raises OSError with one line that names the file that cannot be written.
    """
    staged: list[tuple[str, FilePath]] = []
    try:
        for file, content in ((FilePath(f), c) for f, c in contents.items()):
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
            staged.append((temporary, file))
            with os.fdopen(handle, "wb") as f:
                f.write(content.encode() if isinstance(content, str) else content)
                f.flush()
                os.fsync(f.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp gives 0600: readable by the owner alone
        for temporary, file in staged:
            os.replace(temporary, file)
    except OSError as error:
        raise OSError(f"cannot write {file}: {error.strerror or error}; choose a folder that can be written") from error
    finally:
        for temporary, _ in staged:
            if os.path.exists(temporary):
                os.unlink(temporary)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_checked(file, digest: str) -> bytes:
    """The file's bytes, if their sha256 is ``digest``. FileNotFoundError or ValueError with one clear line if not."""
    file = FilePath(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    content = file.read_bytes()
    if sha256(content) != digest:
        raise ValueError(f"{file} is damaged: its sha256 is not {digest[:12]}...; fetch or write it again")
    return content


def weights_digest(model) -> str:
    """sha256 of a module's weights as float32, in the order of its state."""
    return sha256(b"".join(w.detach().cpu().float().contiguous().numpy().tobytes() for w in model.state_dict().values()))


def _config_digest(config: dict) -> str:
    """Of everything in ``config.json`` but this digest, whatever its layout in the file."""
    rest = {key: value for key, value in config.items() if key != "config_sha256"}
    return sha256(json.dumps(rest, sort_keys=True).encode())


def save(model, folder, *, card: str | None, dtype: torch.dtype | None, info: dict) -> None:
    from safetensors.torch import save as to_bytes

    net = model.net
    if NETWORKS.get(type(net).__name__) is not type(net):
        raise ValueError(f"only {', '.join(NETWORKS)} can be saved, not {type(net).__name__}; save its state yourself")
    state = {k: v.detach().cpu().to(dtype if v.is_floating_point() else None).contiguous()
             for k, v in net.state_dict().items()}
    weights = to_bytes(state)
    config = {
        "format": FORMAT,
        "network": {"name": type(net).__name__, **net.config()},
        "path": {"name": model.path.name, **model.path.config()},
        "sha256": sha256(weights),
        "info": info,
    }
    config["config_sha256"] = _config_digest(config)
    text = json.dumps(config, indent=2) + "\n"  # before anything is written: info that is not JSON fails here
    folder = FilePath(folder)
    files = {folder / "model.safetensors": weights, folder / "config.json": text}
    if card is not None:
        files[folder / "README.md"] = card
    write_together(files)


def read_config(folder) -> dict:
    """The checked ``config.json`` of a saved model."""
    file = FilePath(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"no model in {folder}: {file.name} is missing; expected a folder from save_pretrained")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise ValueError(f"format {config['format']} is not {FORMAT}")
        config["network"]["name"], config["path"]["name"], config["sha256"]
        if config["config_sha256"] != _config_digest(config):
            raise ValueError("it was changed after it was written")
    except (ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is damaged or not a model's configuration ({why})") from error
    return config


def load(cls, folder, *, device="cpu"):
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    config = read_config(folder)
    weights = read_checked(FilePath(folder) / "model.safetensors", config["sha256"])
    parts = []
    for kind, known in (("network", NETWORKS), ("path", PATHS)):
        arguments = dict(config[kind])
        name = arguments.pop("name")
        if name not in known:
            raise ValueError(f"{folder} names an unknown {kind} {name!r}; this version knows {', '.join(known)}")
        try:
            parts.append(known[name](**arguments))
        except TypeError as error:
            raise ValueError(f"{folder} has arguments that {name} does not take: {error}") from error
    model = cls(*parts)
    try:
        model.net.load_state_dict({k: v.float() for k, v in from_bytes(weights).items()})
    except (RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:120]  # torch lists every tensor on a line of its own
        raise ValueError(f"{folder}: the weights do not fit the network in config.json ({why}...)") from error
    return model.to(device).eval()
