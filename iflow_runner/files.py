"""Read files, write them whole or not at all, and keep a folder for one process at a time."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Write files that belong together: all are on the disk before the first takes its place.

    Args:
        contents: What to write into each file. Folders are made.

    Raises:
        OSError: With one line, if one cannot be written.
    """
    staged = {file: file.with_name(f".{file.name}.{os.getpid()}.new") for file in contents}
    try:
        for file, content in contents.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(staged[file], "wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
        for file, new in staged.items():
            os.replace(new, file)
    except OSError as error:
        raise OSError(
            f"cannot write {file}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    finally:
        for new in staged.values():
            new.unlink(missing_ok=True)


def read_json(file: Path) -> Any:
    """Read a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        OSError: With one line, if it cannot be read.
        ValueError: With one line, if it is not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from None


def output_folder(folder: Path, kind: str, make: bool) -> Path:
    """Return the absolute path of a folder for results: new, empty, or of an earlier run.

    Args:
        folder: The folder.
        kind: A key that the manifests of this kind of run have.
        make: Make the folder, and try to write there.

    Raises:
        OSError: With one line, if it cannot be written.
        ValueError: With one line, if it holds other files.
    """
    folder = Path(os.path.abspath(folder))
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        names = os.listdir(folder) if folder.exists() else []
    except OSError as error:
        raise OSError(
            f"cannot write to {folder} ({error.strerror}): choose another folder with --out"
        ) from None
    manifest = read_json(folder / "manifest.json")
    earlier = kind in manifest if isinstance(manifest, dict) else "manifest.json" in names
    if not earlier and any(not name.startswith(".") for name in names):
        raise ValueError(
            f"{folder} holds other files and no earlier run of this kind: choose a new or empty "
            "folder with --out"
        )
    return folder


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep a folder for this process.

    Raises:
        OSError: With one line that names the process that has the folder.
    """
    from filelock import FileLock, Timeout

    lock, writer = FileLock(folder / ".lock"), folder / ".writer"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = writer.read_text() if writer.is_file() else "another process"
        raise OSError(
            f"{owner} is already writing to {folder}: wait for it, or choose another with --out"
        ) from None
    try:
        writer.write_text(f"process {os.getpid()}")
        yield
    finally:
        writer.unlink(missing_ok=True)
        lock.release()
