"""What users bring as data: arrays, lists, frames, torch data sets and loaders, found and checked.

Every error is one line: what is wrong, what was expected, what to do.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from ..registry import first_line
from .mapped import is_large, row_blocks, spaced_rows


def unpack(data: Any, name: str = "data") -> tuple[Tensor | np.ndarray, Any]:
    """Find the values, and the labels or None, in what a user brings; neither is checked yet.

    Args:
        data: What ``as_dataset`` takes, but for a DataLoader.
        name: What errors call the data.

    Returns:
        A tensor or an array, and labels in any form.

    Raises:
        ValueError: For anything that ``as_dataset`` does not take.
    """
    if _is_array(data) and not isinstance(data, np.ma.MaskedArray):  # its mask would be lost
        return data, None
    if type(data) is TensorDataset and len(data.tensors) <= 2:  # not a subclass with its own items
        return data.tensors[0], (data.tensors[1] if len(data.tensors) == 2 else None)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        if hasattr(data, "__len__"):
            return _from_items(data, name)
    if isinstance(data, (list, tuple)):
        return _from_list(data, name)
    pandas = sys.modules.get("pandas")  # it is loaded wherever there is a frame
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return _from_frame(data, name), None
    hint = '; for a set by its name, ifl.data.load("spiral")' if isinstance(data, str) else ""
    hint = "; the samples are its .x" if type(data).__name__ == "SampleResult" else hint
    raise ValueError(
        f"{name} is a {type(data).__name__}; expected a tensor or an array (examples, ...), or a "
        f"torch Dataset with a length{hint}"
    )


def _from_list(data: Sequence, name: str) -> tuple[Tensor | np.ndarray, Any]:
    tuple_of_arrays = isinstance(data, tuple) and all(_is_array(part) for part in data)
    if tuple_of_arrays and len(data) == 2:
        raise ValueError(
            f"{name} is a tuple of two arrays; for examples and labels give "
            "ifl.data.TensorData(x, labels=y)"
        )
    if tuple_of_arrays and any(part.ndim > 1 for part in data):
        raise ValueError(
            f"{name} is a tuple of {len(data)} arrays; expected one array (examples, ...), or "
            "ifl.data.TensorData(x, labels=y, noise=z)"
        )
    if not data or _is_array(data[0]) or _has_parts(data[0]):
        return _from_items(data, name)
    try:
        return np.asarray(data), None
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the examples of {name} do not make one array: {first_line(error)}"
        ) from error


def _from_items(items: Any, name: str) -> tuple[Tensor, Any]:
    """Stack the items of what has a length and an index; each is x or (x, y)."""
    if len(items) == 0:
        raise ValueError(f"{name} is empty: the {type(items).__name__} has length 0")
    examples: list[Tensor] = []
    labels: list[Any] = []
    try:
        for i in range(len(items)):
            try:
                item = items[i]
            except Exception as error:
                raise ValueError(
                    f"item {i} cannot be read, {type(error).__name__}: {error}"
                ) from error
            x, *rest = item if _has_parts(item) else (item,)
            if len(rest) > 1:
                raise ValueError(f"an item has {len(item)} parts")
            examples.append(torch.as_tensor(x))
            labels += rest
        stacked = torch.stack(examples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the examples of {name} do not make one tensor: {first_line(error)}; expected items x or "
            "(x, y), every x a tensor of one shape"
        ) from error
    return stacked, labels or None


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _has_parts(item: Any) -> bool:
    """Whether an item is (x,) or (x, y), and not a row of numbers."""
    return (
        isinstance(item, tuple) and item != () and isinstance(item[0], (Tensor, np.ndarray, list))
    )


def _from_frame(frame: Any, name: str) -> np.ndarray:
    """The columns of a pandas frame as float64 (B, columns), NaN where a value is missing."""
    for column, kind in zip(frame.columns, frame.dtypes):
        if getattr(kind, "kind", "O") not in "iuf":
            raise ValueError(
                f"column {column!r} of {name} has type {kind}; expected numbers: encode or drop it"
            )
    return frame.to_numpy(dtype=np.float64, na_value=np.nan)


def checked_floats(values: Any, name: str) -> Tensor:
    """Check that values are finite floats (B, ...), also once they are float32.

    Of a mapped file beyond 256 MB, 4,096 evenly spaced rows are checked.

    Args:
        values: A tensor or an array.
        name: What errors call it.

    Returns:
        A tensor without a gradient, of the float type of ``values``.

    Raises:
        ValueError: With one line that says what is wrong and what to do.
    """
    tensor = _from_numpy(values, name) if isinstance(values, np.ndarray) else values
    if tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided:
        kind = "meta" if tensor.is_meta else "nested" if tensor.is_nested else tensor.layout
        raise ValueError(
            f"{name} is a tensor of another kind ({kind}); expected a dense one (examples, ...) with "
            "values, such as x.to_dense() of a sparse one"
        )
    if tensor.is_complex():
        raise ValueError(
            f"{name} has type {tensor.dtype}; expected real floats, such as torch.view_as_real(x)"
        )
    if not tensor.is_floating_point():
        raise ValueError(
            f"{name} has type {tensor.dtype}; expected floats of about unit size, "
            "for pictures x.float() / 255 * 2 - 1"
        )
    if tensor.ndim < 2:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; expected rank 2 or more, (examples, ...); for "
            "one number an example, x[:, None]"
        )
    if tensor.numel() == 0:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} is empty")
    mapped = values if isinstance(values, np.memmap) else None
    if mapped is not None and is_large(tensor):
        blocks: Iterator[Tensor] = iter([spaced_rows(tensor, mapped=mapped)])
    else:
        blocks = row_blocks(tensor, mapped)
    bad = sum(int((~torch.isfinite(block.float())).sum()) for block in blocks)
    if bad:
        raise ValueError(f"{name} has {bad} NaN or infinite values (in float32); remove them first")
    return tensor.detach()


def _from_numpy(array: np.ndarray, name: str) -> Tensor:
    with warnings.catch_warnings():
        # torch warns of arrays that are read-only; nothing here writes
        warnings.simplefilter("ignore", UserWarning)
        try:
            return torch.from_numpy(np.ascontiguousarray(array))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} has type {array.dtype}; expected an array of floats: x.astype(np.float32)"
            ) from error


def checked_labels(labels: Any, n: int, name: str) -> Tensor:
    """Check that labels are classes.

    Args:
        labels: Whole numbers (n,) from 0 of any integer type, in a tensor, an array or a list.
        n: Number of examples.
        name: What errors call the data.

    Returns:
        The labels, int64.

    Raises:
        ValueError: With one line that says what is wrong and what to do.
    """
    try:
        found = labels if isinstance(labels, Tensor) else torch.from_numpy(np.array(labels))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: the labels are not whole numbers from 0: {first_line(error)}"
        ) from error
    kind = found.dtype
    if kind.is_complex or kind.is_floating_point and bool((found != found.round()).any()):
        raise ValueError(
            f"{name}: labels must be whole numbers from 0, got {kind} with fractions or NaN; for "
            "regression targets give x alone"
        )
    if kind == torch.bool or kind.is_floating_point:
        raise ValueError(
            f"{name}: labels have type {kind}; expected whole numbers from 0, such as labels.long()"
        )
    if found.shape != (n,):
        raise ValueError(
            f"{name}: {n} examples but labels of shape {tuple(found.shape)}; expected ({n},), a class "
            "for each example"
        )
    found = found.detach().long()
    if int(found.min()) < 0:
        raise ValueError(f"{name}: labels must count from 0, the smallest is {int(found.min())}")
    return found
