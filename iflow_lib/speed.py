"""What makes a step fast: compiling, with a way back; bfloat16; a sensible number of threads."""
from __future__ import annotations

import functools
import importlib
import platform
import warnings
from contextlib import nullcontext

import torch

#: Below so many multiplications a thread, more threads lose more by waiting for each other than they win: measured by
#: benchmarks/speed.py, part threads.
WORK_PER_THREAD = 1 << 22
#: torch.compile's name for CUDA graphs
GRAPHS = {"mode": "reduce-overhead"}


class Compiled:
    """``function``, which returns a tensor or a tuple of tensors and None, under ``torch.compile``: compiled at its first
    call; where that fails, ``function`` itself from then on, with a warning of one line. options: of ``torch.compile``."""

    def __init__(self, function, **options):
        self.function, self.fast = function, torch.compile(function, **options)
        self.graphs = options.get("mode") == GRAPHS["mode"]

    def __call__(self, *args, **kwargs):
        if self.fast is None:
            return self.function(*args, **kwargs)
        try:
            if not self.graphs:
                return self.fast(*args, **kwargs)
            torch.compiler.cudagraph_mark_step_begin()
            out = self.fast(*args, **kwargs)  # in the graph's own memory, which the next call writes over
            return _copy(out) if torch.is_tensor(out) else tuple(map(_copy, out))
        except Exception as error:  # whatever a compiler says; if the fault is the function's own, it says so once more
            result = self.function(*args, **kwargs)
            self.fast, why = None, (str(error).strip().splitlines() or [""])[0][:200]
            warnings.warn(f"going on without torch.compile, which failed: {type(error).__name__}: {why}", RuntimeWarning,
                          stacklevel=2)
            return result


def _copy(value):
    return value.clone() if torch.is_tensor(value) else value


@functools.cache
def load_jvp_rules() -> None:
    """torch loads its rules for forward mode at their first use, with a warning about itself that no user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            importlib.import_module("torch._decomp.decompositions_for_jvp")
        except ImportError:
            pass  # another version keeps them elsewhere: then it warns


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
