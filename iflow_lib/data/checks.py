"""Checks of values and labels. Every error is one line: what is wrong, what was expected, what to do."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .mapped import is_large, row_blocks, spaced_rows


def checked_floats(values: Any, name: str) -> Tensor:
    """Check that values are finite floats (B, ...).

    Of a mapped file beyond 256 MB, 4,096 evenly spaced rows are checked.

    Args:
        values: A tensor or an array.
        name: What errors call it.

    Returns:
        A dense tensor without a gradient, of the float type of ``values``.

    Raises:
        ValueError: With one line that says what is wrong and what to do.
    """
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
    if mapped is not None and is_large(tensor):
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


def as_float32(tensor: Tensor, name: str) -> Tensor:
    """Cast checked floats to float32.

    Args:
        tensor: What ``checked_floats`` returned.
        name: What errors call it.

    Returns:
        The tensor, float32.

    Raises:
        ValueError: If a value is beyond what float32 can hold.
    """
    found = tensor.float()
    if tensor.dtype == torch.float64 and not bool(torch.isfinite(found).all()):
        raise ValueError(
            f"{name} has values up to {float(tensor.abs().max()):.3g}, beyond what float32 can hold; "
            "divide them first"
        )
    return found


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
        raise ValueError(
            f"{name}: the labels do not make one array: {first_line(error)}"
        ) from error
    if array.dtype.kind not in "biufc":
        raise ValueError(
            f"{name}: labels have type {array.dtype}; expected whole numbers from 0, one for each class"
        )
    if array.dtype.kind in "iu":
        array = array.astype(np.int64)
    return torch.as_tensor(np.ascontiguousarray(array) if array.ndim else array)


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
