"""Data in memory, and every check of data that a user brings."""

from __future__ import annotations

import functools
import hashlib
import mmap
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from ..scaling import Standardization

#: Data up to this size are read as a whole for checks and digests; of larger files only some rows are.
FULL_READ_BYTES = 256 << 20
#: How many evenly spaced rows stand for data that are too large to be read as a whole.
SPACED_ROWS = 4096


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
        scaling: The ``Standardization`` that made ``x`` from the original data. ``fit`` hands it to the
            model, and ``sample`` undoes it.

    Attributes:
        mapped: The memory-mapped array that ``x`` is a view of, or None.

    Raises:
        ValueError: For data that are not finite floats (B, ...), or labels or noise that do not fit.
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
        self.x = _as_float32(_checked_floats(values, name), name)
        self.mapped: np.memmap | None = None
        if isinstance(values, np.memmap) and values.dtype == np.float32:  # else x is a copy in RAM
            self.mapped = values
        labels = found if labels is None else labels
        self.labels = None if labels is None else _checked_labels(labels, len(self.x), name)
        self.noise = None
        if noise is not None:
            noise, _ = unpack(noise, f"noise of {name}")
            self.noise = _as_float32(_checked_floats(noise, f"noise of {name}"), name)
            if self.noise.shape != self.x.shape:
                raise ValueError(
                    f"{name}: noise must have the shape of x, {tuple(self.x.shape)}; got "
                    f"{tuple(self.noise.shape)}"
                )
        self.name, self.scaling = name, scaling

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Tensor | tuple[Tensor, Tensor]:
        return self.x[index] if self.labels is None else (self.x[index], self.labels[index])

    def __repr__(self) -> str:
        return f"TensorData({self.name!r}, {tuple(self.x.shape)})"

    @functools.cached_property
    def sha256(self) -> str:
        """The sha256 of the bytes of ``x``, all of which are read."""
        digest = hashlib.sha256()
        for block in row_blocks(self.x, self.mapped):
            digest.update(block.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest that tells data sets apart without reading a very large one as a whole.

        It is ``sha256`` up to 256 MB; beyond, the sha256 of the shape and 4,096 evenly spaced rows.
        """
        if _bytes_of(self.x) <= FULL_READ_BYTES:
            return self.sha256
        digest = hashlib.sha256(repr(tuple(self.x.shape)).encode())
        digest.update(spaced_rows(self.x, mapped=self.mapped).cpu().contiguous().numpy().data)
        return digest.hexdigest()


def as_dataset(data: Any) -> TensorData:
    """Return data as people have them as a ``TensorData``.

    Args:
        data: A float tensor or array (B, ...), memory-mapped or not; nested lists; a ``TensorData``; a
            torch Dataset with a length, of x or (x, y), where y are whole numbers, kept as labels; a
            DataLoader, whose data set is taken; or a pandas DataFrame of numbers without gaps, whose
            columns become the last axis.

    Returns:
        The data, float32. A ``TensorData`` is returned as it is.

    Raises:
        ValueError: With one line for anything else, for whole-number or complex examples, rank below 2,
            no examples, examples of differing shapes, NaN or infinity, or labels that are not whole
            numbers from 0.
    """
    if isinstance(data, TensorData):
        checked(data)  # its tensor may have been changed since
        return data
    values, labels = unpack(data, "data")
    found = TensorData(values, labels, name="data")  # what errors call it
    found.name = "tensor"
    return found


def as_tensor(data: Any) -> Tensor:
    """Return the examples of data as a float32 tensor (B, ...); see ``as_dataset``.

    Args:
        data: What ``as_dataset`` takes.

    Returns:
        The examples.

    Raises:
        ValueError: As ``as_dataset``.
    """
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
    return _checked_floats(unpack(data, name)[0], name)


def shape_hint(x: Tensor, expected: Sequence[int]) -> str:
    """Say how data of the wrong shape might be brought into the one that a network takes.

    Args:
        x: The data (B, ...).
        expected: The shape of one example that the network takes.

    Returns:
        A remedy, such as ``"x.permute(0, 3, 1, 2) puts the channels first"``, or "" if there is none.
    """
    given, expected = tuple(x.shape[1:]), tuple(expected)
    if given == expected:
        return ""
    if len(expected) == 3 and len(given) == 3 and given[2] in (1, 3) and given[0] not in (1, 3):
        return "x.permute(0, 3, 1, 2) puts the channels first"
    if len(given) == 2 and expected == (1, *given):
        return "x[:, None] adds the channel"
    if int(np.prod(given)) == int(np.prod(expected)):
        return "x.flatten(1)" if len(expected) == 1 else f"x.reshape(-1, {str(expected)[1:-1]})"
    return ""


# ---------------------------------------------------------------------------- mapped files


def release(array: Any) -> None:
    """Give the memory of a large memory-mapped array back to the system.

    Nothing is lost: the system reads the file again where it is needed. Other arrays are left alone.
    Without it, every page ever touched would count as memory of this process.

    Args:
        array: An array, mapped or not, or None.
    """
    if _mapped_and_large(array):
        array._mmap.madvise(mmap.MADV_DONTNEED)


def portions(n: int, mapped: Any) -> Iterator[slice]:
    """Split n rows, in any order, of what may be a large mapped array, and release it after each part.

    A system that maps the neighbours of every page it reads would otherwise hold a good part of the
    file after one batch.

    Args:
        n: Number of rows to be touched.
        mapped: The mapped array they come from, or None.

    Yields:
        Slices that cover the rows.
    """
    size = 16 if _mapped_and_large(mapped) else max(1, n)
    for start in range(0, n, size):
        yield slice(start, start + size)
        release(mapped)


def row_blocks(x: Tensor, mapped: Any = None) -> Iterator[Tensor]:
    """Yield the rows of x in blocks of about a million numbers, each released once it has been used.

    Args:
        x: Examples (B, ...).
        mapped: The mapped array that x is a view of, or None.

    Yields:
        Blocks (b, ...).
    """
    for block in x.split(max(1, (1 << 20) // max(1, x[0].numel()))):
        yield block
        release(mapped)


def spaced_rows(x: Tensor, rows: int = SPACED_ROWS, mapped: Any = None) -> Tensor:
    """Return evenly spaced rows of x, which stand for all of them in checks of large data.

    Args:
        x: Examples (B, ...).
        rows: How many at most.
        mapped: The mapped array that x is a view of, or None.

    Returns:
        Rows (min(B, rows), ...), the first and the last among them.
    """
    if len(x) <= rows:
        return x
    index = torch.linspace(0, len(x) - 1, rows, dtype=torch.float64).round().long()
    out = x.new_empty(rows, *x.shape[1:])
    for part in portions(rows, mapped):
        out[part] = x[index[part].to(x.device)]
    return out


def _mapped_and_large(array: Any) -> bool:
    mapping = getattr(array, "_mmap", None)
    return mapping is not None and len(mapping) > 1 << 26 and hasattr(mmap, "MADV_DONTNEED")


def _bytes_of(x: Tensor) -> int:
    return x.numel() * x.element_size()


# ---------------------------------------------------------------------------- values


def _checked_floats(values: Any, name: str) -> Tensor:
    """A tensor (B, ...) of finite floats, or one line that says why there is none."""
    tensor = _from_numpy(values, name) if isinstance(values, np.ndarray) else values
    tensor = _plain(tensor, name)
    if not tensor.is_floating_point():
        raise ValueError(
            f"{name} has type {tensor.dtype}; expected floats of about unit size, "
            "for pictures x.float() / 255 * 2 - 1"
        )
    if tensor.ndim < 2:
        remedy = "; for one number an example, x[:, None]" if tensor.ndim else ""
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; expected rank 2 or more, (examples, ...){remedy}"
        )
    if tensor.numel() == 0:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} is empty")
    mapped = values if isinstance(values, np.memmap) else None
    if mapped is not None and _bytes_of(tensor) > FULL_READ_BYTES:
        blocks: Iterator[Tensor] = iter([spaced_rows(tensor, mapped=mapped)])
    else:
        blocks = row_blocks(tensor, mapped)
    bad = sum(int((~torch.isfinite(block)).sum()) for block in blocks)
    if bad:
        raise ValueError(f"{name} has {bad} NaN or infinite values; remove them first")
    return tensor.detach()


def _from_numpy(array: np.ndarray, name: str) -> Tensor:
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise ValueError(
            f"{name} has {int(np.ma.getmaskarray(array).sum())} masked values; fill or remove them first"
        )
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{name} has type {array.dtype}; expected an array of floats")
    if array.dtype == np.longdouble:  # torch has no such type
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        # torch warns of arrays that are read-only; nothing here writes
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.ascontiguousarray(array))


def _plain(tensor: Tensor, name: str) -> Tensor:
    """A dense tensor with values, of a type that torch can compute with."""
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values; load it on the cpu")
    if tensor.is_nested:
        raise ValueError(
            f"{name} is a nested tensor; expected one tensor, all examples of one shape"
        )
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.float()
    return tensor


def _as_float32(tensor: Tensor, name: str) -> Tensor:
    found = tensor.float()
    if tensor.dtype == torch.float64 and not bool(torch.isfinite(found).all()):
        raise ValueError(
            f"{name} has values up to {float(tensor.abs().max()):.3g}, beyond what float32 can hold; "
            "divide them first"
        )
    return found


def _checked_labels(labels: Any, n: int, name: str) -> Tensor:
    """int64 (n,) from 0, or one line that says what is wrong."""
    if not isinstance(labels, Tensor):
        labels = _label_array(labels, name)
    kind = labels.dtype
    if kind == torch.bool or kind.is_floating_point or kind.is_complex:
        raise ValueError(
            f"{name}: labels have type {kind}; expected whole numbers from 0, such as labels.long()"
        )
    if labels.ndim and len(labels) != n:
        raise ValueError(f"{name}: {n} examples but {len(labels)} labels")
    if labels.shape != (n,):
        remedy = "; for one-hot labels, labels.argmax(1)" if labels.ndim == 2 else ""
        raise ValueError(
            f"{name}: labels have shape {tuple(labels.shape)}, expected ({n},), a class for each example"
            f"{remedy}"
        )
    labels = labels.detach().long()
    if int(labels.min()) < 0:
        raise ValueError(f"{name}: labels must count from 0, the smallest is {int(labels.min())}")
    return labels


def _label_array(labels: Any, name: str) -> Tensor:
    try:
        array = np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: the labels do not make one array: {_why(error)}") from error
    if array.dtype.kind not in "biufc":
        raise ValueError(
            f"{name}: labels have type {array.dtype}; expected whole numbers from 0, one for each class"
        )
    if array.dtype.kind in "iu":
        array = array.astype(np.int64)
    return torch.as_tensor(np.ascontiguousarray(array) if array.ndim else array)


# ---------------------------------------------------------------------------- what a user brings


def unpack(data: Any, name: str = "data") -> tuple[Tensor | np.ndarray, Any]:
    """Find the values, and the labels or None, in what a user brings; neither is checked yet.

    Args:
        data: What ``as_dataset`` takes.
        name: What errors call the data.

    Returns:
        A tensor or an array, and labels in any form.

    Raises:
        ValueError: For anything that ``as_dataset`` does not take.
    """
    if isinstance(data, TensorData):
        return (data.x if data.mapped is None else data.mapped), data.labels
    if isinstance(data, (Tensor, np.ndarray)):
        return data, None
    if isinstance(data, DataLoader):
        return unpack(_dataset_of(data, name), name)
    if type(data) is TensorDataset and len(data.tensors) <= 2:  # not a subclass with its own items
        return data.tensors[0], (data.tensors[1] if len(data.tensors) == 2 else None)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and _has_length(data):
        return _from_items(data, name)
    if isinstance(data, (list, tuple)):
        return _from_list(data, name)
    pandas = sys.modules.get("pandas")  # it is loaded wherever there is a frame
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return _from_frame(data, name), None
    raise ValueError(f"{name} is a {type(data).__name__}; {_remedy(data)}")


def _remedy(data: Any) -> str:
    if isinstance(data, str):
        return 'expected the data themselves, such as ifl.data.load("spiral")'
    for method in ("to_numpy", "toarray"):
        if hasattr(data, method):
            return f"expected a tensor (examples, ...): call its {method}()"
    if isinstance(data, IterableDataset) or hasattr(data, "__next__"):
        return "it has no length: stack its examples first, torch.stack(list(data))"
    return "expected a tensor (examples, ...) or a torch Dataset with a length"


def _has_length(data: Any) -> bool:
    try:
        return len(data) >= 0
    except TypeError:  # a Dataset whose parts have none
        return False


def _dataset_of(loader: DataLoader, name: str) -> Any:
    """The examples that a loader would go through."""
    sampler = loader.sampler
    if isinstance(loader.dataset, IterableDataset):
        return loader.dataset
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(loader.dataset, [int(i) for i in sampler.indices])
    if isinstance(sampler, (SequentialSampler, RandomSampler, DistributedSampler)):
        return loader.dataset
    raise ValueError(
        f"{name} is a DataLoader with a {type(sampler).__name__}, whose choice of examples cannot be "
        "followed; give a Dataset of the examples to train on"
    )


def _from_list(data: Sequence, name: str) -> tuple[Tensor | np.ndarray, Any]:
    if isinstance(data, tuple) and len(data) == 2 and all(_is_array(part) for part in data):
        raise ValueError(
            f"{name} is a tuple of two arrays; for examples and labels give "
            "ifl.data.TensorData(x, labels=y)"
        )
    if len(data) == 0 or _is_array(data[0]) or _is_pair(data[0]):
        return _from_items(data, name)
    try:
        return np.asarray(data), None
    except (TypeError, ValueError) as error:
        raise ValueError(f"the examples of {name} do not make one array: {_why(error)}") from error


def _from_items(items: Any, name: str) -> tuple[Tensor, Any]:
    """Stack the items of what has a length and an index; each is x or (x, y)."""
    if len(items) == 0:
        raise ValueError(f"{name} is empty: the {type(items).__name__} has length 0")
    examples, labels = [], []
    try:
        for i in range(len(items)):
            x, y = _example_and_label(items[i])
            examples.append(torch.as_tensor(x))
            labels.append(y)
        stacked = torch.stack(examples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the examples of {name} do not make one tensor: {_why(error)}; expected items x or (x, y), "
            "every x a tensor of one shape"
        ) from error
    if all(y is None for y in labels):
        return stacked, None
    if without := sum(y is None for y in labels):
        raise ValueError(f"{without} of the {len(labels)} items of {name} have no label")
    return stacked, [y.item() if _is_array(y) and y.ndim == 0 else y for y in labels]


def _example_and_label(item: Any) -> tuple[Any, Any]:
    if _is_pair(item):
        return item[0], item[1]
    if isinstance(item, tuple) and any(_is_array(part) and part.ndim > 0 for part in item):
        if len(item) != 1:
            raise ValueError(f"an item has {len(item)} parts")
        return item[0], None
    return item, None


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _is_pair(item: Any) -> bool:
    """Whether an item is (x, y): two parts, the first of them an example rather than a number."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        return False
    x, y = item
    if isinstance(x, (list, tuple)):
        return not isinstance(y, (list, tuple))  # else a row of a nested list
    return _is_array(x) and x.ndim > 0


def _from_frame(frame: Any, name: str) -> np.ndarray:
    """The columns of a pandas frame as float64 (B, columns)."""
    for column, kind in zip(frame.columns, frame.dtypes):
        if getattr(kind, "kind", "O") not in "iuf":
            raise ValueError(
                f"column {column!r} of {name} has type {kind}; expected numbers: encode or drop it"
            )
    for column, gaps in zip(frame.columns, frame.isna().sum()):
        if gaps:
            raise ValueError(
                f"column {column!r} of {name} has {gaps} missing values; fill or drop them first"
            )
    return frame.to_numpy(dtype=np.float64)


def _why(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
