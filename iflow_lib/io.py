"""Files: written whole or not at all, and checked when they are read. No pickle."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def write_atomic(file, content: bytes | str) -> None:
    """Write a file whole or not at all: into a temporary file beside it, then one rename.

    Raises OSError with one line that names the file if it cannot be written.
    """
    write_together({file: content})


def write_together(contents: dict) -> None:
    """Write files ``{file: content}`` that belong together: all are on the disk before the first takes its place.

    Raises OSError with one line that names the file that cannot be written.
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
    return hashlib.sha256(content).hexdigest()


def read_checked(file, digest: str) -> bytes:
    """The file's bytes, if their sha256 is ``digest``. FileNotFoundError or ValueError with one clear line if not."""
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    content = file.read_bytes()
    if sha256(content) != digest:
        raise ValueError(
            f"{file} is damaged: its sha256 is not {digest[:12]}...; fetch or write it again"
        )
    return content


def weights_digest(model) -> str:
    """sha256 of a module's weights as float32, in the order of its state."""
    return sha256(
        b"".join(
            w.detach().cpu().float().contiguous().numpy().tobytes()
            for w in model.state_dict().values()
        )
    )
