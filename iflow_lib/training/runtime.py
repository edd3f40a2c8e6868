"""What surrounds the steps of a run: precision, threads, random numbers, a line on the hardware."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

#: Multiplications in a step that keep one CPU thread busy. With fewer, more threads lose more by
#: waiting for each other than they win (measured by ``experiments/speed.py``, part threads).
WORK_PER_THREAD = 1 << 22


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context in which a loss is computed.

    Args:
        device: Device of the model.
        precision: "bfloat16" for matrix products and convolutions in bfloat16, else float32
            throughout (see ``float32_products``).
    """
    if precision != "bfloat16":
        return nullcontext()
    # without its cache: in torch of 2025 and before, a weight cast under no_grad has no gradient later
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@contextmanager
def float32_products(device: torch.device, precision: str) -> Iterator[None]:
    """Say how CUDA computes products and convolutions of float32, within a ``with`` block.

    PyTorch's own setting is float32 for products, and TF32 for convolutions.

    Args:
        device: Device of the run. Elsewhere than on CUDA nothing is set, and "tf32" is warned of.
        precision: "tf32" for TF32, with 10 bits of mantissa; else float32.
    """
    if device.type != "cuda":
        if precision == "tf32":
            warnings.warn(
                f'precision="tf32" is of CUDA: on {device} it is float32',
                RuntimeWarning,
                stacklevel=5,
            )
        yield
        return
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        before = products.allow_tf32, convolutions.allow_tf32
    except RuntimeError:  # torch cannot say it in these words, and could not put it back
        warnings.warn(
            "torch's fp32_precision was set: products and convolutions of float32 stay as it says, whatever "
            "precision says",
            RuntimeWarning,
            stacklevel=5,
        )
        yield
        return
    products.allow_tf32 = convolutions.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def source_of(device: torch.device) -> torch.device:
    """Return where the random numbers of a run are drawn: on a CUDA device, so that none is copied.

    mps cannot draw all the noise laws.
    """
    return device if device.type == "cuda" else torch.device("cpu")


def hardware(device: torch.device) -> str:
    """Return one line on what runs the arithmetic."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


@contextmanager
def limited_threads(number: int, work: int) -> Iterator[None]:
    """Limit the CPU threads of torch within a ``with`` block; never more than there were.

    Args:
        number: Threads, or 0 for as many as ``work`` keeps busy.
        work: Multiplications in a step.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, number or max(1, work // WORK_PER_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators within a ``with`` block; after it the caller's state is back.

    Dropout, and any other layer that draws, takes its numbers from these generators. That of the
    CPU is seeded, and that of ``device`` if it is a CUDA device, which also becomes the current
    one.

    Args:
        seed: Seed of the generators.
        device: Device of the run.
    """
    cuda = device.type == "cuda"
    with (
        torch.cuda.device(device) if cuda else nullcontext(),
        torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []),
    ):
        # torch.manual_seed would seed every other device too
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield
