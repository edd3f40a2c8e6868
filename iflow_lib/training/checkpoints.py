"""Keep a run on disk, so that it can be continued to the bit: safetensors and JSON, no pickle.

    <folder>/checkpoints/step-00001200/   state.safetensors, state.json
    <folder>/run.lock                     held by the process that trains here

A checkpoint appears whole or not at all; ``state.json`` holds the sha256 of every other file in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..io import file_sha256
from ..networks import NETWORKS
from ..registry import older_arguments
from .distributed import Processes

if TYPE_CHECKING:
    from filelock import FileLock

#: Settings of objectives that earlier versions had, each with the value under which it did nothing.
RETIRED_SETTINGS = {"teacher": None, "perceptual": 0.0, "matching": 0.0, "store_dtype": "float32"}

#: Settings of the run that checkpoints of earlier versions lack, each with what they did.
LATER_SETTINGS = {"coupling": "independent"}

#: Settings of objectives that checkpoints of earlier versions lack, each with what they did.
LATER_OF_OBJECTIVES = {"velocity": "pair", "gap": None}

#: Marks of the data and the network that checkpoints of earlier versions lack.
LATER_MARKS = ("labels", "noise", "config")
#: What reading a damaged checkpoint raises.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)
#: What ``info`` must hold, each with its type.
INFO: dict[str, Any] = {"step": int, "seconds": (int, float), "identity": dict, "rows": list}


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Args:
        tensors: Everything that a step reads or changes, by name.
        info: The rest, JSON values.
        folder: Where it lies.
    """

    tensors: dict[str, Tensor]
    info: dict[str, Any]
    folder: Path


class RunFolder:
    """The folder of a run, locked against other runs within a ``with`` block.

    The first process writes; every process raises what went wrong there.

    Args:
        folder: Where the run is kept.
        keep: Newest checkpoints that stay.
        processes: Processes that share the run; one, if not given.

    Raises:
        OSError: On entering, if the folder cannot be written or is in use.
    """

    def __init__(
        self, folder: str | os.PathLike[str], keep: int = 2, processes: Processes | None = None
    ) -> None:
        self.folder, self.keep = Path(os.path.abspath(folder)), keep
        self.processes = processes or Processes()
        self._lock: FileLock | None = None

    def __enter__(self) -> RunFolder:
        self.processes.on_first(self._open)
        return self

    def _open(self) -> None:
        from filelock import FileLock, Timeout  # late: it takes a tenth of a second

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
        for left in (self.folder / "checkpoints").glob(".*.partial"):  # of a run killed in a save
            shutil.rmtree(left, ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    def checkpoints(self) -> list[Path]:
        """Return the folders of the checkpoints, newest first."""
        found = [
            p for p in (self.folder / "checkpoints").iterdir() if re.fullmatch(r"step-\d+", p.name)
        ]
        return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)

    def newest(self) -> str:
        """Return one phrase on the newest checkpoint, for errors."""
        found = self.checkpoints()
        return f"the last good checkpoint is {found[0]}" if found else "there is no checkpoint yet"

    def save(self, step: int, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Write a checkpoint, and drop the oldest beyond ``keep``.

        Args:
            step: Steps done.
            tensors: See ``Checkpoint``.
            info: See ``Checkpoint``.

        Raises:
            OSError: If it cannot be written. It names the step and the newest good checkpoint, and
                nothing half-written is left.
        """
        self.processes.on_first(lambda: self._write(step, tensors, info))

    def _write(self, step: int, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        target = self.folder / "checkpoints" / f"step-{step:08d}"
        partial = target.with_name(f".{target.name}.partial")
        try:
            partial.mkdir()
            (partial / "state.safetensors").write_bytes(to_bytes(_on_cpu(tensors)))
            digests = {p.name: file_sha256(p) for p in sorted(partial.iterdir())}
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

    def load(self, wanted: Path | None = None) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None if there is none at all.

        A damaged one is passed over with a warning. The first process chooses, and all read the
        same.

        Args:
            wanted: Folder of the checkpoint to read instead.

        Raises:
            ValueError: If ``wanted`` is damaged, or all there are.
            OSError: If a process cannot read what the first one reads.
        """
        found: Checkpoint | None = None

        def choose() -> Path | None:
            nonlocal found
            found = self._newest_whole(wanted)
            return found and found.folder

        place = self.processes.on_first(choose)
        if place is None:
            return None
        if found is None:
            try:
                found = _read(place)
            except DAMAGE:
                pass  # reported below, by all processes together
        if self.processes.any(found is None)[0]:
            raise OSError(
                f"a process cannot read {place}: out_dir must be a folder that all of them see"
            )
        return found

    def _newest_whole(self, wanted: Path | None) -> Checkpoint | None:
        if wanted and not (wanted / "state.json").is_file():
            raise ValueError(
                f'there is no checkpoint {wanted}: give resume="auto" for the newest one in out_dir, or the '
                "folder of one, such as OUT_DIR/checkpoints/step-00001000"
            )
        candidates = [wanted] if wanted else self.checkpoints()
        for folder in candidates:
            try:
                return _read(folder)
            except DAMAGE as error:
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


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, each with memory of its own: safetensors refuses tied weights."""
    out: dict[str, Tensor] = {}
    owned = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if memory in owned else tensor
        owned.add(memory)
    return out


def _read(folder: Path) -> Checkpoint:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if not isinstance(state, dict) or not isinstance(state["sha256"], dict):
        raise ValueError("state.json is not as it was written")
    if "state.safetensors" not in state["sha256"]:
        raise ValueError("state.json has no sha256 of state.safetensors")
    if wrong := [k for k, kind in INFO.items() if not isinstance(state["info"].get(k), kind)]:
        raise ValueError(f"state.json has no {wrong[0]}")
    for name, digest in state["sha256"].items():
        if file_sha256(folder / name) != digest:
            raise ValueError(f"the sha256 of {name} is wrong")
    try:
        tensors = from_bytes((folder / "state.safetensors").read_bytes())
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    anchors = folder / "anchors.npy"  # where earlier versions kept the estimates of X0Regression
    if anchors.is_file():
        tensors["objective.estimates"] = torch.from_numpy(np.load(anchors, allow_pickle=False))
    return Checkpoint(tensors, state["info"], folder)


def difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str | None:
    """Say in what a checkpoint's run differs from this one.

    Args:
        theirs: The identity that the checkpoint holds: dictionaries of settings, by part of the
            run.
        mine: The identity of this run, as JSON gives it back.

    Returns:
        A phrase that names the part and the settings that differ, or None if none do.
    """
    for part, here in mine.items():
        there = theirs.get(part)
        if part == "objective" and isinstance(there, dict):
            there = {
                k: v
                for k, v in there.items()
                if k in here or k not in RETIRED_SETTINGS or v != RETIRED_SETTINGS[k]
            }
            there = {k: v for k, v in LATER_OF_OBJECTIVES.items() if k in here} | there
        if part == "config" and isinstance(there, dict):
            there = LATER_SETTINGS | there
        if part in ("data", "network") and isinstance(there, dict):  # written by an earlier version
            here = {k: v for k, v in here.items() if k in there or k not in LATER_MARKS}
        if part == "network" and isinstance(there, dict) and isinstance(there.get("config"), dict):
            later = older_arguments(NETWORKS.get(there.get("name", "")))
            known = {k: v for k, v in later.items() if k in (here.get("config") or {})}
            there = {**there, "config": known | there["config"]}
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            keys = [k for k in {**there, **here} if there.get(k) != here.get(k)]
            there, here = ({k: d.get(k) for k in keys} for d in (there, here))
        return f"its {part} is {there}, here it is {here}"
    return None


class Signals:
    """Note Ctrl-C and SIGTERM within a ``with`` block, so that the step at work can end.

    ``received`` says whether one came. The second one does what it always does.
    """

    def __enter__(self) -> Signals:
        self.received = False
        self.earlier: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.earlier[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.signal(number, self.earlier[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
