"""What users bring as data: arrays, lists, frames, torch data sets and loaders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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

from .checks import first_line


def behind_loader(data: Any, name: str = "data") -> Any:
    """Return the data set whose examples a DataLoader goes through; anything else as it is.

    Args:
        data: A DataLoader, or any other data.
        name: What errors call the data.

    Returns:
        The data set, or the part of it that the loader's sampler chooses from.

    Raises:
        ValueError: If the loader has a sampler whose choice cannot be followed.
    """
    if not isinstance(data, DataLoader):
        return data
    sampler = data.sampler
    if isinstance(data.dataset, IterableDataset):
        return data.dataset  # refused later, as without a loader
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(data.dataset, [int(i) for i in sampler.indices])
    if isinstance(sampler, (SequentialSampler, RandomSampler, DistributedSampler)):
        return data.dataset
    raise ValueError(
        f"{name} is a DataLoader with a {type(sampler).__name__}, whose choice of examples cannot be "
        "followed; give a Dataset of the examples to train on"
    )


def unpack(data: Any, name: str = "data") -> tuple[Tensor | np.ndarray, Any]:
    """Find the values, and the labels or None, in what a user brings; neither is checked yet.

    Args:
        data: What ``as_dataset`` takes, but for a DataLoader (see ``behind_loader``).
        name: What errors call the data.

    Returns:
        A tensor or an array, and labels in any form.

    Raises:
        ValueError: For anything that ``as_dataset`` does not take.
    """
    if isinstance(data, (Tensor, np.ndarray)):
        return data, None
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
        raise ValueError(
            f"the examples of {name} do not make one array: {first_line(error)}"
        ) from error


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
            f"the examples of {name} do not make one tensor: {first_line(error)}; expected items x or (x, y), "
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
