"""Where ``fit`` keeps a run, so that it can be continued to the bit: checkpoints of safetensors and JSON, no pickle.

    <folder>/checkpoints/step-00001200/   state.safetensors, state.json, files of the objective (its anchor store)
    <folder>/anchors/                     the anchor store at work, if there is one

A checkpoint appears whole or not at all; ``state.json`` holds the sha256 of every other file in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import threading
import warnings
from pathlib import Path

from torch import Tensor

from .distributed import Team


class RunFolder:
    """A run's folder, for one process at a time (``with RunFolder(folder) as run:``), or for one ``Team``.

    keep: newest checkpoints that stay. Raises OSError with one line if the folder cannot be written or is in use.
    """

    def __init__(self, folder, keep: int = 2, team: Team | None = None):
        self.folder, self.keep, self.team = Path(os.path.abspath(folder)), keep, team or Team()

    def __enter__(self) -> RunFolder:
        from filelock import FileLock, Timeout

        self._lock = None
        if self.team.rank:
            self.team.wait()
            return self
        try:
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / "run.lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise OSError(
                f"{self.folder} is in use by another process: wait for it, or choose another out_dir"
            ) from None
        except OSError as error:
            raise OSError(
                f"cannot write to {self.folder}: {error.strerror or error}; choose another out_dir"
            ) from error
        for left in (self.folder / "checkpoints").glob(
            ".*.partial"
        ):  # of a run that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        self.team.wait()
        return self

    def __exit__(self, *_) -> None:
        if self._lock is not None:
            self._lock.release()

    def checkpoints(self) -> list[Path]:
        """Folders of the checkpoints, newest first."""
        found = (
            p for p in (self.folder / "checkpoints").iterdir() if re.fullmatch(r"step-\d+", p.name)
        )
        return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)

    def save(self, step: int, tensors: dict[str, Tensor], info: dict, add_files=None) -> Path:
        """Write a checkpoint and drop the oldest beyond ``keep``. add_files(folder): writes more files into it. Of a team,
        the first writes, and all go through add_files.

        Raises OSError that names the step and the newest good checkpoint; nothing half-written is left.
        """
        from safetensors.torch import save as to_bytes

        target = self.folder / "checkpoints" / f"step-{step:08d}"
        partial = target.with_name(f".{target.name}.partial")
        if self.team.rank:
            self.team.wait()
            if add_files is not None:
                add_files(partial)
            self.team.wait()
            return target
        try:
            partial.mkdir()
            content = to_bytes(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            )
            (partial / "state.safetensors").write_bytes(content)
            self.team.wait()
            if add_files is not None:
                add_files(partial)
            digests = {p.name: _digest(p) for p in sorted(partial.iterdir())}
            text = json.dumps({"format": 1, "step": step, "info": info, "sha256": digests})
            (partial / "state.json").write_text(text, encoding="utf-8")
            for file in partial.iterdir():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
        except OSError as error:
            raise OSError(
                f"the checkpoint of step {step} could not be written: {error.strerror or error}; "
                f"{self.newest()}"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for old in self.checkpoints()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        self.team.wait()
        return target

    def newest(self) -> str:
        """One phrase on the newest checkpoint, for errors."""
        found = self.checkpoints()
        return f"the last good checkpoint is {found[0]}" if found else "there is no checkpoint yet"

    def load(self, wanted: Path | None = None) -> tuple[dict[str, Tensor], dict, Path] | None:
        """Tensors, info and folder of the newest whole checkpoint, or of ``wanted``; None if there is none.

        A damaged one is passed over with a warning. ValueError if all there are are damaged, or ``wanted`` is.
        """
        candidates = [wanted] if wanted else self.checkpoints()
        for folder in candidates:
            try:
                return _read(folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                why = f"the checkpoint {folder} is damaged ({type(error).__name__}: {error})"
                if wanted:
                    raise ValueError(why) from error
                warnings.warn(
                    f"{why}: falling back to the one before", RuntimeWarning, stacklevel=2
                )
        if candidates:
            raise ValueError(
                f"no checkpoint in {self.folder} is whole: start anew in another out_dir"
            )
        return None


def _read(folder: Path) -> tuple[dict[str, Tensor], dict, Path]:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    for name, digest in state["sha256"].items():
        if _digest(folder / name) != digest:
            raise ValueError(f"the sha256 of {name} is wrong")
    try:
        return from_bytes((folder / "state.safetensors").read_bytes()), state["info"], folder
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Signals:
    """Ctrl-C and SIGTERM are noted once, so that the step at work can end; the second time they do what they always do."""

    def __enter__(self) -> Signals:
        self.seen, self.earlier = False, {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.earlier[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame) -> None:
        self.seen = True
        signal.signal(number, self.earlier[number])

    def __exit__(self, *_) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
