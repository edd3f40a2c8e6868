"""Large data, in memory or in a mapped file: going through them without holding them all."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

#: Data up to this size are read as a whole for checks and digests; of larger ones only some rows.
FULL_READ_BYTES = 256 << 20
#: How many evenly spaced rows stand for data that are too large to be read as a whole.
SPACED_ROWS = 4096


def release(array: Any) -> None:
    """Give the memory of a large memory-mapped array back to the system.

    Nothing is lost: the system reads the file again where it is needed. Other arrays are left
    alone. Without it, every page ever touched would count as memory of this process.

    Args:
        array: An array, mapped or not, or None.
    """
    if _mapped_and_large(array):
        array._mmap.madvise(mmap.MADV_DONTNEED)


def portions(n: int, mapped: Any) -> Iterator[slice]:
    """Split n rows, in any order, of an array that is released after each part if it is mapped.

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
    """Yield the rows of x in blocks of about a million numbers, each released after its use.

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


def is_large(x: Tensor) -> bool:
    """Whether x is too large to be read as a whole for checks and digests."""
    return x.numel() * x.element_size() > FULL_READ_BYTES
