"""``TensorData``, a data set in memory, and how any data become one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
    default_convert,
)

from ..scaling import Standardization
from .mapped import is_large, row_blocks, spaced_rows
from .unpack import checked_floats, checked_labels, unpack


class TensorData(Dataset):
    """A data set in memory, or in a mapped file.

    An item is ``x[i]``, or ``(x[i], labels[i])`` where there are labels.

    Args:
        x: Examples (B, ...), a float tensor, array or nested list; kept as float32. A memory-mapped
            float32 array, ``np.load("x.npy", mmap_mode="c")``, stays on disk, and RAM does not grow
            with the data.
        labels: Classes (B,), whole numbers from 0 of any integer type; kept as int64. None for data
            without classes.
        name: What errors and manifests call the data.
        noise: For coupled data (``iflow_lib.reflow``), the noise z (B, ...) that belongs to each
            example, in the shape of ``x``.
        scaling: The ``Standardization`` that made ``x`` from the original data. ``fit`` hands it to
            the model, and ``sample`` undoes it.

    Attributes:
        mapped: The memory-mapped array that ``x`` is a view of, or None.

    Raises:
        ValueError: For data that are not finite floats (B, ...), or labels or noise that do not
            fit.
    """

    def __init__(
        self,
        x: Tensor | np.ndarray | Sequence,
        labels: Tensor | np.ndarray | Sequence | None = None,
        name: str = "tensor",
        noise: Tensor | np.ndarray | None = None,
        scaling: Standardization | None = None,
    ) -> None:
        if isinstance(x, TensorData):
            raise ValueError(f"{name}: x is a TensorData already; use it as it is")
        values, found = unpack(x, name)
        self.x = checked_floats(values, name).float()
        self.mapped: np.memmap | None = None
        if isinstance(values, np.memmap) and values.dtype == np.float32:  # else x is a copy in RAM
            self.mapped = values
        labels = found if labels is None else labels
        self.labels = None if labels is None else checked_labels(labels, len(self.x), name)
        self.noise = None
        if noise is not None:
            self.noise = checked(noise, f"noise of {name}").float()
            if self.noise.shape != self.x.shape:
                raise ValueError(
                    f"{name}: noise must have the shape of x, {tuple(self.x.shape)}; got "
                    f"{tuple(self.noise.shape)}"
                )
        self.name, self.scaling = name, _fitting(scaling, self.x, name)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Tensor | tuple[Tensor, Tensor]:
        return self.x[index] if self.labels is None else (self.x[index], self.labels[index])

    def rows(self, index: Sequence[int] | Tensor) -> TensorData:
        """Return some of the examples, with their labels and noise, in the same scale.

        Args:
            index: Positions (b,).

        Returns:
            The examples, in memory.
        """
        index = torch.as_tensor(index, dtype=torch.long)
        labels = None if self.labels is None else self.labels[index]
        noise = None if self.noise is None else self.noise[index]
        return TensorData(self.x[index], labels, self.name, noise, self.scaling)

    def __repr__(self) -> str:
        scaled = "" if self.scaling is None else ", standardized"
        return f"TensorData({self.name!r}, {tuple(self.x.shape)}{scaled})"

    @property
    def sha256(self) -> str:
        """The sha256 of the bytes of ``x``, all of which are read, each time: they may change."""
        return _sha256(self.x, self.mapped)

    @property
    def fingerprint(self) -> str:
        """A digest that tells data sets apart without reading a very large one as a whole.

        It is ``sha256`` up to 256 MB; beyond, the sha256 of the shape and 4,096 evenly spaced rows.
        """
        return _fingerprint(self.x, self.mapped)

    def fingerprints(self) -> dict[str, str | None]:
        """Return the fingerprint of ``x`` as sha256, and those of labels and noise, None without."""
        more = {"labels": self.labels, "noise": self.noise}
        return {"sha256": self.fingerprint} | {
            name: None if values is None else _fingerprint(values) for name, values in more.items()
        }


def _fitting(scaling: Any, x: Tensor, name: str) -> Standardization | None:
    """A scaling, or ValueError if it is not one of such examples."""
    if scaling is None:
        return None
    example = tuple(x.shape[1:])
    if not isinstance(scaling, Standardization):
        raise ValueError(
            f"{name}: scaling must be a Standardization, got a {type(scaling).__name__}; "
            "standardize(x) makes data with theirs"
        )
    try:
        fits = torch.broadcast_shapes(scaling.mean.shape, example) == example
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: scaling has the shape {tuple(scaling.mean.shape)}; expected one that broadcasts "
            f"against an example, {example}: standardize(x) makes it"
        )
    return scaling


def _joined(parts: list[TensorData], name: str) -> TensorData:
    """Data sets one after the other, if they are in one scale and have the same parts."""
    first = parts[0]

    def told(part: TensorData) -> list:
        scale = None if part.scaling is None else part.scaling.config()
        return [part.x.shape[1:], scale, part.labels is None, part.noise is None]

    if any(told(part) != told(first) for part in parts):
        raise ValueError(
            f"{name} joins data sets that differ in shape, scaling, labels or noise; join them first, "
            "and standardize the whole"
        )
    joined = (
        None if getattr(first, key) is None else torch.cat([getattr(p, key) for p in parts])
        for key in ("labels", "noise")
    )
    x = torch.cat([p.x for p in parts])
    return TensorData(x, next(joined), first.name, next(joined), first.scaling)


def _sha256(x: Tensor, mapped: np.memmap | None = None) -> str:
    digest = hashlib.sha256()
    for block in row_blocks(x, mapped):
        digest.update(block.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _fingerprint(x: Tensor, mapped: np.memmap | None = None) -> str:
    if not is_large(x):
        return _sha256(x, mapped)
    digest = hashlib.sha256(repr(tuple(x.shape)).encode())
    digest.update(spaced_rows(x, mapped=mapped).cpu().contiguous().numpy().data)
    return digest.hexdigest()


def as_dataset(data: Any) -> TensorData:
    """Return data as people have them as a ``TensorData``.

    Args:
        data: A float tensor or array (B, ...), memory-mapped or not; nested lists; a
            ``TensorData``; a torch Dataset with a length, of x or (x, y), where y are whole
            numbers, kept as labels; a DataLoader, whose data set is taken; or a pandas DataFrame of
            numbers without gaps, whose columns become the last axis. Each item of a Dataset is read
            once: what a random augmentation makes of it then is kept.

    Returns:
        The data, float32. A ``TensorData`` is returned as it is.

    Raises:
        ValueError: With one line for anything else, for whole-number or complex examples, rank
            below 2, no examples, examples of differing shapes, NaN or infinity, or labels that are
            not whole numbers from 0.
    """
    data = resolved(data)
    if isinstance(data, TensorData):
        checked(data)  # its tensor may have been changed since
        return data
    values, labels = values_and_labels(data)
    found = TensorData(values, labels, name="data")  # what errors call it
    found.name = "tensor"
    return found


def resolved(data: Any, name: str = "data") -> Any:
    """Return the data set behind a DataLoader, or behind a part of a ``TensorData``.

    A part, such as ``torch.utils.data.random_split`` makes, keeps the noise and the scaling of the
    whole, and so does a ``ConcatDataset`` of parts in one scale.

    Args:
        data: What ``as_dataset`` takes.
        name: What errors call the data.

    Returns:
        The data set, or ``data`` itself.

    Raises:
        ValueError: If a DataLoader has a sampler that may leave examples out or a collate_fn, or a
            ConcatDataset joins different scales.
    """
    if isinstance(data, DataLoader):
        # the loader of an iterable data set has a sampler of its own; that set is refused later
        if hasattr(data.dataset, "__len__") and not isinstance(
            data.sampler, (SequentialSampler, RandomSampler)
        ):
            raise ValueError(
                f"{name} is a DataLoader with a {type(data.sampler).__name__}; give a Dataset of the "
                "examples to train on, such as torch.utils.data.Subset"
            )
        if type(data.batch_sampler) not in (BatchSampler, type(None)) or data.collate_fn not in (
            default_collate,
            default_convert,
        ):
            own = "collate_fn" if type(data.batch_sampler) is BatchSampler else "batch_sampler"
            raise ValueError(
                f"{name} is a DataLoader with its own {own}, which would be left out; give a Dataset "
                "whose items are what to train on"
            )
        data = data.dataset
    if type(data) is ConcatDataset:
        parts = [resolved(part, name) for part in data.datasets]
        found = [part for part in parts if isinstance(part, TensorData)]
        if len(found) == len(parts):
            return _joined(found, name)
        if any(part.scaling is not None for part in found):
            raise ValueError(
                f"{name} joins standardized data with others; join them first, and standardize the whole"
            )
    if type(data) is Subset:
        part = resolved(data.dataset, name)
        return part.rows(data.indices) if isinstance(part, TensorData) else data
    return data


def as_tensor(data: Any) -> Tensor:
    """Return the examples of data as a float32 tensor (B, ...); see ``as_dataset``."""
    return as_dataset(data).x


def checked(data: Any, name: str = "data") -> Tensor:
    """Return the examples of data as a tensor (B, ...) that keeps its float type.

    Args:
        data: What ``as_dataset`` takes.
        name: What errors call the data.

    Returns:
        The examples, without a gradient.

    Raises:
        ValueError: As ``as_dataset``.
    """
    return checked_floats(values_and_labels(data, name)[0], name)


def values_and_labels(data: Any, name: str = "data") -> tuple[Tensor | np.ndarray, Any]:
    """Find the values, and the labels or None, in data; neither is checked yet.

    Args:
        data: What ``as_dataset`` takes.
        name: What errors call the data.

    Returns:
        A tensor or an array, mapped where the data are, and labels in any form.

    Raises:
        ValueError: For anything that ``as_dataset`` does not take.
    """
    data = resolved(data, name)
    if isinstance(data, TensorData):
        return (data.x if data.mapped is None else data.mapped), data.labels
    return unpack(data, name)


def shape_hint(x: Tensor, expected: Sequence[int]) -> str:
    """Say how data of the wrong shape might be brought into the one that a network takes.

    Args:
        x: The data (B, ...).
        expected: The shape of one example that the network takes.

    Returns:
        A remedy, such as ``"x.permute(0, 3, 1, 2) puts the channels first"``, or "" if there is
        none.
    """
    given, expected = tuple(x.shape[1:]), tuple(expected)
    if given == expected:
        return ""
    if len(expected) == 3 and len(given) == 3 and given[2] in (1, 3) and given[0] not in (1, 3):
        return "x.permute(0, 3, 1, 2) puts the channels first"
    if len(given) == 2 and expected == (1, *given):
        return "x[:, None] adds the channel"
    if sorted(given) == sorted(expected):  # a reshape would scramble the values
        sides, axes = [0, *given], [0]
        for side in expected:
            axes.append(sides.index(side, 1))
            sides[axes[-1]] = 0
        return f"x.permute{tuple(axes)} puts the axes in its order"
    if int(np.prod(given)) == int(np.prod(expected)):
        if len(expected) == 1:
            return "x.flatten(1)"
        if len(given) == 1:
            return f"x.reshape(-1, {str(expected)[1:-1]})"
    return ""
