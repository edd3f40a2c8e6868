"""What surrounds the steps of a run: precision, CPU threads, random numbers, and a line on the hardware."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

#: Multiplications in a step that keep one CPU thread busy. With fewer, more threads lose more by
#: waiting for each other than they win (measured by ``experiments/speed.py``, part threads).
WORK_PER_THREAD = 1 << 22


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context in which a loss is computed.

    Args:
        device: Device of the model.
        precision: "bfloat16" for matrix products and convolutions in bfloat16, else float32 throughout.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def hardware(device: torch.device) -> str:
    """Return one line on what runs the arithmetic."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


class Threads:
    """Limit the CPU threads of torch within a ``with`` block; never more than there were.

    Args:
        number: Threads, or 0 for as many as ``work`` keeps busy.
        work: Multiplications in a step.
    """

    def __init__(self, number: int, work: int) -> None:
        self.before = torch.get_num_threads()
        self.number = min(self.before, number or max(1, work // WORK_PER_THREAD))

    def __enter__(self) -> None:
        torch.set_num_threads(self.number)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


@contextmanager
def own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators within a ``with`` block, and give the caller's state back after it.

    Dropout, and any other layer that draws, takes its numbers from these generators. That of the CPU
    is seeded, and that of ``device`` if it is a CUDA device, which also becomes the current one.

    Args:
        seed: Seed of the generators.
        device: Device of the run.
    """
    cuda = device.type == "cuda"
    with (
        torch.cuda.device(device) if cuda else nullcontext(),
        torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []),
    ):
        torch.default_generator.manual_seed(
            seed
        )  # torch.manual_seed would seed every other device too
        if cuda:
            torch.cuda.manual_seed(seed)
        yield


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the generators that ``own_random_numbers`` seeds, uint8 (n,) each."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Take back what ``random_state`` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
