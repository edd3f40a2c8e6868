"""Files: written whole or not at all, and checked when they are read. No pickle."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import nn

AnyPath = str | os.PathLike[str]
File = TypeVar("File", bound=AnyPath)


def write_atomic(file: AnyPath, content: bytes | str) -> None:
    """Write a file whole or not at all: into a temporary file beside it, then one rename.

    Args:
        file: Where to write; its folder is made if it is missing.
        content: Bytes, or text to be encoded as UTF-8.

    Raises:
        OSError: If it cannot be written; one line that names the file.
    """
    write_together({file: content})


def write_together(contents: Mapping[File, bytes | str]) -> None:
    """Write files that belong together: all are on the disk before the first takes its place.

    Args:
        contents: ``{file: content}``, see ``write_atomic``.

    Raises:
        OSError: If one cannot be written; one line that names it.
    """
    staged: list[tuple[str, Path]] = []
    try:
        for file, content in ((Path(f), c) for f, c in contents.items()):
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
        raise OSError(
            f"cannot write {file}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    finally:
        for temporary, _ in staged:
            if os.path.exists(temporary):
                os.unlink(temporary)


def sha256(content: bytes) -> str:
    """Return the sha256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(file: AnyPath) -> str:
    """Return the sha256 of a file, in hexadecimal, without holding the file in memory."""
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_checked(file: AnyPath, digest: str) -> bytes:
    """Return a file's bytes, if their sha256 is the expected one.

    Args:
        file: File to read.
        digest: Its sha256, in hexadecimal.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has another sha256.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    content = file.read_bytes()
    if sha256(content) != digest:
        raise ValueError(
            f"{file} is damaged: its sha256 is not {digest[:12]}...; fetch or write it again"
        )
    return content


def weights_digest(model: nn.Module) -> str:
    """Return the sha256 of a module's weights and buffers as float32, in the order of its state."""
    return sha256(
        b"".join(
            w.detach().cpu().float().contiguous().numpy().tobytes()
            for w in model.state_dict().values()
        )
    )
