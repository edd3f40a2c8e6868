"""What surrounds the steps of a run: precision, threads, random numbers, a line on the hardware."""

from __future__ import annotations

import platform
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
            throughout.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


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
