"""Data in memory, and every check of data that a user brings."""

from __future__ import annotations

import functools
import hashlib
import mmap
import warnings

import numpy as np
import torch
from torch.utils.data import Dataset


class TensorData(Dataset):
    """A whole data set in memory. ``x``: float32 (B, ...); ``labels``: int64 (B,) or None; ``name``; ``noise``: the z that
    belongs to each example, (B, ...), for coupled data (``samplers.reflow``), or None.

    x may be a memory-mapped array, ``np.load("x.npy", mmap_mode="c")``: float32 then stays on disk, and RAM does not grow
    with the data set. An item is ``x[i]``, or ``(x[i], labels[i])`` where there are labels.
    """

    def __init__(
        self,
        x: torch.Tensor | np.memmap,
        labels: torch.Tensor | None = None,
        name: str = "tensor",
        noise: torch.Tensor | None = None,
    ):
        self.mapped = x if isinstance(x, np.memmap) else None
        x = as_tensor(x) if isinstance(x, np.memmap) else x
        if labels is not None and len(labels) != len(x):
            raise ValueError(f"{name}: {len(x)} examples but {len(labels)} labels")
        if noise is not None and noise.shape != x.shape:
            raise ValueError(
                f"{name}: noise must have the shape of x, {tuple(x.shape)}; got {tuple(noise.shape)}"
            )
        self.x, self.labels, self.name, self.noise = x, labels, name, noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] if self.labels is None else (self.x[index], self.labels[index])

    def __repr__(self) -> str:
        return f"TensorData({self.name!r}, {tuple(self.x.shape)})"

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the bytes of ``x``."""
        digest = hashlib.sha256()
        for block in _blocks(self.x, self.mapped):
            digest.update(block.cpu().contiguous().numpy())
        return digest.hexdigest()


def as_tensor(data) -> torch.Tensor:
    """A float32 tensor (B, ...) from a tensor, a numpy array, a ``TensorData`` or a Dataset of x or (x, y).

    Raises ValueError with one line for anything else, whole-number or complex data, rank below 2, no
    examples, examples of differing shapes, NaN or infinity.
    """
    return checked(data).float()


def checked(data, name: str = "data") -> torch.Tensor:
    """As ``as_tensor``, same errors, but keeping the type of the floats; ``name`` is what errors call it."""
    mapped = data if isinstance(data, np.memmap) else None
    if isinstance(data, TensorData):
        data, mapped = data.x, data.mapped
    if isinstance(data, np.ndarray):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # of arrays that are read-only: nothing here writes
            data = torch.from_numpy(np.ascontiguousarray(data))
    if not isinstance(data, torch.Tensor):
        data = _stack(data, name)
    if not data.is_floating_point():
        raise ValueError(
            f"{name} has type {data.dtype}; expected floats of about unit size, "
            "for pictures x.float() / 255 * 2 - 1"
        )
    if data.ndim < 2:
        raise ValueError(
            f"{name} has shape {tuple(data.shape)}; expected rank 2 or more, (examples, ...)"
        )
    if data.numel() == 0:
        raise ValueError(f"{name} of shape {tuple(data.shape)} is empty")
    bad = sum(int((~torch.isfinite(block)).sum()) for block in _blocks(data, mapped))
    if bad:
        raise ValueError(f"{name} has {bad} NaN or infinite values; remove them first")
    return data.detach()


def release(array) -> None:
    """Give the memory of a large memory-mapped array back to the system, which reads it again where it is needed. Nothing
    is lost, and other arrays are left alone. Without it, every page ever touched would count as this process's."""
    if _large(array):
        array._mmap.madvise(mmap.MADV_DONTNEED)


def _large(array) -> bool:
    mapping = getattr(array, "_mmap", None)
    return mapping is not None and len(mapping) > 1 << 26 and hasattr(mmap, "MADV_DONTNEED")


def portions(n: int, mapped):
    """Slices of n rows to be touched, in any order, of what may be a large mapped array, which is released after each: a
    system that maps the neighbours of every page it reads would hold a good part of the file after one batch."""
    size = 16 if _large(mapped) else max(1, n)
    for start in range(0, n, size):
        yield slice(start, start + size)
        release(mapped)


def _blocks(x: torch.Tensor, mapped):
    """The rows of x in blocks of 4 MB or so, released once used."""
    for block in x.split(max(1, (1 << 20) // max(1, x[0].numel()))):
        yield block
        release(mapped)


def _stack(data, name: str) -> torch.Tensor:
    if not isinstance(data, Dataset) or not hasattr(data, "__len__"):
        raise ValueError(
            f"{name} is a {type(data).__name__}; "
            "expected a tensor (examples, ...) or a torch Dataset with a length"
        )
    if len(data) == 0:
        raise ValueError(f"{name} is empty: the data set has length 0")
    items = (data[i] for i in range(len(data)))
    try:
        return torch.stack(
            [torch.as_tensor(x[0] if isinstance(x, (tuple, list)) else x) for x in items]
        )
    except (TypeError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"the examples of {name} do not make one tensor: {why}") from error
