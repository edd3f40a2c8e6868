"""What surrounds a step: precision, threads, and a line on the hardware."""

from __future__ import annotations

import platform
from contextlib import nullcontext

import torch

#: Below so many multiplications a thread, more threads lose more by waiting for each other than they win: measured by
#: benchmarks/speed.py, part threads.
WORK_PER_THREAD = 1 << 22


def autocast(device: torch.device, precision: str):
    """The context in which a loss is computed: bfloat16 for matrix products and convolutions, or float32 throughout."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def hardware(device: torch.device) -> str:
    """One line on what runs the arithmetic."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


class Threads:
    """So many CPU threads within a ``with`` block, 0 for as many as ``work`` multiplications a step can keep busy;
    never more than there were."""

    def __init__(self, number: int, work: int):
        self.before = torch.get_num_threads()
        self.number = min(self.before, number or max(1, work // WORK_PER_THREAD))

    def __enter__(self) -> None:
        torch.set_num_threads(self.number)

    def __exit__(self, *_) -> None:
        torch.set_num_threads(self.before)
